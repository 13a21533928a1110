"""Grid, block and arguments of the kernels in deform.cu, and the matrix products between them.

Parameters arrive resolved and checked: ``stride``, ``padding`` and ``dilation`` are (y, x) pairs of ints,
``deterministic`` is a bool, ``border`` one of five words. Arrays are all NumPy or all CuPy, with any strides:

- `forward`: x (N, C, H, W), offset (N, D, kh, kw, 2, Ho, Wo), weight (O, C/G, kh, kw), mask None or (N, D,
  kh, kw, Ho, Wo), bias None or (O,);
- `sample_forward`: x (N, C, H, W), points (N, P, 2, Ho, Wo).

They are of one dtype, but where x has 16 bits, each of the others may be float32. The output and its gradient
have the dtype of x.

The columns are made tile by tile, in the accumulator type, and so are the products with them: 16-bit arrays
are multiplied in float32. What is needed beside the arrays of a call stays small, see `deform_parts`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rawkernels.deform_call import FILE, Call, choose_program, programs
from rawkernels.deform_grad_x import GradX, grad_x_costs
from rawkernels.deform_parts import WARP, Costs, Part, Shape, Tile, make_parts
from rawkernels.launch import accumulator_dtype, contiguous, empty, needs_wide_index, zeros
from rawkernels.matmul import add_products, matmul

__all__ = ["FILE", "backward", "choose_program", "forward", "programs", "sample_backward", "sample_forward"]

PRODUCT_BYTES = 2 * 1024 * 1024  # of products that are added up at once to the gradient of weight


def _shape(
    x: Any,
    offset: Any,
    weight: Any,
    mask: Any,
    *,
    stride: Any,
    padding: Any,
    dilation: Any,
    border: str,
) -> Shape:
    batch, channels, height, width = x.shape
    groups = channels // max(1, weight.shape[1]) or 1
    sizes = (batch, channels, groups, offset.shape[1], height, width)
    pairs = (tuple(offset.shape[5:]), tuple(weight.shape[2:]), tuple(stride), tuple(dilation), tuple(padding))
    dtypes = (offset.dtype, x.dtype if mask is None else mask.dtype)
    return Shape(*sizes, *pairs, x.dtype, dtypes, border)


def _sample_shape(x: Any, points: Any, border: str) -> Shape:
    """`sample_points` as a convolution without weights: P taps, on a grid that stays at (0, 0)."""
    batch, channels, height, width = x.shape
    still = (0, 0)
    pairs = (tuple(points.shape[3:]), (points.shape[1], 1), still, still, still)
    return Shape(batch, channels, 1, 1, height, width, *pairs, x.dtype, (points.dtype, x.dtype), border)


def _call(part: Part, *arrays: Any) -> Call:
    """The launches of a part of a call with these arrays."""
    columns = part.rows * part.shape.taps * max(part.shape.channels, WARP * part.shape.offset_groups)
    return Call(part, arrays[0], wide_index=needs_wide_index(*arrays, work_items=columns + WARP))


def _forward_costs(shape: Shape, outputs: int) -> Costs:
    """For so many output channels of each group."""
    size = accumulator_dtype(shape.dtype).itemsize
    weight = outputs * shape.channels * shape.taps
    row = shape.taps * shape.channels + outputs * shape.groups
    # The kernel is there twice: CuPy copies matrices that are turned.
    return Costs(2 * size * weight, shape.pixels * shape.channels * shape.dtype.itemsize, size * row)


def forward(
    x: Any,
    offset: Any,
    weight: Any,
    mask: Any,
    bias: Any,
    *,
    deterministic: bool,
    **steps: Any,
) -> tuple[Any, tuple]:
    """Output (N, O, Ho, Wo), and the arrays that `backward` needs: contiguous inputs."""
    x, offset, weight, mask, bias = contiguous(x, offset, weight, mask, bias)
    shape = _shape(x, offset, weight, mask, **steps)
    y = empty((shape.batch, weight.shape[0], *shape.outputs), x)
    if y.size:
        each = weight.shape[0] // shape.groups
        arrays = (x, offset, weight, mask, bias, y)
        added = None if bias is None else bias.astype(accumulator_dtype(x.dtype), copy=False)
        for part in make_parts(shape, _forward_costs, each, arrays):
            _forward_part(part, x, offset, _by_group(weight, part), mask, added, y)
    return y, (x, offset, weight, mask, bias)


def _forward_part(part: Part, x: Any, offset: Any, by_group: Any, mask: Any, bias: Any, y: Any) -> None:
    """Write the output, or add what some channels give."""
    x, offset, mask, y = part.of_image(x), part.of_points(offset), part.of_points(mask), part.of_outputs(y)
    groups, each, depth = by_group.shape
    bias = bias[part.filters[0].start * each :] if bias is not None and part.begins_groups else None
    call = _call(part, x, offset, y)
    columns, products = call.buffer(groups * depth), call.buffer(groups * each)
    for tile in part.tiles:
        call.read(tile, x)
        arrays = (call.x, tile.of(offset), tile.of(mask), columns)
        if columns.size:
            call.launch_points("deform_columns", arrays, tile)
        product = tile.of_rows(products, groups, each)
        matmul(tile.of_rows(columns, groups, depth), by_group.transpose(0, 2, 1), out=product)
        _transpose_product(call, tile, product, bias, y)


def _by_group(weight: Any, part: Part) -> Any:
    """The kernel as the columns are ordered: (G, O/G, taps*C/G), in the accumulator type."""
    each, depth = weight.shape[0] // part.whole.groups, weight.shape[1]
    groups, channels = part.filters
    split = weight.reshape(part.whole.groups, each, depth, part.shape.taps)[groups, :, channels]
    ordered = split.transpose(0, 1, 3, 2).astype(accumulator_dtype(weight.dtype))
    return ordered.reshape(*ordered.shape[:2], -1)


def _transpose_product(call: Call, tile: Tile, product: Any, bias: Any, y: Any) -> None:
    """(G, rows, O/G) -> the tile's part of (N, G, O/G, P), plus bias, or added to what is there."""
    (groups, rows, each), positions = product.shape, call.shape.positions
    target = y.reshape(-1)[tile.image * groups * each * positions + tile.position :]
    steps = ((tile.positions * each, groups * each * positions), (rows * each, each * positions))
    call.transpose(
        "_out",
        product,
        target,
        (tile.positions, each),
        (each, positions),
        (tile.images, groups),
        steps,
        bias=bias,
        add=not call.part.begins_groups,
    )


