"""Definitions of `deform_conv2d` and `sample_points` and of their gradients, tap by tap.

A point is its four corners, and all that it takes part in is a sum over them. Each takes part whatever its
weight, which may be 0, and as a pixel of value 0 where it lies outside the image: infinite values, masks and
gradients give NaN there.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from .._geometry import FARTHEST_OFFSET, input_positions, on_ring
from .._outside import inside_pixels


class _Corner(NamedTuple):
    """One of the four pixels around each point, and how the interpolation depends on it."""

    pixels: tuple  # where it is in the ringed image: indices of shape (N, D, C/D, Ho, Wo)
    along_y: Any  # its shares along both axes, (N, D, 1, Ho, Wo)
    along_x: Any

    @property
    def weight(self) -> Any:
        """Its share."""
        return self.along_y * self.along_x


class _Coordinates(NamedTuple):
    """Coordinates as whole pixels and the rest, which far from the origin their sum would round away."""

    base: Any
    offset: Any
    border: str

    @property
    def reaching(self) -> Any:
        """Which offsets are counted in pixels: none that is infinite or NaN."""
        return np.abs(self.offset.real) < FARTHEST_OFFSET

    @property
    def whole(self) -> Any:
        """The whole pixels of an offset, 0 for one that is not finite."""
        return np.floor(np.where(np.isfinite(self.offset.real), self.offset.real, 0))

    @property
    def rest(self) -> Any:
        """How far it is from there, NaN for one that leads nowhere."""
        rest = np.where(np.isfinite(self.offset.real), self.offset - self.whole, 0)
        return np.where(self.lost, np.nan, rest).astype(self.offset.dtype)

    @property
    def lost(self) -> Any:
        """Which lead nowhere: infinity too, where the image has no end."""
        endless = self.border not in ("constant", "edge")
        return ~np.isfinite(self.offset.real) if endless else np.isnan(self.offset.real)

    def near(self, size: int) -> Any:
        """Which lie less than a pixel away from the image; none that is NaN."""
        pixel = self.base + np.where(self.reaching, self.whole, 0).astype(int)
        inside = (pixel < size) & ((pixel >= 0) | (pixel == -1) & (self.rest.real > 0))
        return self.reaching & inside

    def between(self, size: int, near: Any) -> tuple[Any, Any]:
        """The pixels before and after, in a ring of zeros; those of what is not near are there."""
        if self.border == "constant":
            first = np.where(near, self.base + np.where(near, self.whole, 0).astype(int), -2)
            return on_ring(first, size), on_ring(first + 1, size)
        if self.border == "edge":  # from some place on all are alike
            whole = np.where(np.isinf(self.offset.real), self.offset.real, self.whole)
            steps = np.clip(np.where(near, whole, 0), -FARTHEST_OFFSET, FARTHEST_OFFSET)
        else:  # all are again after a period, and a remainder is exact
            period = {"wrap": size, "symmetric": 2 * size, "reflect": max(1, 2 * size - 2)}[self.border]
            steps = np.where(self.reaching, self.whole, np.fmod(self.whole, period))
        first = self.base + steps.astype(int)
        both = (inside_pixels(at, size, self.border) + 1 for at in (first, first + 1))
        before, after = (np.where(near, at, 0) for at in both)
        return before, after


def _coordinates(base: Any, offset: Any, border: str) -> _Coordinates:
    """Positions plus offsets, in float32 at least."""
    return _Coordinates(base, offset.astype(np.result_type(offset.dtype, np.float32)), border)


def _corners(image: Any, y: _Coordinates, x: _Coordinates) -> Iterator[_Corner]:
    """The corners around the points (y, x), each (N, D, Ho, Wo), in a ringed image (N, D, C/D, H+2, W+2)."""
    height, width = image.shape[3] - 2, image.shape[4] - 2
    lost = y.lost | x.lost
    near = y.near(height) & x.near(width) if y.border == "constant" else ~lost
    # A point that is not near any pixel is put before the image, where all four corners are zero.
    rows, columns = y.between(height, near), x.between(width, near)
    ly, lx = (
        np.where(lost, np.nan, np.where(near, at.rest, 0)).astype(image.dtype)[:, :, None] for at in (y, x)
    )
    n, d, c = np.ix_(*map(np.arange, image.shape[:3]))
    for i, j in product(range(2), repeat=2):
        pixels = (
            *(index[..., None, None] for index in (n, d, c)),
            rows[i][:, :, None],
            columns[j][:, :, None],
        )
        yield _Corner(pixels, ly if i else 1 - ly, lx if j else 1 - lx)


def _sample(image: Any, y: _Coordinates, x: _Coordinates, factor: Any = 1) -> Any:
    """The interpolated image, each corner times a factor (N, D, 1, Ho, Wo) besides: (N, D, C/D, Ho, Wo)."""
    return sum(corner.weight * factor * image[corner.pixels] for corner in _corners(image, y, x))


def _point_gradients(image: Any, y: _Coordinates, x: _Coordinates, grad: Any) -> tuple[Any, Any, Any]:
    """What points get of the gradient of their samples: by y, by x and by a factor, each (N, D, Ho, Wo).

    Coordinates get differences of neighbours. Where a border makes both the same pixel, these are exactly 0,
    which no order of a sum over corners would be: an infinite mask makes NaN of it, and infinity of a rest.
    """
    corners = list(_corners(image, y, x))
    by_weight = [(grad * image[corner.pixels]).sum(axis=2) for corner in corners]
    above, below, left, right = (0, 1), (2, 3), (0, 2), (1, 3)
    by_y = sum(corners[j].along_x[:, :, 0] * (by_weight[j] - by_weight[i]) for i, j in zip(above, below))
    by_x = sum(corners[j].along_y[:, :, 0] * (by_weight[j] - by_weight[i]) for i, j in zip(left, right))
    by_factor = sum(corner.weight[:, :, 0] * each for corner, each in zip(corners, by_weight))
    return by_y, by_x, by_factor


def _spread(grad_image: Any, y: _Coordinates, x: _Coordinates, grad: Any, factor: Any = 1) -> None:
    """The adjoint of interpolation: add what each point got to the pixels that it was made from."""
    for corner in _corners(grad_image, y, x):
        np.add.at(grad_image, corner.pixels, grad * (corner.weight * factor))


def _ringed(x: Any, offset_groups: int) -> Any:
    """x in a ring of zeros, its channels by offset group: (N, D, C/D, H+2, W+2)."""
    image = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return image.reshape(x.shape[0], offset_groups, x.shape[1] // offset_groups, *image.shape[2:])


def _unringed(image: Any, shape: tuple[int, ...]) -> Any:
    return image[..., 1:-1, 1:-1].reshape(shape)


def _results(grads: tuple, needs: tuple[bool, ...]) -> tuple:
    return tuple(
        np.ascontiguousarray(grad) if needed and grad is not None else None
        for grad, needed in zip(grads, needs, strict=True)
    )


def _taps(
    offset: Any, stride: Any, padding: Any, dilation: Any, border: str
) -> Iterator[tuple[tuple, _Coordinates, _Coordinates]]:
    """Each tap (a, b) with the points (y, x) that it reads, (N, D, Ho, Wo)."""
    kernel, outputs = offset.shape[2:4], offset.shape[5:]
    for index in np.ndindex(*kernel):
        rows, columns = (
            input_positions(outputs[axis], index[axis], stride[axis], dilation[axis], padding[axis])
            for axis in range(2)
        )
        yield (
            index,
            _coordinates(rows[:, None], offset[:, :, *index, 0], border),
            _coordinates(columns, offset[:, :, *index, 1], border),
        )


def _by_group(weight: Any, groups: int) -> Any:
    """(O, C/groups, ...) -> (1, groups, O/groups, C/groups, 1, 1) at one tap."""
    return weight.reshape(1, groups, weight.shape[0] // groups, weight.shape[1], 1, 1)


def forward(
    x: Any,
    offset: Any,
    weight: Any,
    mask: Any,
    bias: Any,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    border: str,
    deterministic: bool,
) -> tuple[Any, tuple]:
    """y = bias + sum over taps of weight * mask * sampled image."""
    groups = x.shape[1] // max(1, weight.shape[1]) or 1
    given = [array for array in (x, offset, weight, mask, bias) if array is not None]
    outputs = offset.shape[5:]
    y = np.zeros((x.shape[0], weight.shape[0], *outputs), np.result_type(*given))
    image = _ringed(x, offset.shape[1])
    for index, at_y, at_x in _taps(offset, stride, padding, dilation, border):
        factor = 1 if mask is None else mask[:, :, *index][:, :, None]
        sampled = _sample(image, at_y, at_x, factor)
        channels = sampled.reshape(x.shape[0], groups, 1, weight.shape[1], *outputs)
        y += (_by_group(weight[:, :, *index], groups) * channels).sum(axis=3).reshape(y.shape)
    if bias is not None:
        y += bias[:, None, None]
    return y, (x, offset, weight, mask, bias)


def backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, ...],
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    border: str,
    deterministic: bool,
) -> tuple:
    """The product rule, tap by tap: each factor gets grad_output times the other factors."""
    x, offset, weight, mask, bias = kept
    n, outputs, groups = x.shape[0], offset.shape[5:], x.shape[1] // max(1, weight.shape[1]) or 1
    image = _ringed(x, offset.shape[1])
    grad_image, grad_offset, grad_weight = np.zeros_like(image), np.zeros_like(offset), np.zeros_like(weight)
    grad_mask = None if mask is None else np.zeros_like(mask)
    by_output = grad_output.reshape(n, groups, weight.shape[0] // groups, 1, *outputs)
    for index, at_y, at_x in _taps(offset, stride, padding, dilation, border):
        factor = 1 if mask is None else mask[:, :, *index][:, :, None]
        sampled = _sample(image, at_y, at_x, factor)
        columns = sampled.reshape(n, groups, 1, weight.shape[1], *outputs)
        grad_weight[:, :, *index] = (by_output * columns).sum(axis=(0, 4, 5)).reshape(weight.shape[:2])
        grad_columns = (
            (by_output * _by_group(weight[:, :, *index], groups)).sum(axis=2).reshape(sampled.shape)
        )
        _spread(grad_image, at_y, at_x, grad_columns, factor)
        by_y, by_x, by_factor = _point_gradients(image, at_y, at_x, grad_columns)
        for axis, slope in enumerate((by_y, by_x)):
            grad_offset[:, :, *index, axis] = slope if mask is None else mask[:, :, *index] * slope
        if grad_mask is not None:
            grad_mask[:, :, *index] = by_factor
    grad_bias = None if bias is None else grad_output.sum(axis=(0, 2, 3))
    grads = _unringed(grad_image, x.shape), grad_offset, grad_weight, grad_mask, grad_bias
    return _results(grads, needs)


def sample_forward(x: Any, points: Any, *, border: str, deterministic: bool) -> tuple[Any, tuple]:
    """y[n,c,i] = x[n,c] at the points i."""
    y = np.zeros((*x.shape[:2], points.shape[1], *points.shape[3:]), np.result_type(x, points))
    image = _ringed(x, 1)
    for i in range(points.shape[1]):
        at_y, at_x = (_coordinates(0, points[:, None, i, axis], border) for axis in range(2))
        y[:, :, i] = _sample(image, at_y, at_x)[:, 0]
    return y, (x, points)


def sample_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool], *, border: str, deterministic: bool
) -> tuple:
    """Each point passes its gradient on to its corners, and gets it times the slopes."""
    x, points = kept
    image = _ringed(x, 1)
    grad_image, grad_points = np.zeros_like(image), np.zeros_like(points)
    for i in range(points.shape[1]):
        at_y, at_x = (_coordinates(0, points[:, None, i, axis], border) for axis in range(2))
        grad = grad_output[:, None, :, i]
        _spread(grad_image, at_y, at_x, grad)
        for axis, slope in enumerate(_point_gradients(image, at_y, at_x, grad)[:2]):
            grad_points[:, i, axis] = slope[:, 0]
    return _results((_unringed(grad_image, x.shape), grad_points), needs)
