"""`displaced_conv2d` and `displaced_conv1d` in PyTorch: the formulations that ours are timed against.

Each takes the tensors of the operator's array arguments in order and lets autograd find the gradients. Units
lie within 4 pixels, so that their corners fit into a dense kernel of 9 taps an axis.
"""

from collections.abc import Callable
from functools import cache
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA, RADIUS = 0.5, 4
SIZE = 2 * RADIUS + 1


def _blurred(x: Tensor) -> Tensor:
    """Separable, a depthwise convolution an axis."""
    reach, channels = ceil(5 * SIGMA), x.shape[1]
    offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    taps = torch.exp(-((offsets / SIGMA) ** 2) / 2)
    taps = (taps / taps.sum()).expand(channels, 1, -1)
    if x.ndim == 3:
        return F.conv1d(x, taps, padding=reach, groups=channels)
    rows = F.conv2d(x, taps[:, :, None], padding=(0, reach), groups=channels)
    return F.conv2d(rows, taps[..., None], padding=(reach, 0), groups=channels)


def _rasterised(weight: Tensor, displacement: Tensor) -> Tensor:
    """The dense kernel (O, C, 9, 9): each unit adds to four taps."""
    outputs, channels, _ = weight.shape
    whole = displacement.detach().floor()
    y, x = (displacement - whole).unbind(-1)
    row, column = (whole.long() + RADIUS).unbind(-1)
    kernel = weight.new_zeros(outputs, channels, SIZE * SIZE)
    for i, rows in enumerate((1 - y, y)):
        for j, columns in enumerate((1 - x, x)):
            kernel = kernel.scatter_add(2, (row + i) * SIZE + column + j, weight * rows * columns)
    return kernel.view(outputs, channels, SIZE, SIZE)


def _rasterised_line(weight: Tensor, displacement: Tensor) -> Tensor:
    """(O, C, 9): each unit adds to two taps."""
    whole = displacement.detach().floor()
    part, first = displacement - whole, whole.long() + RADIUS
    kernel = weight.new_zeros(*weight.shape[:2], SIZE)
    kernel = kernel.scatter_add(2, first, weight * (1 - part))
    return kernel.scatter_add(2, first + 1, weight * part)


def _fast(size: int) -> int:
    """The next size with factors of 2, 3 and 5 alone: transforms of those are fast."""
    rest = size
    for factor in (2, 3, 5):
        while rest % factor == 0:
            rest //= factor
    return size if rest == 1 else _fast(size + 1)


def _dense(x: Tensor, weight: Tensor, displacement: Tensor, bias: Tensor) -> Tensor:
    """Blur, then an ordinary convolution."""
    return F.conv2d(_blurred(x), _rasterised(weight, displacement), bias, padding=RADIUS)


def _transformed(x: Tensor, weight: Tensor, displacement: Tensor, bias: Tensor) -> Tensor:
    """Blur, then a product of channels for each frequency."""
    h, w = x.shape[2:]
    sizes = _fast(h + 2 * RADIUS), _fast(w + 2 * RADIUS)
    image = torch.fft.rfft2(F.pad(_blurred(x), (RADIUS,) * 4), sizes)
    kernel = torch.fft.rfft2(_rasterised(weight, displacement), sizes).conj()
    y = torch.fft.irfft2(torch.einsum("nchw,ochw->nohw", image, kernel), sizes)
    return y[..., :h, :w] + bias[:, None, None]


def _dense_line(x: Tensor, weight: Tensor, displacement: Tensor, bias: Tensor) -> Tensor:
    return F.conv1d(_blurred(x), _rasterised_line(weight, displacement), bias, padding=RADIUS)


def _transformed_line(x: Tensor, weight: Tensor, displacement: Tensor, bias: Tensor) -> Tensor:
    length = x.shape[2]
    size = _fast(length + 2 * RADIUS)
    image = torch.fft.rfft(F.pad(_blurred(x), (RADIUS, RADIUS)), size)
    kernel = torch.fft.rfft(_rasterised_line(weight, displacement), size).conj()
    y = torch.fft.irfft(torch.einsum("ncl,ocl->nol", image, kernel), size)
    return y[..., :length] + bias[:, None]


def _displaced() -> dict[str, Callable]:
    return {"blur and dense 9 x 9 convolution": _dense, "blur and Fourier transforms": _transformed}


def _displaced_line() -> dict[str, Callable]:
    return {
        "blur and dense convolution of 9 taps": _dense_line,
        "blur and Fourier transforms": _transformed_line,
    }


@cache
def _kernel(outputs: int, channels: int, device: torch.device) -> Tensor:
    return torch.randn(outputs, channels, 3, 3, device=device)


def _plain(x: Tensor, weight: Tensor, displacement: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, _kernel(*weight.shape[:2], x.device), bias, padding=1)


# The convolution that units are to replace.
PRICES: dict[str, Callable] = {"displaced_conv2d": _plain}

# Per operator: its parameters -> the formulations by name.
FORMULATIONS: dict[str, Callable[..., dict[str, Callable]]] = {
    "displaced_conv2d": _displaced,
    "displaced_conv1d": _displaced_line,
}
