"""Layers that sample at learned points: deformable convolution and CGDS; ASPP, the guide of CGDS."""

import math
from typing import Any

import numpy as np

from .. import functions as F
from ..functions._arguments import (
    arguments,
    choice,
    flag,
    floating,
    generator,
    integer,
    layer_input,
    optional,
    pair,
)
from ..functions.borders import MODES
from .basic import Conv2d
from .module import Module, Sequential
from .normalization import BatchNorm2d
from .stateless import ReLU


class DeformConv(Conv2d):
    """Deformable convolution, v1 (Dai et al., ICCV 2017) or modulated, v2 (Zhu et al., CVPR 2019).

    A second convolution, `points`, predicts where each tap reads: at first all zero, so that the layer begins
    as an ordinary convolution (v2: as half of one). `autodiff.functions.deform_conv2d` does the rest.

    Parameters
    ----------
    in_channels, out_channels : int
        C and O.
    kernel_size : int or (y, x)
        Size of the kernels. `points` has the same size, stride and dilation.
    modulated : bool
        Whether each point has a weight too, between 0 and 1 (v2).
    stride : int or (y, x)
        Step between outputs.
    padding : int or (y, x), optional
        Pixels added on each side. None means "same" and needs odd kernels.
    dilation : int or (y, x)
        Step between taps of the regular grid.
    groups : int
        Divides C and O.
    offset_groups : int
        Groups of channels with points of their own; divides C.
    guide_channels : int, optional
        If given, the points are predicted from another map, a guide with so many channels, instead of x.
    bias : bool
        Whether to add a bias.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What the points read outside of x, as for `dynarray.deform_conv2d`. The convolution inside reads
        zeros.
    rng, dtype
        As for `Conv2d`.

    Raises
    ------
    ValueError
        If `groups` does not divide both numbers of channels, `offset_groups` does not divide C, or an even
        kernel comes without `padding`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> from autodiff.layers import DeformConv
    >>> layer = DeformConv(4, 8, rng=0)
    >>> x = np.random.default_rng(1).standard_normal((1, 4, 6, 5)).astype(np.float32)
    >>> ordinary = F.conv2d(x, layer.weight, layer.bias, padding=1)
    >>> float(abs(layer(x).data - ordinary.data).max()) < 1e-5
    True
    """

    @arguments(
        in_channels=integer(1),
        out_channels=integer(1),
        kernel_size=pair(1),
        modulated=flag,
        stride=pair(1),
        padding=optional(pair()),
        dilation=pair(1),
        groups=integer(1),
        offset_groups=integer(1),
        guide_channels=optional(integer(1)),
        bias=flag,
        border=choice(*MODES),
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any = 3,
        *,
        modulated: bool = False,
        stride: Any = 1,
        padding: Any = None,
        dilation: Any = 1,
        groups: int = 1,
        offset_groups: int = 1,
        guide_channels: int | None = None,
        bias: bool = True,
        border: str = "constant",
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        if in_channels % offset_groups:
            raise ValueError(f"DeformConv: offset_groups {offset_groups} must divide {in_channels} channels")
        grid: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
        options: dict[str, Any] = {"rng": rng, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, groups=groups, bias=bias, **grid, **options)
        self.kernel_size, self.border = kernel_size, border
        self.offset_groups, self.modulated, self.guided = offset_groups, modulated, guide_channels is not None
        source = in_channels if guide_channels is None else guide_channels
        numbers = (3 if modulated else 2) * offset_groups * math.prod(self.kernel_size)
        self.points = Conv2d(source, numbers, kernel_size, **grid, **options)
        for parameter in self.points.parameters():
            parameter.data[...] = 0

    def predict(self, source: Any) -> tuple[Any, Any]:
        """Where each tap reads, and how much it weighs there.

        Parameters
        ----------
        source : array, (N, C or guide_channels, H, W)
            What the points are predicted from, in the dtype of the parameters.

        Returns
        -------
        offset : Variable, (N, D, kh, kw, 2, Ho, Wo)
            Pixels (y, x) from the regular grid, for D groups of channels.
        mask : Variable, (N, D, kh, kw, Ho, Wo), or None
            Weights from 0 to 1, if the layer is `modulated`.
        """
        found = self.points(source)
        n, channels, *size = found.shape
        taps = (n, self.offset_groups, *self.kernel_size)
        split = channels * 2 // 3 if self.modulated else channels
        offset = found[:, :split].reshape((*taps, 2, *size))
        return offset, F.sigmoid(found[:, split:].reshape((*taps, *size))) if self.modulated else None

    def forward(self, x: Any, guide: Any = None) -> Any:
        """Convolve images at the predicted points.

        Parameters
        ----------
        x : array, (N, C, H, W)
            The images, in the dtype of the parameters.
        guide : array, (N, guide_channels, H, W), optional
            What the points are predicted from, for a layer with `guide_channels`.

        Returns
        -------
        Variable, (N, O, Ho, Wo)
            What the kernels give, of sizes as for `Conv2d`.

        Raises
        ------
        ValueError
            If a guide is missing, not expected, or of another size than `x`.
        """
        if (guide is not None) != self.guided:
            raise ValueError(
                f"DeformConv: a guide must be given exactly with guide_channels, got {type(guide).__name__}"
            )
        x = layer_input(self, "x", x, self.weight)
        guide = None if guide is None else layer_input(self, "guide", guide, self.weight)
        if guide is not None and tuple(guide.shape[2:]) != tuple(x.shape[2:]):
            raise ValueError(
                f"DeformConv: guide must have the height and width of x, {tuple(x.shape[2:])}, "
                f"got {tuple(guide.shape)}"
            )
        offset, mask = self.predict(x if guide is None else guide)
        return F.deform_conv2d(
            x,
            offset,
            self.weight,
            mask=mask,
            bias=self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            border=self.border,
        )

    def multiply_adds(self, x: Any, output: Any) -> int:
        """One per tap and input channel of the group for each output, and four for each sampled value."""
        sampled = x.shape[1] * math.prod(self.kernel_size) * output.size // max(output.shape[1], 1)
        return super().multiply_adds(x, output) + 4 * sampled


class CGDS(Module):
    """Context guided dynamic sampling (Fu et al., AAAI 2020): high-level features say where to look.

    ``M = conv(low)``; ``G`` is the guide, interpolated to the size of M where it is coarser; a convolution of
    G gives a point for each position and tap, at first the regular grid; ``S`` is the deformable convolution
    of M at these points. The output is M, S and G, one after the other.

    Parameters
    ----------
    low_channels : int
        Of the low-level features, which have the resolution.
    guide_channels : int
        Of the guide: high-level features, which know what is where.
    out_channels : int
        Of M and of S. The output has ``2*out_channels + guide_channels``, which is `out_channels` of the
        layer.
    kernel_size : int or (y, x)
        Odd size of the kernels of all three convolutions.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What the deformable convolution reads outside of M, as in `numpy.pad`; the others read zeros.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import CGDS
    >>> layer = CGDS(4, 6, 5, rng=0)
    >>> low, guide = np.ones((1, 4, 8, 8), np.float32), np.ones((1, 6, 4, 4), np.float32)
    >>> layer(low, guide).shape, layer.out_channels
    ((1, 16, 8, 8), 16)
    """

    @arguments(
        low_channels=integer(1),
        guide_channels=integer(1),
        out_channels=integer(1),
        kernel_size=pair(1),
        border=choice(*MODES),
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        low_channels: int,
        guide_channels: int,
        out_channels: int,
        kernel_size: Any = 3,
        *,
        border: str = "constant",
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        options: dict[str, Any] = {"rng": rng, "dtype": dtype}
        self.modify = Conv2d(low_channels, out_channels, kernel_size, **options)
        options |= {"guide_channels": guide_channels, "border": border}
        self.sample = DeformConv(out_channels, out_channels, kernel_size, **options)
        self.out_channels = 2 * out_channels + guide_channels

    def forward(self, low: Any, guide: Any) -> Any:
        """Sample low-level features where the guide says.

        Parameters
        ----------
        low : array, (N, low_channels, H, W)
            The low-level features, in the dtype of the parameters.
        guide : array, (N, guide_channels, h, w)
            The guide, of the size of `low` or coarser.

        Returns
        -------
        Variable, (N, 2*out_channels + guide_channels, H, W)
            M, S and G, one after the other.
        """
        low = layer_input(self, "low", low, self.modify.weight)
        guide = layer_input(self, "guide", guide, self.modify.weight)
        modified = self.modify(low)
        guide = raised(guide, tuple(modified.shape[2:]))
        return F.concatenate([modified, self.sample(modified, guide), guide], axis=1)


def raised(guide: Any, size: tuple[int, int]) -> Any:
    """The guide (N, C, h, w) interpolated to a larger size; as it is where it has that size already.

    Raises
    ------
    ValueError
        If the guide is finer than that: interpolation would pass over pixels.
    """
    own = tuple(guide.shape[2:])
    if own == size:
        return guide
    if own[0] > size[0] or own[1] > size[1]:
        raise ValueError(f"CGDS: guide of {own} pixels must not be finer than the {size} of the features")
    return F.resize(guide, size)


def _each_pair(function: str, argument: str, value: Any) -> list[tuple[int, int]]:
    """A sequence of ints or pairs of at least 1."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"{function}: {argument} must be a sequence of ints or pairs (y, x), got {value!r}")
    return [pair(1)(function, f"{argument}[{i}]", item) for i, item in enumerate(value)]


class ASPP(Module):
    """Atrous spatial pyramid pooling (Chen et al., 2017): one map seen at several scales.

    A 1 x 1 convolution, 3 x 3 convolutions of given dilations, and the mean of the image, each normalised,
    are joined by a last 1 x 1 convolution.

    Parameters
    ----------
    in_channels, out_channels : int
        Of the input; of each branch and of the output.
    dilations : sequence of int or (y, x)
        One 3 x 3 convolution for each.
    image_pooling : bool
        Whether the mean of the image is one of the branches. In training it then needs at least two images:
        it is normalised over the batch.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import ASPP
    >>> ASPP(8, 4, dilations=(1, 2), rng=0)(np.ones((2, 8, 6, 6), np.float32)).shape
    (2, 4, 6, 6)
    """

    @arguments(
        in_channels=integer(1),
        out_channels=integer(1),
        dilations=_each_pair,
        image_pooling=flag,
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Any = (6, 12, 18),
        *,
        image_pooling: bool = True,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        options: dict[str, Any] = {"rng": rng, "dtype": dtype}
        self.branches = [normalised(in_channels, out_channels, 1, **options)]
        self.branches += [
            normalised(in_channels, out_channels, 3, dilation=dilation, **options) for dilation in dilations
        ]
        self.pooled = normalised(in_channels, out_channels, 1, **options) if image_pooling else None
        count = len(self.branches) + image_pooling
        self.project = normalised(count * out_channels, out_channels, 1, **options)

    def forward(self, x: Any) -> Any:
        """See a map at several scales.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The map, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, out_channels, H, W)
            What all branches see, joined.
        """
        x = layer_input(self, "x", x, self.project[0].weight)
        seen = [branch(x) for branch in self.branches]
        if self.pooled is not None:
            mean = self.pooled(F.global_avg_pool(x))
            seen.append(F.broadcast_to(mean, (*mean.shape[:2], *x.shape[2:])))
        return self.project(F.concatenate(seen, axis=1))


def normalised(
    in_channels: int,
    out_channels: int,
    kernel_size: Any,
    *,
    rng: Any = None,
    dtype: Any = np.float32,
    **options: Any,
) -> Sequential:
    """A convolution without bias, batch normalisation, ReLU."""
    return Sequential(
        Conv2d(in_channels, out_channels, kernel_size, bias=False, rng=rng, dtype=dtype, **options),
        BatchNorm2d(out_channels, dtype=dtype),
        ReLU(),
    )
