"""What the recipes share: command line, training that goes on after a kill, by one process or by several.

``mpirun -n 4 python examples/recipes/...`` trains with four: each has its share of every batch, batch
normalisation sees the whole batch, and the curve is that of one process.
"""

import argparse
import csv
import functools
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autodiff import distributed, files
from autodiff.data import Loader, augment
from autodiff.layers import Module, project
from autodiff.optim import Optimizer
from autodiff.train import Trainer

# Of the images of ImageNet, from 0 to 1: what published weights were trained with.
IMAGENET_MEAN = 0.485, 0.456, 0.406
IMAGENET_DEVIATION = 0.229, 0.224, 0.225

Evaluate = Callable[[Module], dict[str, float]]
Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


def parser(name: str, description: str, data: str) -> argparse.ArgumentParser:
    """The options that every recipe has.

    Parameters
    ----------
    name : str
        Of the recipe, and of the folder that it writes to by default.
    description : str
        The recipe's docstring.
    data : str
        What the folder of the data is.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--data", type=Path, required=True, help=data)
    where = "folder of checkpoint, log and curve (default: ./%(default)s)"
    made.add_argument("--output", type=Path, default=Path(name), help=where)
    made.add_argument("--evaluate", type=Path, metavar="FILE", help="evaluate this checkpoint, and stop")
    made.add_argument("--quick", action="store_true", help="a tiny network, a few steps: does it run?")
    made.add_argument(
        "--workers",
        type=int,
        default=max((os.cpu_count() or 2) // ranks().size - 1, 1),
        help="processes that read, of each that trains (default: %(default)s)",
    )
    made.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation")
    made.add_argument(
        "--every", type=int, default=1000, help="steps between checkpoints (default: %(default)s)"
    )
    return made


@functools.cache
def ranks() -> distributed.Communicator:
    """The processes that train together: those of ``mpirun``, or this one. They wait long for each other."""
    return distributed.communicator(patience=3600)


def load(
    options: argparse.Namespace,
    samples: Sequence[Any],
    batch: int,
    transform: Transform,
    fields: Sequence[str],
) -> Loader:
    """The batches to train on, all of one size, of which each rank has its share; to be closed."""
    comm = ranks()
    if batch % comm.size:
        raise SystemExit(f"a batch of {batch} cannot be shared evenly by {comm.size} processes")
    return Loader(
        samples,
        batch // comm.size,
        transform=transform,
        fields=fields,
        drop_last=True,
        workers=options.workers,
        rank=comm.rank,
        ranks=comm.size,
    )


def make_trainer(
    options: argparse.Namespace,
    network: Module,
    optimizer: Optimizer,
    loss: Callable[..., Any],
    *,
    schedule: Callable[[int], float] | None = None,
    weight: Callable[..., float] | None = None,
) -> Trainer:
    """The trainer of a recipe; arguments as for `Trainer`.

    Batch normalisation is that of whole batches, layers that draw draw differently on each rank, and
    displaced units are within their bounds whenever anything looks at them.
    """
    comm = ranks()
    distributed.synchronize_batch_norm(network, comm)
    if comm.rank:
        for number, generator in enumerate(network.generators().values()):
            own = np.random.default_rng([options.seed, comm.rank, number])
            generator.bit_generator.state = own.bit_generator.state
    return Trainer(
        network,
        optimizer,
        loss,
        schedule=schedule,
        seed=options.seed,
        communicator=comm,
        weight=weight,
        after_step=project,
    )


def share(samples: Sequence[Any]) -> Iterator[Any]:
    """Those samples that this rank judges by; what is counted is added up by `ranks`."""
    return (samples[row] for row in range(len(samples))[distributed.shard(len(samples), ranks())])


def run(
    options: argparse.Namespace, trainer: Trainer, loader: Loader, iterations: int, evaluate: Evaluate
) -> None:
    """Train, or go on with it, or only evaluate; print what was measured at the end.

    Parameters
    ----------
    options : Namespace
        Of `parser`.
    trainer, loader
        What is trained, and on what.
    iterations : int
        Steps after which it ends, with the epoch that they fall into.
    evaluate : callable
        As for `Trainer.fit`.
    """
    found = _run(options, trainer, loader, iterations, evaluate)
    if ranks().rank == 0:
        print("  ".join(f"{name} {value:.6g}" for name, value in found.items()))


def _run(
    options: argparse.Namespace, trainer: Trainer, loader: Loader, iterations: int, evaluate: Evaluate
) -> dict[str, float]:
    if options.evaluate:
        trainer.load(options.evaluate)
        return evaluate(trainer.network.eval())
    options.output.mkdir(parents=True, exist_ok=True)
    checkpoint = options.output / "checkpoint.safetensors"
    if ranks().first(checkpoint.exists()):
        trainer.load(checkpoint)
        if ranks().rank == 0:
            print(f"going on from step {trainer.step}")

    def evaluated(network: Module) -> dict[str, float]:
        # The line of this epoch is not in the history yet: it is in the log of the next one.
        write_log(trainer.history, options.output)
        return evaluate(network)

    epochs = math.ceil(iterations / len(loader))
    trainer.fit(loader, epochs, evaluate=evaluated, checkpoint=checkpoint, every=options.every)
    write_log(trainer.history, options.output)
    return {name: value for name, value in trainer.history[-1].items() if name not in ("epoch", "lr")}


class Joined(Sequence):
    """Data sets one after the other."""

    def __init__(self, *parts: Sequence[Any]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]  # from the end, too, and an error beyond
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)


def load_checkpoint(network: Module, path: Path) -> None:
    """The weights alone of a training's checkpoint."""
    arrays, _ = files.load(path)
    prefix = "network."
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    network.load_state_dict(own)


def standardized(image: np.ndarray) -> np.ndarray:
    """An image (3, H, W) of uint8 as networks for ImageNet see it."""
    mean, deviation = (np.float32(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    return (image.astype(np.float32) / 255 - mean) / deviation


def shortened(sample: dict[str, Any], length: int, most: float = math.inf) -> dict[str, Any]:
    """With a shorter side of so many pixels, or a longer one of `most`, if that is smaller."""
    size = augment.size_of(sample)
    new, old = min((length, min(size)), (most, max(size)), key=lambda pair: pair[0] / pair[1])
    return augment.resize(sample, tuple(max(round(each * new / old), 1) for each in size))


def write_log(history: Sequence[dict[str, Any]], folder: Path) -> None:
    """``log.csv``, a line for each epoch, and, where matplotlib is installed, its columns in ``log.png``."""
    if not history or ranks().rank:
        return
    table = io.StringIO()
    writer = csv.DictWriter(table, history[-1])
    writer.writeheader()
    writer.writerows(history)
    (folder / "log.csv").write_text(table.getvalue())
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    names = [name for name in history[-1] if name not in ("epoch", "step")]
    figure = Figure(figsize=(6, 2.2 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), sharex=True, squeeze=False)[:, 0], names):
        axes.plot([line["step"] for line in history], [line[name] for line in history], marker=".")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    axes.set_xlabel("steps")
    figure.savefig(folder / "log.png", dpi=120)
