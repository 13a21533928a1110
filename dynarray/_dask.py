"""Operators on arrays of dask: a task for each chunk of the output, on the part of each array that it reads.

What a task does is what a tile does, so that chunks have the bits of the whole. Where values that are not
known yet say what is read, offsets for example, a task gets all rows and columns, and takes of them what it
needs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from rawkernels.launch import module_of

from ._dispatch import choose_backend
from ._halo import Range
from ._operator import OPERATORS, Operator
from ._parts import Box, Call, at, cut, is_pointwise, own, recipe, stand_in


class _Source(NamedTuple):
    """How an argument of a task is put together from chunks: where each goes, and which part of it."""

    shape: tuple[int, ...]
    pieces: tuple[tuple[tuple[slice, ...], tuple[slice, ...]], ...]
    starts: tuple[int, ...] = ()  # of arrays with places: where the part begins, and the shape of the whole
    whole: tuple[int, ...] = ()

    def made(self, chunks: Iterator[Any]) -> Any:
        """The argument."""
        if not self.pieces:  # a constant
            return next(chunks)
        (target, source), *others = self.pieces
        first = next(chunks)
        if not others:
            part = first[source]
        else:
            part = module_of(first).empty(self.shape, first.dtype)
            part[target] = first[source]
            for (target, source), chunk in zip(others, chunks):
                part[target] = chunk[source]
        return _Whole(part, self.starts, self.whole) if self.whole else part


class _Whole:
    """An array of which a part is there: `Call` asks it for parts of that."""

    def __init__(self, array: Any, starts: tuple[int, ...], shape: tuple[int, ...]) -> None:
        self.array, self.starts, self.shape = array, starts, shape
        self.dtype, self.ndim = array.dtype, array.ndim

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        slices = (slice(i.start - first, i.stop - first) for i, first in zip(index[1:], self.starts))
        return self.array[(..., *(slice(0, 0) if i.stop <= i.start else i for i in slices))]


@dataclass(frozen=True, eq=False)
class _Task:
    """What a task does. Arguments that are left out have no source; without `wanted` it makes outputs."""

    name: str
    params: Mapping[str, Any]
    sources: tuple[_Source | None, ...]
    box: Box
    total: tuple[int, ...]
    wanted: tuple[str, ...] = ()
    unknown: bool = False  # how far outputs read

    def __call__(self, *chunks: Any) -> Any:
        """The outputs, or a list of gradients."""
        blocks = iter(chunks)
        arrays = [None if source is None else source.made(blocks) for source in self.sources]
        grad = arrays.pop() if self.wanted else None
        operator = OPERATORS[self.name]
        call = Call(self.name, recipe(self.name, operator, self.params, None, None), arrays)
        if not self.wanted:
            return call.output(self.box, self.total)
        return (self._own_gradients if self.unknown else self._gradients)(call, grad)

    def _gradients(self, call: Call, grad: Any) -> list[Any]:
        """Those for which the outputs stand; of a sum, a part of it."""
        made = call.gradients(self.box, self.total, grad, self.wanted, call.known)
        found = {name: part for name, _, part in made}
        return [found.get(name) for name in self.wanted]

    def _own_gradients(self, call: Call, grad: Any) -> list[Any]:
        """Those that the outputs give, each of the size of its array, or of their own places."""
        found = {}
        for name, where, part in call.own_gradients(self.box, self.total, grad, self.wanted):
            found[name] = part
            if name in call.sizes and not is_pointwise(call.known[name] or ()):
                found[name] = module_of(part).zeros(call.given[name].shape, part.dtype)
                found[name][at(where)] = part
        return [found[name] for name in self.wanted]


def _item(results: list[Any], place: int) -> Any:
    return results[place]


def _stacked(results: list[Any], place: int) -> Any:
    return results[place][None]


class _Lazy:
    """A call on arrays of which at least one is of dask."""

    def __init__(self, operator: Operator, arrays: Sequence[Any], params: Mapping[str, Any]) -> None:
        self.operator, self.params = operator, dict(params)
        operator.backend_of(tuple(map(_kind, arrays)))
        check_known(operator.name, dict(zip(operator.arrays, arrays)))
        made = recipe(operator.name, operator, params, None, None)
        self.given = {n: a for n, a in zip(operator.arrays, arrays) if a is not None}
        values, placed = made.halo.values.split(), made.halo.at_outputs.split()
        for name in values:
            if name not in placed and isinstance(self.given.get(name), da.Array):
                raise TypeError(
                    f"{operator.name}: {name} must be no dask array: its values say which chunks are read; "
                    f"{name}.compute() is one that may be given"
                )
        self.call = Call(operator.name, made, [_form(a) for a in arrays])
        assert self.call.shape is not None  # an operator's check says it
        self.shape, self.axes = self.call.shape, self.call.axes
        self.total = self.shape[len(self.shape) - self.axes :]
        # Where the values are not known, neither is the reach.
        self.unknown = bool(self.call.values)
        self.per_image = made.halo.per_image.split()
        for name in {*self.call.sizes, *self.per_image} & self.given.keys():
            if not isinstance(self.given[name], da.Array):
                self.given[name] = da.from_array(self.given[name], chunks=self.given[name].shape)
        self.token = tokenize(operator.name, self.params, *self.given.items())
        self.graph: dict[Any, Any] = {}
        self.leader = self._leader()
        self.images = _ranges(self.leader.chunks[0])
        self.ranges = self._outputs()

    def _leader(self) -> Any:
        """The array whose chunks the output has: the first that has places."""
        first = next(iter(self.call.sizes))
        if (self.call.known[first] or ())[0].more is None:  # of other places than those of the output
            first = next(name for name in self.call.sizes if is_pointwise(self.call.known[name] or ()))
        return self.given[first]

    def _outputs(self) -> list[list[Range]]:
        """The outputs of each chunk, along each axis."""
        name = next(n for n in self.call.sizes if self.given[n] is self.leader)
        found = []
        for axis, reach in enumerate(self.call.known[name] or ()):
            edges = [first for first, _ in _ranges(self.leader.chunks[axis - self.axes])]
            ends = [min(self.total[axis], -(-edge // reach.step) * reach.scale) for edge in edges]
            found.append([(a, b) for a, b in pairwise([*ends, self.total[axis]]) if b > a])
        return found

    def boxes(self) -> Iterator[tuple[tuple[int, ...], Range, Box]]:
        """For each chunk of the output its place among them, its images and its outputs."""
        for n, images in enumerate(self.images):
            for numbered in product(*(list(enumerate(along)) for along in self.ranges)):
                yield (n, *(i for i, _ in numbered)), images, tuple(box for _, box in numbered)

    def source(self, array: Any, images: Range | None, box: Box | None) -> tuple[_Source, list[Any]]:
        """Of an array of dask the part for some images, all of them by default, and rows and columns."""
        ranges = [(0, size) for size in array.shape]
        if images is not None:
            ranges[0] = images
        if box is not None:
            ranges[len(ranges) - self.axes :] = box
        along = [_overlaps(_ranges(chunks), each) for chunks, each in zip(array.chunks, ranges)]
        pieces, keys = list[Any](), list[Any]()
        for chosen in product(*along):
            keys.append((array.name, *(number for number, _, _ in chosen)))
            pieces.append((tuple(to for _, to, _ in chosen), tuple(own for _, _, own in chosen)))
        shape = tuple(last - first for first, last in ranges)
        if box is None:
            return _Source(shape, tuple(pieces)), keys
        inner = shape[: len(shape) - self.axes]
        whole = (*inner, *array.shape[len(array.shape) - self.axes :])
        return _Source(shape, tuple(pieces), tuple(first for first, _ in box), whole), keys

    def arguments(
        self, images: Range, box: Box, everything: Box, also: Mapping[str, Box]
    ) -> tuple[list[_Source | None], list[Any]]:
        """What a task gets of each array, and the keys of the chunks that it needs for that."""
        if self.unknown:
            whole = {n: tuple((0, size) for size in sizes) for n, sizes in self.call.sizes.items()}
            boxes = {n: box if is_pointwise(self.call.known[n] or ()) else whole[n] for n in whole}
        else:
            made, known = self.call.recipe, self.call.known
            boxes = cut(made, known, self.call.sizes, self.total, everything, also).boxes
        sources, keys = list[_Source | None](), list[Any]()
        for name in self.operator.arrays:
            array = self.given.get(name)
            if array is None:
                sources.append(None)
            elif isinstance(array, da.Array):
                own_images = images if name in boxes or name in self.per_image else None
                source, own_keys = self.source(array, own_images, boxes.get(name))
                sources.append(source)
                keys += own_keys
            else:
                key = f"{self.operator.name}-{name}-{self.token}"
                self.graph[key] = array
                sources.append(_Source((), ()))
                keys.append(key)
        return sources, keys

    def array(self, name: str, kind: str, layer: dict[Any, Any], chunks: tuple[Any, ...], dtype: Any) -> Any:
        """An array of dask whose tasks are in a layer of their own, after those in `graph`."""
        arrays = [a for a in self.given.values() if isinstance(a, da.Array)]
        whole = f"{kind}-{self.operator.name}-{name}-{self.token}"
        tasks = {(whole, *place): task for place, task in layer.items()}
        graph = HighLevelGraph.from_collections(whole, {**self.graph, **tasks}, dependencies=arrays)
        return da.Array(graph, whole, chunks, dtype=dtype, meta=_meta(self.leader, len(chunks), dtype))

    def zeros(self, name: str) -> Any:
        """A gradient where there are no outputs."""
        return da.zeros(self.given[name].shape, dtype=self.given[name].dtype)


def _meta(leader: Any, ndim: int, dtype: Any) -> Any:
    return module_of(leader._meta).empty((0,) * ndim, dtype)


def output(operator: Operator, arrays: Sequence[Any], params: Mapping[str, Any]) -> Any:
    """The output as an array of dask, in the chunks of the first array that has places."""
    lazy = _Lazy(operator, arrays, params)
    if 0 in lazy.shape:
        return da.zeros(lazy.shape, dtype=lazy.leader.dtype)
    inner, layer = lazy.shape[1 : len(lazy.shape) - lazy.axes], {}
    for place, images, box in lazy.boxes():
        sources, keys = lazy.arguments(images, box, box, {})
        task = _Task(operator.name, lazy.params, tuple(sources), box, lazy.total)
        layer[(place[0], *(0 for _ in inner), *place[1:])] = (task, *keys)
    chunks = (_sizes(lazy.images), *((size,) for size in inner), *map(_sizes, lazy.ranges))
    return lazy.array("output", "dyn", layer, chunks, lazy.leader.dtype)


def gradients(
    operator: Operator,
    grad_output: Any,
    arrays: Sequence[Any],
    params: Mapping[str, Any],
    wants: Sequence[bool],
) -> tuple[Any, ...]:
    """The gradients as arrays of dask, each in the chunks of its array; None where one is not wanted."""
    lazy = _Lazy(operator, arrays, params)
    if not hasattr(grad_output, "shape") or tuple(grad_output.shape) != lazy.shape:
        raise ValueError(
            f"{operator.name}: grad_output must have the shape of the output, {lazy.shape}, "
            f"got {tuple(getattr(grad_output, 'shape', ()))}"
        )
    choose_backend(operator.name, {"x": _kind(lazy.leader), "grad_output": _kind(grad_output)})
    if not isinstance(grad_output, da.Array):
        grad_output = da.from_array(grad_output, chunks=grad_output.shape)
    wanted = [n for n, want in zip(operator.arrays, wants) if want and hasattr(lazy.given.get(n), "shape")]
    if 0 in lazy.shape or not wanted:
        found = {name: lazy.zeros(name) for name in wanted}
    else:
        found = _gradients(lazy, grad_output, tuple(wanted))
    given = dict(zip(operator.arrays, arrays))
    return tuple(_in_chunks_of(found[n], given[n]) if n in found else None for n in operator.arrays)


def _gradients(lazy: _Lazy, grad_output: Any, wanted: tuple[str, ...]) -> dict[str, Any]:
    """By name, from a task for each chunk of the output."""
    lazy.token = tokenize(lazy.token, grad_output, wanted)
    lazy.given["grad_output"] = grad_output
    places, known = list[tuple[int, ...]](), lazy.call.known
    for place, images, box in lazy.boxes():
        shared, everything = dict[str, Box](), box
        if not lazy.unknown:
            _, shared, everything = lazy.call.split(box, lazy.total, wanted, known)
        sources, keys = lazy.arguments(images, box, everything, shared)
        of_grad, grad_keys = lazy.source(grad_output, images, everything)
        task = _Task(
            lazy.operator.name, lazy.params, (*sources, of_grad), box, lazy.total, wanted, lazy.unknown
        )
        lazy.graph[("dyn-all", lazy.token, *place)] = (task, *keys, *grad_keys)
        places.append(place)
    return {name: _gradient(lazy, name, number, places) for number, name in enumerate(wanted)}


def _gradient(lazy: _Lazy, name: str, number: int, places: Sequence[tuple[int, ...]]) -> Any:
    """A gradient from its parts: put together where each has a place of its own, added up where not."""
    array, known, layer = lazy.given[name], lazy.call.known[name], {}
    if known is not None and (is_pointwise(known) or not lazy.unknown):
        inner = array.shape[1 : len(array.shape) - lazy.axes]
        ranges = lazy.ranges if is_pointwise(known) else _owned(lazy, name)
        kept = [[i for i, (first, last) in enumerate(along) if last > first] for along in ranges]
        for place in places:
            if all(i in own for i, own in zip(place[1:], kept)):
                to = (place[0], *(0 for _ in inner), *(own.index(i) for i, own in zip(place[1:], kept)))
                layer[to] = (_item, ("dyn-all", lazy.token, *place), number)
        extents = (tuple(ranges[a][i][1] - ranges[a][i][0] for i in own) for a, own in enumerate(kept))
        chunks = (_sizes(lazy.images), *((size,) for size in inner), *extents)
        return lazy.array(name, "dyn-gradient", layer, chunks, array.dtype)
    by_image = known is not None or name in lazy.per_image
    shape = array.shape[1:] if by_image else array.shape
    boxes = prod(map(len, lazy.ranges))
    for k, place in enumerate(places):
        one = (k % boxes, place[0]) if by_image else (k,)
        layer[(*one, *(0 for _ in shape))] = (_stacked, ("dyn-all", lazy.token, *place), number)
    counts = ((1,) * boxes, _sizes(lazy.images)) if by_image else ((1,) * len(places),)
    parts = lazy.array(name, "dyn-parts", layer, (*counts, *((size,) for size in shape)), array.dtype)
    return parts.sum(axis=0, dtype=np.result_type(array.dtype, np.float64)).astype(array.dtype)


def _owned(lazy: _Lazy, name: str) -> list[list[Range]]:
    """The parts of an array for whose gradient each chunk of the output stands, along each axis."""
    known, sizes = lazy.call.known[name] or (), lazy.call.sizes[name]
    return [
        [own((reach,), (size,), (end,), (box,))[0] for box in along]
        for reach, size, end, along in zip(known, sizes, lazy.total, lazy.ranges)
    ]


def _ranges(chunks: Sequence[int]) -> list[Range]:
    return list(pairwise(np.cumsum([0, *chunks]).tolist()))


def _sizes(ranges: Sequence[Range]) -> tuple[int, ...]:
    return tuple(last - first for first, last in ranges)


def _overlaps(chunks: Sequence[Range], wanted: Range) -> list[tuple[int, slice, slice]]:
    """The chunks that have a part of a range: number, where that goes, and what it is of the chunk."""
    start, stop = wanted
    found = []
    for number, (first, last) in enumerate(chunks):
        low, high = max(start, first), min(stop, last)
        if low < high:
            found.append((number, slice(low - start, high - start), slice(low - first, high - first)))
    return found or [(0, slice(0, 0), slice(0, 0))]


def _in_chunks_of(found: Any, array: Any) -> Any:
    return found.rechunk(array.chunks) if isinstance(array, da.Array) else found


def _kind(array: Any) -> Any:
    """What says of which library and dtype an array is."""
    return array._meta if isinstance(array, da.Array) else array


def check_known(caller: str, arrays: Mapping[str, Any]) -> None:
    """Require arrays of dask whose sizes are known."""
    for name, array in arrays.items():
        if isinstance(array, da.Array) and any(map(np.isnan, array.shape)):
            raise ValueError(
                f"{caller}: {name} must have chunks of known sizes, got shape {array.shape}; "
                f"{name}.compute_chunk_sizes() finds them out"
            )


def _form(array: Any) -> Any:
    """What is known of an array before it is there: shape and dtype."""
    return stand_in(array.shape, array.dtype) if isinstance(array, da.Array) else array
