"""Photographs as arrays of dask: a task for each chunk, which calls the functions of `images` on a part.

A part is a chunk with the rows and columns around it that its pixels read, less what lies outside: there the
function itself finds the border. Only the chunk is kept of what it gives.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np

from rawkernels.launch import module_of

from . import images
from ._dask import check_known
from ._parts import stand_in
from ._photograph import Layout, check_array, check_libraries, is_followed


def forms(name: str, **arrays: Any) -> list[Any]:
    """What is known of arrays before they are there: arrays of NumPy that take no memory."""
    if any(map(is_followed, arrays.values())):
        raise TypeError(f"{name}: a Variable beside arrays of dask: the tape does not follow these")
    check_known(name, arrays)
    kinds = {n: getattr(array, "_meta", array) for n, array in arrays.items() if array is not None}
    check_libraries(name, {n: check_array(name, n, kind) for n, kind in kinds.items()})
    return [None if array is None else stand_in(array.shape, array.dtype) for array in arrays.values()]


def filter(
    layout: Layout,
    size: tuple[int, int],
    arrays: tuple[Any, Any, Any],
    ndims: Sequence[int],
    channel_axis: Any,
    border: Any,
) -> Any:
    """`images.filter` of (photo, kernels, mixture) that fit; `ndims` are axes before those of the picture."""
    photo, kernels, mixture = arrays
    if border == "wrap":
        raise ValueError(
            'filter: border must not be "wrap" for arrays of dask: it reads the other side of the picture'
        )
    if not layout.sizes["H"] * layout.sizes["W"]:
        return da.zeros(layout.shape, dtype=photo.dtype)
    symbols = tuple(layout.symbols)
    photo, kept = _in_chunks(photo, {}), getattr(photo, "chunks", None)
    photo = photo.rechunk({place: -1 for place, symbol in enumerate(symbols) if symbol == "C"})
    reach = {symbol: (k // 2, k - 1 - k // 2) for symbol, k in zip("HW", size)}
    # A border that repeats no pixel reads one more, which must be in the chunk, too.
    further = border == "reflect"
    most = {a: max(reach[s]) + further for a, s in enumerate(symbols) if s in reach}
    least = {a: _enough(photo.chunks[a], each) for a, each in most.items()}
    chunks, photo = kept or photo.chunks, photo.rechunk(least)
    along = dict(zip(symbols, photo.chunks))
    depth = {a: reach[s] if s in reach and len(along[s]) > 1 else (0, 0) for a, s in enumerate(symbols)}
    around = da.overlap.overlap(photo, depth, boundary=dict.fromkeys(depth, "none"))
    given: list[Any] = [around, symbols]
    for symbol, (before, _) in reach.items():  # of each chunk how much lies before it, and its size
        pairs = [(before if number else 0, extent) for number, extent in enumerate(along[symbol])]
        given += da.from_array(np.array(pairs), chunks=(1, 2)), (symbol, f"pair {symbol}")
    for name, array, several in (("k", kernels, ndims[0]), ("m", mixture, ndims[1])):
        if array is None:
            continue
        names = [f"{name}{axis}" for axis in range(array.ndim)]
        if several >= 0:  # one for each pixel
            names[-2:] = "H", "W"
            if several and "N" in symbols:
                names[0] = "N"
        given += _in_chunks(array, {a: along.get(each, -1) for a, each in enumerate(names)}), tuple(names)
    axes = symbols.index("H"), symbols.index("W")
    own = [several >= 0 for several in ndims]
    run = partial(_filtered, axes=axes, own=own, channel_axis=channel_axis, border=border)
    # Axes that are summed over stay, with one chunk of one element: else dask would make kernels by tasks of
    # their own, and those of many chunks before it needs them.
    summed = tuple(dict.fromkeys(name for names in given[1::2] for name in names if name not in symbols))
    y = da.blockwise(
        run,
        (*symbols, *summed),
        *given,
        dtype=photo.dtype,
        meta=photo._meta.reshape((0,) * (len(symbols) + len(summed))),
        adjust_chunks={**{symbol: along[symbol] for symbol in reach}, **dict.fromkeys(summed, 1)},
        align_arrays=False,
        summed=len(summed),
    )
    return y[(..., *(0,) * len(summed))].rechunk(chunks)


def _filtered(
    photo: Any,
    rows: Any,
    columns: Any,
    *kernels: Any,
    axes: tuple[int, int],
    own: Sequence[bool],
    summed: int,
    **options: Any,
) -> Any:
    """The outputs of a chunk. What lies around it gets kernels of zeros, and is left out."""
    inside = [slice(int(first), int(first) + int(size)) for ((first, size),) in (rows, columns)]
    wide = [photo.shape[axis] for axis in axes]
    given = []
    for array, each in zip(kernels, own):
        if each:
            filled = module_of(array).zeros((*array.shape[:-2], *wide), array.dtype)
            filled[(..., *inside)] = array
            array = filled
        given.append(array)
    y = images.filter(photo, *given, **options)
    index = dict(zip(axes, inside))
    return y[(*(index.get(axis, slice(None)) for axis in range(y.ndim)), *(None,) * summed)]


def sample(photo: Any, points: Any, layout: Layout, result: Layout, channel_axis: Any, border: Any) -> Any:
    """`images.sample` of arrays that fit: each task reads its points in whole pictures."""
    photo = _in_chunks(photo, {axis: -1 for axis, symbol in enumerate(layout.symbols) if symbol != "N"})
    inner = ["row", "column", "C", "N"]  # what the photo has along H and W is no axis of the result
    names = [inner["HWCN".index(symbol)] for symbol in layout.symbols]
    places = [symbol for symbol in result.symbols if symbol != "C"]
    points = _in_chunks(points, {points.ndim - 1: -1})
    if "N" in places:
        points = _in_chunks(points, {0: photo.chunks[layout.symbols.index("N")]})
    run = partial(_sampled, channel_axis=channel_axis, border=border)
    meta = module_of(photo._meta).empty((0,) * len(result.symbols), photo.dtype)
    return da.blockwise(
        run,
        tuple(result.symbols),
        *(photo, tuple(names)),
        *(points, (*places, "yx")),
        dtype=photo.dtype,
        meta=meta,
        concatenate=True,
        align_arrays=False,
    )


def _sampled(photo: Any, points: Any, *, channel_axis: Any, border: Any) -> Any:
    return images.sample(photo, points, channel_axis=channel_axis, border=border)


def moved(photo: Any, flow: Any, layout: Layout) -> Any:
    """The points that a flow leads to, in the chunks of the flow if it is of dask, else of the photo."""
    if not isinstance(flow, da.Array):
        chunks = {symbol: photo.chunks[place] for place, symbol in enumerate(layout.symbols)}
        flow = _in_chunks(flow, dict(zip(range(flow.ndim), [chunks[s] for s in layout.symbols if s != "C"])))
    flow = flow.rechunk({flow.ndim - 1: -1})
    meta = module_of(flow._meta).empty((0,) * flow.ndim, np.float64)
    return flow.map_blocks(_moved, dtype=np.float64, meta=meta)


def _moved(flow: Any, block_info: Any = None) -> Any:
    points, xp = flow.astype(np.float64), module_of(flow)
    rows, columns = (xp.arange(*block_info[0]["array-location"][axis], dtype=np.float64) for axis in (-3, -2))
    points[..., 0] += rows[:, None]
    points[..., 1] += columns
    return points


def _enough(chunks: tuple[int, ...], least: int) -> tuple[int, ...]:
    """Chunks in which what lies around one is no more than its neighbours."""
    if sum(chunks) <= least:
        return (sum(chunks),)
    found: tuple[int, ...] = da.overlap.ensure_minimum_chunksize(least, chunks)
    return found


def _in_chunks(array: Any, chunks: dict[int, Any]) -> Any:
    """An array of dask, in these chunks along some axes."""
    if not isinstance(array, da.Array):
        return da.from_array(array, chunks=tuple(chunks.get(a, -1) for a in range(array.ndim)), asarray=False)
    return array.rechunk(chunks)
