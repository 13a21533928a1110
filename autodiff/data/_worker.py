"""What a worker of a loader does: it makes the batches that it is asked for, one after the other."""

import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from .augment import BOXES


@dataclass(frozen=True)
class Plan:
    """Which samples are in which batch, and how a batch is made of them."""

    samples: Sequence[Any]
    transform: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]] | None
    fields: tuple[str, ...] | None
    size: int
    shuffle: bool
    drop_last: bool
    rank: int
    ranks: int
    # Of the newest epoch: that of a large data set takes longer than a batch.
    _order: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def count(self) -> int:
        """Batches of an epoch."""
        share = len(self.samples) // self.ranks
        return share // self.size if self.drop_last else -(-share // self.size)

    def indices(self, seed: tuple[int, ...], batch: int) -> list[int]:
        """The samples of a batch of the epoch of this seed."""
        if seed not in self._order:
            self._order.clear()
            count = len(self.samples)
            order = np.random.default_rng(seed).permutation(count) if self.shuffle else np.arange(count)
            self._order[seed] = order[: count // self.ranks * self.ranks][self.rank :: self.ranks]
        return [int(index) for index in self._order[seed][batch * self.size : (batch + 1) * self.size]]

    def name(self, index: int) -> str:
        """What a sample is called."""
        names = getattr(self.samples, "names", None)
        return str(names[index]) if names is not None else f"sample {index}"

    def batch(self, seed: tuple[int, ...], number: int) -> Any:
        """A batch."""
        indices = self.indices(seed, number)
        made: list[Mapping[str, Any]] = []
        for index in indices:
            try:
                sample = self.samples[index]
                if self.transform is not None:
                    # From 1 on: NumPy takes (seed, 0) for (seed,), of which the order is made.
                    sample = self.transform(sample, np.random.default_rng((*seed, 1 + index)))
                if not isinstance(sample, Mapping):
                    what = (
                        "samples must be dicts" if self.transform is None else "transform must return a dict"
                    )
                    raise TypeError(f"Loader: {what}, got {type(sample).__name__}")
            except Exception as error:
                error.add_note(f"Loader: at {self.name(index)}, number {index} of the data set")
                raise
            made.append(sample)
        keys = self.fields if self.fields is not None else tuple(made[0])
        names = [self.name(index) for index in indices]
        stacked = {key: _together(key, made, names) for key in keys}
        return tuple(stacked.values()) if self.fields is not None else stacked


def _together(key: str, samples: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """The entries of all samples under one key."""
    if missing := [name for sample, name in zip(samples, names) if key not in sample]:
        raise KeyError(f"Loader: {missing[0]} has no {key!r}")
    values = [sample[key] for sample in samples]
    if key in BOXES or not all(isinstance(v, np.ndarray | np.generic | int | float) for v in values):
        return values
    kinds = [f"{np.shape(value)} {np.asarray(value).dtype}" for value in values]
    for name, kind in zip(names, kinds):
        if kind != kinds[0]:
            raise ValueError(
                f"Loader: {key!r} must have one shape and dtype in a batch, "
                f"got {kinds[0]} of {names[0]} and {kind} of {name}"
            )
    return np.stack(values)


def work(pipe: Any) -> None:
    """Take a plan, then seeds and numbers of batches, and send the batches, until the pipe is closed."""
    # Ctrl-C goes to all processes of a terminal; the one that asked tells the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        plan = _take(pipe)
        while plan is not None:
            seed, number = pipe.recv()
            pipe.send_bytes(_answer(plan, seed, number))
    except (EOFError, BrokenPipeError, ConnectionResetError, OSError):
        return


def _take(pipe: Any) -> Plan | None:
    """The plan, which the other end is told has come; None if it cannot be made here."""
    content = pipe.recv_bytes()
    try:
        plan: Plan = ForkingPickler.loads(content)
    except Exception as error:
        pipe.send_bytes(_through(error))
        return None
    pipe.send_bytes(ForkingPickler.dumps((None, None)))
    return plan


def _answer(plan: Plan, seed: tuple[int, ...], number: int) -> Any:
    """The batch, or the error that came of it, as bytes: not all errors go through a pipe as they are."""
    try:
        return ForkingPickler.dumps((plan.batch(seed, number), None))
    except Exception as error:
        return _through(error)


def _through(error: Exception) -> Any:
    error.add_note("in a worker of the loader:\n" + "".join(traceback.format_exception(error)))
    try:
        whole = ForkingPickler.dumps((None, error))
        ForkingPickler.loads(whole)  # some are sent, but cannot be made again
        return whole
    except Exception:
        notes = "\n".join([str(error), *getattr(error, "__notes__", ())])
        return ForkingPickler.dumps((None, RuntimeError(f"{type(error).__name__}: {notes}")))