def _transpose_gradient(call: Call, tile: Tile, grad_output: Any, target: Any) -> None:
    """The reverse: the tile's part of (N, G, O/G, P) -> (G, rows, O/G) in the accumulator type."""
    groups, positions = call.shape.groups, call.shape.positions
    each = grad_output.shape[1] // groups
    source = grad_output.reshape(-1)[tile.image * groups * each * positions + tile.position :]
    steps = ((groups * each * positions, tile.positions * each), (each * positions, tile.rows * each))
    call.transpose(
        "_in",
        source,
        target,
        (each, tile.positions),
        (positions, each),
        (tile.images, groups),
        steps,
    )


def _backward_costs(shape: Shape, outputs: int, deterministic: bool) -> Costs:
    """For so many output channels of each group; those of all gradients: what is needed changes no bit."""
    size = accumulator_dtype(shape.dtype).itemsize
    weight = outputs * shape.channels * shape.taps
    sums = np.dtype(np.float64).itemsize * weight + max(2 * PRODUCT_BYTES, size * weight)
    fixed, image, row = _forward_costs(shape, outputs)
    row += size * outputs * shape.groups  # those that are turned, for the gradient of weight
    return grad_x_costs(Costs(fixed + sums, image, row), shape, deterministic)


_BACKWARD_COSTS = {way: partial(_backward_costs, deterministic=way) for way in (False, True)}


