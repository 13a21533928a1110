"""`deform_conv2d`, `sample_points` and `deform_conv1d` in PyTorch: what ours are timed against.

torchvision's operator with its own backward kernels, where it is installed, and what people write without it:
an image sampled by `grid_sample`, by gathers of corners, or by weighted sums of rows of channels; a product.
"""

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import Window

# Samples an image (B, C, H, W) at rows and columns (B, ...): (B, C, ...). Rows are None for a line, H = 1.
Sampler = Callable[[Tensor, Tensor | None, Tensor], Tensor]


def _grid_sampled(image: Tensor, rows: Tensor | None, columns: Tensor) -> Tensor:
    """Positions in -1 to 1, where the first and the last pixel reach to the ends."""
    (h, w), places = image.shape[2:], columns.flatten(1, -2)
    x = (2 * places + 1) / w - 1
    y = torch.zeros_like(x) if rows is None else (2 * rows.flatten(1, -2) + 1) / h - 1
    sampled = F.grid_sample(image, torch.stack((x, y), -1), padding_mode="zeros", align_corners=False)
    return sampled.unflatten(2, columns.shape[1:-1])


def _corners(image: Tensor, rows: Tensor | None, columns: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The pixel of each corner, counted along the image, and its weight: zero outside."""
    h, w = image.shape[2:]

    def between(places: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
        whole = places.detach().floor()
        part, first = places - whole, whole.long()
        found = []
        for pixel, weight in ((first, 1 - part), (first + 1, part)):
            inside = (pixel >= 0) & (pixel < size)
            found.append((pixel.clamp(0, size - 1), weight * inside))
        return found

    across = between(columns, w)
    if rows is None:
        return across
    return [
        (row * w + column, weight * other) for row, weight in between(rows, h) for column, other in across
    ]


def _gathered(image: Tensor, rows: Tensor | None, columns: Tensor) -> Tensor:
    """A gather for each corner."""
    (n, c), flat = image.shape[:2], image.flatten(2)
    total: Tensor | int = 0
    for pixels, weight in _corners(image, rows, columns):
        corner = flat.gather(2, pixels.flatten(1)[:, None].expand(n, c, -1))
        total = total + corner.view(n, c, *columns.shape[1:]) * weight[:, None]
    return total


def _bagged(image: Tensor, rows: Tensor | None, columns: Tensor) -> Tensor:
    """Channels last: weighted sums of four rows of a table, of which each holds the channels of a pixel."""
    (n, c), pixels = image.shape[:2], prod(image.shape[2:])
    table = image.flatten(2).transpose(1, 2).reshape(n * pixels, c)
    corners = _corners(image, rows, columns)
    images = pixels * torch.arange(n, device=image.device).view(-1, *[1] * (columns.ndim - 1))
    index = torch.stack([images + pixel for pixel, _ in corners], -1).flatten(0, -2)
    weights = torch.stack([weight for _, weight in corners], -1).flatten(0, -2)
    sums = F.embedding_bag(index, table, per_sample_weights=weights, mode="sum")
    return sums.view(*columns.shape, c).movedim(-1, 1).contiguous()  # planes of channels, as all the others


SAMPLERS: dict[str, Sampler] = {
    "grid_sample": _grid_sampled,
    "gathers": _gathered,
    "embedding_bag": _bagged,
}


def _sample_points() -> dict[str, Callable]:
    def sampled(sampler: Sampler) -> Callable:
        return lambda x, points: sampler(x, points[:, :, 0], points[:, :, 1])

    def point_by_point(x: Tensor, points: Tensor) -> Tensor:
        """A map after the other."""
        maps = [_grid_sampled(x, points[:, p, 0], points[:, p, 1]) for p in range(points.shape[1])]
        return torch.stack(maps, 2)

    return {
        **{name: sampled(sampler) for name, sampler in SAMPLERS.items()},
        "grid_sample, point by point": point_by_point,
    }


def _places(offset: Tensor, axis: int, window: Window, kernel: Sequence[int]) -> Tensor:
    """Positions along an axis of a plane: where the taps are without offsets, and the offsets."""
    outputs = offset.shape[axis - 2]
    steps = torch.arange(outputs, device=offset.device, dtype=offset.dtype) * window.stride
    taps = torch.arange(kernel[axis], device=offset.device, dtype=offset.dtype) * window.dilation
    regular = taps[:, None] + steps - window.paddings(kernel)[axis]
    return offset + (regular[:, None, :, None] if axis == 0 else regular[:, None])


def _product(samples: Tensor, weight: Tensor) -> Tensor:
    """Samples (N, C, kh, kw, Ho, Wo) by weight (O, C/groups, kh, kw)."""
    n, c, *_ = samples.shape
    groups = c // weight.shape[1]
    columns = samples.reshape(n, groups, weight[0].numel(), -1)
    product = weight.reshape(groups, -1, columns.shape[2]) @ columns
    return product.reshape(n, weight.shape[0], *samples.shape[-2:])


def _convolved(sampler: Sampler, window: Window) -> Callable:
    """All samples, then a product of matrices."""

    def convolution(
        x: Tensor, rows: Tensor | None, columns: Tensor, weight: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Rows and columns of the samples (N, D, kh, kw, Ho, Wo); D parts of the channels have their own."""
        n, parts = columns.shape[:2]
        image = x.reshape(n * parts, -1, *x.shape[2:])
        places = [None if each is None else each.flatten(0, 1) for each in (rows, columns)]
        samples = sampler(image, *places)
        if mask is not None:
            samples = samples * mask.flatten(0, 1)[:, None]
        return _product(samples.reshape(n, x.shape[1], *columns.shape[2:]), weight)

    return convolution


def _deform_conv2d(padding: int = 0, stride: int = 1, dilation: int = 1) -> dict[str, Callable]:
    window = Window(stride, dilation, padding)

    def torchvision(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
        """Columns of one image after the other, then a product."""
        from torchvision.ops import deform_conv2d  # where it is missing, this peer alone is left out

        maps = (None if each is None else each.flatten(1, -3) for each in (offset, mask))
        offset_map, mask_map = maps
        return deform_conv2d(
            x, offset_map, weight, stride=stride, padding=padding, dilation=dilation, mask=mask_map
        )

    def sampled(sampler: Sampler) -> Callable:
        convolution = _convolved(sampler, window)

        def deform(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
            kernel = weight.shape[2:]
            rows, columns = (_places(offset[..., axis, :, :], axis, window, kernel) for axis in (0, 1))
            return convolution(x, rows, columns, weight, mask)

        return deform

    return {
        "torchvision": torchvision,
        **{f"{name}, product": sampled(sampler) for name, sampler in SAMPLERS.items()},
    }


def _deform_conv1d(padding: int = 0, stride: int = 1, dilation: int = 1) -> dict[str, Callable]:
    window, in_plane = Window(stride, dilation, padding), _deform_conv2d(0, stride, dilation)

    def sampled(sampler: Sampler) -> Callable:
        convolution = _convolved(sampler, window)

        def deform(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
            """Along the one axis: two corners."""
            offset = offset[:, :, None, :, None]
            columns = _places(offset, 1, window, (1, weight.shape[2]))
            mask = None if mask is None else mask[:, :, None, :, None]
            return convolution(x[:, :, None], None, columns, weight[:, :, None], mask).squeeze(2)

        return deform

    def torchvision(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
        """Offsets of zero across the line."""
        offset = torch.stack((torch.zeros_like(offset), offset), 3)[:, :, None, :, :, None]
        mask = None if mask is None else mask[:, :, None, :, None]
        image = F.pad(x, (padding, padding))[:, :, None]
        return in_plane["torchvision"](image, offset, weight[:, :, None], mask).squeeze(2)

    return {
        "torchvision": torchvision,
        **{f"{name}, product": sampled(sampler) for name, sampler in SAMPLERS.items()},
    }


def _plain(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    groups = x.shape[1] // weight.shape[1]
    stride = -(-x.shape[2] // offset.shape[5])
    return F.conv2d(x, weight, stride=stride, padding=(weight.shape[2] - 1) // 2, groups=groups)


# The convolution on the regular grid.
PRICES: dict[str, Callable] = {"deform_conv2d": _plain}

# Each adds positions in float32, where ours keep whole pixels and fractions apart.
ROUNDING = ("deform_conv2d", "deform_conv1d", "sample_points")

# Per operator: its parameters -> the formulations by name.
FORMULATIONS: dict[str, Callable[..., dict[str, Callable]]] = {
    "deform_conv2d": _deform_conv2d,
    "deform_conv1d": _deform_conv1d,
    "sample_points": _sample_points,
}
