"""`atom_conv2d` for small images and many coefficients: the positions of many images are multiplied at once.

A tile of positions reads all coefficients. Where images have few positions, tiles are few, and none fills
the strips of a matrix product. So z is made by tiles, and written; and each of the three products, of the
coefficients with z, of their transpose with the gradient of the output, and of that with the transpose of z,
is one of whole matrices, whose rows and columns threads share.
"""

import numpy as np

from ..engine import parallel
from ..engine.compile import kernel_input
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
from ..engine.memory import borrow, empty, run_with_scratch, zeros_where
from .filter_first import Filtered, Needs, by_position, by_tap, gradients_by_tile
from .kernels import AtomInputs, atom_filter_items
from .plan import ATOM_TILE_BYTES, AtomCall, plan_atoms

_LEAST_COEFFICIENTS = 512 * 1024  # of coefficients: fewer stay in the cache from tile to tile


def multiplies_at_once(call: AtomCall, *, backward: bool) -> bool:
    """Whether tiles would be few, or narrow, for so many coefficients."""
    coefficients = call.outputs * call.x[1] * call.atoms[1] * call.itemsize
    row = call.atoms[4] * call.atoms[5] * call.itemsize
    tiles = call.x[0] * -(-row // ATOM_TILE_BYTES)
    # Backward each share of the tiles has gradients of all coefficients.
    few = tiles <= (parallel.ITEMS // 4 if backward else 1)
    narrow = 2 * -(-row // TILE_ROW_BYTES) * TILE_ROW_BYTES >= 3 * row
    return (few or narrow) and coefficients >= _LEAST_COEFFICIENTS and _image_bytes(call) <= MATRIX_BYTES


def _image_bytes(call: AtomCall) -> int:
    """Of the largest matrix of one image."""
    rows = max(call.outputs, call.x[1] * call.atoms[1])
    return call.atoms[4] * call.atoms[5] * rows * call.itemsize


def _image_parts(call: AtomCall) -> list[slice]:
    """The images that are multiplied at once."""
    images = max(1, MATRIX_BYTES // _image_bytes(call))
    return [slice(first, min(first + images, call.x[0])) for first in range(0, call.x[0], images)]


def multiplied_at_once(arrays: tuple, call: AtomCall) -> np.ndarray:
    """The output."""
    x, atoms, coefficients, bias = arrays
    outputs, depth, width = len(coefficients), coefficients[0].size, TILE_ROW_BYTES // x.itemsize
    y = empty((len(x), outputs, *atoms.shape[4:]), x.dtype)
    nothing = np.empty(0, x.dtype)
    left = LeftMatrix(kernel_input(coefficients).reshape(-1), depth, 1, CHUNK)
    biases = nothing if bias is None else kernel_input(bias)
    for part in _image_parts(call):
        planes = by_position(y[part])
        inputs = AtomInputs(kernel_input(x[part]), by_tap(atoms[part]), nothing, nothing)
        images, _, positions = planes.shape
        own = call._replace(x=inputs.x.shape, atoms=(images, *call.atoms[1:]))
        plan, sizes = plan_atoms(own, own, backward=False)
        z = borrow_matrix("filtered", depth, images * positions, x.dtype)
        items = images * plan.tiles.row_tiles * plan.tiles.pieces * -(-x.shape[1] // plan.chunk)
        operations = float(depth) * images * positions * call.atoms[2] * call.atoms[3]
        run_with_scratch(atom_filter_items, items, operations, sizes, x.dtype, inputs, z, plan)
        product = borrow_matrix("product", outputs, images * positions, x.dtype)
        columns = product.size // outputs
        out = Result(product, width, outputs * width)
        multiply_matrices(out, left, z, (outputs, columns, depth), CHUNK)
        parallel.run(collect_items, outputs, product.size, planes, product, biases)
    return y


def gradients_at_once(grad_output: np.ndarray, arrays: tuple, needs: Needs, call: AtomCall) -> tuple:
    """The gradients of x, atoms, coefficients and bias that are needed."""
    parts = _image_parts(call)
    if len(parts) == 1:
        return _part_of_gradients(grad_output, arrays, parts[0], needs, call)
    grads = zeros_where(arrays, needs)
    for part in parts:
        some = _part_of_gradients(grad_output[part], arrays, part, needs, call)
        for number, grad in enumerate(some):
            if grad is not None and number < 2:
                grads[number][part] = grad
            elif grad is not None:
                grads[number] += grad
    return tuple(grads)


def _part_of_gradients(
    grad_output: np.ndarray, arrays: tuple, part: slice, needs: Needs, call: AtomCall
) -> tuple:
    """The gradients of some images, and what they add to those of coefficients and bias."""
    x, atoms, coefficients, bias = arrays
    outputs, depth, width = len(coefficients), coefficients[0].size, TILE_ROW_BYTES // x.itemsize
    planes = by_position(grad_output)
    images, _, positions = planes.shape
    own = call._replace(x=(images, *call.x[1:]), atoms=(images, *call.atoms[1:]))
    grad_y = borrow_matrix("product", outputs, images * positions, x.dtype)
    columns = grad_y.size // outputs
    parallel.run(deal_items, outputs, grad_y.size, grad_y, planes)
    z = grad_z = np.empty(0, x.dtype)
    if needs[2]:
        z = borrow_matrix("filtered", depth, images * positions, x.dtype)
    # Later the memory is that of the transpose of z.
    room = depth if not needs[2] else -(-depth // width) * width
    if needs[0] or needs[1] or needs[2]:
        memory = borrow("grad_filtered", columns * room, x.dtype)
    if needs[0] or needs[1]:
        grad_z = memory[: depth * columns]
        left = LeftMatrix(kernel_input(coefficients).reshape(-1), 1, depth, CHUNK * depth)
        out = Result(grad_z, width, depth * width)
        multiply_matrices(out, left, grad_y, (depth, columns, outputs), CHUNK)
    filtered = Filtered(z, grad_z)
    grad_x, grad_atoms, grad_coefficients, grad_bias = gradients_by_tile(
        grad_output, (x[part], atoms[part], coefficients, bias), needs, own, filtered
    )
    if needs[2]:
        # A sum of few terms is added up at a time: rounding errors grow with the length of a sum.
        parallel.run(turn_items, strips_of(depth, x.itemsize), z.size, memory, z, (depth, columns))
        grad_coefficients = empty(coefficients.shape, x.dtype)
        left = LeftMatrix(grad_y, width, 1, outputs * width)
        out = Result(grad_coefficients.reshape(-1), depth, width)
        multiply_matrices(out, left, memory, (outputs, depth, images * positions), width)
    return grad_x, grad_atoms, grad_coefficients, grad_bias
