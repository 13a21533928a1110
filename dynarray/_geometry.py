"""Sizes and positions of sliding windows: the one definition that checks, references and kernels share.

Along one axis, tap `a` of the window at output position `h` reads input position
``(h // upsample) * stride - padding + a * dilation``.

Images are planes, (N, C, H, W), or lines, (N, C, L). The forms of an operator know planes only: a line is a
plane of one row, and `Space` is where shapes with the row and without it are translated.
"""

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ._check import check_int, check_pair, check_shape

FARTHEST = 2**30  # pixels from the image to a position that is computed: kernels count them in 32 bits
FARTHEST_OFFSET = 2.0**40  # pixels from there to a point: further ones reach no image


class Space(NamedTuple):
    """What the axes of images, of kernels and of outputs are called.

    In templates of shapes such as ``"N G kernel outputs"`` the names of these three stand for their axes.
    """

    image: tuple[str, ...]
    kernel: tuple[str, ...]
    outputs: tuple[str, ...]

    def pattern(self, template: str) -> str:
        """The template with the symbols of the axes, for `check_shape`."""
        return _pattern(self, template)

    def in_plane(self, array: Any, template: str) -> Any:
        """The array as the forms take it: that of a line with an axis of one row."""
        if self is PLANE:
            return array
        extents, shape = iter(array.shape), list[int]()
        for word in template.split():
            shape += (1, next(extents)) if word in Space._fields else (next(extents),)
        return array.reshape(shape)


@lru_cache
def _pattern(space: Space, template: str) -> str:
    words = (getattr(space, word) if word in Space._fields else (word,) for word in template.split())
    return " ".join(symbol for symbols in words for symbol in symbols)


PLANE = Space(("H", "W"), ("kh", "kw"), ("Ho", "Wo"))
LINE = Space(("L",), ("k",), ("Lo",))


