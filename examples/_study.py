"""Studies of many trainings: each is kept when it ends, so that a study which was stopped goes on."""

import argparse
import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from _parts import PARTS as FOLDER
from _parts import Found, Key, Part, Parts, described, read, rounded
from _record import print_table, shown
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import dynarray as dyn
from autodiff import Tape
from autodiff.layers import Module
from autodiff.optim import Adam, cosine_schedule

FULL = "five seeds; writes the tables into examples/results when all is trained"
PARTS = 10  # of a training, of each of which the mean loss is kept


def run(
    work: Callable[..., Mapping[str, Any]],
    jobs: Mapping[Key, tuple],
    *,
    keep: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int = 2,
    minutes: float | None = None,
) -> dict[Key, Found]:
    """Trainings, several at a time; those that are done already are read instead.

    Parameters
    ----------
    work : callable
        One training, ``work(*arguments)``, a function of a module. It returns numbers and short arrays by
        name, and depends on nothing but its arguments.
    jobs : mapping
        From what is trained and its seed to the arguments.
    keep : Path, optional
        The file where results are kept, see `_parts`. None: nowhere.
    settings : mapping, optional
        What results depend on beside what is trained: numbers and strings. Those in the file must have been
        made with the same.
    workers : int
        Processes, each of one thread; 1: this process.
    minutes : float, optional
        No training begins after so long.

    Returns
    -------
    dict
        Arrays by name, rounded, for each of the jobs, in their order.

    Raises
    ------
    SystemExit
        If the file has results that were made with other settings or by other code; or if something is
        missing in the end, after what there is was printed.
    """
    parts = None if keep is None else Parts(keep, settings or {}, work)
    there = {} if parts is None else parts.load()
    known = {
        key: there[key][1] for key, given in jobs.items() if there.get(key, ("",))[0] == described(given)
    }
    left = {key: given for key, given in jobs.items() if key not in known}
    with tqdm(total=len(jobs), initial=len(known), unit="training") as bar:
        for key, (result, took) in _trained(work, left, workers, minutes):
            known[key] = Part(read(result), took)
            if parts is not None:
                parts.save(key, described(jobs[key]), result, took)
            bar.update()
    if len(known) < len(jobs):
        raise SystemExit(_unfinished(jobs, known))
    return {key: known[key].found for key in jobs}


def _trained(
    work: Callable[..., Mapping[str, Any]], jobs: Mapping[Key, tuple], workers: int, minutes: float | None
) -> Iterator[tuple[Key, tuple[dict[str, Any], float]]]:
    """What each of them finds, when it is done; no more begin when time is up."""
    end = np.inf if minutes is None else time.monotonic() + 60 * minutes
    waiting = list(jobs.items())[::-1]
    if workers == 1:
        with threadpool_limits(1):
            while waiting and time.monotonic() < end:
                key, given = waiting.pop()
                yield key, _timed(work, given)
    elif waiting:
        context = multiprocessing.get_context("spawn")  # forking a process that has threads is not safe
        with ProcessPoolExecutor(workers, context, one_thread) as pool:
            running: dict[Future, Key] = {}
            while running or (waiting and time.monotonic() < end):
                while waiting and len(running) < workers and time.monotonic() < end:
                    key, given = waiting.pop()
                    running[pool.submit(_timed, work, given)] = key
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()


def _timed(work: Callable[..., Mapping[str, Any]], given: tuple) -> tuple[dict[str, Any], float]:
    """What a training finds, rounded, and its minutes of a core."""
    start = time.process_time()
    found = {name: rounded(value) for name, value in work(*given).items()}
    return found, (time.process_time() - start) / 60


def _unfinished(jobs: Mapping[Key, tuple], known: Mapping[Key, Part]) -> str:
    """Print what there is, and say what is missing."""
    rows, missing, left = [], [], 0.0
    typical = np.mean([part.minutes for part in known.values()]) if known else np.nan
    for name in dict.fromkeys(name for name, _ in jobs):
        seeds = [seed for own, seed in jobs if own == name]
        own_parts = [known[name, seed] for seed in seeds if (name, seed) in known]
        each = float(np.mean([part.minutes for part in own_parts])) if own_parts else typical
        left += each * (len(seeds) - len(own_parts))
        missing += [f"{name} {seed}" for seed in seeds if (name, seed) not in known]
        scalars = [k for k, value in own_parts[0].found.items() if not value.ndim] if own_parts else []
        means = [f"{k} {np.mean([part.found[k] for part in own_parts]):.4g}" for k in scalars]
        rows.append([name, f"{len(own_parts)} of {len(seeds)}", f"{each:.1f}", ", ".join(means)])
    print_table("What there is so far", ("training", "seeds", "core-minutes each", "means"), rows)
    names = ", ".join(missing)
    return f"unfinished: {len(missing)} trainings, about {left:.0f} core-minutes, are missing: {names}"


def one_thread() -> None:
    """For each process: as many trainings at a time as there are workers fill as many cores."""
    dyn.set_num_threads(1)
    threadpool_limits(1)
    gc.freeze()  # else the collector goes through all that was imported, again and again


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
    """Means over `PARTS` equal parts of a training, or over as many as it has steps."""
    return np.array([part.mean() for part in np.array_split(losses, min(PARTS, len(losses)))])


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
    how.add_argument("--full", action="store_true", help=FULL)
    add_keeping(parser, name)


def add_keeping(parser: argparse.ArgumentParser, name: str) -> None:
    """Where a study keeps what it has found, and for how long it trains."""
    kept = f"file of what was found, from which a run goes on (with --full: results/parts/{name}.json)"
    parser.add_argument("--keep", type=Path, help=kept)
    parser.add_argument(
        "--minutes", type=float, help="begin no training after so long; 0: show what there is"
    )


def keeping(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """What `run` is told of this."""
    return {
        "keep": options.keep or (FOLDER / f"{name}.json" if options.full else None),
        "minutes": options.minutes,
    }


def finish_options(options: argparse.Namespace) -> argparse.Namespace:
    """Sizes of the quick and of the full mode."""
    if options.quick:
        options.seeds, options.steps, options.workers = 1, PARTS, 1
        print("quick: a few steps show that it runs; these numbers say nothing about the methods")
    if options.full:
        options.seeds = 5
    return options
