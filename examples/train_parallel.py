"""Training by several processes: the same curve as by one, in less time, with four more lines.

A small network with decoupled dynamic filters learns to read the 1,797 digits of scikit-learn. Each process
has its share of every batch; gradients are added up over all of them while the backward pass goes on, and
batch normalisation uses the statistics of the whole batch. The lines that make it so:

    comm = distributed.communicator()                                  # one process, if there is no launcher
    distributed.synchronize_batch_norm(network, comm)
    batches = minibatches(BATCH, images, labels, rank=comm.rank, ranks=comm.size)
    trainer = Trainer(network, optimizer, loss, communicator=comm)

    mpirun -n 2 python examples/train_parallel.py                      # needs the extra mpi, and an MPI
    python examples/train_parallel.py                                  # the same with one process
    python examples/train_parallel.py --compare                        # both, compared: a table and a picture
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _record import record
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

import dynarray as dyn
from autodiff import Tape, distributed
from autodiff import functions as F
from autodiff.layers import DDF, BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from autodiff.optim import SGD, cosine_schedule
from autodiff.train import Trainer, minibatches

BATCH, HELD_OUT, EPOCHS = 128, 357, 6


def load() -> tuple[np.ndarray, ...]:
    """Digits of 8 x 8 pixels, made twice as large, and labels: to train on, and held out."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = (digits.images[order, None] / 16).repeat(2, axis=2).repeat(2, axis=3)
    labels = digits.target[order]
    return images[HELD_OUT:], labels[HELD_OUT:], images[:HELD_OUT], labels[:HELD_OUT]


def small_network(seed: int, channels: int = 32) -> Sequential:
    """A convolution, two dynamic filters with a convolution after each, and a linear layer; in float64."""
    rng: Any = {"rng": np.random.default_rng(seed), "dtype": np.float64}
    layers: list[Any] = [Conv2d(1, channels, 3, bias=False, **rng), BatchNorm2d(channels, dtype=np.float64)]
    for _ in range(2):
        layers += [ReLU(), DDF(channels, 3, **rng), Conv2d(channels, channels, 1, bias=False, **rng)]
        layers += [BatchNorm2d(channels, dtype=np.float64), ReLU(), MaxPool2d(2)]
    return Sequential(*layers, Flatten(), Linear(channels * 16, 10, **rng))


