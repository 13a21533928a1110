"""What is outside an image where that is not zero: pixels of the image, by the words of `numpy.pad`.

Forms know images that are zero outside. So where a window reads pixels there, they become an image:

- with the image itself, in a copy of it with a margin, if it is small;
- else by themselves. All that is computed here is a sum over pixels, of those inside and of those outside:
  the call is made on the image as if zeros were outside, and once more for a strip on each side, for the few
  outputs that read it. What these calls give is added up.

The gradient of a pixel outside is added to that of the pixel that it is a copy of. Arrays are of NumPy or
CuPy, and copied by slices alone: nothing goes to a GPU or comes from there.
"""

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ._dispatch import is_16_bits
from ._geometry import Window, shorten_steps

# Elements of an image from which on gradients take longer with a copy than by four calls on strips, each of
# which has a cost of its own; and output, for which nothing is folded, from so many times as many on.
LEAST_FOR_STRIPS, FORWARD = 2**18, 4

Form = Callable[..., Any]
Steps = tuple[int, int, int]  # stride, dilation and padding along an axis
_STEPS = ("stride", "dilation", "padding")


class Run(NamedTuple):
    """Places along an axis, and those that they are copies of: in the same or in reverse order, or one."""

    to: slice
    source: slice


class AxisPiece(NamedTuple):
    """An axis of a piece: what is copied from the image, and what then from there to other places."""

    total: int
    copied: tuple[Run, ...]
    repeated: tuple[Run, ...] = ()


class Side(NamedTuple):
    """What is outside on one side of an axis, the outputs that read it, and the padding of the first one."""

    piece: AxisPiece
    outputs: slice
    padding: int


class OutsideAxis(NamedTuple):
    """An axis of an image: with a margin, without, and the sides, where there is something between them."""

    whole: AxisPiece
    steps: Steps  # in that
    inside: AxisPiece
    sides: tuple[Side, ...] | None

    def pixels(self) -> np.ndarray:
        """The pixel of the image that each place of the whole is a copy of."""
        ((inside, _),) = self.whole.copied
        places = np.arange(-inside.start, self.whole.total - inside.start)
        for to, source in self.whole.repeated:
            places[to] = places[source]
        return places


class Piece(NamedTuple):
    """An image of pixels that are copies, the outputs that it gives a part of, and their steps."""

    rows: AxisPiece
    columns: AxisPiece
    outputs: tuple[slice, slice]
    steps: dict[str, tuple[int, ...]]

    def make(self, x: Any) -> Any:
        """The image, of one (N, C, H, W)."""
        shape = (*x.shape[:2], self.rows.total, self.columns.total)
        image = _library(x).empty(shape, x.dtype)
        for columns in self.columns.copied:
            for rows in self.rows.copied:
                image[:, :, rows.to, columns.to] = x[:, :, rows.source, columns.source]
            for rows in self.rows.repeated:
                image[:, :, rows.to, columns.to] = image[:, :, rows.source, columns.to]
        for to, source in self.columns.repeated:
            image[..., to] = image[..., source]
        return image

    @np.errstate(all="ignore")
    def fold(self, gradient: Any, target: Any) -> None:
        """Add the gradient of the image, which is of no use afterwards, to that of x."""
        gradient = _wide(gradient)
        for to, source in self.columns.repeated:
            gradient[..., source] += _gathered(gradient[..., to], 3, source)
        for columns in self.columns.copied:
            for to, source in self.rows.repeated:
                gradient[:, :, source, columns.to] += _gathered(gradient[:, :, to, columns.to], 2, source)
            for rows in self.rows.copied:
                part = _gathered(gradient[:, :, rows.to, columns.to], 3, columns.source)
                place = (slice(None), slice(None), rows.source, columns.source)
                add(target, place, _gathered(part, 2, rows.source))


