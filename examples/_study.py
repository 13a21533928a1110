"""Studies of many trainings: each is kept when it ends, so that a study which was stopped goes on."""

import json
import multiprocessing
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import dynarray as dyn
from autodiff import files

Key = tuple[str, int]  # what was trained, and its seed
Found = dict[str, np.ndarray]  # what came of it, by name


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
