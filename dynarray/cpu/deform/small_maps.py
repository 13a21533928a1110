"""Small maps and many weights: the positions of all images are multiplied at once.

A tile of positions reads all weights of a group. Where positions are few, tiles are few and weights are
packed for hardly any use. So all samples are made, as columns of one matrix for each group, and each product
is one of whole matrices, whose rows and columns threads share, and reads the weights where they are. Rows are
in the order of the weights: channel by channel, tap by tap.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..engine import parallel
from ..engine.gemm import TILE_ROW_BYTES
from ..engine.matrices import (
    CHUNK,
    MATRIX_BYTES,
    LeftMatrix,
    Result,
    borrow_matrix,
    collect_items,
    deal_items,
    multiply_matrices,
    strips_of,
    turn_items,
)
from ..engine.memory import borrow, run_with_scratch
from .kernels import DeformInputs, DeformPart, DeformScratch, deform_column_items, deform_scratch
from .plan import DeformCall, DeformPlan, deform_plan

_LEAST_WEIGHTS = 256 * 1024  # of the weights of a group: fewer are soon packed


class DeformColumns(NamedTuple):
    """Columns of all groups, which are written, and their gradients: what is not wanted has no elements."""

    values: np.ndarray
    grads: np.ndarray


def has_small_maps(call: DeformCall) -> bool:
    """Whether a call, of which others may be parts, goes this way."""
    sizes, positions = call.sizes, call.batch * call.sizes.positions
    rows, strips = max(sizes.channels * sizes.taps, sizes.outputs), strips_of(positions, call.itemsize)
    weights = sizes.group_outputs * sizes.group_channels * sizes.taps * call.itemsize
    # To write columns and read them takes longer than to pack as many weights; backward these are packed,
    # added up in shares, and unpacked.
    most, least = (2, 1) if call.backward else (0.5, 4)
    if positions > most * sizes.group_outputs or weights < least * _LEAST_WEIGHTS:
        return False
    parts = small_maps_plan(call).parts
    return rows * strips * TILE_ROW_BYTES <= MATRIX_BYTES and len(parts) == len(parts[0]) == 1


@lru_cache(maxsize=256)
def small_maps_plan(call: DeformCall) -> DeformPlan:
    """All of a call, in chunks for threads as the backward pass has them; no weights are packed."""
    sizes = call.sizes
    unweighted = call._replace(backward=True, sizes=sizes._replace(outputs=0, group_outputs=0))
    plan = deform_plan(unweighted, unweighted)
    parts = tuple(tuple(part._replace(sizes=sizes) for part in parts) for parts in plan.parts)
    return plan._replace(parts=parts)


def small_maps_scratch(part: DeformPart, itemsize: int) -> DeformScratch:
    """What a thread needs that multiplies nothing."""
    unweighted = part._replace(sizes=part.sizes._replace(group_outputs=1))
    return deform_scratch(unweighted, itemsize, backward=True)


def _shape(call: DeformCall) -> tuple[int, int, int]:
    """Groups, and of one the rows of its columns; the positions of all images."""
    sizes = call.sizes
    groups, depth = sizes.channels // sizes.group_channels, sizes.group_channels * sizes.taps
    return groups, depth, call.batch * sizes.positions


def small_maps_forward(
    call: DeformCall, part: DeformPart, inputs: DeformInputs, weights: tuple, y: np.ndarray
) -> None:
    """The output, from inputs without weights; these and the bias are flat."""
    (groups, depth, positions), sizes, dtype = _shape(call), call.sizes, y.dtype
    weight, bias = weights
    columns = borrow_matrix("columns", depth, positions, dtype, groups)
    items, samples = part.images * part.tiles.per_image * part.chunk_count, 2.0 * columns.size
    scratch = small_maps_scratch(part, dtype.itemsize)
    run_with_scratch(deform_column_items, items, samples, scratch, dtype, inputs, columns, part)
    product = borrow_matrix("product", sizes.outputs, positions, dtype)
    width, outputs = TILE_ROW_BYTES // dtype.itemsize, sizes.group_outputs
    size = (outputs, product.size // sizes.outputs, depth)
    for group, right in enumerate(columns.reshape(groups, -1)):
        left = LeftMatrix(weight[group * outputs * depth :], depth, 1, CHUNK)
        out = Result(product[group * outputs * width :], width, sizes.outputs * width)
        multiply_matrices(out, left, right, size, CHUNK)
    planes = y.reshape(*y.shape[:2], -1)
    parallel.run(collect_items, sizes.outputs, product.size, planes, product, bias)


def start_columns(
    call: DeformCall, weight: np.ndarray, grad_output: np.ndarray, needs: tuple[bool, ...]
) -> tuple[DeformColumns, np.ndarray]:
    """Gradients of columns, if needed, and a place for columns; the gradient of the output in strips."""
    (groups, depth, positions), sizes, dtype = _shape(call), call.sizes, grad_output.dtype
    by_output = borrow_matrix("product", sizes.outputs, positions, dtype)
    parallel.run(deal_items, sizes.outputs, by_output.size, by_output, grad_output)
    values = grads = by_output[:0]
    if needs[2]:
        values = borrow_matrix("columns", depth, positions, dtype, groups)
    if needs[0] or needs[1] or needs[3]:
        grads = borrow_matrix("grad_columns", depth, positions, dtype, groups)
        width, outputs = TILE_ROW_BYTES // dtype.itemsize, sizes.group_outputs
        size = (depth, by_output.size // sizes.outputs, outputs)
        for group, out in enumerate(grads.reshape(groups, -1)):
            left = LeftMatrix(weight[group * outputs * depth :], 1, depth, CHUNK * depth)
            right = _rows_of_group(by_output, group, sizes.outputs, outputs, width)
            multiply_matrices(Result(out, width, depth * width), left, right, size, CHUNK)
    return DeformColumns(values, grads), by_output


def _rows_of_group(strips: np.ndarray, group: int, rows: int, count: int, width: int) -> np.ndarray:
    """A matrix in strips of `count` rows of one of more."""
    if count == rows:
        return strips
    return strips.reshape(-1, rows, width)[:, group * count : (group + 1) * count].reshape(-1)


def multiply_columns(
    call: DeformCall, by_output: np.ndarray, columns: DeformColumns, grad_weight: np.ndarray
) -> None:
    """The gradient of the weights, of the columns that are now there."""
    (groups, depth, positions), sizes = _shape(call), call.sizes
    width, outputs = TILE_ROW_BYTES // by_output.itemsize, sizes.group_outputs
    across, strips = by_output.size // sizes.outputs, strips_of(depth, by_output.itemsize)
    turned = borrow("grad_columns", strips * width * across, by_output.dtype)
    for group, values in enumerate(columns.values.reshape(groups, -1)):
        parallel.run(turn_items, strips, values.size, turned, values, (depth, across))
        left = LeftMatrix(by_output[group * outputs * width :], width, 1, sizes.outputs * width)
        out = Result(grad_weight[group * outputs * depth :], depth, width)
        # A sum of few terms is added up at a time: rounding errors grow with the length of a sum.
        multiply_matrices(out, left, turned, (outputs, depth, positions), width)
