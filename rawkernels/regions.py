"""Grid, block and arguments of the kernels in regions.cu.

Parameters arrive resolved and checked: ``output_size`` is a (y, x) pair of ints, ``boxes`` (R, 4) are float32
or float64 and ``batch_index`` (R,) integers, of the library of x (N, C, H, W). On a GPU, where nothing here
looks at values of arrays, the output of a region whose image there is none is NaN, and it has no gradient.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from rawkernels.launch import (
    accumulator_dtype,
    blocks,
    contiguous,
    empty,
    int32s,
    is_cupy,
    launch,
    module_of,
    needs_wide_index,
    type_constants,
    zeros,
)
from rawkernels.source import Program, program

FILE = "regions.cu"
BLOCK = 128  # as in regions.cu
STRIP = 4
TILE = 8, 16


def choose_program(dtype: Any, position: Any, *, wide_index: bool = False) -> Program:
    """The program for images of a dtype, whose kernels hold positions in another."""
    return program(FILE, type_constants(dtype, wide_index=wide_index, POSITION=position))


def programs(dtype: str, *, wide_index: bool = False) -> list[tuple[str, Program]]:
    """Every program of this file but for the index type, with a label: for the compile tests."""
    positions = ("float64",) if dtype == "float64" else ("float32", "float64")
    return [
        (f"{dtype} at {position}", choose_program(dtype, position, wide_index=wide_index))
        for position in positions
    ]


def check_images(operator: str, batch_index: Any, images: int) -> Any:
    """The indices as int64, each that of an image; on a GPU whatever they are."""
    if not is_cupy(batch_index):
        for place in np.flatnonzero((batch_index < 0) | (batch_index >= images))[:1].tolist():
            raise ValueError(
                f"{operator}: batch_index must be at least 0 and less than N = {images}, "
                f"got {batch_index[place]} at {place}"
            )
    return batch_index.astype(np.int64)


class _Call:
    """The launches of one call: where its bins lie, and what is made of them."""

    def __init__(self, x: Any, boxes: Any, images: Any, output_size: tuple[int, int]) -> None:
        self.shape, self.bins, self.regions = x.shape, output_size, boxes.shape[0]
        self.boxes, self.images = contiguous(boxes.astype(np.float64), images)
        # Positions in float32 are as good as boxes in float32, and not as samples in float64.
        wide = np.float64 in (boxes.dtype, x.dtype)
        self.position = np.dtype(np.float64 if wide else np.float32)
        self.sizes = int32s(*output_size, *x.shape[2:])
        self.like = x

    def table(self, dtype: Any) -> Any:
        """A number for each bin along either axis."""
        return empty((self.regions, sum(self.bins)), self.like, dtype)

    def launch(
        self, entry: str, items: int, arrays: tuple[Any, ...], *numbers: Any, counted: bool = True
    ) -> None:
        """A thread for each item; the kernel takes arrays, numbers, and unless blocks are whole a count."""
        wide = needs_wide_index(*arrays, work_items=items)
        chosen = choose_program(self.like.dtype, self.position, wide_index=wide)
        count = ((np.int64 if wide else np.int32)(items),) if counted else ()
        launch(chosen, entry, (blocks(items, BLOCK),), (BLOCK,), (*arrays, *count, *numbers))

    def samples(self, spatial_scale: float, sampling_ratio: int, aligned: bool) -> tuple[Any, ...]:
        """The tables of `roi_align`: base, begin, step, rate, share, number; and windows, of regions."""
        tables = (*(self.table(self.position) for _ in range(5)), self.table(np.int32))
        tables = *tables, empty((self.regions, 4), self.like, np.int32)
        numbers = (np.float64(spatial_scale), *int32s(sampling_ratio, int(aligned)), *self.sizes)
        self.launch("roi_align_bins", tables[0].size, (self.boxes, *tables), *numbers)
        return tables

    def pixels(self, spatial_scale: float) -> tuple[Any, ...]:
        """The tables of `ps_roi_pool`: first pixel and number."""
        tables = self.table(np.int32), self.table(np.int32)
        numbers = np.float64(spatial_scale), *self.sizes
        self.launch("ps_roi_pool_bins", tables[0].size, (self.boxes, *tables), *numbers)
        return tables

    def pool(self, entry: str, y: Any, tables: tuple[Any, ...], strip: int) -> None:
        """Write the output, a thread for a bin of `strip` channels."""
        items = y.size // y.shape[1] * blocks(y.shape[1], strip)
        numbers = int32s(*self.like.shape, *self.bins)
        self.launch(entry, items, (self.like, self.images, *tables, y), *numbers)

    def spread(self, entry: str, grad: Any, grad_x: Any, tables: tuple[Any, ...], strip: int) -> None:
        """Write the gradient of the images, a thread for a pixel of `strip` channels."""
        n, channels, height, width = grad_x.shape
        items = prod(map(blocks, (height, width), TILE)) * n * blocks(channels, strip) * BLOCK
        numbers = int32s(self.regions, *grad_x.shape[1:], *self.bins)
        self.launch(entry, items, (grad, self.images, *tables, grad_x), *numbers, counted=False)


def roi_align_forward(
    x: Any, *, boxes: Any, batch_index: Any, output_size: tuple[int, int], **options: Any
) -> tuple[Any, tuple]:
    """Output (R, C, ph, pw), and the contiguous images."""
    (x,), images = contiguous(x), check_images("roi_align", batch_index, x.shape[0])
    shape = (boxes.shape[0], x.shape[1], *output_size)
    if not (x.size and boxes.size):
        return zeros(shape, x), (x,)
    y, call = empty(shape, x), _Call(x, boxes, images, output_size)
    call.pool("roi_align_forward", y, call.samples(**options)[:-1], STRIP)
    return y, (x,)


def roi_align_backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool],
    *,
    boxes: Any,
    batch_index: Any,
    output_size: tuple[int, int],
    **options: Any,
) -> tuple:
    """Gradient of x; None where not needed."""
    if not needs[0]:
        return (None,)
    grad_output, x = contiguous(grad_output, *kept)
    images = check_images("roi_align", batch_index, x.shape[0])
    if not (x.size and grad_output.size):
        return (zeros(x.shape, x),)
    grad_x, call = empty(x.shape, x), _Call(x, boxes, images, output_size)
    call.spread("roi_align_gradient", grad_output, grad_x, call.samples(**options), STRIP)
    return (grad_x,)


def ps_roi_pool_forward(
    x: Any, *, boxes: Any, batch_index: Any, output_size: tuple[int, int], spatial_scale: float
) -> tuple[Any, tuple]:
    """Output (R, C/(ph*pw), ph, pw), and the contiguous images."""
    (x,), images = contiguous(x), check_images("ps_roi_pool", batch_index, x.shape[0])
    shape = (boxes.shape[0], x.shape[1] // (output_size[0] * output_size[1]), *output_size)
    if not (x.size and boxes.size):
        return zeros(shape, x), (x,)
    y, call = empty(shape, x), _Call(x, boxes, images, output_size)
    call.pool("ps_roi_pool_forward", y, call.pixels(spatial_scale), 1)
    return y, (x,)


def ps_roi_pool_backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool],
    *,
    boxes: Any,
    batch_index: Any,
    output_size: tuple[int, int],
    spatial_scale: float,
) -> tuple:
    """Gradient of x; None where not needed."""
    if not needs[0]:
        return (None,)
    grad_output, x = contiguous(grad_output, *kept)
    images = check_images("ps_roi_pool", batch_index, x.shape[0])
    if not (x.size and grad_output.size):
        return (zeros(x.shape, x),)
    grad_x, call = empty(x.shape, x), _Call(x, boxes, images, output_size)
    call.spread("ps_roi_pool_gradient", grad_output, grad_x, call.pixels(spatial_scale), 1)
    return (grad_x,)


def nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """Kept indices by falling score: int64."""
    (boxes,) = contiguous(boxes)
    xp, count = module_of(boxes), boxes.shape[0]
    scores = scores.astype(accumulator_dtype(scores.dtype))
    order = xp.argsort(-scores, kind="stable").astype(np.int64)
    unordered = xp.isnan(scores[order])  # sorted to the end, and the highest
    order = xp.concatenate([order[unordered], order[~unordered]])
    kept = empty((count,), boxes, np.uint8)
    chosen = choose_program(boxes.dtype, accumulator_dtype(boxes.dtype), wide_index=needs_wide_index(boxes))
    index = np.int64 if needs_wide_index(boxes) else np.int32
    if count:
        arguments = boxes, order, kept, index(count), np.float64(iou_threshold)
        launch(chosen, "nms_strike_out", (1,), (BLOCK,), arguments)
    return order[kept.astype(bool)]
