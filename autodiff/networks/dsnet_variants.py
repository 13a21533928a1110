"""What DSNet is compared with: the same network with something else in the place of its sampling."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import functions as F
from ..layers import CGDS, Conv2d, DeformConv, Module
from ..layers.deform import normalised, raised
from ..layers.module import generator
from .dsnet import DSNet

SAMPLINGS = (
    "CGDS",
    "plain",
    "deformable v1",
    "deformable v2",
    "image filter",
    "deformable v2 on ASPP",
    "non-local guide",
)


class GuidedHead(Module):
    """`CGDS` with something else in the place of its sampling: M = conv(low), S = sample(M, G), and G.

    Parameters
    ----------
    sample : Module
        ``sample(M)``, or ``sample(M, G)`` if it is `guided`; `channels` in and out.
    low_channels, channels, guide_channels : int
        Of the low-level features, of M and of S, and of the guide.
    guided : bool
        Whether `sample` sees the guide.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Conv2d
    >>> from autodiff.networks import GuidedHead
    >>> head = GuidedHead(Conv2d(4, 4, 3, rng=0), 8, 4, 6, rng=1)
    >>> head(np.zeros((1, 8, 10, 12), np.float32), np.zeros((1, 6, 5, 6), np.float32)).shape
    (1, 14, 10, 12)
    """

    def __init__(
        self,
        sample: Module,
        low_channels: int,
        channels: int,
        guide_channels: int,
        *,
        guided: bool = False,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        self.modify = Conv2d(low_channels, channels, 3, rng=rng, dtype=dtype)
        self.sample, self.guided = sample, guided
        self.out_channels = 2 * channels + guide_channels

    def forward(self, low: Any, guide: Any) -> Any:
        """Join M, S and G.

        Parameters
        ----------
        low : array, (N, low_channels, H, W)
            The low-level features, in the dtype of the parameters.
        guide : array, (N, guide_channels, h, w)
            The guide, of the size of `low` or coarser.

        Returns
        -------
        Variable, (N, 2*channels + guide_channels, H, W)
            M, S and G, one after the other.
        """
        modified = self.modify(low)
        guide = raised(guide, tuple(modified.shape[2:]))
        sampled = self.sample(modified, guide) if self.guided else self.sample(modified)
        return F.concatenate([modified, sampled, guide], axis=1)


class ImageFilter(Module):
    """A filter for each image, made from the guide: what DSNet's authors compare it with as "DF".

    A convolution with batch normalisation and ReLU, adaptive average pooling to the size of the kernel and a
    1 x 1 convolution make one kernel for each image and channel; every position is filtered by it.

    Parameters
    ----------
    channels, guide_channels : int
        Of what is filtered, and of the guide.
    kernel_size : int
        Of the filter; odd.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import ImageFilter
    >>> x, guide = np.zeros((2, 4, 10, 12), np.float32), np.zeros((2, 6, 10, 12), np.float32)
    >>> ImageFilter(4, 6, rng=0)(x, guide).shape
    (2, 4, 10, 12)
    """

    def __init__(
        self,
        channels: int,
        guide_channels: int,
        kernel_size: int = 3,
        *,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        options: dict[str, Any] = {"rng": generator(rng), "dtype": dtype}
        self.look = normalised(guide_channels, guide_channels, 3, **options)
        self.generate = Conv2d(guide_channels, channels, 1, **options)
        self.kernel_size = kernel_size

    def kernels(self, guide: Any) -> Any:
        """The kernels of each image.

        Parameters
        ----------
        guide : array, (N, guide_channels, h, w)
            What they are made from, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, channels, k, k)
            One for each image and channel.
        """
        return self.generate(F.adaptive_avg_pool2d(self.look(guide), self.kernel_size))

    def forward(self, x: Any, guide: Any) -> Any:
        """Filter each channel by the kernel of its image.

        Parameters
        ----------
        x : array, (N, channels, H, W)
            What is filtered, in the dtype of the parameters.
        guide : array, (N, guide_channels, h, w)
            What the kernels are made from.

        Returns
        -------
        Variable, (N, channels, H, W)
            Of the size of `x`; the border is zero.
        """
        k, (n, c, *size) = self.kernel_size, x.shape
        kernels = self.kernels(guide).reshape((n * c, 1, k, k))
        # One image whose channels are those of all: each has a kernel of its own.
        y = F.conv2d(x.reshape((1, n * c, *size)), kernels, padding=k // 2, groups=n * c)
        return y.reshape((n, c, *size))

    def multiply_adds(self, x: Any, output: Any) -> int:
        """Of the filter: one per tap."""
        return self.kernel_size**2 * output.size


class NonLocal(Module):
    """Every position sees all others, the more the more they are alike (Wang et al., CVPR 2018).

    ``y = x + W softmax(q(x)^T k(x)) v(x)``, over positions, where q, k and v have half the channels. W begins
    at zero, and so y as x. It costs a multiplication for each pair of positions.

    Parameters
    ----------
    channels : int
        In and out.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import NonLocal
    >>> x = np.random.default_rng(0).standard_normal((2, 6, 4, 5)).astype(np.float32)
    >>> bool((NonLocal(6, rng=0)(x).data == x).all())
    True
    """

    def __init__(self, channels: int, *, rng: Any = None, dtype: Any = np.float32) -> None:
        options: dict[str, Any] = {"rng": generator(rng), "dtype": dtype}
        half = max(channels // 2, 1)
        self.query = Conv2d(channels, half, 1, **options)
        self.key = Conv2d(channels, half, 1, bias=False, **options)  # all keys alike more: nothing changes
        self.value = Conv2d(channels, half, 1, **options)
        self.expand = Conv2d(half, channels, 1, **options)
        for parameter in self.expand.parameters():
            parameter.data[...] = 0

    def forward(self, x: Any) -> Any:
        """Add to each position what it sees.

        Parameters
        ----------
        x : array, (N, channels, H, W)
            The map, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, channels, H, W)
            The sum.
        """
        n, _, h, w = x.shape
        query, key, value = (
            layer(x).reshape((n, layer.weight.shape[0], h * w))
            for layer in (self.query, self.key, self.value)
        )
        weights = F.softmax(F.swapaxes(query, 1, 2) @ key, axis=2)
        seen = (value @ F.swapaxes(weights, 1, 2)).reshape((n, -1, h, w))
        return x + self.expand(seen)

    def multiply_adds(self, x: Any, output: Any) -> int:
        """Two products for each pair of positions and half the channels."""
        n, _, h, w = x.shape
        return 2 * n * (h * w) ** 2 * self.query.weight.shape[0]


def dsnet_variant(
    sampling: str,
    backbone: Any,
    classes: int,
    *,
    channels: int | None = None,
    low_stage: int = 1,
    width: int = 256,
    rng: Any = None,
    dtype: Any = np.float32,
    **options: Any,
) -> DSNet:
    """A DSNet, or what its authors compare it with.

    Parameters
    ----------
    sampling : str
        How S is made from M = conv(low) and the guide G; M, S and G are then joined. "CGDS" is DSNet.
        "plain": an ordinary convolution of M. "deformable v1" and "deformable v2": at points that M itself
        predicts (Dai et al., ICCV 2017; Zhu et al., CVPR 2019). "image filter": `ImageFilter`, of G.
        "deformable v2 on ASPP": the guide goes through a deformable convolution, and S is plain.
        "non-local guide": the guide of CGDS goes through `NonLocal`.
    backbone, classes
        As for `DSNet`.
    channels : int, optional
        Of M and S; `width` by default.
    low_stage, width
        As for `DSNet`.
    rng, dtype
        As for `Conv2d`.
    **options
        As for `DSNet`.

    Returns
    -------
    DSNet
        x (N, 3, H, W) -> (N, classes, H, W).

    Raises
    ------
    ValueError
        If `sampling` is none of these.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import SmallBackbone, dsnet_variant
    >>> backbone = SmallBackbone((4, 8), rng=0)
    >>> network = dsnet_variant("image filter", backbone, 5, width=6, dilations=(1,), rng=1)
    >>> network(np.zeros((2, 3, 16, 24), np.float32)).shape
    (2, 5, 16, 24)
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"dsnet_variant: sampling must be one of {', '.join(SAMPLINGS)}, got {sampling!r}")
    rng, own = generator(rng), channels or width
    drawn: dict[str, Any] = {"rng": rng, "dtype": dtype}
    low = backbone.channels[low_stage]
    head: Module
    refine: Module | None = None
    if sampling in ("CGDS", "non-local guide"):
        head = CGDS(low, width, own, **drawn)
    else:
        samples: dict[str, Callable[[], Module]] = {
            "deformable v1": lambda: DeformConv(own, own, **drawn),
            "deformable v2": lambda: DeformConv(own, own, modulated=True, **drawn),
            "image filter": lambda: ImageFilter(own, width, **drawn),
        }
        sample = samples.get(sampling, lambda: Conv2d(own, own, 3, **drawn))()
        head = GuidedHead(sample, low, own, width, guided=sampling == "image filter", **drawn)
    if sampling == "non-local guide":
        refine = NonLocal(width, **drawn)
    if sampling == "deformable v2 on ASPP":
        refine = DeformConv(width, width, modulated=True, **drawn)
    return DSNet(
        backbone, classes, low_stage=low_stage, width=width, head=head, refine=refine, **drawn, **options
    )
