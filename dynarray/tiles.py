"""Operators, and networks, on arrays that are larger than memory: tile by tile, each output written once.

`apply` and `gradient` read a part of each array, call the function, and write a part of the output: from and
to whatever has a shape and a dtype and takes slices, such as NumPy's memory maps and the arrays of zarr and
HDF5. The bits are those of one call on the whole. What is killed goes on where it was, by a journal beside
the output.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ._check import check_flag
from ._geometry import check_steps
from ._halo import Reach as Reach
from ._journal import Journal, beside, fingerprint, flush, overlap
from ._parts import Box, Call, at, extent, owners, recipe

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
        For a function without halo, arguments that do not fit, an output that lies where an input does, and a
        journal of another job: of other shapes, dtypes, tiles, parameters or weights. The message says which.
    RuntimeError
        If another call uses the journal.

    Notes
    -----
    Each input is read once, and its halo with each tile; each output is written once. Memory is that of one
    tile and its halo, whatever the size of the image; the images of a batch are in a tile together.

    A call that goes on reads the outputs that the journal names: tiles that are not there, or not as they
    were written, are made anew. So are all of an output that rounds what is written to it, or cannot be read.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, weight = np.ones((1, 2, 64, 64)), np.ones((1, 1, 3, 3, 64, 64))
    >>> out = dyn.tiles.apply(dyn.local_filter2d, (x, weight, None), np.empty_like(x), tile=32)
    >>> np.array_equal(out, dyn.local_filter2d(x, weight))
    True
    """
    call = Call("tiles.apply", recipe("tiles.apply", function, params, halo, None), arrays)
    call.check_output("out", out)
    _check_apart("tiles.apply", call.given, {"out": out})
    total = extent(out, call.axes)
    boxes = tuple(_boxes("tiles.apply", total, tile, call.axes))
    job = _job(call, "apply", function, boxes, {"out": out})
    progressing = _Progress("tiles.apply", len(boxes), check_flag("tiles.apply", "progress", progress))
    with Journal(_path(journal, [out]), "tiles.apply", job) as log:
        for number, box in enumerate(boxes):
            if not log.holds(number, _readers({"out": out}, {"out": box})):
                part = call.output(box, total)
                _fits("tiles.apply", "out", part, out, box)
                out[at(box)] = part
                flush(out)
                log.add(number, {"out": log.digest(part)})
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
    function, arrays
        As for `apply`.
    grad_output : array
        The gradient of the output, of its shape: anything that gives arrays for slices.
    outs : sequence of array
        For each of `arrays`, where its gradient goes, an array of its shape and dtype that takes slices; None
        where it is not wanted.
    tile, params, halo
        As for `apply`.
    backward : callable, optional
        For what is no operator: ``backward(grad_output, *arrays, needs=needs)`` returns a gradient for each
        array, None where `needs`, a tuple of bool, says that it is not wanted.
    journal, progress
        As for `apply`; a journal lies beside the first of `outs` that is in a file.

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
    call = Call(name, recipe(name, function, params, halo, backward), arrays)
    if call.recipe.backward is None:
        raise TypeError(f"{name}: backward must be given for {call.recipe.name}, which is no operator")
    if len(outs) != len(call.recipe.names):
        raise ValueError(f"{name}: outs must hold {len(call.recipe.names)} arrays or None, got {len(outs)}")
    targets = {key: out for key, out in zip(call.recipe.names, outs) if out is not None}
    for key, out in targets.items():
        if key not in call.given or tuple(out.shape) != tuple(call.given[key].shape):
            shape = tuple(call.given[key].shape) if key in call.given else "no array: none is given"
            raise ValueError(f"{name}: outs must have the shape of {key}, {shape}, got {tuple(out.shape)}")
        if out.dtype != call.given[key].dtype:
            dtype = call.given[key].dtype
            raise ValueError(f"{name}: outs must have the dtype of {key}, {dtype}, got {out.dtype}")
    call.check_output("grad_output", grad_output)
    _check_apart(name, {**call.given, "grad_output": grad_output}, targets)
    total = extent(grad_output, call.axes)
    boxes = tuple(_boxes(name, total, tile, call.axes))
    job = _job(call, "gradient", function, boxes, {"grad_output": grad_output, **targets})
    progressing = _Progress(name, len(boxes), check_flag(name, "progress", progress))
    with Journal(_path(journal, list(targets.values())), name, job) as log:
        _gradients(call, boxes, total, grad_output, targets, log, progressing)
        log.finish()
    progressing.close()
    return tuple(outs)


