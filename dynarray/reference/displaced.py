"""Definition of `displaced_conv2d` and of its gradients: a blur, then every unit's copy of it, moved."""

from typing import Any, NamedTuple

import numpy as np

from .._geometry import on_ring


class _Bell(NamedTuple):
    """The taps -radius..radius of the normalised Gaussian, and their derivatives."""

    value: Any
    by_sigma: Any
    by_place: Any  # of the bell moved past the image, the sum of its taps taken as constant


def _bell(sigma: Any, radius: int, dtype: Any) -> _Bell:
    offset = np.arange(-radius, radius + 1)
    # A tap that is too small to be represented is 0, also where the caller asked NumPy to raise.
    with np.errstate(over="ignore", under="ignore"):
        square, slope = (offset / sigma) ** 2, offset / sigma / sigma
        bell = np.exp(-square / 2)
        value = bell / bell.sum()
        # A tap that is nothing has no derivative, however far it lies out.
        square, slope = np.where(value != 0, square, 0), np.where(value != 0, slope, 0)
        by_sigma = value * (square - (value * square).sum()) / sigma
        return _Bell(*(taps.astype(dtype) for taps in (value, by_sigma, value * slope)))


def _bells(sigma: Any, radius: tuple[int, int], dtype: Any) -> tuple[_Bell, _Bell]:
    """Down the columns and along the rows; a radius of 0 is one tap of 1 and leaves an axis as it is."""
    down, along = (_bell(sigma, r, dtype) for r in radius)
    return down, along


def _along(image: Any, taps: Any, axis: int) -> Any:
    """Correlation of each line along an axis with the taps, zeros outside."""
    radius, size = len(taps) // 2, image.shape[axis]
    margins = [(radius, radius) if i == axis else (0, 0) for i in range(image.ndim)]
    lines = np.moveaxis(np.pad(image, margins), axis, -1)
    result: Any = sum(tap * lines[..., i : i + size] for i, tap in enumerate(taps))
    return np.moveaxis(result, -1, axis)


def _blurred(image: Any, rows: Any, columns: Any) -> Any:
    return _along(_along(image, rows, 2), columns, 3)


class _Corners(NamedTuple):
    """What units read of one channel: the four pixels around each displaced position, (N, O, G, H, W)."""

    pixel: tuple[tuple[Any, Any], tuple[Any, Any]]
    fraction: tuple[Any, Any]  # between them, (O, G, 1, 1)

    def between(self, rows: tuple[Any, Any], columns: tuple[Any, Any]) -> Any:
        """Sum of the pixels, each times a factor of its row and one of its column."""
        return sum(rows[i] * columns[j] * self.pixel[i][j] for i in range(2) for j in range(2))

    @property
    def value(self) -> Any:
        """The interpolated pixel."""
        return self.between(*((1 - f, f) for f in self.fraction))

    @property
    def slope(self) -> tuple[Any, Any]:
        """Its derivatives by the two displacements: those to the right, where displacements are integers."""
        y, x = self.fraction
        return self.between((-1, 1), (1 - x, x)), self.between((1 - y, y), (-1, 1))


def _corners(image: Any, displacement: Any) -> _Corners:
    """`image` (N, H, W) at every pixel plus every displacement (O, G, 2)."""
    size = image.shape[1:]
    ringed = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    lost = np.isnan(displacement.real).any(axis=-1)  # a unit that is nowhere reads NaN, its slopes too
    places, fractions = [], []
    for axis in range(2):
        move = displacement[..., axis]
        outside = np.abs(move.real) > size[axis] + 1
        move = np.where(outside, size[axis] + 1, move)  # nothing to be read there, or anywhere beyond
        whole = np.floor(move.real)
        fractions.append(np.where(lost, np.nan, move - whole)[..., None, None])
        first = np.where(lost, 0, whole).astype(int)[..., None] + np.arange(size[axis])
        places.append([on_ring(first + corner, size[axis]) for corner in range(2)])
    rows, columns = places
    pixel = tuple(tuple(ringed[:, r[..., :, None], c[..., None, :]] for c in columns) for r in rows)
    return _Corners(pixel, tuple(fractions))  # type: ignore[arg-type]


def _displaced(image: Any, weight: Any, displacement: Any) -> Any:
    """Sum over the channels of `image` and their units: (N, O, H, W)."""
    n, channels, *size = image.shape
    y = np.zeros((n, len(weight), *size), image.dtype)
    for c in range(channels):
        read = _corners(image[:, c], displacement[:, c]).value
        y += (weight[:, c, :, None, None] * read).sum(axis=2)
    return y


def forward(
    x: Any,
    weight: Any,
    displacement: Any,
    sigma: Any,
    bias: Any,
    *,
    spread: float,
    radius: tuple[int, int],
    displacement_gradient: str,
) -> tuple[Any, tuple]:
    """y = bias + sum over channels and units of weight * (x blurred, at the displaced position)."""
    rows, columns = _bells(spread if sigma is None else sigma, radius, x.dtype)
    y = _displaced(_blurred(x, rows.value, columns.value), weight, displacement)
    if bias is not None:
        y += bias[:, None, None]
    return y, (x, weight, displacement, sigma, bias)


def backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, ...],
    *,
    spread: float,
    radius: tuple[int, int],
    displacement_gradient: str,
) -> tuple:
    """Units get grad_output times what they read; x gets it back by the opposite displacements."""
    x, weight, displacement, sigma, _ = kept
    rows, columns = _bells(spread if sigma is None else sigma, radius, x.dtype)
    blurred = _blurred(x, rows.value, columns.value)
    grad_weight, grad_displacement = np.zeros_like(weight), np.zeros_like(displacement)

    def total(read: Any) -> Any:
        return (grad_output[:, :, None] * read).sum(axis=(0, 3, 4))

    for c in range(x.shape[1] if grad_output.size else 0):  # sums of nothing are 0, whatever the weight
        moves = displacement[:, c]
        corners = _corners(blurred[:, c], moves)
        grad_weight[:, c] = total(corners.value)
        slopes = corners.slope
        if displacement_gradient == "smooth":
            one = x[:, c : c + 1]
            by_y, by_x = (
                _blurred(one, rows.by_place, columns.value),
                _blurred(one, rows.value, columns.by_place),
            )
            slopes = _corners(by_y[:, 0], moves).value, _corners(by_x[:, 0], moves).value
        for axis in range(2):
            grad_displacement[:, c, :, axis] = weight[:, c] * total(slopes[axis])
    grad_blurred = _displaced(grad_output, np.swapaxes(weight, 0, 1), -np.swapaxes(displacement, 0, 1))
    by_sigma = _blurred(x, rows.by_sigma, columns.value) + _blurred(x, rows.value, columns.by_sigma)
    grads = (
        _blurred(grad_blurred, rows.value, columns.value),
        grad_weight,
        grad_displacement,
        np.asarray((grad_blurred * by_sigma).sum()),
        grad_output.sum(axis=(0, 2, 3)),
    )
    return tuple(
        np.ascontiguousarray(grad).reshape(grad.shape) if needed else None
        for grad, needed in zip(grads, needs, strict=True)
    )