class Outside(NamedTuple):
    """How a call of an operator is made whose first array is an image that is not zero outside.

    `by_output` is the place, among the arrays, of the one whose last axes are those of the output, and `once`
    that of a summand, which takes part where the image does.
    """

    axes: tuple[OutsideAxis, OutsideAxis]
    whole: Piece
    strips: tuple[Piece, ...] | None
    by_output: int
    once: int | None

    def forward(self, form: Form, arrays: tuple[Any, ...], params: dict[str, Any], definition: bool) -> Any:
        """The output. A definition gets the whole."""
        x, *others = arrays
        if not self._copies(x, definition, FORWARD):
            y = form(*arrays, **params)[0]
            for strip in self.strips or ():
                part = form(*self._of_strip(strip, arrays), **{**params, **strip.steps})[0]
                add(y, (..., *strip.outputs), part)
            if not self._has_nan(y):
                return y
        return form(self.whole.make(x), *others, **{**params, **self.whole.steps})[0]

    def backward(
        self,
        form: Form,
        grad_output: Any,
        arrays: tuple[Any, ...],
        needs: tuple[bool, ...],
        params: dict[str, Any],
        definition: bool,
    ) -> tuple[Any, ...]:
        """The gradients."""
        x, *others = arrays
        if not self._copies(x, definition, 1):
            gradients = self._backward_by_strips(form, grad_output, arrays, needs, params)
            if not any(self._has_nan(each, place) for place, each in enumerate(gradients)):
                return gradients
        kept = (self.whole.make(x), *others)
        found = [*form(grad_output, kept, needs, **{**params, **self.whole.steps})]
        if needs[0]:
            image, found[0] = found[0], _library(x).zeros(x.shape, x.dtype)
            self.whole.fold(image, found[0])
        return tuple(found)

    def _backward_by_strips(
        self,
        form: Form,
        grad_output: Any,
        arrays: tuple[Any, ...],
        needs: tuple[bool, ...],
        params: dict[str, Any],
    ) -> tuple[Any, ...]:
        found = [*form(grad_output, arrays, needs, **params)]
        wanted = tuple(needed and place != self.once for place, needed in enumerate(needs))
        for strip in (self.strips or ()) if any(wanted) else ():
            kept, part = self._of_strip(strip, arrays), grad_output[..., *strip.outputs]
            gradients = form(part, kept, wanted, **{**params, **strip.steps})
            for place, gradient in enumerate(gradients):
                if gradient is not None and place == 0:
                    strip.fold(gradient, found[0])
                elif gradient is not None:
                    add(found[place], (..., *(strip.outputs if place == self.by_output else ())), gradient)
        return tuple(found)

    def _has_nan(self, found: Any, place: int | None = None) -> bool:
        """Whether there is NaN where strips were added: in the output, or in the gradient of this array.

        Infinite filters give NaN with the zeros of the first call, where a copy may give infinity. The
        gradients of the image and of a summand do not read what is outside. A GPU is not waited for: there it
        stays NaN.
        """
        if not isinstance(found, np.ndarray) or (place is not None and place in (0, self.once)):
            return False
        if place not in (None, self.by_output):
            return bool(np.isnan(found).any())
        return any(np.isnan(found[..., *strip.outputs]).any() for strip in self.strips or ())

    def compose(self, functions: Any, x: Any) -> Any:
        """The whole in elementary functions, for a composite."""
        plain = getattr(functions, "stop_gradient", lambda array: array)(x)
        rows, columns = (np.asarray(axis.pixels(), like=plain) for axis in self.axes)
        return x[:, :, rows][..., columns]

    def _copies(self, x: Any, definition: bool, times: int) -> bool:
        return definition or self.strips is None or x.size < times * LEAST_FOR_STRIPS

    def _of_strip(self, strip: Piece, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        given = [strip.make(arrays[0]), *arrays[1:]]
        given[self.by_output] = given[self.by_output][..., *strip.outputs]
        if self.once is not None:
            given[self.once] = None
        return tuple(given)


def _library(array: Any) -> Any:
    """NumPy or CuPy, which is there where its arrays are."""
    return np if isinstance(array, np.ndarray) else sys.modules["cupy"]


def _wide(array: Any) -> Any:
    return array.astype(np.float32) if is_16_bits(array.dtype) else array


def _gathered(values: Any, axis: int, source: slice) -> Any:
    """What copies give to their source: the sum, if that is one place."""
    one = source.stop is not None and abs(source.stop - source.start) == 1
    return values.sum(axis=axis, keepdims=True) if one else values


@np.errstate(all="ignore")
def add(target: Any, place: tuple[Any, ...], values: Any) -> None:
    """``target[place] += values``, rounded once."""
    if is_16_bits(target.dtype):
        target[place] = (_wide(target[place]) + _wide(values)).astype(target.dtype)
    else:
        target[place] += values


def inside_pixels(positions: np.ndarray, size: int, border: str) -> np.ndarray:
    """The pixels of an axis that those at any positions are copies of, as in `numpy.pad`."""
    if border == "edge":
        return np.clip(positions, 0, size - 1)
    period = {"wrap": size, "symmetric": 2 * size, "reflect": max(1, 2 * size - 2)}[border]
    at = positions % period
    if border == "wrap":
        return at
    return np.minimum(at, (period if border == "reflect" else period - 1) - at)


def look_outside(
    operator: str, border: str, window: Window, shape: tuple[int, ...], by_output: int, once: int | None
) -> Outside | None:
    """See `find_outside`, which leaves to this what is not zero and not empty."""
    lone, steps = (1,) * (2 - len(window.outputs)), window.bounded(operator)
    each = zip(
        shape[2:],
        (*lone, *window.kernel),
        (*lone, *(outputs // window.upsample for outputs in window.outputs)),
        *(steps[name] for name in _STEPS),
    )
    axes = [_Axis(*numbers) for numbers in each]
    outsides = [_outside_axis(axis, border) for axis in axes]
    if all(axis.whole.total == size for axis, size in zip(outsides, shape[2:])):
        return None
    return Outside(
        (outsides[0], outsides[1]),
        _piece([axis.whole for axis in outsides], [slice(None)] * 2, [axis.steps for axis in outsides]),
        _strips(axes, outsides, window.upsample),
        by_output,
        once,
    )


class _Axis(NamedTuple):
    """An axis of an image, and of a window that slides over it."""

    size: int
    kernel: int
    outputs: int
    stride: int
    dilation: int
    padding: int


def _piece(axes: list[AxisPiece], outputs: list[slice], steps: list[Steps]) -> Piece:
    return Piece(axes[0], axes[1], (outputs[0], outputs[1]), dict(zip(_STEPS, zip(*steps))))


def _strips(axes: list[_Axis], outsides: list[OutsideAxis], upsample: int) -> tuple[Piece, ...] | None:
    """Those above and below, as long as rows with a margin, and those beside the image.

    None where they make most of the outputs.
    """
    strips, share = [], 0.0
    for place, (axis, outside) in enumerate(zip(axes, outsides)):
        if outside.sides is None:
            return None
        other = outsides[1].whole if place == 0 else outsides[0].inside
        for side in outside.sides:
            count = side.outputs.stop - side.outputs.start
            share += count / axis.outputs
            _, kernel, _, stride, dilation, _ = axis
            own = shorten_steps(side.piece.total, kernel, count, stride, dilation, side.padding)
            along = outsides[1].steps if place == 0 else axes[0][3:]
            outputs = [slice(upsample * side.outputs.start, upsample * side.outputs.stop), slice(None)]
            pieces, steps = [side.piece, other], [own, along]
            if place:
                pieces, outputs, steps = pieces[::-1], outputs[::-1], steps[::-1]
            strips.append(_piece(pieces, outputs, steps))
    return tuple(strips) if share <= 0.5 else None


@lru_cache(maxsize=1024)
def _outside_axis(axis: _Axis, border: str) -> OutsideAxis:
    size, kernel, outputs, stride, dilation, padding = axis
    image = slice(0, size)
    inside = AxisPiece(size, (Run(image, image),))
    after = max(0, (outputs - 1) * stride + (kernel - 1) * dilation - padding + 1 - size)
    end = padding + size
    if padding + after > size + outputs * kernel:
        # Windows are far apart: each gets pixels of its own, and the image lies behind them.
        positions = np.arange(outputs)[:, None] * stride - padding + np.arange(kernel) * dilation
        copied = np.append(inside_pixels(positions.reshape(-1), size, border), np.arange(size))
        return OutsideAxis(_whole(copied, outputs * kernel, size), (kernel, 1, 0), inside, None)
    pixels, sides = inside_pixels(np.arange(-padding, size + after), size, border), []
    if padding:
        outputs_before = slice(0, min(outputs, -(-padding // stride)))
        sides.append(Side(AxisPiece(padding, _runs(pixels[:padding])), outputs_before, 0))
    if after:
        first = max(0, -(-(end - (kernel - 1) * dilation) // stride))
        start = max(end, first * stride)
        piece = AxisPiece(len(pixels) - start, _runs(pixels[start:]))
        sides.append(Side(piece, slice(first, outputs), start - first * stride))
    return OutsideAxis(_whole(pixels, padding, size), (stride, dilation, 0), inside, tuple(sides))


def _whole(pixels: np.ndarray, before: int, size: int) -> AxisPiece:
    """An axis of these pixels; from `before` on it is the image."""
    end = before + size
    repeated = (*_runs(pixels[:before] + before), *_runs(pixels[end:] + before, end))
    return AxisPiece(len(pixels), (Run(slice(before, end), slice(0, size)),), repeated)


def _runs(pixels: np.ndarray, first: int = 0) -> tuple[Run, ...]:
    """Places from `first` on, copies of these, in runs as long as can be."""
    sources, runs, start = pixels.tolist(), list[Run](), 0
    while start < len(sources):
        end, step, begin = start + 1, 0, sources[start]
        if end < len(sources) and abs(sources[end] - begin) <= 1:
            step = sources[end] - begin
            while end < len(sources) and sources[end] - sources[end - 1] == step:
                end += 1
        stop = begin + (end - start) * step if step else begin + 1
        source = slice(begin, stop if stop >= 0 else None, step or 1)
        runs.append(Run(slice(first + start, first + end), source))
        start = end
    return tuple(runs)