def _gradients(
    call: Call,
    boxes: tuple[Box, ...],
    total: tuple[int, ...],
    grad_output: Any,
    targets: Mapping[str, Any],
    log: Journal,
    progressing: "_Progress",
) -> None:
    """Those of each tile, as far as the journal does not say that they are there; and the sums over all."""
    sums = {key: np.zeros(out.shape, _wide(out.dtype)) for key, out in targets.items() if key in call.whole}
    summed = log.load_sums(list(sums.values()))
    apart = {key: out for key, out in targets.items() if key not in sums}
    reach = call.widest(boxes) if apart else {}
    if not prod(total):
        for out in apart.values():
            out[...] = 0
    for number, box in enumerate(boxes):
        if not log.holds(number, _readers(apart, call.places(box, total, tuple(apart), reach))):
            wrote = {}
            for key, where, part in call.gradients(box, total, grad_output, tuple(targets), reach):
                if key in apart:
                    apart[key][at(where)] = part
                    wrote[key] = log.digest(part)
                elif number >= summed:
                    sums[key] += part
            for out in apart.values():
                flush(out)
            if number >= summed:
                log.save_sums(list(sums.values()), number + 1)
            log.add(number, wrote)
        progressing.step()
    for key, value in sums.items():
        targets[key][...] = value.astype(targets[key].dtype)
        flush(targets[key])


def _readers(outs: Mapping[str, Any], places: Mapping[str, Box]) -> dict[str, Any]:
    """What gives the part of each output, if it is asked for."""
    return {name: partial(lambda out, where: out[at(where)], outs[name], box) for name, box in places.items()}


def _job(
    call: Call, kind: str, function: Any, boxes: tuple[Box, ...], outs: dict[str, Any]
) -> dict[str, Any]:
    """What a journal says of it."""
    everything = {**call.given, **{f"out {key}": out for key, out in outs.items()}}
    weights: list[Any] = [*call.whole.items(), *sorted(call.recipe.params.items())]
    if isinstance(function, partial):  # of what was chosen, numbers and words: others say where they lie
        chosen = *enumerate(function.args), *sorted(function.keywords.items())
        weights += [pair for pair in chosen if isinstance(pair[1], int | float | complex | str | bytes)]
    for owner, name in product(owners(function), ("state_dict", "constants")):  # of networks
        if callable(held := getattr(owner, name, None)):
            weights.append(held())
    return {
        "kind": kind,
        "function": call.recipe.name,
        "arrays": {
            key: f"{tuple(a.shape)} {a.dtype}" for key, a in everything.items() if hasattr(a, "shape")
        },
        "tiles": [list(map(list, box)) for box in (*boxes[:1], *boxes[-1:])] + [len(boxes)],
        "reads": repr(call.known),
        "parameters": fingerprint(weights),
    }


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


def _check_apart(caller: str, inputs: Mapping[str, Any], outs: Mapping[str, Any]) -> None:
    """Refuse an output that lies where something is read, or another one: tiles would read what is new."""
    several = [
        (f"the gradient of {name}" if caller == "tiles.gradient" else name, a) for name, a in outs.items()
    ]
    for number, (name, out) in enumerate(several):
        for other, array in [*inputs.items(), *several[:number]]:
            if overlap(out, array):
                raise ValueError(f"{caller}: {name} must not lie where {other} does, in memory or in a file")


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
