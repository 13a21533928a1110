"""`displaced_conv2d` in PyTorch: the formulation that ours is timed against.

It takes the tensors of the operator's array arguments in order and lets autograd find the gradients. Units
lie within 4 pixels, so that four corners each fit into a dense kernel of 9 x 9 taps.
"""

from collections.abc import Callable
from functools import cache
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA, RADIUS = 0.5, 4


def _blurred(x: Tensor) -> Tensor:
    """Separable, as two depthwise convolutions."""
    reach, channels = ceil(5 * SIGMA), x.shape[1]
    offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    taps = torch.exp(-((offsets / SIGMA) ** 2) / 2)
    taps = (taps / taps.sum()).expand(channels, 1, 1, -1)
    rows = F.conv2d(x, taps, padding=(0, reach), groups=channels)
    return F.conv2d(rows, taps.transpose(2, 3), padding=(reach, 0), groups=channels)


def _rasterised(weight: Tensor, displacement: Tensor) -> Tensor:
    """The dense kernel (O, C, 9, 9): each unit adds to four taps."""
    outputs, channels, _ = weight.shape
    size = 2 * RADIUS + 1
    whole = displacement.detach().floor()
    y, x = (displacement - whole).unbind(-1)
    row, column = (whole.long() + RADIUS).unbind(-1)
    kernel = weight.new_zeros(outputs, channels, size * size)
    for i, rows in enumerate((1 - y, y)):
        for j, columns in enumerate((1 - x, x)):
            kernel = kernel.scatter_add(2, (row + i) * size + column + j, weight * rows * columns)
    return kernel.view(outputs, channels, size, size)


def _dense(x: Tensor, weight: Tensor, displacement: Tensor, bias: Tensor) -> Tensor:
    """Blur, then an ordinary convolution."""
    return F.conv2d(_blurred(x), _rasterised(weight, displacement), bias, padding=RADIUS)


def _displaced() -> dict[str, Callable]:
    return {"blur and dense 9 x 9 convolution": _dense}


@cache
def _kernel(outputs: int, channels: int, device: torch.device) -> Tensor:
    return torch.randn(outputs, channels, 3, 3, device=device)


def _plain(x: Tensor, weight: Tensor, displacement: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, _kernel(*weight.shape[:2], x.device), bias, padding=1)


# The convolution that units are to replace.
PRICES: dict[str, Callable] = {"displaced_conv2d": _plain}

# Per operator: its parameters -> the formulations by name.
FORMULATIONS: dict[str, Callable[..., dict[str, Callable]]] = {"displaced_conv2d": _displaced}
