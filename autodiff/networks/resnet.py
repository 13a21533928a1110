"""ResNets, and ResNets whose 3 x 3 convolutions are decoupled dynamic filters."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .. import functions as F
from ..layers import BatchNorm2d, Bottleneck, Conv2d, DDFBottleneck, Linear, Module, Sequential
from ..layers.module import generator


class ResNet(Module):
    """A ResNet of bottleneck blocks (He et al., CVPR 2016), with the stride in the middle of a block.

    Parameters
    ----------
    depths : tuple of int
        Number of blocks in each stage, of which four are usual; `channels` are those of their outputs.
    block : callable
        ``block(in_channels, middle_channels, out_channels, *, stride, rng, dtype) -> Module``.
    classes, in_channels : int
        Of the output and the input.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import ResNet
    >>> network = ResNet((1, 1, 1, 1), classes=10, rng=0).eval()
    >>> network(np.zeros((1, 3, 32, 32), np.float32)).shape
    (1, 10)
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        block: Callable[..., Module] = Bottleneck,
        *,
        classes: int = 1000,
        in_channels: int = 3,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        rng = generator(rng)
        options: dict[str, Any] = {"rng": rng, "dtype": dtype}
        self.stem = Conv2d(in_channels, 64, 7, stride=2, bias=False, **options)
        self.stem_norm = BatchNorm2d(64, dtype=dtype)
        self.stages = []
        self.channels = tuple(256 << number for number in range(len(depths)))
        channels = 64
        for number, depth in enumerate(depths):
            middle, blocks = 64 << number, []
            for index in range(depth):
                stride = 2 if number and not index else 1
                blocks.append(block(channels, middle, 4 * middle, stride=stride, **options))
                channels = 4 * middle
            self.stages.append(Sequential(*blocks))
        self.head = Linear(channels, classes, **options)

    def features(self, x: Any) -> list:
        """What the stages see.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        list of Variable, (N, channels, h, w)
            The output of each stage, at 1/4, 1/8, 1/16 and 1/32 of the size of `x`.
        """
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.max_pool2d(x, 3, 2, 1)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward(self, x: Any) -> Any:
        """Find the class of each image.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, classes)
            Logarithms of probabilities up to a constant.
        """
        return self.head(F.flatten(F.global_avg_pool(self.features(x)[-1])))


def resnet50(**options: Any) -> ResNet:
    """ResNet-50; options as for `ResNet`.

    Parameters
    ----------
    **options
        As for `ResNet`, such as ``classes``.

    Returns
    -------
    ResNet
        x (N, 3, H, W) -> (N, classes).

    Examples
    --------
    >>> from autodiff.networks import resnet50
    >>> sum(parameter.data.size for parameter in resnet50(rng=0).parameters())
    25557032
    """
    return ResNet((3, 4, 6, 3), **options)


def resnet101(**options: Any) -> ResNet:
    """ResNet-101; options as for `ResNet`.

    Parameters
    ----------
    **options
        As for `ResNet`, such as ``classes``.

    Returns
    -------
    ResNet
        x (N, 3, H, W) -> (N, classes).

    Examples
    --------
    >>> from autodiff.networks import resnet101
    >>> sum(parameter.data.size for parameter in resnet101(rng=0).parameters())
    44549160
    """
    return ResNet((3, 4, 23, 3), **options)


def resnet152(**options: Any) -> ResNet:
    """ResNet-152; options as for `ResNet`.

    Parameters
    ----------
    **options
        As for `ResNet`, such as ``classes``.

    Returns
    -------
    ResNet
        x (N, 3, H, W) -> (N, classes).

    Examples
    --------
    >>> from autodiff.networks import resnet152
    >>> sum(parameter.data.size for parameter in resnet152(rng=0).parameters())
    60192808
    """
    return ResNet((3, 8, 36, 3), **options)


def ddf_resnet50(*, combine: str = "mul", **options: Any) -> ResNet:
    """DDF-ResNet-50 (Zhou et al., CVPR 2021); `combine` as for `DDF`, options as for `ResNet`.

    Parameters
    ----------
    combine : {"mul", "add"}
        How spatial and channel filters are combined.
    **options
        As for `ResNet`, such as ``classes``.

    Returns
    -------
    ResNet
        x (N, 3, H, W) -> (N, classes).

    Examples
    --------
    >>> from autodiff.networks import ddf_resnet50
    >>> sum(parameter.data.size for parameter in ddf_resnet50(rng=0).parameters())
    16843748
    """
    return ResNet((3, 4, 6, 3), partial(DDFBottleneck, combine=combine), **options)


def ddf_resnet101(*, combine: str = "mul", **options: Any) -> ResNet:
    """DDF-ResNet-101 (Zhou et al., CVPR 2021); `combine` as for `DDF`, options as for `ResNet`.

    Parameters
    ----------
    combine : {"mul", "add"}
        How spatial and channel filters are combined.
    **options
        As for `ResNet`, such as ``classes``.

    Returns
    -------
    ResNet
        x (N, 3, H, W) -> (N, classes).

    Examples
    --------
    >>> from autodiff.networks import ddf_resnet101
    >>> sum(parameter.data.size for parameter in ddf_resnet101(rng=0).parameters())
    28146912
    """
    return ResNet((3, 4, 23, 3), partial(DDFBottleneck, combine=combine), **options)


def ddf_resnet152(*, combine: str = "mul", **options: Any) -> ResNet:
    """DDF-ResNet-152 (Zhou et al., CVPR 2021); `combine` as for `DDF`, options as for `ResNet`.

    Parameters
    ----------
    combine : {"mul", "add"}
        How spatial and channel filters are combined.
    **options
        As for `ResNet`, such as ``classes``.

    Returns
    -------
    ResNet
        x (N, 3, H, W) -> (N, classes).

    Examples
    --------
    >>> from autodiff.networks import ddf_resnet152
    >>> sum(parameter.data.size for parameter in ddf_resnet152(rng=0).parameters())
    37462900
    """
    return ResNet((3, 8, 36, 3), partial(DDFBottleneck, combine=combine), **options)
