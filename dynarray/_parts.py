"""A call that is made part by part: what tiles and chunks are, before anything says where they come from."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np

from ._check import check_count
from ._dispatch import library_of
from ._geometry import LINE, PLANE, Space
from ._halo import ONE, Halo, Range, Reach, frame, mirrors, needed, region
from ._operator import OPERATORS, Operator
from .cpu.engine.whole import WholeCall, part_of

# Calls on more bytes than this are not imitated to the last bit: to add up as few channels together as they
# would have to is slow, and no machine that needs tiles makes them.
LARGEST = 16 << 30

Box = tuple[Range, ...]  # one range for each axis of the image
Reaches = Mapping[str, tuple[Reach, ...] | None]
Forward = Callable[..., Any]


class Cut(NamedTuple):
    """What is read for some outputs: the frame of the call, and the part of each array that has places."""

    frame: Box
    boxes: dict[str, Box]


class Recipe(NamedTuple):
    """A function of arrays, and what its outputs read of them.

    `backward` gets a gradient of the output, the arrays, and `needs`.
    """

    name: str
    names: tuple[str, ...]
    forward: Forward
    backward: Forward | None
    halo: Halo
    mirrored: bool
    params: Mapping[str, Any]
    # The call as forms take it, and the shape of the output, which is checked; None where nobody knows.
    formed: Callable[..., tuple[WholeCall, tuple[int, ...]]] | None

    def reaches(self, arrays: Mapping[str, Any], origin: Sequence[int]) -> Reaches:
        """By name; arrays with values may be the part that begins at this output."""
        return self.halo(self.name, self.params, arrays, origin)


class _Told(Halo):
    """The halo that a caller tells, for a function of which nothing is known."""

    def __init__(self, told: Reaches, space: Space) -> None:
        super().__init__(space=space)
        self.told = told

    def __call__(self, *_: Any) -> dict[str, tuple[Reach, ...] | None]:
        return dict(self.told)


def recipe(
    caller: str,
    function: Any,
    params: Mapping[str, Any] | None,
    halo: Sequence[Any] | None,
    backward: Forward | None,
) -> Recipe:
    """Of an operator, by its record or public function, or of any function with the halo that is told."""
    operator = _operator(function)
    if operator is not None:
        if halo is not None or backward is not None:
            raise TypeError(
                f"{caller}: {operator.name} knows its halo and its backward pass; neither is to be given"
            )
        return _of_operator(operator, params or {})
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if not callable(function):
        raise TypeError(f"{caller}: function must be an operator or a function of arrays, got {function!r}")
    if halo is None:
        raise TypeError(
            f"{caller}: {name} is no operator of dynarray: halo must say what it reads of each array "
            "(for networks, `autodiff.halo` works it out)"
        )
    names = tuple(f"arrays[{i}]" for i in range(len(halo)))
    told = {n: _told(caller, n, given) for n, given in zip(names, halo)}
    axes = {len(reach) for reach in told.values() if reach is not None}
    if axes not in ({1}, {2}):
        raise ValueError(f"{caller}: halo of {name} must be that of planes or of lines, got {halo!r}")
    chosen = dict(params or {})
    reads = _Told(told, PLANE if axes == {2} else LINE)

    def forward(*arrays: Any) -> Any:
        output = function(*arrays, **chosen)
        held = getattr(output, "data", None)  # of a Variable
        return held if library_of(output) is None and library_of(held) is not None else output

    return Recipe(name, names, forward, backward, reads, False, chosen, None)


def _operator(function: Any) -> Operator | None:
    if isinstance(function, Operator):
        return function
    operator = OPERATORS.get(getattr(function, "__name__", ""))
    return operator if operator is not None and operator.function is function else None


def _of_operator(operator: Operator, params: Mapping[str, Any]) -> Recipe:
    chosen = operator.chosen(params)
    if operator.reads is None:
        raise TypeError(f"{operator.name}: nothing says what its outputs read, so that it has no halo")

    def forward(*arrays: Any) -> Any:
        return operator(arrays, **params)

    def backward(grad_output: Any, *arrays: Any, needs: tuple[bool, ...]) -> tuple[Any, ...]:
        return operator.backward_pass(grad_output, arrays, params, needs)

    def formed(*arrays: Any) -> tuple[WholeCall, tuple[int, ...]]:
        checked = operator.check(*arrays, **chosen)
        # What is made of whole calls is done on the CPU.
        widths = {**dict.fromkeys(operator.roles, None), **operator.zeros("cpu", checked)}
        pairs = zip(widths.values(), checked.arrays)
        whole = tuple(a if axis is None or a is None else _twice(a, axis) for axis, a in pairs)
        return WholeCall(whole, checked.params), checked.output_shape

    return Recipe(
        operator.name,
        operator.arrays,
        forward,
        backward,
        operator.reads,
        mirrors(operator.name, chosen),
        chosen,
        formed,
    )


def _twice(array: Any, axis: int) -> Any:
    """Something of the shape that an array has with as many zeros in front."""
    return stand_in(tuple(n * (1 + (i == axis)) for i, n in enumerate(array.shape)), array.dtype)


def stand_in(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of any size that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def _told(caller: str, name: str, given: Any) -> tuple[Reach, ...] | None:
    if given is None:
        return None
    if isinstance(given, int) and not isinstance(given, bool):
        return (Reach(given, given),) * 2
    if isinstance(given, Reach):
        return (given,) * 2
    if isinstance(given, tuple | list) and given and all(isinstance(reach, Reach) for reach in given):
        return tuple(given)
    raise TypeError(
        f"{caller}: halo of {name} must be None, a number of pixels, or a Reach for each axis, got {given!r}"
    )


def owners(function: Any) -> list[Any]:
    """In what a function may have its weights: itself, its object, and what it refers to around it."""
    found = list[Any]()
    if isinstance(function, partial):
        found, function = [*function.args, *function.keywords.values()], function.func
    code, found = getattr(function, "__code__", None), [*found, function, getattr(function, "__self__", None)]
    cells = dict(zip(code.co_freevars, function.__closure__ or ())) if code is not None else {}
    for name in (*cells, *(code.co_names if code is not None else ())):
        with suppress(ValueError, KeyError):  # a cell without content, what is no global
            found.append(cells[name].cell_contents if name in cells else function.__globals__[name])
    return [owner for owner in found if owner is not None and not isinstance(owner, type)]


def extent(array: Any, axes: int) -> tuple[int, ...]:
    """The sizes of the axes of the image, which are the last."""
    return tuple(array.shape[len(array.shape) - axes :])


def cut(
    recipe: Recipe,
    reaches: Reaches,
    sizes: Mapping[str, Sequence[int]],
    total: Sequence[int],
    box: Box,
    also: Mapping[str, Box],
) -> Cut:
    """What a call reads that has the outputs in `box` among its own, and a part of each array in `also`."""
    frames, regions = list[Range](), dict[str, list[Range]]()
    spatial = {name: reach for name, reach in reaches.items() if reach is not None and name in sizes}
    for axis, outputs in enumerate(box):
        parts = [(reach[axis], sizes[name][axis]) for name, reach in spatial.items()]
        besides = [also[name][axis] if name in also else None for name in spatial]
        frames.append(frame(parts, total[axis], outputs, recipe.mirrored, besides))
        for name, reach in spatial.items():
            size = sizes[name][axis]
            if is_pointwise(reach):
                part = outputs
            elif reach[axis].more is None:
                part = needed(reach[axis], size, outputs, recipe.mirrored)
                if name in also:
                    part = min(part[0], also[name][axis][0]), max(part[1], also[name][axis][1])
            else:
                part = region(reach[axis], size, frames[-1])
            regions.setdefault(name, []).append(part)
    return Cut(tuple(frames), {name: tuple(ranges) for name, ranges in regions.items()})


def is_pointwise(reach: Sequence[Reach]) -> bool:
    """Whether an output reads its own place only."""
    return all(each[:5] == ONE[:5] for each in reach)


def arguments(
    recipe: Recipe, cutting: Cut, reaches: Reaches, arrays: Mapping[str, Any], box: Box
) -> tuple[Any, ...]:
    """The arrays as the function takes them; those read at outputs get zeros where the frame is larger."""
    full = dict[str, Any]()
    for name, array in arrays.items():
        reach = reaches.get(name)
        given = array is not None and reach is not None and is_pointwise(reach)
        full[name] = widened(array, box, cutting.frame) if given else array
    starts = {name: [first for first, _ in ranges] for name, ranges in cutting.boxes.items()}
    full = recipe.halo.placed(full, starts)
    return tuple(full.get(name) for name in recipe.names)


def widened(array: Any, box: Box, frames: Box) -> Any:
    """An array on the outputs in `box` as one on a frame around them, with zeros."""
    if box == frames:
        return array
    shape = (*array.shape[: array.ndim - len(box)], *(last - first for first, last in frames))
    wide = np.zeros_like(array, shape=shape)
    wide[inside(box, frames)] = array
    return wide


def inside(box: Box, frames: Box) -> tuple[Any, ...]:
    """The index of a box in an array on a larger one."""
    return (..., *(slice(a - first, b - first) for (a, b), (first, _) in zip(box, frames)))


def at(box: Box) -> tuple[Any, ...]:
    """The index of a box in the whole array."""
    return inside(box, ((0, 0),) * len(box))


def own(reach: Sequence[Reach], sizes: Sequence[int], total: Sequence[int], box: Box) -> Box:
    """The part of an array for whose gradient these outputs stand: all outputs have all of it, each once."""
    ranges = list[Range]()
    for each, size, end, (first, last) in zip(reach, sizes, total, box):
        edges = (min(size, edge // each.scale * each.step) for edge in (first, last))
        start, stop = edges
        ranges.append((start, size if last == end else stop))
    return tuple(ranges)


def readers(
    recipe: Recipe, reach: Sequence[Reach], sizes: Sequence[int], total: Sequence[int], box: Box
) -> Box:
    """The outputs that read some place in a box of an array."""
    ranges = list[Range]()
    for each, size, end, places in zip(reach, sizes, total, box):
        low, high = each.readers(places, size, recipe.mirrored)
        ranges.append((max(0, min(low, end)), max(0, min(high, end))))
    return tuple(ranges)


def around(*boxes: Box) -> Box:
    """The smallest box around those that are not empty."""
    full = [box for box in boxes if all(last > first for first, last in box)]
    return reduce(
        lambda one, two: tuple((min(a, c), max(b, d)) for (a, b), (c, d) in zip(one, two)), full or boxes[:1]
    )


def widest(reaches: Iterable[Reaches]) -> Reaches:
    """A reach into each array that covers all of these."""
    found: dict[str, tuple[Reach, ...] | None] = {}
    for each in reaches:
        for name, reach in each.items():
            known = found.get(name)
            found[name] = reach if known is None or reach is None else tuple(map(Reach.union, known, reach))
    return found


class Call:
    """A function, and arrays of which it is given parts."""

    def __init__(self, caller: str, recipe: Recipe, arrays: Sequence[Any]) -> None:
        check_count(caller, recipe.name, recipe.names, arrays)
        self.caller, self.recipe, self.axes = caller, recipe, len(recipe.halo.space.image)
        self.given = {name: array for name, array in zip(recipe.names, arrays) if array is not None}
        at_outputs, values = recipe.halo.at_outputs.split(), recipe.halo.values.split()
        # Values that each tile has of its own are read with it; all that is asked here is which arrays have
        # places.
        self.values = [name for name in values if name in self.given and name in at_outputs]
        nothing = at(((0, 0),) * self.axes)
        known = {name: _load(a[nothing]) if name in self.values else a for name, a in self.given.items()}
        known |= {name: _whole(known[name]) for name in values if name in known and name not in at_outputs}
        reaches = recipe.reaches(known, (0,) * self.axes)
        self.whole = {name: _whole(a) for name, a in self.given.items() if reaches[name] is None}
        self.sizes = {name: extent(a, self.axes) for name, a in self.given.items() if name not in self.whole}
        self.known = reaches
        self.formed, self.shape = self._formed()

    def _formed(self) -> tuple[WholeCall | None, tuple[int, ...] | None]:
        """The whole call, as kernels see it, unless no call could be as large; the shape of its output."""
        if self.recipe.formed is None:
            return None, None
        places = {name: stand_in(self.given[name].shape, self.given[name].dtype) for name in self.sizes}
        everything = {**self.whole, **places}
        formed, shape = self.recipe.formed(*(everything.get(name) for name in self.recipe.names))
        return None if sum(a.nbytes for a in places.values()) > LARGEST else formed, shape

    def check_output(self, argument: str, array: Any) -> None:
        """Require an array to have the shape of the output."""
        if self.shape is not None and tuple(array.shape) != self.shape:
            raise ValueError(
                f"{self.caller}: {argument} must have the shape of the output, {self.shape}, "
                f"got {tuple(array.shape)}"
            )

    def _reaches(self, box: Box) -> tuple[dict[str, Any], Reaches]:
        """The values of some outputs, and how far these outputs read."""
        values = {name: _load(self.given[name][at(box)]) for name in self.values}
        if not values:
            return values, self.known
        return values, self.recipe.reaches(
            {**self.given, **self.whole, **values}, [first for first, _ in box]
        )

    def _read(
        self, box: Box, total: tuple[int, ...], also: Mapping[str, Box] = {}
    ) -> tuple[Cut, tuple[Any, ...]]:
        """What a call reads that has these outputs among its own."""
        values, reaches = self._reaches(box)
        cutting = cut(self.recipe, reaches, self.sizes, total, box, also)
        parts = {
            name: values[name] if name in values else _load(self.given[name][at(where)])
            for name, where in cutting.boxes.items()
        }
        return cutting, arguments(self.recipe, cutting, reaches, {**self.whole, **parts}, box)

    def output(self, box: Box, total: tuple[int, ...]) -> Any:
        """The outputs in a box."""
        cutting, parts = self._read(box, total)
        with part_of(self.formed):
            return self.recipe.forward(*parts)[inside(box, cutting.frame)]

    def widest(self, boxes: Sequence[Box]) -> Reaches:
        """A reach that covers that of all outputs."""
        return widest(self._reaches(box)[1] for box in boxes) if self.values else self.known

    def split(self, box: Box, total: tuple[int, ...], wanted: Sequence[str], reach: Reaches) -> "Split":
        """What is to be read for the gradients for which these outputs stand."""
        alone = [name for name in wanted if name in self.whole or is_pointwise(reach[name] or ())]
        shared = {
            name: own(reach[name] or (), self.sizes[name], total, box)
            for name in wanted
            if name in self.sizes and name not in alone
        }
        shared = {name: where for name, where in shared.items() if all(last > first for first, last in where)}
        reading = [
            readers(self.recipe, reach[name] or (), self.sizes[name], total, where)
            for name, where in shared.items()
        ]
        return Split(tuple(alone), shared, around(box, *reading))

    def places(
        self, box: Box, total: tuple[int, ...], wanted: Sequence[str], reach: Reaches
    ) -> dict[str, Box]:
        """Where the gradients by these arrays belong for which these outputs stand."""
        alone, shared, _ = self.split(box, total, wanted, reach)
        return dict.fromkeys(alone, box) | shared

    def gradients(
        self, box: Box, total: tuple[int, ...], grad_output: Any, wanted: Sequence[str], reach: Reaches
    ) -> Iterator[tuple[str, Box, Any]]:
        """For each gradient that is wanted, the part for which these outputs stand, and where it belongs."""
        alone, shared, everything = self.split(box, total, wanted, reach)
        cutting, parts = self._read(everything, total, shared)
        grad = _load(grad_output[at(everything)])
        yield from self._pull(alone, grad[inside(box, everything)], box, cutting, parts)
        for name, _, part in self._pull(tuple(shared), grad, everything, cutting, parts):
            yield name, shared[name], part[inside(shared[name], cutting.boxes[name])]

    def own_gradients(
        self, box: Box, total: tuple[int, ...], grad_output: Any, wanted: tuple[str, ...]
    ) -> Iterator[tuple[str, Box, Any]]:
        """The gradients that these outputs alone give, each where outputs read."""
        cutting, parts = self._read(box, total)
        yield from self._pull(wanted, _load(grad_output[at(box)]), box, cutting, parts)

    def _pull(
        self, wanted: tuple[str, ...], grad: Any, box: Box, cutting: Cut, parts: tuple[Any, ...]
    ) -> Iterator[tuple[str, Box, Any]]:
        """The gradients of a call by these arrays; of those with a part for each output, the box."""
        if not wanted:
            return
        backward, names = self.recipe.backward, self.recipe.names
        assert backward is not None
        needs = tuple(name in wanted for name in names)
        results = dict(zip(names, backward(widened(grad, box, cutting.frame), *parts, needs=needs)))
        for name in wanted:
            if is_pointwise(self.known[name] or ()) and name in self.sizes:
                yield name, box, results[name][inside(box, cutting.frame)]
            else:
                yield name, cutting.boxes.get(name, box), results[name]


class Split(NamedTuple):
    """Arrays that outputs have for themselves, the parts of others, and the outputs that read these."""

    alone: tuple[str, ...]
    shared: dict[str, Box]
    everything: Box


def _load(part: Any) -> Any:
    """A part as kernels take it: a plain array, contiguous, in memory."""
    return np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part


def _whole(array: Any) -> Any:
    if not hasattr(array, "shape"):
        return array
    whole = array[...]
    return np.asarray(whole) if isinstance(whole, np.ndarray) else whole
