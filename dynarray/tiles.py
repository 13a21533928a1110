"""Operators, and networks, on arrays that are larger than memory: tile by tile, each output written once.

`apply` and `gradient` read a part of each array, call the function, and write a part of the output: from and
to whatever has a shape and a dtype and takes slices, such as NumPy's memory maps and the arrays of zarr and
HDF5. The bits are those of one call on the whole. What is killed goes on where it was, by a journal beside
the output.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ._check import check_flag
from ._geometry import check_steps
from ._halo import Reach as Reach
from ._journal import Journal, beside, fingerprint, flush
from ._parts import (
    Box,
    Cut,
    Reaches,
    Recipe,
    arguments,
    around,
    at,
    cut,
    extent,
    inside,
    is_pointwise,
    own,
    readers,
    recipe,
    stand_in,
    widened,
    widest,
)
from .cpu.engine.whole import part_of

# Calls on more bytes than this are not imitated to the last bit: to add up as few channels together as they
# would have to is slow, and no machine that needs tiles makes them.
LARGEST = 16 << 30

__all__ = ["Reach", "apply", "gradient"]


def apply(
    function: Any,
    arrays: Sequence[Any],
    out: Any,
    tile: Any,
    *,
    params: Any = None,
    halo: Sequence[Any] | None = None,
    journal: str | PathLike[str] | bool = True,
    progress: bool = False,
) -> Any:
    """Write the output of a function, made tile by tile.

    Parameters
    ----------
    function : callable
        An operator (``dyn.ddf``), or any function of arrays whose `halo` is given.
    arrays : sequence of array
        Its arrays, in the order of the operator's ``arrays``, None where one is left out: anything that has a
        shape and a dtype and gives NumPy or CuPy arrays for slices. Arrays without axes of the image, such as
        weights of a layer, are read whole, once.
    out : array
        Where the output goes: anything that takes slices, of the output's shape and dtype.
    tile : int or (y, x)
        How many rows and columns of the output are made at a time; of lines an int.
    params : mapping, optional
        The keyword parameters of the function.
    halo : sequence, optional
        For what is no operator, what it reads of each array: a number of pixels on each side, a `Reach` for
        each axis, or None for arrays that it reads whole. `autodiff.halo` works it out for networks.
    journal : path or bool
        The file that tells which tiles are done. True: beside `out`, if `out` lies in a file; False: none.
        It is deleted when all is done.
    progress : bool
        Whether to draw a bar (needs tqdm).

    Returns
    -------
    array
        `out`.

    Raises
    ------
    TypeError, ValueError
        For a function without halo, arguments that do not fit, and a journal of another job: of other shapes,
        dtypes, tiles, parameters or weights. The message says which.

    Notes
    -----
    Each input is read once, and its halo with each tile; each output is written once. Memory is that of one
    tile and its halo, whatever the size of the image; the images of a batch are in a tile together.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, weight = np.ones((1, 2, 64, 64)), np.ones((1, 1, 3, 3, 64, 64))
    >>> out = dyn.tiles.apply(dyn.local_filter2d, (x, weight, None), np.empty_like(x), tile=32)
    >>> np.array_equal(out, dyn.local_filter2d(x, weight))
    True
    """
    call = _Call("tiles.apply", recipe("tiles.apply", function, params, halo, None), arrays)
    call.check_output("out", out)
    total = extent(out, call.axes)
    boxes = tuple(_boxes("tiles.apply", total, tile, call.axes))
    job = call.job("apply", function, boxes, {"out": out})
    progressing = _Progress("tiles.apply", len(boxes), check_flag("tiles.apply", "progress", progress))
    log = Journal(_path(journal, [out]), "tiles.apply", job)
    for number, box in enumerate(boxes):
        if number not in log.done:
            part = call.output(box, total)
            _fits("tiles.apply", "out", part, out, box)
            out[at(box)] = part
            flush(out)
            log.add(number)
        progressing.step()
    log.finish()
    progressing.close()
    return out


def gradient(
    function: Any,
    arrays: Sequence[Any],
    grad_output: Any,
    outs: Sequence[Any],
    tile: Any,
    *,
    params: Any = None,
    halo: Sequence[Any] | None = None,
    backward: Any = None,
    journal: str | PathLike[str] | bool = True,
    progress: bool = False,
) -> tuple[Any, ...]:
    """Write the gradients of a function by its arrays, made tile by tile.

    Parameters
    ----------
    function, arrays, tile, params, halo, journal, progress
        As for `apply`; a journal lies beside the first of `outs` that is in a file.
    grad_output : array
        The gradient of the output, of its shape: anything that gives arrays for slices.
    outs : sequence of array
        For each of `arrays`, where its gradient goes, an array of its shape and dtype that takes slices; None
        where it is not wanted.
    backward : callable, optional
        For what is no operator: ``backward(grad_output, *arrays, needs=needs)`` returns a gradient for each
        array, None where `needs`, a tuple of bool, says that it is not wanted.

    Returns
    -------
    tuple of array
        `outs`.

    Raises
    ------
    TypeError, ValueError
        As `apply`.

    Notes
    -----
    The gradient of an array that outputs share, x above all, is made from all outputs that read a part of it,
    and written once. That of an array without axes of the image is a sum over tiles, added up in float64 at
    least. Where values say what is read, offsets for example, they are read twice, the first time to find out
    how far outputs read.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, weight = np.ones((1, 2, 64, 64)), np.ones((1, 1, 3, 3, 64, 64))
    >>> grad_output = np.ones((1, 2, 64, 64))
    >>> outs = np.empty_like(x), None, None
    >>> grad_x, _, _ = dyn.tiles.gradient(dyn.local_filter2d, (x, weight, None), grad_output, outs, tile=32)
    >>> np.array_equal(grad_x, dyn.local_filter2d_backward(grad_output, x, weight).x)
    True
    """
    name = "tiles.gradient"
    call = _Call(name, recipe(name, function, params, halo, backward), arrays)
    if call.recipe.backward is None:
        raise TypeError(f"{name}: backward must be given for {call.recipe.name}, which is no operator")
    if len(outs) != len(call.recipe.names):
        raise ValueError(f"{name}: outs must hold {len(call.recipe.names)} arrays or None, got {len(outs)}")
    targets = {key: out for key, out in zip(call.recipe.names, outs) if out is not None}
    for key, out in targets.items():
        if key not in call.given or tuple(out.shape) != tuple(call.given[key].shape):
            shape = tuple(call.given[key].shape) if key in call.given else "no array: none is given"
            raise ValueError(f"{name}: outs must have the shape of {key}, {shape}, got {tuple(out.shape)}")
    call.check_output("grad_output", grad_output)
    total = extent(grad_output, call.axes)
    boxes = tuple(_boxes(name, total, tile, call.axes))
    job = call.job("gradient", function, boxes, {"grad_output": grad_output, **targets})
    progressing = _Progress(name, len(boxes), check_flag(name, "progress", progress))
    log = Journal(_path(journal, list(targets.values())), name, job)
    sums = {key: np.zeros(out.shape, _wide(out.dtype)) for key, out in targets.items() if key in call.whole}
    summed = log.load_sums(list(sums.values()))
    apart = {key: out for key, out in targets.items() if key not in sums}
    reach = call.widest(boxes) if apart else {}
    if not prod(total):
        for out in apart.values():
            out[...] = 0
    for number, box in enumerate(boxes):
        if number not in log.done:
            for key, where, part in call.gradients(box, total, grad_output, tuple(targets), reach):
                if key in apart:
                    apart[key][at(where)] = part
                elif number >= summed:
                    sums[key] += part
            for out in apart.values():
                flush(out)
            if number >= summed:
                log.save_sums(list(sums.values()), number + 1)
            log.add(number)
        progressing.step()
    for key, value in sums.items():
        targets[key][...] = value.astype(targets[key].dtype)
        flush(targets[key])
    log.finish()
    progressing.close()
    return tuple(outs)


class _Call:
    """A function, and arrays of which it is given parts."""

    def __init__(self, caller: str, recipe: Recipe, arrays: Sequence[Any]) -> None:
        if len(arrays) != len(recipe.names):
            raise ValueError(
                f"{caller}: arrays must be those of {recipe.name}, ({', '.join(recipe.names)}), with None "
                f"where one is left out; got {len(arrays)}"
            )
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
        self.axes_only = reaches
        self.formed, self.shape = self._formed()

    def _formed(self) -> tuple[tuple[Any, ...] | None, tuple[int, ...] | None]:
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

    def job(self, kind: str, function: Any, boxes: tuple[Box, ...], outs: dict[str, Any]) -> dict[str, Any]:
        """What a journal says of it."""
        everything = {**self.given, **{f"out {key}": out for key, out in outs.items()}}
        state = getattr(getattr(function, "__self__", function), "state_dict", None)
        weights = [*self.whole.items(), *sorted(self.recipe.params.items())]
        return {
            "kind": kind,
            "function": self.recipe.name,
            "arrays": {
                key: f"{tuple(a.shape)} {a.dtype}" for key, a in everything.items() if hasattr(a, "shape")
            },
            "tiles": [list(map(list, box)) for box in (*boxes[:1], *boxes[-1:])] + [len(boxes)],
            "reads": repr(self.axes_only),
            "parameters": fingerprint([*weights, state() if callable(state) else None]),
        }

    def _reaches(self, box: Box) -> tuple[dict[str, Any], Reaches]:
        """The values of some outputs, and how far these outputs read."""
        values = {name: _load(self.given[name][at(box)]) for name in self.values}
        if not values:
            return values, self.axes_only
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
        return widest(self._reaches(box)[1] for box in boxes) if self.values else self.axes_only

    def gradients(
        self, box: Box, total: tuple[int, ...], grad_output: Any, wanted: Sequence[str], reach: Reaches
    ) -> Iterator[tuple[str, Box, Any]]:
        """For each gradient that is wanted, the part for which these outputs stand, and where it belongs."""
        apart = [name for name in wanted if name in self.sizes]
        alone = [name for name in wanted if name in self.whole or is_pointwise(reach[name] or ())]
        shared = {
            name: own(reach[name] or (), self.sizes[name], total, box) for name in apart if name not in alone
        }
        shared = {name: where for name, where in shared.items() if all(last > first for first, last in where)}
        reading = [
            readers(self.recipe, reach[n] or (), self.sizes[n], total, where) for n, where in shared.items()
        ]
        everything = around(box, *reading)
        cutting, parts = self._read(everything, total, shared)
        grad = _load(grad_output[at(everything)])
        backward = self.recipe.backward
        assert backward is not None
        if alone:
            needs = tuple(name in alone for name in self.recipe.names)
            own_grad = widened(grad[inside(box, everything)], box, cutting.frame)
            results = dict(zip(self.recipe.names, backward(own_grad, *parts, needs=needs)))
            for name in alone:
                cropped = results[name] if name in self.whole else results[name][inside(box, cutting.frame)]
                yield name, box, cropped
        if shared:
            needs = tuple(name in shared for name in self.recipe.names)
            results = dict(
                zip(
                    self.recipe.names, backward(widened(grad, everything, cutting.frame), *parts, needs=needs)
                )
            )
            for name, where in shared.items():
                yield name, where, results[name][inside(where, cutting.boxes[name])]


def _load(part: Any) -> Any:
    """A part as kernels take it: a plain array, contiguous, in memory."""
    return np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part


def _whole(array: Any) -> Any:
    return array[...] if hasattr(array, "shape") else array


def _wide(dtype: Any) -> np.dtype:
    """In what sums over tiles are added up."""
    return np.result_type(dtype, np.float64)


def _boxes(caller: str, total: tuple[int, ...], tile: Any, axes: int) -> Iterator[Box]:
    """The tiles, row by row."""
    sizes = check_steps(caller, "tile", tile, 1, axes)
    ranges = [[(i, min(i + size, end)) for i in range(0, end, size)] for size, end in zip(sizes, total)]
    for rows in ranges[0]:
        if axes == 1:
            yield (rows,)
        else:
            yield from ((rows, columns) for columns in ranges[1])


def _path(journal: Any, outs: Sequence[Any]) -> Path | None:
    if not isinstance(journal, bool):
        return Path(journal)
    found = [path for out in outs if (path := beside(out)) is not None] if journal else []
    return found[0] if found else None


def _fits(caller: str, argument: str, part: Any, out: Any, box: Box) -> None:
    """Require an output to have the place that it is given: assignment would broadcast, or cast."""
    shape = (*out.shape[: len(out.shape) - len(box)], *(last - first for first, last in box))
    if tuple(part.shape) != tuple(shape) or part.dtype != out.dtype:
        raise ValueError(
            f"{caller}: {argument} must take parts of shape {tuple(part.shape)} and dtype {part.dtype}, "
            f"has {tuple(shape)} and {out.dtype}"
        )


class _Progress:
    """A bar, if one is wanted."""

    def __init__(self, caller: str, tiles: int, wanted: bool) -> None:
        self.bar: Any = None
        if wanted:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                raise ImportError(f"{caller}: progress needs tqdm: pip install tqdm") from None
            self.bar = tqdm(total=tiles, unit="tile")

    def step(self) -> None:
        """One more tile."""
        if self.bar is not None:
            self.bar.update()

    def close(self) -> None:
        """The end."""
        if self.bar is not None:
            self.bar.close()