class Window(NamedTuple):
    """A kernel that slides over an image, checked: one number for each axis of its space."""

    space: Space
    image: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    outputs: tuple[int, ...]
    upsample: int

    @property
    def sizes(self) -> dict[str, int]:
        """The symbols of the outputs, bound."""
        return dict(zip(self.space.outputs, self.outputs))

    def output_shapes(self, *leading: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape of outputs of so many images and channels: for the caller, and for the forms."""
        rows = (1,) * (2 - len(self.outputs))
        return (*leading, *self.outputs), (*leading, *rows, *self.outputs)

    def shortened(self) -> dict[str, tuple[int, ...]]:
        """Steps as the forms take them, (y, x), no larger than need be: see `shorten_steps`."""
        return dict(_shortened(self))

    def bounded(self, operator: str) -> dict[str, tuple[int, ...]]:
        """Steps as the forms take them, where taps may move anywhere: none beyond `FARTHEST`."""
        steps = []
        for k, o, s, d, p in zip(self.kernel, self.outputs, self.stride, self.dilation, self.padding):
            # A step that is never taken may be any number.
            stride, dilation = s if o > 1 else 1, d if k > 1 and o else 1
            far = max(p, (o - 1) * stride + (k - 1) * dilation)
            if o and far > FARTHEST:
                raise ValueError(
                    f"{operator}: stride, dilation and padding place taps {far} pixels away; "
                    f"at most {FARTHEST} are possible"
                )
            steps.append((stride, dilation, p if o else 0))
        return _in_plane(steps)


def _in_plane(axes: list[tuple[int, int, int]]) -> dict[str, tuple[int, ...]]:
    """Stride, dilation and padding of each axis as (y, x)."""
    rows = [(1, 1, 0)] * (2 - len(axes))
    return dict(zip(("stride", "dilation", "padding"), zip(*rows, *axes)))


# The same few windows are asked for again and again, and a small call spends more time on its checks than
# anywhere else.
@lru_cache(maxsize=1024)
def _shortened(window: Window) -> dict[str, tuple[int, ...]]:
    axes = zip(window.image, window.kernel, window.outputs, window.stride, window.dilation, window.padding)
    return _in_plane([shorten_steps(i, k, o // window.upsample, s, d, p) for i, k, o, s, d, p in axes])


@lru_cache(maxsize=1024)
def _outputs(*axes: tuple[int, ...], upsample: int) -> tuple[int, ...]:
    return tuple(output_size(i, k, s, d, p, upsample) for i, k, s, d, p in zip(*axes))


def check_window(
    operator: str,
    argument: str,
    sizes: Mapping[str, int],
    space: Space = PLANE,
    *,
    stride: Any = 1,
    dilation: Any = 1,
    padding: Any = None,
    upsample: int = 1,
) -> Window:
    """The window of the kernel that `argument` holds; its size and that of the image are in `sizes`."""
    axes = len(space.image)
    strides = check_steps(operator, "stride", stride, 1, axes)
    dilations = check_steps(operator, "dilation", dilation, 1, axes)
    image = tuple([sizes[symbol] for symbol in space.image])
    kernel = check_kernel(operator, argument, sizes, space)
    paddings = resolve_padding(operator, padding, kernel, dilations)
    outputs = _outputs(image, kernel, strides, dilations, paddings, upsample=upsample)
    return Window(space, image, kernel, strides, dilations, paddings, outputs, upsample)


def check_kernel(
    operator: str, argument: str, sizes: Mapping[str, int], space: Space = PLANE
) -> tuple[int, ...]:
    """The sizes of a kernel, each at least 1."""
    kernel = tuple([sizes[symbol] for symbol in space.kernel])
    if min(kernel) < 1:
        raise ValueError(f"{operator}: {argument} must have kernel sizes of at least 1, got {kernel}")
    return kernel


def check_steps(operator: str, argument: str, value: Any, minimum: int, axes: int) -> tuple[int, ...]:
    """One int for each axis: of a plane an int or a pair (y, x), of a line an int."""
    if axes == 1:
        return (check_int(operator, argument, value, minimum),)
    return check_pair(operator, argument, value, minimum)


def output_size(size: int, kernel: int, stride: int, dilation: int, padding: int, upsample: int = 1) -> int:
    """Number of output positions along one axis."""
    return max(0, (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1) * upsample


def input_positions(
    outputs: int, tap: int, stride: int, dilation: int, padding: int, upsample: int = 1
) -> np.ndarray:
    """The input position that one tap reads, for each output position along one axis."""
    return (np.arange(outputs) // upsample) * stride - padding + tap * dilation


def reading_inside(
    outputs: tuple[int, int], tap: int, size: int, stride: int, dilation: int, padding: int
) -> tuple[slice, slice]:
    """Along one axis, which of a range of outputs have this tap inside the image, and what they read."""
    offset = tap * dilation - padding
    first = max(outputs[0], -(offset // stride))
    last = min(outputs[1], (size - 1 - offset) // stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    start = first * stride + offset
    inside = slice(start, start + (last - first - 1) * stride + 1, stride)
    return slice(first - outputs[0], last - outputs[0]), inside


def on_ring(positions: np.ndarray, size: int) -> np.ndarray:
    """Positions in an image with a ring of zeros around it, onto which fall all that are outside."""
    # np.clip takes three times as long on small arrays.
    ringed: np.ndarray = np.minimum(np.maximum(positions, -1), size) + 1
    return ringed


def shorten_steps(
    size: int, kernel: int, outputs: int, stride: int, dilation: int, padding: int
) -> tuple[int, int, int]:
    """Stride, dilation and padding no larger than need be: every tap reads what it read, inside the image.

    However far apart the positions of a call are, kernels then neither overflow nor plan for empty space.
    """
    if not size or not outputs:
        return 1, 1, 0
    dilation, padding = _shorten(size, kernel, dilation, (outputs - 1) * stride, padding)
    stride, padding = _shorten(size, outputs, stride, (kernel - 1) * dilation, padding)
    return stride, dilation, padding


def _shorten(size: int, count: int, step: int, span: int, padding: int) -> tuple[int, int]:
    """Step and padding for the intervals ``[i*step - padding, i*step - padding + span]`` with i < count."""
    reach = size + span
    if step <= reach:
        return step, padding
    # Steps are longer than the image and an interval together, so that at most one interval meets the image.
    i = max(0, -(-(padding - span) // step))
    if i < count and i * step - padding < size:
        return reach, padding - i * (step - reach)
    return reach, (count - 1) * reach + span + 1  # all before the image


def resolve_padding(
    operator: str, padding: Any, kernel_size: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    """`padding` for each axis; ``None`` means "same", ``dilation * (kernel - 1) / 2``, for odd kernels."""
    if padding is not None:
        return check_steps(operator, "padding", padding, 0, len(kernel_size))
    if any(size % 2 == 0 for size in kernel_size):
        raise ValueError(
            f"{operator}: padding=None means 'same' and needs odd kernel sizes, got {kernel_size}; "
            "give padding explicitly"
        )
    return tuple(step * (size - 1) // 2 for size, step in zip(kernel_size, dilation))


def with_taps(
    name: str, argument: str, array: Any, sizes: dict[str, int], space: Space, coordinates: int
) -> Any:
    """The array with axes for offset groups and taps, from the memory of (N, channels, outputs) too."""
    if len(array.shape) != 2 + len(space.outputs):
        return array
    kernel, outputs = ([sizes[symbol] for symbol in symbols] for symbols in (space.kernel, space.outputs))
    taps, words = prod(kernel), "*".join(space.kernel)
    factor = "2*" if coordinates == 2 else ""
    channels, per_group = array.shape[1], coordinates * taps
    if channels % per_group or ("D" in sizes and channels != sizes["D"] * per_group):
        raise ValueError(
            f"{name}: {argument} must have {factor}D*{words} channels with {words} = {taps}"
            f"{' and D = ' + str(sizes['D']) if 'D' in sizes else ''}, got {tuple(array.shape)}"
        )
    extents = {symbol: sizes[symbol] for symbol in ("N", *space.outputs)}
    check_shape(name, argument, array, space.pattern(f"N {factor}D*{words} outputs"), extents)
    pair = (2,) if coordinates == 2 else ()
    return array.reshape(sizes["N"], channels // per_group, *kernel, *pair, *outputs)


def after_zeros(array: Any, axis: int) -> Any:
    """The array with as many zeros in front of it along an axis."""
    shape = tuple([size * (1 + (i == axis)) for i, size in enumerate(array.shape)])
    both = np.zeros_like(array, shape=shape)
    both[behind_zeros(shape, axis)] = array
    return both


def behind_zeros(shape: tuple[int, ...], axis: int) -> tuple[slice, ...]:
    """Where the array is in such a one of this shape."""
    return (slice(None),) * axis + (slice(shape[axis] // 2, None),)
