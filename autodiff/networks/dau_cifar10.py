"""The network for CIFAR-10 with which the authors of displaced aggregation units try out their settings."""

import math
from typing import Any

import numpy as np

from ..layers import BatchNorm2d, Conv2d, DisplacedConv, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential
from ..layers.module import generator
from .dau_alexnet import begin

SIGMA = math.sqrt(math.sqrt(0.5))  # sigma**2 = sqrt(0.5)
CHANNELS = (96, 96, 192)


def dau_cifar10(
    units: Any = 2,
    *,
    kernel_size: int | None = None,
    channels: Any = CHANNELS,
    classes: int = 10,
    side: int = 32,
    layer: dict[str, Any] | None = None,
    rng: Any = None,
    dtype: Any = np.float32,
) -> Sequential:
    """Three layers of displaced units, or of kernels, for small images (Tabernik et al., CVPR 2018).

    Each is followed by batch normalisation, ReLU and a pooling of 2 x 2 pixels; a linear layer makes the
    classes. Channels are those of the authors' example for CIFAR-10, https://github.com/skokec. Weights begin
    as in `AlexNet`.

    Parameters
    ----------
    units : int or (y, x)
        The grid of units between each pair of channels.
    kernel_size : int, optional
        Size of ordinary kernels instead of units: what they are compared with.
    channels : sequence of int
        Of the three layers.
    classes : int
        Of the output.
    side : int
        Height and width of the images.
    layer : dict, optional
        Options of `DisplacedConv`. Otherwise ``sigma**2 = sqrt(0.5)`` and ``extent=2``.
    rng, dtype
        As for `Conv2d`.

    Returns
    -------
    Sequential
        x (N, 3, side, side) -> (N, classes).

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import dau_cifar10
    >>> network = dau_cifar10(rng=0)
    >>> sum(layer.num_units for layer in network.layers if hasattr(layer, "num_units"))
    111744
    >>> dau_cifar10(channels=(2, 2, 2), rng=0)(np.zeros((1, 3, 32, 32), np.float32)).shape
    (1, 10)
    """
    drawn: dict[str, Any] = {"rng": generator(rng), "dtype": dtype}
    placed: dict[str, Any] = {"sigma": SIGMA, "extent": 2.0, **(layer or {})}
    layers: list[Module] = []
    for before, after in zip((3, *channels[:-1]), channels):
        # A bias would be undone by batch normalisation.
        if kernel_size is None:
            layers.append(DisplacedConv(before, after, units, bias=False, **placed, **drawn))
        else:
            layers.append(Conv2d(before, after, kernel_size, bias=False, **drawn))
        layers += [BatchNorm2d(after, dtype=dtype), ReLU(), MaxPool2d(2)]
    network = Sequential(*layers, Flatten(), Linear(channels[-1] * (side // 8) ** 2, classes, **drawn))
    for _, each in network.modules():
        begin(each, drawn["rng"])
    return network
