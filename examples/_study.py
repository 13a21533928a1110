"""Studies of many trainings: each is kept when it ends, so that a study which was stopped goes on."""

import argparse
import json
import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from _record import shown
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import dynarray as dyn
from autodiff import Tape, files
from autodiff.layers import Module
from autodiff.optim import Adam, cosine_schedule

Key = tuple[str, int]  # what was trained, and its seed
Found = dict[str, np.ndarray]  # what came of it, by name
PARTS = 10  # of a training, of each of which the mean loss is kept


def run(
    work: Callable[..., Mapping[str, Any]],
    jobs: Mapping[Key, tuple],
    *,
    folder: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int = 2,
) -> dict[Key, Found]:
    """Trainings, several at a time; those that are done already are read instead.

    Parameters
    ----------
    work : callable
        One training, ``work(*arguments)``, a function of a module. It returns numbers and arrays by name, and
        depends on nothing but its arguments.
    jobs : mapping
        From what is trained and its seed to the arguments.
    folder : Path, optional
        Where each result is kept, in a file of its own. None: nowhere.
    settings : mapping, optional
        What results depend on beside what is trained: numbers and strings. Those in the folder must have been
        made with the same.
    workers : int
        Processes, each of one thread; 1: this process.

    Returns
    -------
    dict
        Arrays by name, for each of the jobs, in their order.

    Raises
    ------
    SystemExit
        If the folder has a result that was made with other settings.
    """
    described = json.dumps(settings or {}, sort_keys=True)
    found = {}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        found = {key: each for key in jobs if (each := _kept(folder, key, described)) is not None}
    left = {key: given for key, given in jobs.items() if key not in found}
    with tqdm(total=len(jobs), initial=len(found), unit="training") as bar:

        def ended(key: Key, result: Mapping[str, Any]) -> None:
            found[key] = {name: np.asarray(value) for name, value in result.items()}
            if folder is not None:
                files.save(_path(folder, key), found[key], {"settings": described})
            bar.update()

        if workers == 1 or not left:
            with threadpool_limits(1):
                for key, given in left.items():
                    ended(key, work(*given))
        else:
            context = multiprocessing.get_context("spawn")  # forking a process that has threads is not safe
            with ProcessPoolExecutor(workers, context, one_thread) as pool:
                futures = {pool.submit(work, *given): key for key, given in left.items()}
                for future in as_completed(futures):
                    ended(futures[future], future.result())
    return {key: found[key] for key in jobs}


def one_thread() -> None:
    """For each process: as many trainings at a time as there are workers fill as many cores."""
    dyn.set_num_threads(1)
    threadpool_limits(1)


def _path(folder: Path, key: Key) -> Path:
    name, seed = key
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{seed}.safetensors"


def _kept(folder: Path, key: Key, described: str) -> Found | None:
    path = _path(folder, key)
    if not path.exists():
        return None
    arrays, metadata = files.load(path)
    if metadata.get("settings") != described:
        raise SystemExit(
            f"{path} was made with other settings, {metadata.get('settings')}, than {described}: "
            f"name another folder, or delete this one"
        )
    return dict(arrays)


def train(
    network: Module,
    loss: Callable[[np.random.Generator], Any],
    steps: int,
    rate: float,
    seed: Sequence[int],
) -> np.ndarray:
    """Steps of Adam on batches without end; the mean losses of `PARTS` equal parts of the training.

    Parameters
    ----------
    network : Module
        It ends in evaluation mode.
    loss : callable
        ``loss(rng)`` draws a batch and gives the loss of the network on it.
    steps : int
        At least `PARTS`.
    rate : float
        Highest learning rate, after a warm-up; it falls to zero as a cosine.
    seed : sequence of int
        Of the batches: the same for all networks that are compared.
    """
    rng = np.random.default_rng(seed)
    optimizer = Adam(network.parameters())
    schedule = cosine_schedule(rate, steps, warmup=min(steps // 10, 50))
    losses = np.empty(steps)
    network.train()
    for step in range(steps):
        with Tape() as tape:
            value = loss(rng)
        losses[step] = float(value)
        optimizer.lr = schedule(step)
        optimizer.step(tape.gradient(value, optimizer.parameters))
    network.eval()
    return in_parts(losses)


def in_parts(losses: Any) -> np.ndarray:
    """Means over `PARTS` equal parts of a training."""
    return np.array([part.mean() for part in np.array_split(losses, PARTS)])


def flatness(found: Sequence[Mapping[str, Any]]) -> str:
    """By how much the last two parts of the loss differ, in percent: what longer training may give."""
    changes = [100 * (each["losses"][-2] / each["losses"][-1] - 1) for each in found]
    return shown(changes, 1)


def of(results: Mapping[Key, Found], name: str) -> list[Found]:
    """The results of all seeds of what has this name."""
    return [found for (own, _), found in results.items() if own == name]


def add_options(parser: argparse.ArgumentParser, name: str, steps: int) -> None:
    """What all studies ask for; `finish_options` makes it complete."""
    parser.add_argument(
        "--seeds", type=int, default=2, help="trainings of each network (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=steps, help="of each training (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time (default: %(default)s)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="a few steps: does it run? says nothing else")
    how.add_argument(
        "--full", action="store_true", help="five seeds; writes the tables into examples/results"
    )
    kept = f"folder of what was trained, from which a run goes on (with --full: {name}.parts)"
    parser.add_argument("--keep", type=Path, help=kept)


def finish_options(options: argparse.Namespace, name: str) -> argparse.Namespace:
    """Sizes of the quick and of the full mode."""
    if options.quick:
        options.seeds, options.steps, options.workers = 1, PARTS, 1
        print("quick: a few steps show that it runs; these numbers say nothing about the methods")
    if options.full:
        options.seeds, options.keep = 5, options.keep or Path(f"{name}.parts")
    return options
