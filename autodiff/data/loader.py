"""Batches of samples, read ahead of time by worker processes."""

import multiprocessing
import os
import signal
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from . import _worker
from ._worker import Plan

Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]
# How long workers that have been told to end may take, in seconds, until they are made to.
PATIENCE = 5.0


class Loader:
    """Makes batches of a data set, in an order that only seed and epoch decide.

    Each epoch has a random order of its own, and each sample random numbers of its own, for its augmentation:
    the number of workers changes neither the batches nor their order. Workers read at most `ahead` batches
    each before these are asked for, and wait.

    Parameters
    ----------
    samples : sequence of dict
        Such as the data sets of `autodiff.data`. For workers, it and `transform` have to be picklable.
    size : int
        Samples in a batch; the last of an epoch may have fewer.
    transform : callable, optional
        ``transform(sample, rng)`` gives the sample that is used; see `autodiff.data.augment`.
    fields : sequence of str, optional
        Which entries a batch has. Then it is a tuple of them in this order, as `autodiff.train.Trainer`
        wants; otherwise a dict of all.
    shuffle : bool
        Whether each epoch has a random order.
    drop_last : bool
        Leave out the last batch of an epoch if it has fewer samples.
    workers : int
        Processes that read, beside this one. With 0 this one reads when a batch is asked for.
    ahead : int
        Batches that each worker may have ready.
    seed : int
        Of orders and augmentations.
    rank, ranks : int
        Which share of the samples is read here, when several processes train one network: all have the same
        order, of which this takes every ``ranks``-th sample. What is left over is not read in this epoch, so
        that all have as many batches.

    Raises
    ------
    TypeError
        If `fields` is one string.
    ValueError
        If a number is out of range, or the samples give no batch to each rank.

    Notes
    -----
    Entries of a batch are stacked if they are numbers or arrays of one shape. Boxes, of which images have
    different numbers, and what is neither, are lists.

    An error in a worker is raised here, when its batch is due, with the name of the sample. A worker that
    was killed is a RuntimeError that says which one, by what, and which batch it was reading.

    A loader with workers is to be closed, or used as a context manager; it is closed with the process at the
    latest. An epoch that is left before its end ends the workers, and closing them ends the epoch; the next
    one starts others. As they are
    started anew ("spawn"), a script that uses them must be importable: its work belongs under
    ``if __name__ == "__main__":``.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.data import Loader
    >>> samples = [{"image": np.full((3, 2, 2), i), "label": i} for i in range(5)]
    >>> loader = Loader(samples, 2, shuffle=False)
    >>> [batch["label"].tolist() for batch in loader.epoch(0)]
    [[0, 1], [2, 3], [4]]
    >>> [batch[1].shape for batch in Loader(samples, 2, fields=["label", "image"]).epoch(0)]
    [(2, 3, 2, 2), (2, 3, 2, 2), (1, 3, 2, 2)]
    """

    def __init__(
        self,
        samples: Sequence[Any],
        size: int,
        *,
        transform: Transform | None = None,
        fields: Sequence[str] | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        workers: int = 0,
        ahead: int = 2,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        for name, value, least in (
            *(("size", size, 1), ("workers", workers, 0), ("ahead", ahead, 1)),
            *(("seed", seed, 0), ("rank", rank, 0), ("ranks", ranks, 1)),
        ):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"Loader: {name} must be an int of at least {least}, got {value!r}")
        if rank >= ranks:
            raise ValueError(f"Loader: rank must be less than ranks, got {rank} of {ranks}")
        if not len(samples):
            raise ValueError("Loader: samples must not be empty")
        share = len(samples) // ranks
        if not share or (drop_last and share < size):
            raise ValueError(
                f"Loader: {len(samples)} samples give no batch of {size} to each of {ranks} ranks"
            )
        if isinstance(fields, str):
            raise TypeError(
                f"Loader: fields must be a sequence of names, such as [{fields!r}], got {fields!r}"
            )
        chosen = tuple(fields) if fields is not None else None
        self.plan = Plan(samples, transform, chosen, size, shuffle, drop_last, rank, ranks)
        self.seed, self.ahead, self.workers = int(seed), int(ahead), int(workers)
        self._crew: list[_Worker] = []
        self._finalizer: Any = None
        self._running = False
        self._owner = 0  # the process that started the crew; those forked from it have no workers

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.plan.count()

    def __call__(self, rng: np.random.Generator) -> Iterator[Any]:
        """The batches of an epoch that takes its seed from a generator, as `autodiff.train.Trainer` asks."""
        return self._batches((int(rng.integers(2**63)),))

    def epoch(self, number: int) -> Iterator[Any]:
        """The batches of an epoch.

        Parameters
        ----------
        number : int
            Of the epoch, from 0 on. It and the seed of the loader decide order and augmentations.

        Returns
        -------
        iterator of dict or tuple
            The batches, made when they are asked for: entries are arrays, (samples, ...), or lists.

        Raises
        ------
        ValueError
            If `number` is no int, or less than 0.
        RuntimeError
            By the iterator, if the workers are at another epoch or were killed, or the loader was closed.
        """
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 0:
            raise ValueError(f"Loader.epoch: number must be an int of at least 0, got {number!r}")
        return self._batches((self.seed, int(number)))

    def close(self) -> None:
        """End the workers. A loader that is used again starts new ones."""
        if self._finalizer is not None:
            self._finalizer()
        self._crew, self._running = [], False

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _batches(self, seed: tuple[int, ...]) -> Iterator[Any]:
        if self.workers == 0:
            for number in range(len(self)):
                yield self.plan.batch(seed, number)
            return
        if self._running and self._owner == os.getpid():
            raise RuntimeError(
                "Loader: its workers are at another epoch, which has to end, or the loader to be closed"
            )
        self._start()
        self._running = True
        crew, count = self._crew, len(self)
        asked = 0
        try:
            for number in range(count):
                if self._crew is not crew:
                    raise RuntimeError(f"Loader: was closed before batch {number} of this epoch")
                while asked < min(count, number + len(crew) * self.ahead):
                    crew[asked % len(crew)].ask(seed, asked, self.plan)
                    asked += 1
                yield crew[number % len(crew)].answer(self.plan)
        except BaseException:
            # What they are at is of no use any more, and one of them may not answer.
            if self._crew is crew:
                self.close()
            raise
        if self._crew is crew:
            self._running = False

    def _start(self) -> None:
        if self._crew and self._owner == os.getpid():
            return
        context = multiprocessing.get_context("spawn")
        crew = [_Worker(context, number) for number in range(self.workers)]
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _end, crew, self._owner)
        try:
            for worker in crew:
                worker.process.start()
                worker.far.close()
            for worker in crew:
                worker.send(self.plan, self.plan)
        except BaseException:
            self.close()
            raise
        self._crew = crew


