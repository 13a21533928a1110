"""AlexNet, and AlexNets whose convolutions are displaced aggregation units."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import functions as F
from ..layers import BatchNorm2d, Conv2d, DisplacedConv, Dropout, Linear, Module, ReLU, Sequential
from ..layers.module import generator

CHANNELS = (96, 256, 384, 384, 256)
KERNELS = (5, 3, 3, 3)
NORMALIZATIONS = "local_response", "batch"
# Units per pair of channels: of the second layer, and of the third to fifth.
UNITS = {"small": ((2, 1), (1, 1)), "medium": ((2, 2), (2, 1)), "large": ((3, 2), (2, 2))}


class AlexNet(Module):
    """AlexNet (Krizhevsky et al., 2012), without its groups: one GPU holds all of it today.

    Parameters
    ----------
    convolutions : sequence of callable
        Make the second to the fifth convolution: ``make(in_channels, out_channels, *, bias, rng, dtype)``.
        They keep the size of their input. The first is an ordinary 11 x 11 convolution of stride 4.
    channels : sequence of int
        Of the outputs of the five convolutions.
    classes, in_channels : int
        Of the output and the input.
    hidden : int
        Width of the two hidden linear layers.
    normalization : {"local_response", "batch"}
        That of the paper, after the first two convolutions; or batch normalisation of each convolution, which
        then has no bias.
    rng, dtype
        As for `Conv2d`. Weights are even draws with variance ``2/(fan_in + fan_out)`` (Glorot & Bengio,
        2010), biases are zero.

    Raises
    ------
    ValueError
        If there are not four `convolutions` and five `channels`, or `normalization` is none of the two.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Conv2d
    >>> from autodiff.networks import AlexNet
    >>> from functools import partial
    >>> network = AlexNet([partial(Conv2d, kernel_size=3)] * 4, channels=(4, 4, 4, 4, 4), hidden=8, rng=0)
    >>> network(np.zeros((1, 3, 227, 227), np.float32)).shape
    (1, 1000)
    """

    def __init__(
        self,
        convolutions: Sequence[Callable[..., Module]],
        *,
        channels: Sequence[int] = CHANNELS,
        classes: int = 1000,
        in_channels: int = 3,
        hidden: int = 4096,
        normalization: str = "local_response",
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        rng = generator(rng)
        if len(convolutions) != 4 or len(channels) != 5:
            raise ValueError(
                "AlexNet: needs 4 convolutions after the first, and 5 numbers of channels, "
                f"got {len(convolutions)} and {len(channels)}"
            )
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"AlexNet: normalization must be one of {NORMALIZATIONS}, got {normalization!r}")
        batch = normalization == "batch"
        # A bias would be undone by batch normalisation.
        options: dict[str, Any] = {"bias": not batch, "rng": rng, "dtype": dtype}
        self.convolutions: list[Module] = [
            Conv2d(in_channels, channels[0], 11, stride=4, padding=0, **options)
        ]
        self.convolutions += [
            make(before, after, **options)
            for make, before, after in zip(convolutions, channels[:-1], channels[1:])
        ]
        self.norms = [BatchNorm2d(count, dtype=dtype) for count in channels] if batch else []
        options["bias"] = True
        self.head = Sequential(
            Dropout(0.5, rng=rng),
            Linear(channels[-1] * 6 * 6, hidden, **options),
            ReLU(),
            Dropout(0.5, rng=rng),
            Linear(hidden, hidden, **options),
            ReLU(),
            Linear(hidden, classes, **options),
        )
        for _, layer in self.modules():
            begin(layer, rng)

    def features(self, x: Any) -> list:
        """What the convolutions see.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        list of Variable, (N, channels, h, w)
            The output of each convolution, after its ReLU.
        """
        outputs: list[Any] = []
        for number, convolution in enumerate(self.convolutions):
            # The first, second and fifth are followed by pooling.
            if number in (1, 2):
                x = outputs[-1] if self.norms else F.local_response_norm(outputs[-1], 5)
                x = F.max_pool2d(x, 3, 2)
            x = convolution(x)
            x = F.relu(self.norms[number](x) if self.norms else x)
            outputs.append(x)
        return outputs

    def forward(self, x: Any) -> Any:
        """Find the class of each image.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters. With H = W = 227 the last map is 6 x 6.

        Returns
        -------
        Variable, (N, classes)
            Logarithms of probabilities up to a constant.
        """
        x = F.adaptive_avg_pool2d(F.max_pool2d(self.features(x)[-1], 3, 2), (6, 6))
        return self.head(F.flatten(x))


def begin(layer: Module, rng: np.random.Generator) -> None:
    """The weights of a layer before training; `DisplacedConv` has K units in place of a kernel of K taps."""
    if isinstance(layer, Conv2d | DisplacedConv | Linear):
        weight = layer.weight
        outputs, inputs, *taps = weight.shape
        limit = np.sqrt(6 / max((inputs + outputs) * math.prod(taps), 1))
        weight.data = rng.uniform(-limit, limit, weight.shape).astype(weight.dtype)
        if layer.bias is not None:
            layer.bias.data = np.zeros_like(layer.bias.data)


def alexnet(**options: Any) -> AlexNet:
    """AlexNet with its own kernels, 5 x 5 and 3 x 3: 62,378,344 parameters; options as for `AlexNet`.

    Parameters
    ----------
    **options
        As for `AlexNet`, such as ``classes``.

    Returns
    -------
    AlexNet
        x (N, 3, H, W) -> (N, classes).

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import alexnet
    >>> network = alexnet(channels=(4, 4, 4, 4, 4), hidden=8, classes=10, rng=0)
    >>> network(np.zeros((1, 3, 227, 227), np.float32)).shape
    (1, 10)
    """

    def make(kernel: int) -> Callable[..., Module]:
        return lambda c, o, **given: Conv2d(c, o, kernel, **given)

    return AlexNet([make(kernel) for kernel in KERNELS], **options)


def dau_alexnet(size: str = "medium", *, layer: dict[str, Any] | None = None, **options: Any) -> AlexNet:
    """AlexNet with displaced aggregation units from its second convolution on (Tabernik et al., CVPR 2018).

    Units start within the kernels that they replace, 5 x 5 pixels and then 3 x 3, and may leave them. Each
    has three parameters.

    Parameters
    ----------
    size : {"small", "medium", "large"}
        Units per pair of channels in the second layer and in those after it: 2 and 1, 4 and 2, or 6 and 4.
        They add up to 393,216, 786,432 or 1,523,712 units; the kernels have 3,710,976 weights.
    layer : dict, optional
        Options of `DisplacedConv`, such as ``{"displacement_rate": 10.0, "bound": 8.0}``.
    **options
        As for `AlexNet`.

    Returns
    -------
    AlexNet
        x (N, 3, H, W) -> (N, classes).

    Raises
    ------
    ValueError
        If `size` is none of the three.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import dau_alexnet
    >>> network = dau_alexnet(channels=(4, 4, 4, 4, 4), hidden=8, classes=10, rng=0)
    >>> network(np.zeros((1, 3, 227, 227), np.float32)).shape
    (1, 10)
    """
    if size not in UNITS:
        raise ValueError(f"dau_alexnet: size must be one of {', '.join(UNITS)}, got {size!r}")
    second, others = UNITS[size]

    def make(units: tuple[int, int], kernel: int) -> Callable[..., Module]:
        choices: dict[str, Any] = {"extent": (kernel - 1) / 2, **(layer or {})}
        return lambda c, o, **given: DisplacedConv(c, o, units, **choices, **given)

    grids = (second, others, others, others)
    return AlexNet([make(units, kernel) for units, kernel in zip(grids, KERNELS)], **options)