def backward(
    grad_output: Any,
    kept: tuple,
    needs: tuple[bool, ...],
    *,
    deterministic: bool,
    **steps: Any,
) -> tuple:
    """Gradients of x, offset, weight, mask and bias; None where not needed or not given."""
    grad_output, x, offset, weight, mask, bias = contiguous(grad_output, *kept)
    shape = _shape(x, offset, weight, mask, **steps)
    needs = (*needs[:3], needs[3] and mask is not None, needs[4] and bias is not None)
    grad_bias = _grad_bias(grad_output).astype(bias.dtype, copy=False) if needs[4] else None
    inputs = (x, offset, weight, mask)
    if not grad_output.size or not x.shape[1] or not any(needs[:4]):
        wanted = zip(inputs, needs, strict=False)
        return (*(zeros(a.shape, a) if needed else None for a, needed in wanted), grad_bias)
    grad_x, grad_offset, grad_mask = (
        empty(array.shape, array) if needed else None
        for array, needed in ((x, needs[0]), (offset, needs[1]), (mask, needs[3]))
    )
    each = weight.shape[0] // shape.groups
    total = zeros((shape.groups, each, shape.taps, weight.shape[1]), x, np.float64) if needs[2] else None
    arrays = (grad_output, *inputs, *inputs)
    for part in make_parts(shape, _BACKWARD_COSTS[deterministic], each, arrays):
        _backward_part(part, grad_output, inputs, (grad_x, grad_offset, grad_mask), total, deterministic)
    return grad_x, grad_offset, _from_groups(total, weight), grad_mask, grad_bias


def _backward_part(
    part: Part, grad_output: Any, inputs: tuple, gradients: tuple, total: Any, deterministic: bool
) -> None:
    """Write gradients of x, offset and mask, or add to these two and to `total` what some channels give."""
    x, offset, mask = part.of_image(inputs[0]), part.of_points(inputs[1]), part.of_points(inputs[3])
    grad_output, (grad_offset, grad_mask) = part.of_outputs(grad_output), map(part.of_points, gradients[1:])
    call = _call(part, x, offset, grad_output)
    grad_x = GradX(call, part.of_image(gradients[0]), deterministic)
    by_group = _by_group(inputs[2], part)
    groups, each, depth = by_group.shape
    columns, products = call.buffer(groups * depth), call.buffer(groups * each)
    if total is not None:
        of_groups, channels = part.filters
        total = total[of_groups, :, :, channels]
    for tile in part.tiles:
        call.read(tile, x)
        points = tile.of(offset), tile.of(mask), columns
        gradient, matrices = tile.of_rows(products, groups, each), tile.of_rows(columns, groups, depth)
        _transpose_gradient(call, tile, grad_output, gradient)
        matmul(gradient, by_group, out=matrices)
        grad_x.begin(tile, *points)
        found = (tile.of(grad_offset), tile.of(grad_mask), np.int32(total is not None))
        call.launch_gradients(tile, (*points, grad_x.sums, *found))
        grad_x.finish(tile)
        if total is not None:
            add_products(total, gradient, matrices, PRODUCT_BYTES)


def _grad_bias(grad_output: Any) -> Any:
    return grad_output.astype(accumulator_dtype(grad_output.dtype)).sum(axis=(0, 2, 3))


def _from_groups(total: Any, weight: Any) -> Any:
    """The reverse of `_by_group`."""
    if total is None:
        return None
    (grad,) = contiguous(total.transpose(0, 1, 3, 2).astype(weight.dtype))
    return grad.reshape(weight.shape)


def _sample_costs(shape: Shape, _: int) -> Costs:
    size = accumulator_dtype(shape.dtype).itemsize
    return Costs(0, shape.pixels * shape.channels * shape.dtype.itemsize, size * shape.taps * shape.channels)


