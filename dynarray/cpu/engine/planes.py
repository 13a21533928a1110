"""Images packed into planes in which a tap of a filter is one offset for many rows of outputs.

A plane has the row length of the outputs, so that all that a tap reads for these is one run. There is one
plane for each column of the kernel (and phase of the stride), or one for each tap where that is less. For a
single row of outputs there is one for each row of the kernel, in which columns are offsets.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .compile import borrowing_jit
from .pixels import PackedRows, clear, copy, covered, pack_covered
from .vectors import in_row


class TapPlanes(NamedTuple):
    """The planes of an image."""

    stride: tuple[int, int]
    halo: int  # rows beyond those of the outputs
    reach: int  # columns beyond those of the outputs, of which there is one row
    plane: int  # elements from one to the next
    origin_y: np.ndarray  # per plane: the pixel at its row 0, column 0, for the output at row 0, column 0
    origin_x: np.ndarray


class TapWindow(NamedTuple):
    """The outputs for which planes are packed."""

    row: int  # the first
    rows: int
    column: int
    width: int


@lru_cache(maxsize=256)
def tap_planes(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    outputs: tuple[int, int],
) -> tuple[TapPlanes, np.ndarray, np.ndarray]:
    """Planes for so many outputs, down and along; of each tap the plane that it reads, and from where on."""
    a, b = np.divmod(np.arange(kernel[0] * kernel[1]), kernel[1])
    offset_y, offset_x = a * dilation[0], b * dilation[1]
    (rows, width), one_run = outputs, outputs[0] == 1 and stride[1] == 1
    shift, phase = np.divmod(offset_y, stride[0])
    halo, reach, column = int(shift.max()), 0, offset_x
    if rows == 1 or len(np.unique(phase)) * (rows + halo) > kernel[0] * rows:
        shift, phase, halo = np.zeros_like(shift), offset_y, 0
    begins = shift * width
    if one_run:
        begins, reach, column = offset_x, int(offset_x.max()), np.zeros_like(offset_x)
    origins = np.stack([phase - padding[0], column - padding[1]])
    (origin_y, origin_x), number = np.unique(origins, axis=1, return_inverse=True)
    plane = (rows + halo) * (width + reach)
    return TapPlanes(stride, halo, reach, plane, origin_y.copy(), origin_x.copy()), number.reshape(-1), begins


@borrowing_jit
def rows_of_plane(plane: int, window: TapWindow, planes: TapPlanes) -> PackedRows:
    """The rows of one of the planes."""
    origin = (planes.origin_y[plane], planes.origin_x[plane] + window.column * planes.stride[1])
    size = window.rows + planes.halo, window.width + planes.reach
    return PackedRows(window.row, size[0], size[1], origin, planes.stride)


@borrowing_jit
def pack_channels(
    target: np.ndarray,
    places: tuple,
    x: np.ndarray,
    channels: tuple,
    window: TapWindow,
    planes: TapPlanes,
) -> None:
    """The planes of some channels (image, first, count) of x, (N, C, H, W).

    Those of the first channel begin at ``places[0]``, those of the next one ``places[1]`` further.
    """
    (n, first, count), (at, apart), (height, width), flat = channels, places, x.shape[2:], in_row(x)
    for plane in range(len(planes.origin_y)):
        rows = rows_of_plane(plane, window, planes)
        where = covered(rows, x[n, first])
        (top, bottom), (low, end) = where
        in_a_run = planes.stride == (1, 1) and rows.width == width and low < end
        full = bottom - top == rows.number and end - low == rows.width
        for c in range(count):
            to = at + c * apart + plane * planes.plane
            if in_a_run:
                base = (n * x.shape[1] + first + c) * height * width
                _pack_run(target, to, flat, base, rows, where)
            else:
                if not full:
                    clear(target, to, rows.number * rows.width)
                pack_covered(target, to, x[n, first + c], rows, where)


@borrowing_jit
def _pack_run(
    target: np.ndarray, at: int, flat: np.ndarray, base: int, rows: PackedRows, where: tuple
) -> None:
    """One plane of a channel where rows at stride 1 are one run of memory: its pixels, zeros where are none.

    At the ends of rows are pixels of the rows beside them. `where` there are pixels: see `covered`.
    """
    ((top, bottom), (left, end)), width = where, rows.width
    clear(target, at, top * width)
    clear(target, at + bottom * width, (rows.number - bottom) * width)
    start = base + (rows.first + top + rows.origin[0]) * width + rows.origin[1]
    count = max(0, (bottom - top) * width - width + end - left)
    copy(target, at + top * width + left, flat, start + left, count)
    for j in range(left):
        for i in range(top, bottom):
            target[at + i * width + j] = 0
    for j in range(end, width):
        for i in range(top, bottom):
            target[at + i * width + j] = 0
