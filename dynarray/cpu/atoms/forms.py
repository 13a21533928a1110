"""`atom_conv2d` on the CPU: filtered channels are made in tiles that stay in the cache, and multiplied there.

A tile is some whole rows of the output, or a piece of one row. For each group of channels the pixels that it
reads are packed, with their zero padding, into planes with the row length of the tile: one plane for each
column of the kernel (and phase of the stride), or one for each tap where that is less. In such a plane a tap
is one offset, so that

- z, the channels filtered by the atoms, is a sum over taps of atom times plane,
- the gradient of the atoms is a sum over channels of grad_z times plane, and
- the gradient of the planes, from which pixels get theirs, is a sum over atoms of atom times grad_z:

`products` does all three. In between are three matrix products: ``y = coefficients z``, ``grad_z =
coefficients^T grad_y`` and, added up over the tiles of an item, ``grad_coefficients^T = z grad_y^T``.
Forward, z of a strip of positions is multiplied before it leaves the first level of cache.

Neighbouring tiles of rows read some of the same rows of x. An item of work adds up what belongs to rows that
an item before reads as well in a place of its own, its edge; edges are added last, in order.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ..engine import gemm, parallel
from ..engine.compile import kernel_input
from ..engine.memory import borrow
from ..engine.pixels import whole_lines
from ..engine.products import STRIP_BYTES
from ..engine.vectors import REGISTER_BYTES
from .kernels import Gradients, Inputs, Layout, Offsets, Taps, backward_items, forward_items

TILE_BYTES = 32 * REGISTER_BYTES  # of one row of a tile: more where the second level of cache is larger too
DEPTH = 192  # filtered channels that are multiplied at once: a strip of them is a part of a common L1 cache
GRAD_Z_BYTES = 144 * 1024  # backward, those of a whole tile, and as much for their gradients
IMAGE_BYTES = 320 * TILE_BYTES  # packed channels of a tile
GROUP = 8  # channels packed at once, backward
SLOT_BYTES = 8 * 1024 * 1024  # gradients of coefficients, and edges, waiting to be added up


class _Call(NamedTuple):
    """What a plan depends on."""

    x: tuple[int, int, int, int]
    atoms: tuple[int, int, int, int, int, int]
    itemsize: int
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int]


def _tile_rows(outputs: tuple[int, int], strip: int, most: int) -> int:
    """Rows of a tile: the fewest positions lost at the ends of tiles, then the most rows."""

    def padded(rows: int) -> int:
        full, rest = divmod(outputs[0], rows)
        return sum(times * -(-part * outputs[1] // strip) for times, part in ((full, rows), (1, rest)))

    return min(range(max(1, min(outputs[0], most // outputs[1])), 0, -1), key=padded)


def _taps(call: _Call, rows: int) -> tuple[Taps, int]:
    """Planes for a tile of so many rows, and how many rows they have beyond."""
    kh, kw = call.atoms[2:4]
    a, b = np.divmod(np.arange(kh * kw), kw)
    offset_y, offset_x = a * call.dilation[0], b * call.dilation[1]
    shift, phase = np.divmod(offset_y, call.stride[0])
    halo = int(shift.max())
    if len(np.unique(phase)) * (rows + halo) > kh * rows:
        shift, phase, halo = np.zeros_like(shift), offset_y, 0
    origins = np.stack([phase - call.padding[0], offset_x - call.padding[1]])
    planes, plane = np.unique(origins, axis=1, return_inverse=True)
    return Taps(plane.reshape(-1), shift, planes[0].copy(), planes[1].copy()), halo


@lru_cache(maxsize=256)
def _plan(call: _Call, outputs: int, *, backward: bool) -> tuple[Taps, Layout, Offsets]:
    m, kh, _, high, wide = call.atoms[1:]
    strip = STRIP_BYTES // call.itemsize
    most = TILE_BYTES // call.itemsize
    pieces = -(-wide // most)
    width = wide if pieces == 1 else -(-wide // (pieces * strip)) * strip
    rows = _tile_rows((high, wide), strip, most) if pieces == 1 else 1
    taps, halo = _taps(call, rows)
    plane = (rows + halo) * width
    # Odd numbers of strips: powers of two would put all rows into the same few lines of the cache.
    span, image = ((-(-size // strip) | 1) * strip for size in (rows * width, len(taps.origin_y) * plane))
    group, chunk = _channels(call, span, image, strip, backward=backward)
    layout = Layout(
        outputs=(high, wide),
        stride=call.stride,
        rows=rows,
        width=width,
        row_tiles=-(-high // rows),
        pieces=-(-wide // width),
        span=span,
        halo=halo,
        plane=plane,
        image=image,
        group=group,
        chunk=chunk,
        edge=max(0, (kh - 1) * call.dilation[0] + 1 - call.stride[0]),
    )
    return taps, layout, _offsets(taps, layout, m, outputs, strip, backward=backward)


def _channels(call: _Call, span: int, image: int, strip: int, *, backward: bool) -> tuple[int, int]:
    """Channels of a group, and of a chunk."""
    channels, m, size = call.x[1], call.atoms[1], call.itemsize
    packed = IMAGE_BYTES // (image * size)
    if not backward:
        most = max(1, min(packed, DEPTH // m))
        even = -(-channels // -(-channels // most))
        return even, even
    group = max(1, min(GROUP, packed))
    # The matrix product takes rows of its left operand in panels.
    step = math.lcm(group, gemm.ROWS)
    of_chunk = GRAD_Z_BYTES // (m * span * size)
    return group, max(1, min(of_chunk // step, -(-channels // step))) * step


def _offsets(taps: Taps, layout: Layout, m: int, outputs: int, strip: int, *, backward: bool) -> Offsets:
    count, span = len(taps.plane), layout.span
    of_z = span if backward else strip
    wide = -(-outputs // strip) * strip
    images, z, atoms = layout.group * layout.image, layout.chunk * m * of_z, m * count * span
    scratch = (atoms, images, z, gemm.ROWS * strip)
    adjoint = (outputs * span, wide * span, z, atoms, images)
    return Offsets(
        tap=taps.plane * layout.plane + taps.shift * layout.width,
        image=np.arange(layout.group) * layout.image,
        atom=np.arange(m) * count * span,
        row=np.arange(max(layout.chunk * m, count, outputs)) * span,
        z_row=np.arange(layout.chunk * m) * of_z,
        channel=np.arange(layout.chunk) * m * of_z,
        memory=np.cumsum([0, *(whole_lines(size + strip) for size in scratch + adjoint)]),
    )


def _by_tap(atoms: np.ndarray) -> np.ndarray:
    """(N, M*taps, positions), contiguous."""
    n, m, kh, kw, high, wide = atoms.shape
    return kernel_input(atoms).reshape(n, m * kh * kw, high * wide)


def _maps(array: np.ndarray) -> np.ndarray:
    """(N, channels, positions), contiguous."""
    return kernel_input(array).reshape(*array.shape[:2], array.shape[2] * array.shape[3])


def _forward_items(start: int, stop: int, x: np.ndarray, *args: Any) -> None:
    offsets = args[-1]
    forward_items(start, stop, x, *args, borrow("tile", offsets.memory[4], x.dtype))


def _backward_items(start: int, stop: int, inputs: Inputs, *args: Any) -> None:
    offsets = args[-1]
    backward_items(start, stop, inputs, *args, borrow("tile", offsets.memory[-1], inputs.x.dtype))


def forward(x: Any, atoms: Any, coefficients: Any, bias: Any, **params: Any) -> tuple[Any, tuple]:
    """Output of `atom_conv2d`; keeps the inputs for the backward pass."""
    outputs, channels, m = coefficients.shape
    y = np.empty((x.shape[0], outputs, *atoms.shape[4:]), x.dtype)
    kept = (x, atoms, coefficients, bias)
    if not y.size:
        return y, kept
    if not channels * m:
        y[...] = 0 if bias is None else bias[:, None, None]
        return y, kept
    plan = _plan(_Call(x.shape, atoms.shape, x.itemsize, **params), outputs, backward=False)
    left = gemm.pack_left(coefficients.reshape(outputs, channels * m)).reshape(-1)
    added = np.empty(0, x.dtype) if bias is None else kernel_input(bias)
    arrays = (kernel_input(x), _by_tap(atoms), left, added, _maps(y))
    items = x.shape[0] * plan[1].row_tiles * plan[1].pieces
    operations = coefficients.size * y.size // outputs
    parallel.run(_forward_items, items, operations, *arrays, *plan)
    return y, kept


def backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool, bool, bool], **params: Any
) -> tuple[Any, Any, Any, Any]:
    """Gradients of `atom_conv2d` with respect to x, atoms, coefficients and bias."""
    x, atoms, coefficients, _ = kept
    outputs, channels, m = coefficients.shape
    if not grad_output.size or not channels * m:
        zeros = (np.zeros(a.shape, a.dtype) if needed else None for a, needed in zip(kept[:3], needs))
        return *zeros, grad_output.sum(axis=(0, 2, 3)) if needs[3] else None  # type: ignore[return-value]
    call = _Call(x.shape, atoms.shape, x.itemsize, **params)
    taps, layout, offsets = _plan(call, outputs, backward=True)
    depth, edge = channels * m, (channels, min(layout.edge, x.shape[2]), x.shape[3])
    strip = gemm.TILE_BYTES // x.itemsize
    product = (-(-depth // gemm.ROWS) * gemm.ROWS, -(-outputs // strip) * strip)
    waiting = x.itemsize * max(math.prod(product), math.prod(edge))
    units = x.shape[0] * layout.row_tiles
    items = max(1, min(units, parallel.ITEMS, SLOT_BYTES // waiting))
    first_of, shared = _items(call, layout, items)
    left = gemm.pack_left(coefficients.reshape(outputs, depth).T).reshape(-1)
    inputs = Inputs(_maps(grad_output), kernel_input(x), _by_tap(atoms), left)
    grads = Gradients(
        x=np.zeros(x.shape if needs[0] else (0,) * 4, x.dtype),
        edges=_slots("edges", (items, *edge) if needs[0] else (0,) * 4, x.dtype),
        atoms=np.empty(inputs.atoms.shape if needs[1] else (0,) * 3, x.dtype),
        coefficients=_slots("coefficients", (items, *product) if needs[2] else (0,) * 3, x.dtype),
        bias=np.zeros((items, outputs) if needs[3] else (0,) * 2),
    )
    operations = 3.0 * coefficients.size * grad_output.size / outputs
    parallel.run(_backward_items, items, operations, inputs, grads, first_of, shared, taps, layout, offsets)
    if needs[0]:
        for first, (low, high), rows in zip(first_of, shared, grads.edges):
            grads.x[first // layout.row_tiles, :, low:high] += rows[:, : high - low]
    return (
        grads.x if needs[0] else None,
        grads.atoms.reshape(atoms.shape) if needs[1] else None,
        np.ascontiguousarray(grads.coefficients[:, :depth, :outputs].sum(axis=0).T).reshape(
            coefficients.shape
        )
        if needs[2]
        else None,
        grads.bias.sum(axis=0).astype(x.dtype) if needs[3] else None,
    )


def _slots(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that nobody sees after the call; every item clears its own."""
    return borrow(name, math.prod(shape), dtype).reshape(shape)