def sample_forward(x: Any, points: Any, *, deterministic: bool, border: str) -> tuple[Any, tuple[Any, Any]]:
    """Output (N, C, P, Ho, Wo), and the arrays that `sample_backward` needs."""
    x, points = contiguous(x, points)
    y = empty((*x.shape[:2], points.shape[1], *points.shape[3:]), x)
    if y.size:
        for part in make_parts(_sample_shape(x, points, border), _sample_costs, 0, (x, points, y)):
            _sample_part(part, part.of_image(x), part.of_points(points[:, None]), part.of_image(y))
    return y, (x, points)


def _sample_part(part: Part, x: Any, points: Any, y: Any) -> None:
    call = _call(part, x, points, y)
    columns = call.buffer(call.shape.taps * call.shape.channels)
    for tile in part.tiles:
        call.read(tile, x)
        call.launch_points("deform_columns", (call.x, tile.of(points), None, columns), tile)
        _move_samples(call, tile, columns, y, inwards=False)


def _sample_costs_backward(shape: Shape, _: int, deterministic: bool) -> Costs:
    return grad_x_costs(_sample_costs(shape, 0), shape, deterministic)


_SAMPLE_COSTS_BACKWARD = {way: partial(_sample_costs_backward, deterministic=way) for way in (False, True)}


def sample_backward(
    grad_output: Any,
    kept: tuple[Any, Any],
    needs: tuple[bool, bool],
    *,
    deterministic: bool,
    border: str,
) -> tuple[Any, Any]:
    """Gradients of x and points; None where `needs` is False."""
    grad_output, x, points = contiguous(grad_output, *kept)
    if not grad_output.size or not any(needs):
        return zeros(x.shape, x) if needs[0] else None, zeros(points.shape, x) if needs[1] else None
    given = zip((x, points), needs, strict=True)
    grad_x, grad_points = (empty(array.shape, array) if needed else None for array, needed in given)
    arrays = (grad_output, x, points, x, points)
    for part in make_parts(
        _sample_shape(x, points, border), _SAMPLE_COSTS_BACKWARD[deterministic], 0, arrays
    ):
        by_points = None if grad_points is None else part.of_points(grad_points[:, None])
        gradients = part.of_image(grad_x), by_points
        inputs = part.of_image(x), part.of_points(points[:, None])
        _sample_part_backward(part, part.of_image(grad_output), inputs, gradients, deterministic)
    return grad_x, grad_points


def _sample_part_backward(
    part: Part, grad_output: Any, inputs: tuple, gradients: tuple, deterministic: bool
) -> None:
    """Write gradients of x and points, or add to the latter what some channels give."""
    (x, points), (grad_x, grad_points) = inputs, gradients
    call = _call(part, x, points, grad_output)
    columns, sums = call.buffer(call.shape.taps * call.shape.channels), GradX(call, grad_x, deterministic)
    for tile in part.tiles:
        call.read(tile, x)
        _move_samples(call, tile, columns, grad_output, inwards=True)
        at = (tile.of(points), None, columns)
        sums.begin(tile, *at)
        call.launch_gradients(tile, (*at, sums.sums, tile.of(grad_points), None, np.int32(0)))
        sums.finish(tile)


def _move_samples(call: Call, tile: Tile, columns: Any, samples: Any, *, inwards: bool) -> None:
    """Between columns (rows, P, C) and the tile's part of (N, C, P, positions)."""
    c, taps, positions = call.shape.channels, call.shape.taps, call.shape.positions
    part = samples.reshape(-1)[tile.image * c * taps * positions + tile.position :]
    size, row = (tile.positions, c), (taps * c, taps * positions)
    outer, inner = (tile.positions * taps * c, c * taps * positions), (c, positions)
    count = (tile.images, taps)
    if inwards:
        turned = (outer[::-1], inner[::-1])
        call.transpose("_in", part, columns, size[::-1], row[::-1], count, turned)
    else:
        call.transpose("_out", columns, part, size, row, count, (outer, inner))
