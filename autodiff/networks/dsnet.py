"""DSNet: segmentation whose high-level features say where to sample the low-level ones."""

from typing import Any

import numpy as np

from .. import functions as F
from ..layers import ASPP, CGDS, Bottleneck, Conv2d, Module, Sequential
from ..layers.deform import normalised
from ..layers.module import generator
from ..variable import plain
from .resnet import ResNet

LAST_STAGE = 2048  # channels of the fourth stage of a ResNet


class DSNet(Module):
    """Dynamic sampling network (Fu et al., AAAI 2020) over any backbone.

    `ASPP` of the coarsest features is the guide, `CGDS` samples finer ones by it, two convolutions make
    classes of all that, and interpolation brings them to the size of the image.

    Parameters
    ----------
    backbone : Module
        Its ``features(x)`` gives a list of maps, from fine to coarse, with ``channels`` channels each.
    classes : int
        Of the output.
    low_stage : int
        Which of the maps are the low-level features. For `DilatedResNet` the default is stage 3 of a ResNet,
        counted as its authors do (the stem is stage 1): 1/8 of the size.
    width : int
        Channels of the guide, of the sampled features, and before the classes.
    dilations : sequence of int
        Of `ASPP`.
    head : Module, optional
        What joins low-level features and guide instead of `CGDS`: ``head(low, guide)`` gives
        ``head.out_channels`` channels at the size of low.
    refine : Module, optional
        What the guide goes through behind `ASPP`; `width` channels in and out.
    guide_stage : int, optional
        Which of the maps are the guide, through a 1 x 1 convolution with normalisation and ReLU, instead of
        `ASPP` of the coarsest. It must not be finer than `low_stage`.
    auxiliary : bool
        Whether the maps before the coarsest get a classifier of their own, for training alone: see `scores`.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import DSNet, SmallBackbone
    >>> network = DSNet(SmallBackbone((8, 16, 24), rng=0), 5, width=16, dilations=(1, 2), rng=1)
    >>> network(np.zeros((2, 3, 32, 48), np.float32)).shape
    (2, 5, 32, 48)
    """

    def __init__(
        self,
        backbone: Any,
        classes: int,
        *,
        low_stage: int = 1,
        width: int = 256,
        dilations: Any = (6, 12, 18),
        head: Any = None,
        refine: Any = None,
        guide_stage: int | None = None,
        auxiliary: bool = False,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        options: dict[str, Any] = {"rng": generator(rng), "dtype": dtype}
        self.backbone, self.low_stage, self.refine = backbone, low_stage, refine
        self.guide_stage = -1 if guide_stage is None else guide_stage
        channels = backbone.channels[self.guide_stage]
        self.context: Module
        if guide_stage is None:
            self.context = ASPP(channels, width, dilations, **options)
        else:
            self.context = normalised(channels, width, 1, **options)
        self.head = head or CGDS(backbone.channels[low_stage], width, width, **options)
        self.fuse = normalised(self.head.out_channels, width, 3, **options)
        self.classify = Conv2d(width, classes, 1, **options)
        self.auxiliary = None
        if auxiliary:
            channels = backbone.channels[-2]
            self.auxiliary = Sequential(
                normalised(channels, max(channels // 4, 1), 3, **options),
                Conv2d(max(channels // 4, 1), classes, 1, **options),
            )

    def forward(self, x: Any) -> Any:
        """Find the class of each pixel.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, classes, H, W)
            Logarithms of probabilities up to a constant.
        """
        return self._classified(self.backbone.features(x), x.shape[2:])

    def scores(self, x: Any) -> list:
        """What `forward` gives, and the same from the auxiliary classifier, if there is one.

        A loss adds both up, the second with a weight below 1 (deep supervision: Zhao et al., CVPR 2017).

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        list of Variable, (N, classes, H, W)
            One or two.
        """
        features, size = self.backbone.features(x), x.shape[2:]
        found = [self._classified(features, size)]
        if self.auxiliary is not None:
            found.append(F.resize(self.auxiliary(features[-2]), size))
        return found

    def guide(self, features: list) -> Any:
        """What knows what is where.

        Parameters
        ----------
        features : list of Variable, (N, channels, h, w)
            The maps of the backbone, from fine to coarse.

        Returns
        -------
        Variable, (N, width, h, w)
            The guide, of the size of the map that it is made of.
        """
        guide = self.context(features[self.guide_stage])
        return guide if self.refine is None else self.refine(guide)

    def _classified(self, features: list, size: tuple[int, ...]) -> Any:
        joined = self.head(features[self.low_stage], self.guide(features))
        return F.resize(self.classify(self.fuse(joined)), size)


class SmallBackbone(Module):
    """A backbone for small images: stages of two 3 x 3 convolutions, each at half the size of the one before.

    Parameters
    ----------
    channels : sequence of int
        Of each stage.
    in_channels : int
        Of the image.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import SmallBackbone
    >>> network = SmallBackbone((4, 8, 16), rng=0)
    >>> [features.shape for features in network(np.zeros((2, 3, 32, 32), np.float32))]
    [(2, 4, 16, 16), (2, 8, 8, 8), (2, 16, 4, 4)]
    """

    def __init__(
        self,
        channels: Any = (16, 32, 64, 96),
        *,
        in_channels: int = 3,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        options: dict[str, Any] = {"rng": generator(rng), "dtype": dtype}
        self.channels = tuple(channels)
        self.stages = [
            Sequential(normalised(before, own, 3, stride=2, **options), normalised(own, own, 3, **options))
            for before, own in zip((in_channels, *self.channels), self.channels)
        ]

    def features(self, x: Any) -> list:
        """What the stages see.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        list of Variable, (N, channels, h, w)
            The output of each stage, at 1/2, 1/4, ... of the size of `x`.
        """
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward(self, x: Any) -> list:
        """As `features`.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images.

        Returns
        -------
        list of Variable, (N, channels, h, w)
            From fine to coarse.
        """
        return self.features(x)


class DilatedResNet(ResNet):
    """A ResNet without its classifier, whose fourth stage stays at 1/16 of the size of the image.

    Where the stride of that stage was, its later convolutions are dilated by 2: with the weights of a
    `ResNet`, each of its features reappears at every second row and column.

    Parameters
    ----------
    depths : tuple of int
        Number of blocks in each stage; (3, 4, 6, 3) is ResNet-50, and without the last number what comes
        before its dilated stage.
    in_channels : int
        Of the image.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import DilatedResNet
    >>> network = DilatedResNet((1, 1, 1, 1), rng=0).eval()
    >>> [features.shape for features in network(np.zeros((1, 3, 32, 64), np.float32))]
    [(1, 256, 8, 16), (1, 512, 4, 8), (1, 1024, 2, 4), (1, 2048, 2, 4)]
    """

    def __init__(
        self, depths: Any = (3, 4, 6, 3), *, in_channels: int = 3, rng: Any = None, dtype: Any = np.float32
    ) -> None:
        super().__init__(depths, _dilated_last, classes=0, in_channels=in_channels, rng=rng, dtype=dtype)
        del self.head

    def forward(self, x: Any) -> list:
        """As `features`.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images.

        Returns
        -------
        list of Variable, (N, channels, h, w)
            From fine to coarse.
        """
        return self.features(x)


def _dilated_last(
    in_channels: int, middle_channels: int, out_channels: int, *, stride: int, rng: Any, dtype: Any
) -> Bottleneck:
    """A bottleneck; in the last stage it has no stride, and a dilation where the stride came before it."""
    options: dict[str, Any] = {"rng": rng, "dtype": dtype}
    if out_channels != LAST_STAGE:
        return Bottleneck(in_channels, middle_channels, out_channels, stride=stride, **options)
    dilation = 1 if stride == 2 else 2
    middle = Conv2d(middle_channels, middle_channels, 3, dilation=dilation, bias=False, **options)
    return Bottleneck(in_channels, middle_channels, out_channels, middle=middle, **options)


def dsnet50(classes: int, *, rng: Any = None, dtype: Any = np.float32, **options: Any) -> DSNet:
    """DSNet over ResNet-50 at 1/16 of the size; options as for `DSNet`.

    Parameters
    ----------
    classes : int
        Of the output.
    rng : Generator or int, optional
        For the initial weights.
    dtype : dtype
        Of the parameters.
    **options
        As for `DSNet`.

    Returns
    -------
    DSNet
        x (N, 3, H, W) -> (N, classes, H, W).

    Examples
    --------
    >>> from autodiff.networks import dsnet50
    >>> network = dsnet50(21, rng=0)
    >>> type(network.backbone).__name__
    'DilatedResNet'
    """
    rng = generator(rng)
    return DSNet(DilatedResNet((3, 4, 6, 3), rng=rng, dtype=dtype), classes, rng=rng, dtype=dtype, **options)


def dsnet101(classes: int, *, rng: Any = None, dtype: Any = np.float32, **options: Any) -> DSNet:
    """DSNet over ResNet-101 at 1/16 of the size; options as for `DSNet`.

    Parameters
    ----------
    classes : int
        Of the output.
    rng : Generator or int, optional
        For the initial weights.
    dtype : dtype
        Of the parameters.
    **options
        As for `DSNet`.

    Returns
    -------
    DSNet
        x (N, 3, H, W) -> (N, classes, H, W).

    Examples
    --------
    >>> from autodiff.networks import dsnet101
    >>> network = dsnet101(21, rng=0)
    >>> type(network.backbone).__name__
    'DilatedResNet'
    """
    rng = generator(rng)
    return DSNet(DilatedResNet((3, 4, 23, 3), rng=rng, dtype=dtype), classes, rng=rng, dtype=dtype, **options)


def averaged_probabilities(
    network: Any, x: Any, *, scales: Any = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0), mirror: bool = True
) -> Any:
    """Probabilities of classes, averaged over sizes of the images and over their mirror images.

    ``mean over s and m of m(resize(softmax(network(m(resize(x, s))))))``, without gradients.

    Parameters
    ----------
    network : callable
        Images (N, C, h, w) to (N, classes, h, w), logarithms of probabilities up to a constant.
    x : array, (N, C, H, W)
        The images.
    scales : sequence of float
        Sizes, relative to that of x.
    mirror : bool
        Whether each is also seen with left and right exchanged.

    Returns
    -------
    array, (N, classes, H, W)
        Sums over classes are 1.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import averaged_probabilities
    >>> averaged_probabilities(lambda x: x, np.ones((1, 2, 3, 4))).ravel()[:3]
    array([0.5, 0.5, 0.5])
    """
    x = plain(x)
    size, total, count = tuple(x.shape[2:]), 0, 0
    for scale in scales:
        seen = plain(F.resize(x, tuple(max(round(scale * length), 1) for length in size)))
        for turned in (False, True) if mirror else (False,):
            found = plain(F.softmax(network(seen[..., ::-1] if turned else seen), 1))
            found = found[..., ::-1] if turned else found
            total, count = total + plain(F.resize(found, size)), count + 1
    return total / count