@lru_cache(maxsize=256)
def _items(call: _Call, layout: Layout, items: int) -> tuple[np.ndarray, np.ndarray]:
    """The first tile of rows of each item, and the end; the rows of x that an item shares.

    These, first and end, it reads and tiles of the same image before it read.
    """
    first_of = call.x[0] * layout.row_tiles * np.arange(items + 1) // items
    row = first_of[:-1] % layout.row_tiles * layout.rows
    low = row * call.stride[0] - call.padding[0]
    high = low - call.stride[0] + (call.atoms[2] - 1) * call.dilation[0] + 1
    shared = np.clip(np.stack([low, np.maximum(low, high)], axis=1), 0, call.x[2])
    shared[row == 0] = 0
    return first_of, shared


def _flat(alpha: np.ndarray, bases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matrices: alpha (N, M, B, positions), bases (B, taps)."""
    n, m, count, high, wide = alpha.shape
    matrices = np.ascontiguousarray(alpha).reshape(n, m, count, high * wide)
    return matrices, bases.reshape(count, bases.shape[1] * bases.shape[2])


def compose_forward(alpha: Any, bases: Any) -> tuple[Any, tuple]:
    """Output of `compose_atoms`; keeps the inputs for the backward pass."""
    matrices, rows = _flat(alpha, bases)
    atoms = np.matmul(rows.T, matrices)
    return atoms.reshape(*alpha.shape[:2], *bases.shape[1:], *alpha.shape[3:]), (alpha, bases)


def compose_backward(grad_output: Any, kept: tuple, needs: tuple[bool, bool]) -> tuple[Any, Any]:
    """Gradients of `compose_atoms` with respect to alpha and bases."""
    alpha, bases = kept
    matrices, rows = _flat(alpha, bases)
    shape = (*alpha.shape[:2], rows.shape[1], matrices.shape[3])
    grads = np.ascontiguousarray(grad_output).reshape(shape)
    grad_alpha = np.matmul(rows, grads).reshape(alpha.shape) if needs[0] else None
    if not needs[1]:
        return grad_alpha, None
    return grad_alpha, np.matmul(matrices, grads.swapaxes(2, 3)).sum(axis=(0, 1)).reshape(bases.shape)
