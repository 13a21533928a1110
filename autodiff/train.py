"""The training loop, and checkpoints from which it goes on as if it had never stopped.

What `Trainer.fit` does for each batch is this, and whoever wants something else writes it like this::

    with Tape() as tape:
        value = loss(network, *batch)
    optimizer.lr = schedule(step)
    optimizer.step(tape.gradient(value, optimizer.parameters, unused="none"))
"""

import itertools
import json
import math
import os
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from . import files
from ._show import Shown
from ._state import mismatches, to_numpy
from .distributed import Communicator, broadcast, value_and_gradient
from .functions._common import library, plain
from .layers import Module
from .optim import Optimizer, clip_gradients
from .tape import Tape

KIND = "autodiff training, version 1"


class Trainer(Shown):
    """Trains a network; a checkpoint continues the training to the same bits.

    Parameters
    ----------
    network : Module
        What is trained.
    optimizer : Optimizer
        Made from the parameters of the network.
    loss : callable
        ``loss(network, *batch)`` gives a single number on the tape.
    schedule : callable, optional
        ``schedule(step) -> lr``; without it the learning rate stays what the optimiser was given.
    max_norm : float, optional
        Gradients are clipped to this joint norm.
    seed : int
        Each epoch gets a random generator from this seed and its own number, so that its batches are the same
        whether or not the epochs before it were run by this process.
    communicator : autodiff.distributed.Communicator, optional
        Those who train together, each on its share of every batch; see `fit`.
    weight : callable, optional
        ``weight(*batch) -> float``: how much the loss of a rank's share counts, by default its number of
        rows. For a loss that is a mean over something else, how many of that there are.
    after_step : callable, optional
        ``after_step(network)`` is called when a step has moved the parameters, before anything looks at them:
        `autodiff.layers.project` brings displaced units back within their bounds.

    Attributes
    ----------
    history : list of dict
        One entry per epoch: ``epoch`` (from 1), ``step``, ``lr``, the mean ``loss``, and what was evaluated.
    epoch, batch, step : int
        Number of complete epochs, of batches since then, and of batches in all.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> from autodiff.layers import Linear
    >>> from autodiff.optim import SGD
    >>> from autodiff.train import Trainer, minibatches
    >>> x = np.linspace(-1, 1, 64)[:, None]
    >>> network = Linear(1, 1, rng=0, dtype=np.float64)
    >>> trainer = Trainer(network, SGD(network.parameters(), 0.5), lambda net, x, y: F.mse(net(x), y))
    >>> history = trainer.fit(minibatches(16, x, 3 * x - 1), 20, progress=False)
    >>> network.weight.data.round(3), network.bias.data.round(3)
    (array([[3.]]), array([-1.]))
    """

    def __init__(
        self,
        network: Module,
        optimizer: Optimizer,
        loss: Callable[..., Any],
        *,
        schedule: Callable[[int], float] | None = None,
        max_norm: float | None = None,
        seed: int = 0,
        communicator: Communicator | None = None,
        weight: Callable[..., float] | None = None,
        after_step: Callable[[Module], object] | None = None,
    ) -> None:
        self.network, self.optimizer, self.loss = network, optimizer, loss
        self.schedule, self.max_norm, self.seed = schedule, max_norm, seed
        self.ranks = Communicator() if communicator is None else communicator
        self.weight = (lambda *batch: len(batch[0])) if weight is None else weight
        self.after_step = after_step
        self.history: list[dict[str, Any]] = []
        self.epoch = self.batch = self.step = 0
        self._total = 0.0
        self._idle: set[int] = set()

    def fit(
        self,
        batches: Callable[[np.random.Generator], Iterable[tuple]],
        epochs: int,
        *,
        evaluate: Callable[[Module], dict[str, float]] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        every: int | None = None,
        progress: bool = True,
    ) -> list[dict[str, Any]]:
        """Train until `epochs` epochs are complete, those of an earlier call or a checkpoint included.

        It leaves the network in evaluation mode.

        Parameters
        ----------
        batches : callable
            ``batches(rng)`` gives the batches of one epoch, each a tuple for `loss`; see `minibatches`. Its
            only randomness should be that of `rng`.
        epochs : int
            When to stop.
        evaluate : callable
            ``evaluate(network) -> {name: number}`` after each epoch, with the network in evaluation mode.
        checkpoint : path, optional
            Is written after each epoch, and after every `every` steps.
        every : int, optional
            Steps between checkpoints within an epoch.
        progress : bool
            Print a line per epoch, with a progress bar meanwhile if the package tqdm is installed.

        Returns
        -------
        list of dict
            `history`.

        Raises
        ------
        FloatingPointError
            If the loss, or the norm of clipped gradients, is not finite; the step is not taken.
        ValueError
            If an epoch has no batches, or parameters are no longer the same on all ranks.
        RuntimeError
            If ranks do not do the same, or one is lost.

        Notes
        -----
        With a communicator all ranks begin with the network and the optimiser of rank 0. `batches` gives each
        rank its share of every batch, with the same `rng` on all: `minibatches` and `autodiff.data.Loader` do
        given ``rank`` and ``ranks``. Batch normalisation is that of the share, unless it is synchronised, and
        its running averages are those of rank 0 after each epoch. Rank 0 prints, writes checkpoints, and says
        what was evaluated; all ranks evaluate, each a part if they like.
        """
        self._begin_together()
        while self.epoch < epochs:
            self.network.train()
            rng = np.random.default_rng([self.seed, self.epoch])
            # Batches that a checkpoint already covers are drawn again, for the sake of the generator.
            rest = itertools.islice(batches(rng), self.batch, None)
            shown = progress and self.ranks.rank == 0
            for batch in _shown(rest, f"epoch {self.epoch + 1}", shown):
                self._total += self.train_batch(*batch)
                self.batch += 1
                if checkpoint and every and self.step % every == 0:
                    self.save(checkpoint)
            self._end_epoch(evaluate)
            if shown:
                print("  ".join(f"{name} {value:g}" for name, value in self.history[-1].items()))
            if checkpoint:
                self.save(checkpoint)
        return self.history

    def train_batch(self, *batch: Any) -> float:
        """One step of the optimiser.

        Parameters
        ----------
        *batch : array, (rows, ...)
            What the loss is given beside the network.

        Returns
        -------
        float
            The loss before the step, over all ranks.

        Raises
        ------
        FloatingPointError
            As for `fit`.
        """
        with Tape() as tape:
            loss = self.loss(self.network, *batch)
        value, grads = self._gradients(tape, loss, batch)
        self._name_idle(grads)
        if self.max_norm is not None:
            grads, norm = clip_gradients(grads, self.max_norm)
            if not math.isfinite(norm):
                raise FloatingPointError(f"Trainer: the gradient has norm {norm} at step {self.step}")
        if self.schedule:
            self.optimizer.lr = self.schedule(self.step)
        self.optimizer.step(grads)
        if self.after_step:
            self.after_step(self.network)
        self.step += 1
        return value

    def _gradients(self, tape: Tape, loss: Any, batch: tuple) -> tuple[float, list]:
        """The loss and its gradients, over all ranks."""
        parameters = self.optimizer.parameters
        if self.ranks.size > 1:
            value, grads, values = value_and_gradient(
                tape, loss, parameters, self.ranks, weight=self.weight(*batch), unused="none"
            )
        else:
            value, values = float(plain(loss)), np.empty(0)
        if not math.isfinite(value):
            ranks = ", ".join(map(str, np.flatnonzero(~np.isfinite(values))))
            where = f" (ranks: {ranks})" if ranks else ""
            raise FloatingPointError(f"Trainer: the loss is {value} at step {self.step}{where}")
        if self.ranks.size == 1:
            grads = tape.gradient(loss, parameters, unused="none")
        return value, grads

    def _begin_together(self) -> None:
        """All ranks as rank 0, at the same place."""
        if self.ranks.size == 1:
            return
        place = f"at epoch {self.epoch}, batch {self.batch}, step {self.step}, with seed {self.seed}"
        self.ranks.agree("Trainer.fit", [place])
        broadcast(self.network, self.ranks)
        broadcast(self.optimizer, self.ranks)

    def _check_same(self) -> None:
        """Refuse to go on if parameters have come apart: then ranks do not do the same."""
        if self.ranks.size > 1:
            named = self.network.named_parameters().items()
            entries = [f"{name} {zlib.crc32(to_numpy(p.data).tobytes()):08x}" for name, p in named]
            self.ranks.agree("Trainer: parameters that should be the same", entries)

    def _name_idle(self, grads: list) -> None:
        """Warn once of each parameter on which the loss does not depend: it stays as it is."""
        idle = {i for i, grad in enumerate(grads) if grad is None} - self._idle
        if idle:
            self._idle |= idle
        if idle and self.ranks.rank == 0:
            names = {id(p): name for name, p in self.network.named_parameters().items()}
            unnamed = [(i, self.optimizer.parameters[i]) for i in sorted(idle)]
            told = ", ".join(names.get(id(p), f"parameter {i}, {p!r}") for i, p in unnamed)
            warnings.warn(
                f"Trainer: the loss does not depend on {told}; not trained until it does", stacklevel=3
            )

    def _end_epoch(self, evaluate: Callable | None) -> None:
        """Add a line to the history."""
        if not self.batch:
            raise ValueError("Trainer: an epoch without batches; batches(rng) gave none")
        self.ranks.meet("the end of an epoch")
        self._check_same()
        if self.ranks.size > 1:
            broadcast(self.network, self.ranks)
        self.network.eval()
        metrics = self.ranks.first(evaluate(self.network) if evaluate else {})
        mean = self._total / self.batch
        self.epoch, self.batch, self._total = self.epoch + 1, 0, 0.0
        line = {"epoch": self.epoch, "step": self.step, "lr": float(self.optimizer.lr), "loss": mean}
        self.history.append(line | {name: float(value) for name, value in metrics.items()})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint; it replaces an older one at once, when it is complete.

        All ranks call it; rank 0 writes.

        Parameters
        ----------
        path : path
            Of the file.

        Raises
        ------
        ValueError
            If ranks have other parameters than others; nothing is written.
        """
        self._check_same()
        own = {name: _described(g) for name, g in self.network.generators().items()}
        generators = self.ranks.gather(own)
        if self.ranks.rank == 0:
            self._write(path, generators)

    def _write(self, path: str | os.PathLike[str], generators: list[dict[str, Any]]) -> None:
        arrays = {f"network.{name}": array for name, array in self.network.state_dict().items()}
        arrays |= {f"optimizer.{name}": array for name, array in self.optimizer.state_dict().items()}
        state = {
            "optimizer": type(self.optimizer).__name__,
            "seed": self.seed,
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "total": self._total,
            "history": self.history,
            "generators": generators[0],
        }
        if self.ranks.size > 1:
            state["others"] = generators[1:]
        files.save(path, arrays, {"kind": KIND, "state": json.dumps(state)})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint of the same network and optimiser; the seed too is that of the checkpoint.

        Parameters
        ----------
        path : path
            Of the file.

        Raises
        ------
        FileError
            If the file is damaged or belongs to another training: with every difference, and before anything
            is changed.

        Notes
        -----
        All ranks call it. Rank 0 reads, and the others get what it has: they need no file. The number of
        ranks may be another than before, unless the network draws random numbers: each rank has its own.
        """
        problem = None
        states: list[dict[str, Any]] = []
        if self.ranks.rank == 0:
            try:
                states = self._read(path)
            except (OSError, files.FileError) as error:
                problem = error
        if self.ranks.size > 1:
            problem = self.ranks.first(problem)
        if problem is not None:
            raise problem
        if self.ranks.size > 1:
            broadcast(self.network, self.ranks)
            broadcast(self.optimizer, self.ranks)
        described = (states := self.ranks.first(states))[self.ranks.rank if len(states) > 1 else 0]
        for name, generator in self.network.generators().items():
            generator.bit_generator.state = _restored(described[name])
        place = self.seed, self.history, self._total, self.epoch, self.batch, self.step
        self.seed, self.history, self._total, self.epoch, self.batch, self.step = self.ranks.first(place)

    def _read(self, path: str | os.PathLike[str]) -> list[dict[str, Any]]:
        """Take over what a checkpoint holds, but for the generators, whose states are returned, by rank."""
        own = {f"network.{name}": array for name, array in self.network.state_dict().items()}
        own |= {f"optimizer.{name}": array for name, array in self.optimizer.state_dict().items()}

        def accept(entries: dict[str, files.Entry], metadata: dict[str, str]) -> None:
            if metadata.get("kind") != KIND:
                raise files.FileError(f"is no checkpoint: its kind is {metadata.get('kind')!r}, not {KIND!r}")
            faults = mismatches(own, entries)
            if faults:
                raise files.FileError("is of another training:\n  " + "\n  ".join(faults))

        arrays, metadata = files.load(path, accept)
        try:
            state, generators = self._parse(metadata)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            message = f"{os.fspath(path)}: has no valid state of a training: {type(error).__name__}: {error}"
            raise files.FileError(message) from None
        before = self.network.state_dict()
        self.network.load_state_dict(_below("network.", arrays))
        try:
            self.optimizer.load_state_dict(_below("optimizer.", arrays))
        except BaseException:
            self.network.load_state_dict(before)
            raise
        # The rest has been checked: from here on nothing fails.
        self.seed, self.history, self._total = state["seed"], state["history"], state["total"]
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        return generators

    def __repr__(self) -> str:
        place = f"epoch {self.epoch}, step {self.step}"
        last = (
            ", ".join(f"{name} {value:g}" for name, value in self.history[-1].items()) if self.history else ""
        )
        network = f"{type(self.network).__name__}, {self.network.num_parameters:,} parameters"
        return f"Trainer at {place}\n  {network}\n  {self.optimizer!r}" + (
            f"\n  last: {last}" if last else ""
        )

    def _parse(self, metadata: dict[str, str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The state beside the arrays, and those of the generators of each rank, checked."""
        state = json.loads(metadata["state"])
        counts = [state[name] for name in ("seed", "epoch", "batch", "step")]
        if any(type(count) is not int or count < 0 for count in counts) or type(state["total"]) is not float:
            raise ValueError("counts must be whole numbers, and total a float")
        history = state["history"]
        if not isinstance(history, list) or not all(isinstance(line, dict) for line in history):
            raise ValueError("history must be a list of dicts")
        optimizer = type(self.optimizer).__name__
        if state["optimizer"] != optimizer:
            raise ValueError(f"it was trained by {state['optimizer']}, this is {optimizer}")
        own = self.network.generators()
        everyone = [state["generators"], *state.get("others", [])]
        if own and len(everyone) != self.ranks.size:
            raise ValueError(
                f"it was trained by {len(everyone)} ranks, of which each drew its own random numbers; "
                f"this is {self.ranks.size}"
            )
        for described in everyone:
            if set(own) != set(described):
                raise ValueError(f"generators {sorted(described)}, but the network has {sorted(own)}")
            for name, generator in own.items():  # refuses what it does not know
                type(generator.bit_generator)().state = _restored(described[name])
        return state, everyone


def minibatches(
    size: int, *arrays: Any, shuffle: bool = True, rank: int = 0, ranks: int = 1
) -> Callable[[np.random.Generator], Iterator[tuple]]:
    """``batches(rng)`` for `Trainer.fit`: slices of arrays of one length, each epoch in a new random order.

    Parameters
    ----------
    size : int
        Rows in a batch; the last batch of an epoch may be smaller.
    *arrays : array
        NumPy or CuPy arrays, (rows, ...), of any dtype; row i of each belongs to row i of the others.
    shuffle : bool
        Whether to change the order.
    rank, ranks : int
        Which share of each batch is given, when several processes train one network: every ``ranks``-th row
        of it, from the row `rank` on. Shares may differ by a row; of a batch smaller than `ranks` some are
        empty.

    Returns
    -------
    callable
        ``batches(rng)``, an iterator over the tuples of slices of one epoch.

    Raises
    ------
    ValueError
        If `size` is less than 1, the arrays differ in length, or `rank` is none of `ranks`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.train import minibatches
    >>> batches = minibatches(2, np.arange(5), 10 * np.arange(5), shuffle=False)
    >>> [(x.tolist(), y.tolist()) for x, y in batches(np.random.default_rng(0))]
    [([0, 1], [0, 10]), ([2, 3], [20, 30]), ([4], [40])]
    """
    if not 0 <= rank < ranks:
        raise ValueError(f"minibatches: rank must be at least 0 and less than ranks, got {rank} of {ranks}")
    lengths = {len(array) for array in arrays}
    if size < 1 or len(lengths) != 1:
        raise ValueError(f"minibatches: size {size}, arrays of length {', '.join(map(str, sorted(lengths)))}")
    (length,) = lengths

    def batches(rng: np.random.Generator) -> Iterator[tuple]:
        order = rng.permutation(length) if shuffle else np.arange(length)
        for start in range(0, length, size):
            rows = order[start : start + size][rank::ranks]
            yield tuple(array[library(array).asarray(rows)] for array in arrays)

    return batches


def _shown(batches: Iterable, title: str, progress: bool) -> Iterable:
    """The batches, with a progress bar where there can be one."""
    if not progress:
        return batches
    try:
        from tqdm import tqdm
    except ImportError:
        return batches
    return tqdm(batches, title, unit="batch", leave=False, disable=None)  # None: unless this is no terminal


def _below(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _described(generator: np.random.Generator) -> Any:
    """The state of a generator in JSON's terms; some keep arrays of unsigned numbers in it."""
    return json.loads(
        json.dumps(generator.bit_generator.state, default=lambda array: {"array": array.tolist()})
    )


def _restored(state: Any) -> Any:
    """What `_described` described."""
    if not isinstance(state, dict):
        return state
    if set(state) == {"array"}:
        return np.array(state["array"], dtype=np.uint64)
    return {name: _restored(value) for name, value in state.items()}