class _Worker:
    """A process that makes batches, and this end of the pipe to it."""

    def __init__(self, context: Any, number: int) -> None:
        self.number = number
        self.expected: list[tuple[tuple[int, ...], int]] = []
        self.ready = False
        self.near, self.far = context.Pipe()
        self.process = context.Process(
            target=_worker.work, args=(self.far,), name=f"loader-{number}", daemon=True
        )

    def ask(self, seed: tuple[int, ...], batch: int, plan: Plan) -> None:
        """Order a batch; the message is small, so that this never waits."""
        self.expected.append((seed, batch))
        self.send((seed, batch), plan)

    def send(self, message: Any, plan: Plan) -> None:
        """Tell the process something."""
        try:
            self.near.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise RuntimeError(self._obituary(plan)) from None

    def answer(self, plan: Plan) -> Any:
        """Wait for the batch that was ordered first."""
        if not self.ready:
            self._receive(plan)  # that it has the data set, or why not
            self.ready = True
        result = self._receive(plan)
        self.expected.pop(0)
        return result

    def _receive(self, plan: Plan) -> Any:
        try:
            result, error = self.near.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(self._obituary(plan)) from None
        if error is not None:
            raise error
        return result

    def _obituary(self, plan: Plan) -> str:
        self.process.join(PATIENCE)
        code = self.process.exitcode
        how = f"ended with code {code}"
        if code is not None and code < 0:
            known = {each.value: each.name for each in signal.Signals}  # not all signals have one
            how = f"was killed by signal {-code} ({known.get(-code, 'without a name')})"
        who = f"Loader: worker {self.number} (process {self.process.pid}) {how}"
        if not self.ready or not self.expected:
            hint = ""
            if code is not None and code > 0:
                hint = (
                    "; what it printed says why. Workers import the script anew: what starts them belongs "
                    "under if __name__ == '__main__':"
                )
            return f"{who} before its first batch{hint}"
        seed, batch = self.expected[0]
        names = [plan.name(index) for index in plan.indices(seed, batch)]
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        return f"{who} at batch {batch}: {shown}"


def _end(crew: Sequence[_Worker], owner: int) -> None:
    """Close the pipes, which tells the workers to end, and make those end that do not."""
    for worker in crew:
        worker.near.close()
        worker.far.close()
    if os.getpid() != owner:  # a process forked from theirs, which cannot wait for them
        return
    until = time.monotonic() + PATIENCE
    for worker in crew:
        if worker.process.pid is not None:
            worker.process.join(max(0.0, until - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
