"""Operators on arrays of dask: a task for each chunk of the output, on the part of each array that it reads.

What a task does is what a tile does, so that chunks have the bits of the whole. Where values that are not known
yet say what is read, offsets for example, a task gets all rows and columns, and takes of them what it needs.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask import delayed

from ._halo import Range
from ._operator import OPERATORS, Operator
from ._parts import Box, Call, at, cut, extent, is_pointwise, own, recipe, stand_in


class _Part(NamedTuple):
    """Where a part begins, and the shape of the whole."""

    starts: tuple[int, ...]
    shape: tuple[int, ...]


class _Whole:
    """An array of which a part is there: `Call` asks it for parts of that."""

    def __init__(self, array: Any, part: _Part) -> None:
        self.array, self.starts, self.shape = array, part.starts, part.shape
        self.dtype, self.ndim = array.dtype, array.ndim

    def __getitem__(self, index: tuple[Any, ...]) -> Any:
        slices = (slice(i.start - first, i.stop - first) for i, first in zip(index[1:], self.starts))
        return self.array[(..., *(slice(0, 0) if i.stop <= i.start else i for i in slices))]


class _Task(NamedTuple):
    """What the tasks of a call have in common, and what each has of its own."""

    name: str
    params: Mapping[str, Any]
    parts: tuple[_Part | None, ...]  # None for arrays that are there as a whole
    box: Box
    total: tuple[int, ...]
    wanted: tuple[str, ...] = ()
    everything: tuple[int, ...] = ()  # where the gradient of the output begins

    def call(self, arrays: Sequence[Any]) -> Call:
        """The call, on parts of arrays."""
        operator = OPERATORS[self.name]
        given = (a if part is None else _Whole(a, part) for a, part in zip(arrays, self.parts))
        return Call(self.name, recipe(self.name, operator, self.params, None, None), tuple(given))


def _make_output(task: _Task, *arrays: Any) -> Any:  # not in a list: dask would put what it holds in another order
    return task.call(arrays).output(task.box, task.total)


def _make_gradients(task: _Task, grad: Any, *arrays: Any) -> list[Any]:
    """The gradients for which some outputs stand; of a sum, a part of it."""
    call = task.call(arrays)
    whole = _Whole(grad, _Part(task.everything, (*grad.shape[: grad.ndim - call.axes], *task.total)))
    found = {name: part for name, _, part in call.gradients(task.box, task.total, whole, task.wanted, call.known)}
    return [found.get(name) for name in task.wanted]


def _make_own_gradients(task: _Task, grad: Any, *arrays: Any) -> list[Any]:
    """The gradients that some outputs give, each of the size of its array."""
    call = task.call(arrays)
    whole = _Whole(grad, _Part(task.everything, (*grad.shape[: grad.ndim - call.axes], *task.total)))
    found = {}
    for name, where, part in call.own_gradients(task.box, task.total, whole, task.wanted):
        found[name] = part
        if name in call.sizes and part.shape != call.given[name].shape and not is_pointwise(call.known[name] or ()):
            found[name] = np.zeros_like(part, shape=call.given[name].shape)
            found[name][at(where)] = part
    return [found[name] for name in task.wanted]


class _Lazy:
    """A call on arrays of which at least one is of dask."""

    def __init__(self, operator: Operator, arrays: Sequence[Any], params: Mapping[str, Any]) -> None:
        self.operator, self.params = operator, dict(params)
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
        if self.call.shape is None:
            raise AssertionError("operators know the shape of their output")
        self.shape, self.axes = self.call.shape, self.call.axes
        self.total = self.shape[len(self.shape) - self.axes :]
        # Where the values are not known, neither is the reach.
        self.unknown = any(name in self.given for name in self.call.values)
        for name in self.call.sizes:
            if not isinstance(self.given[name], da.Array):
                self.given[name] = da.from_array(self.given[name], chunks=self.given[name].shape)
        self.constants = {
            name: delayed(self.given[name], pure=True)
            for name in self.call.whole
            if hasattr(self.given[name], "shape") and not isinstance(self.given[name], da.Array)
        }
        self.leader = self._leader()

    def _leader(self) -> Any:
        """The array whose chunks the output has: the first that is of dask and has places."""
        first = next(iter(self.call.sizes))
        reach = self.call.known[first]
        if reach is not None and reach[0].more is None:  # of other places than those of the output
            return next(self.given[name] for name in self.call.sizes if is_pointwise(self.call.known[name] or ()))
        return self.given[first]

    def images(self) -> list[Range]:
        """The images of the batch in each chunk."""
        return list(pairwise(np.cumsum([0, *self.leader.chunks[0]]).tolist()))

    def ranges(self) -> list[list[Range]]:
        """The outputs of each chunk, along each axis."""
        name = next(n for n in self.call.sizes if self.given[n] is self.leader)
        found = []
        for axis, reach in enumerate(self.call.known[name] or ()):
            edges = np.cumsum([0, *self.leader.chunks[axis - self.axes]])[:-1]
            ends = [min(self.total[axis], -(-int(edge) // reach.step) * reach.scale) for edge in edges]
            found.append([(a, b) for a, b in pairwise([*ends, self.total[axis]]) if b > a])
        return found

    def task(self, images: Range, box: Box, everything: Box, also: Mapping[str, Box], wanted: Sequence[str]) -> Any:
        """What a task is, and the arrays that it gets."""
        if self.unknown:
            whole = {n: tuple((0, size) for size in sizes) for n, sizes in self.call.sizes.items()}
            boxes = {n: box if is_pointwise(self.call.known[n] or ()) else whole[n] for n in whole}
        else:
            boxes = cut(self.call.recipe, self.call.known, self.call.sizes, self.total, everything, also).boxes
        arrays, parts = list[Any](), list[_Part | None]()
        for name in self.operator.arrays:
            array = self.given.get(name)
            if name in self.call.sizes:
                shape = (images[1] - images[0], *array.shape[1:])
                parts.append(_Part(tuple(first for first, _ in boxes[name]), shape))
                arrays.append(array[slice(*images)][at(boxes[name])])
                continue
            parts.append(None)
            if name in self.call.recipe.halo.per_image.split() and array is not None:
                array = array[slice(*images)]
            elif name in self.constants:
                array = self.constants[name]
            arrays.append(array)
        begins = tuple(first for first, _ in everything)
        return _Task(self.operator.name, self.params, tuple(parts), box, self.total, tuple(wanted), begins), arrays

    def zeros(self, name: str) -> Any:
        """A gradient where there are no outputs."""
        return da.zeros(self.given[name].shape, dtype=self.given[name].dtype)


def output(operator: Operator, arrays: Sequence[Any], params: Mapping[str, Any]) -> Any:
    """The output as an array of dask, in the chunks of the first array that has places."""
    lazy = _Lazy(operator, arrays, params)
    if 0 in lazy.shape:
        return da.zeros(lazy.shape, dtype=lazy.leader.dtype)
    blocks = []
    for images in lazy.images():
        for box in product(*lazy.ranges()):
            task, given = lazy.task(images, box, box, {}, ())
            made = delayed(_make_output, pure=True)(task, *given)
            inner = lazy.shape[1 : len(lazy.shape) - lazy.axes]
            shape = (images[1] - images[0], *inner, *(last - first for first, last in box))
            blocks.append(da.from_delayed(made, shape, lazy.leader.dtype, meta=lazy.leader._meta))
    return _assembled(blocks, [len(lazy.images()), *map(len, lazy.ranges())], lazy.axes)


def gradients(
    operator: Operator, grad_output: Any, arrays: Sequence[Any], params: Mapping[str, Any], wants: Sequence[bool]
) -> tuple[Any, ...]:
    """The gradients as arrays of dask, each in the chunks of its array; None where one is not wanted."""
    lazy = _Lazy(operator, arrays, params)
    if not hasattr(grad_output, "shape") or tuple(grad_output.shape) != lazy.shape:
        raise ValueError(
            f"{operator.name}: grad_output must have the shape of the output, {lazy.shape}, "
            f"got {tuple(getattr(grad_output, 'shape', ()))}"
        )
    if not isinstance(grad_output, da.Array):
        grad_output = da.from_array(grad_output, chunks=grad_output.shape)
    wanted = [n for n, want in zip(operator.arrays, wants) if want and hasattr(lazy.given.get(n), "shape")]
    if 0 in lazy.shape:
        found = {name: lazy.zeros(name) for name in wanted}
    else:
        found = _gradients(lazy, grad_output, wanted)
    return tuple(
        _in_chunks_of(found[n], lazy.given[n]) if n in found else None for n in operator.arrays
    )


def _gradients(lazy: _Lazy, grad_output: Any, wanted: Sequence[str]) -> dict[str, Any]:
    """By name, from a task for each chunk."""
    make = _make_own_gradients if lazy.unknown else _make_gradients
    parts: dict[str, list[list[Any]]] = {name: [] for name in wanted}
    for images in lazy.images():
        for name in wanted:
            parts[name].append([])
        for box in product(*lazy.ranges()):
            shared, everything = dict[str, Box](), box
            if not lazy.unknown:
                _, shared, everything = lazy.call.split(box, lazy.total, wanted, lazy.call.known)
            task, given = lazy.task(images, box, everything, shared, wanted)
            made = delayed(make, pure=True)(task, grad_output[slice(*images)][at(everything)], *given)
            for place, name in enumerate(wanted):
                where = box if is_pointwise(lazy.call.known[name] or ()) else shared.get(name)
                shape = _shape(lazy, name, images, where)
                if shape is not None:
                    meta, dtype = lazy.leader._meta, lazy.given[name].dtype
                    parts[name][-1].append(da.from_delayed(made[place], shape, dtype, meta=meta))
    return {name: _joined(lazy, name, blocks) for name, blocks in parts.items()}


def _shape(lazy: _Lazy, name: str, images: Range, where: Box | None) -> tuple[int, ...] | None:
    """The shape of what a task makes of a gradient; None for nothing."""
    array, count = lazy.given[name], images[1] - images[0]
    if name in lazy.call.whole:
        per_image = name in lazy.call.recipe.halo.per_image.split()
        return (count, *array.shape[1:]) if per_image else tuple(array.shape)
    inner = array.shape[1 : len(array.shape) - lazy.axes]
    if where is not None:
        return (count, *inner, *(last - first for first, last in where))
    return (count, *inner, *extent(array, lazy.axes)) if lazy.unknown else None


def _joined(lazy: _Lazy, name: str, blocks: list[list[Any]]) -> Any:
    """A gradient from its parts: put together where each has a place of its own, added up where not."""
    known = lazy.call.known[name]
    if known is not None and (is_pointwise(known) or not lazy.unknown):
        places = lazy.ranges()
        if not is_pointwise(known):
            sizes = lazy.call.sizes[name]
            places = [
                [r for r in (own((k,), (size,), (end,), (box,))[0] for box in boxes) if r[1] > r[0]]
                for k, size, end, boxes in zip(known, sizes, lazy.total, lazy.ranges())
            ]
        flat = [part for parts in blocks for part in parts]
        return _assembled(flat, [len(blocks), *map(len, places)], lazy.axes)
    sums = [_sum(parts) for parts in blocks]
    if known is None and name not in lazy.call.recipe.halo.per_image.split():
        return _sum(sums)
    return da.concatenate(sums, axis=0)


def _sum(parts: Sequence[Any]) -> Any:
    """In float64 at least, in the dtype of the parts."""
    dtype = parts[0].dtype
    return da.stack(list(parts)).sum(axis=0, dtype=np.result_type(dtype, np.float64)).astype(dtype)


def _assembled(blocks: list[Any], counts: Sequence[int], axes: int) -> Any:
    """An array of its chunks, which lie in rows and columns of so many, image after image."""
    for axis, count in zip(range(-1, -axes - 1, -1), counts[:0:-1]):
        blocks = [da.concatenate(blocks[i : i + count], axis=axis) for i in range(0, len(blocks), count)]
    return da.concatenate(blocks, axis=0)


def _in_chunks_of(found: Any, array: Any) -> Any:
    return found.rechunk(array.chunks) if isinstance(array, da.Array) else found


def _form(array: Any) -> Any:
    """What is known of an array before it is there: shape and dtype."""
    return stand_in(array.shape, array.dtype) if isinstance(array, da.Array) else array
