"""Gradients over the batches of all ranks: added up in buckets, while the backward pass goes on."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dynarray._check import check_choice

from .._graph import recording
from ..functions._common import accumulator, library, plain
from ..tape import Tape
from ..variable import Variable
from ._communicator import Communicator, Sum

BUCKET = 4 << 20


class Reduced(NamedTuple):
    """What `value_and_gradient` returns: the mean loss of all ranks, its gradients, and each rank's loss."""

    value: float
    gradients: Any
    values: np.ndarray


def value_and_gradient(
    tape: Tape,
    loss: Variable,
    sources: Any,
    comm: Communicator,
    *,
    weight: float = 1.0,
    unused: str = "raise",
    bucket: int = BUCKET,
) -> Reduced:
    """The mean of the losses of all ranks, and its gradients: the same on all ranks.

    ``value = sum_r weight_r loss_r / sum_r weight_r``. With losses that are means over the rows of a batch,
    and the number of rows as the weight, that is the mean over all rows, however they are distributed.

    Parameters
    ----------
    tape : Tape
        That recorded the loss; its block has ended.
    loss : Variable
        A single number.
    sources : Variable, or list, tuple or dict of them
        The parameters: of the same shapes and dtypes, in the same order, on all ranks.
    comm : Communicator
        The ranks.
    weight : float
        How much the loss of this rank counts, at least 0. A rank whose share of a batch is empty gives 0.
    unused : {"raise", "zero", "none"}
        What to do about a source on which the loss of no rank depends. Where those of some ranks depend on
        it, it has their gradient, on all ranks.
    bucket : int
        Bytes of gradients that are sent together, at least: as soon as they are final.

    Returns
    -------
    Reduced
        ``value``, ``gradients`` as `Tape.gradient` returns them, and ``values``, the losses by rank.

    Raises
    ------
    ValueError
        If ranks have different sources, all weights are 0, or a source is not used; on all ranks.
    RuntimeError
        If ranks are at different things, or one of them is lost (`RankError`).

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import Tape, Variable, distributed, functions as F
    >>> comm, w = distributed.communicator(), Variable(np.array([1.0, 2.0]))
    >>> with Tape() as tape:
    ...     loss = F.sum(w**2)
    >>> distributed.value_and_gradient(tape, loss, [w], comm)[:2]
    (5.0, [array([2., 4.])])
    """
    name = "value_and_gradient"
    if recording():
        raise ValueError(f"{name}: a tape still records, and would not follow what the ranks do together")
    check_choice(name, "unused", unused, ("raise", "zero", "none"))
    if not isinstance(loss, Variable) or loss.size != 1:
        raise ValueError(f"{name}: loss must be a Variable of a single number, got {loss!r}")
    if not 0 <= weight < math.inf:
        raise ValueError(f"{name}: weight must be a finite number of at least 0, got {weight!r}")
    many = isinstance(sources, list | tuple)
    group = sources if isinstance(sources, Mapping) else dict(enumerate(sources if many else [sources]))
    if strange := [source for source in group.values() if not isinstance(source, Variable)]:
        raise TypeError(f"{name}: sources must be Variables, got {type(strange[0]).__name__}")
    entries = [f"source {key!r}: {v.shape} {v.dtype} {library(v.data).__name__}" for key, v in group.items()]
    met = comm.agree(name, [*entries, f"buckets of {bucket} bytes"], weight, float(plain(loss)))
    total = met[:, 0].sum()
    if not total > 0:
        raise ValueError(f"{name}: the weights of all ranks are 0")
    counted = met[met[:, 0] > 0]  # a mean over no rows is NaN
    buckets = _Buckets(group, comm, bucket)
    seed = library(loss.data).full(loss.shape, weight / total, loss.dtype)
    tape.gradient(loss, group, grad=seed, unused="none", on_final=buckets.final)
    found = buckets.finish()
    for key, source in group.items():
        if found[key] is None and unused == "raise":
            raise ValueError(f"{name}: the loss of no rank depends on source {key!r}, {source!r}")
        if found[key] is None and unused == "zero":
            found[key] = np.zeros_like(source.data)
    value = float((counted[:, 0] * counted[:, 1]).sum() / total)
    gradients = found if isinstance(sources, Mapping) else list(found.values()) if many else found[0]
    return Reduced(value, gradients, met[:, 1])


class _Buckets:
    """Gradients on their way, in buckets of one dtype each.

    The last sources come first, as their gradients do. All ranks begin the sums in the order of the buckets,
    whatever comes first on which.
    """

    def __init__(self, sources: Mapping[Any, Variable], comm: Communicator, least: int) -> None:
        self.sources, self.comm = sources, comm
        kinds: dict[Any, list[Any]] = {}
        self.buckets: list[_Bucket] = []
        self.of: dict[Any, _Bucket] = {}
        for key in reversed(sources):
            data = sources[key].data
            dtype = accumulator(data.dtype) or data.dtype  # 16-bit values are added up in float32
            keys = kinds.setdefault((library(data), dtype), [])
            keys.append(key)
            if sum(sources[k].size for k in keys) * dtype.itemsize >= least:
                self._close(kinds.pop((library(data), dtype)), dtype)
        for (_, dtype), keys in kinds.items():
            self._close(keys, dtype)
        self.begun: list[tuple[_Bucket, Sum]] = []

    def _close(self, keys: list[Any], dtype: Any) -> None:
        bucket = _Bucket({key: self.sources[key].data for key in keys}, dtype)
        self.buckets.append(bucket)
        self.of |= dict.fromkeys(keys, bucket)

    def final(self, key: Any, gradient: Any) -> None:
        """A gradient of this rank is there."""
        self.of[key].put(key, gradient)
        while len(self.begun) < len(self.buckets) and not self.buckets[len(self.begun)].left:
            bucket = self.buckets[len(self.begun)]
            what = f"gradients, bucket {len(self.begun)}"
            self.begun.append((bucket, self.comm.start_sum(bucket.values, what)))
        for _, started in self.begun:
            started.poke()

    def finish(self) -> dict[Any, Any]:
        """The gradients of all ranks, in the order of the sources; None where no rank has one."""
        found: dict[Any, Any] = {}
        for bucket, started in self.begun:
            started.wait()
            found |= bucket.take()
        return {key: found[key] for key in self.sources}


class _Bucket:
    """Gradients side by side in one array, and after them, for each, how many ranks have one."""

    def __init__(self, arrays: Mapping[Any, Any], dtype: Any) -> None:
        self.arrays, self.left = arrays, set(arrays)
        ends = np.cumsum([array.size for array in arrays.values()]).tolist()
        self.slices = {k: slice(e - arrays[k].size, e) for k, e in zip(arrays, ends)}
        self.places = {k: ends[-1] + place for place, k in enumerate(arrays)}
        self.values = library(next(iter(arrays.values()))).zeros(ends[-1] + len(arrays), dtype)

    def put(self, key: Any, gradient: Any) -> None:
        self.left.remove(key)
        if gradient is not None:
            self.values[self.slices[key]] = gradient.reshape(-1)
            self.values[self.places[key]] = 1

    def take(self) -> dict[Any, Any]:
        flags = self.values[-len(self.arrays) :]
        counts = dict(zip(self.arrays, (flags if isinstance(flags, np.ndarray) else flags.get()).tolist()))
        return {
            key: self.values[self.slices[key]].reshape(array.shape).astype(array.dtype, copy=False)
            if counts[key]
            else None
            for key, array in self.arrays.items()
        }