def loss(network: Any, images: np.ndarray, labels: np.ndarray) -> Any:
    """How little the network believed in the right digits."""
    return F.cross_entropy(network(images), labels)


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train with the processes that there are; the curve, and what a step takes."""
    comm = distributed.communicator()
    images, labels, test_images, test_labels = load()
    if options.quick:
        images, labels = images[:300], labels[:300]
    network = distributed.synchronize_batch_norm(small_network(0, 4 if options.quick else 32), comm)
    batches = minibatches(BATCH, images, labels, rank=comm.rank, ranks=comm.size)
    mine = distributed.shard(HELD_OUT, comm)

    def evaluate(network: Any) -> dict[str, float]:
        right = (network(test_images[mine]).data.argmax(1) == test_labels[mine]).sum()
        return {"accuracy": comm.sum(int(right)) / HELD_OUT}

    optimizer = SGD(network.parameters(), 0.03, momentum=0.9)
    schedule = cosine_schedule(0.03, options.epochs * -(-len(images) // BATCH))
    trainer = Trainer(network, optimizer, loss, schedule=schedule, communicator=comm)
    trainer.fit(batches, options.epochs, evaluate=evaluate, progress=not options.result)
    mine = distributed.shard(BATCH, comm)
    steps = timed(trainer, images[:BATCH][mine], labels[:BATCH][mine], comm, 2 if options.quick else 20)
    return {"ranks": comm.size, "rank": comm.rank, "history": trainer.history, **steps}


def timed(
    trainer: Trainer, images: np.ndarray, labels: np.ndarray, comm: Any, repeats: int
) -> dict[str, float]:
    """Seconds of a step, and of its parts without the others: medians, of the slowest rank."""
    network, parameters, parts = trainer.network.train(), trainer.optimizer.parameters, []
    for _ in range(repeats + 2):
        comm.barrier()
        begin = time.perf_counter()
        trainer.train_batch(images, labels)
        step = time.perf_counter()
        distributed.synchronize_batch_norm(network, None)
        with Tape() as tape:
            value = loss(network, images, labels)
        tape.gradient(value, parameters)
        alone = time.perf_counter()
        distributed.synchronize_batch_norm(network, comm)
        comm.barrier()
        waited = time.perf_counter()
        gradients = np.zeros(network.num_parameters)
        comm.start_sum(gradients).wait()
        parts.append([step - begin, alone - step, time.perf_counter() - waited])
    slowest = np.max(comm.gather(np.median(parts[2:], axis=0)), axis=0)
    return dict(zip(("step", "alone", "sum"), slowest.tolist()))


def compare(options: argparse.Namespace) -> None:
    """Run this script with one process of one thread and of several, and with several processes."""
    if shutil.which("mpirun") is None:
        sys.exit("mpirun is not installed (Debian: apt install openmpi-bin libopenmpi-dev)")
    ways = [(1, 1), (1, options.ranks), (options.ranks, 1)]
    with tempfile.TemporaryDirectory() as folder:
        found = [run_apart(ranks, threads, options, Path(folder)) for ranks, threads in ways]
    first = found[0]
    rows = []
    for (ranks, threads), each in zip(ways, found):
        curve, own = (np.array([line["loss"] for line in r["history"]]) for r in (first, each))
        row = [f"{ranks}", f"{threads}", f"{own[-1]:.12f}", f"{np.abs(own / curve - 1).max():.0e}"]
        row += [f"{100 * each['history'][-1]['accuracy']:.1f} %", f"{each['step'] * 1e3:.1f}"]
        rows.append(
            [
                *row,
                f"{first['step'] / each['step']:.2f}",
                f"{each['alone'] * 1e3:.1f}",
                f"{each['sum'] * 1e3:.2f}",
            ]
        )
    columns = ["processes", "threads of each", "last loss", "from the first curve", "accuracy"]
    columns += ["step, ms", "speed-up", "of it a share alone, ms", "a sum of gradients, ms"]
    for row in (columns, *rows):
        print("  ".join(f"{cell:>{max(8, len(name))}}" for cell, name in zip(row, columns)))
    if options.output:
        draw(found, options.output)
    if options.full:
        record("train_parallel", {"Scaling": (columns, rows)}, batch=BATCH, epochs=options.epochs)


def run_apart(ranks: int, threads: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What rank 0 of a run has found."""
    path = folder / f"{ranks}-{threads}.json"
    command = [sys.executable, __file__, "--epochs", str(options.epochs), "--result", str(path)]
    command += ["--quick"] * options.quick
    if ranks > 1:
        command = ["mpirun", *options.mpirun.split(), "-n", str(ranks), *command]
    threading = {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, env=os.environ | threading)
    return json.loads(path.read_text())


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """The curves one above the other, and what a step is made of."""
    from matplotlib.figure import Figure

    one, _, several = found
    figure = Figure(figsize=(10, 4), layout="constrained")
    curves, times = figure.subplots(1, 2)
    for each, style, width in ((one, "-", 6), (several, "--", 2)):
        steps = [line["epoch"] for line in each["history"]]
        name = f"{each['ranks']} process" + "es" * (each["ranks"] > 1)
        curves.semilogy(steps, [line["loss"] for line in each["history"]], style, lw=width, label=name)
    curves.set(xlabel="epoch", ylabel="mean loss", title="The same curve")
    curves.legend()
    names = ["1 process", f"1 process,\n{several['ranks']} threads", f"{several['ranks']} processes"]
    times.bar(names, [1e3 * each["step"] for each in found], color="0.7", label="step")
    times.bar(names, [1e3 * each["alone"] for each in found], 0.4, label="its share, without the others")
    times.set(ylabel="ms", title=f"A step on {BATCH} digits")
    times.legend(loc="lower center")
    figure.savefig(path, dpi=100)
    print(f"drawn: {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or compare trainings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--quick", action="store_true", help="a smaller network and fewer digits")
    parser.add_argument("--compare", action="store_true", help="one process and several, one after the other")
    parser.add_argument("--ranks", type=int, default=2, help="processes to compare with")
    parser.add_argument("--mpirun", default="", help="further options of mpirun, in one word")
    parser.add_argument("--output", type=Path, default=Path("train_parallel.png"), help="the picture")
    parser.add_argument("--full", action="store_true", help="compare, and write the table for the docs")
    parser.add_argument("--result", type=Path, help="write what was found to this file, and print nothing")
    options = parser.parse_args(argv)
    if options.compare or options.full:
        compare(options)
        return
    # One thread for matrices this small; the kernels have those of OMP_NUM_THREADS.
    with threadpool_limits(1):
        found = train(options)
    if found["rank"] == 0:
        if options.result:
            options.result.write_text(json.dumps(found))
        else:
            print(f"{found['step'] * 1e3:.1f} ms a step, by {dyn.get_num_threads()} threads of each process")


if __name__ == "__main__":
    main()
