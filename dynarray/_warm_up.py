"""Compiling ahead of time."""

import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from rawkernels import compilations
from rawkernels.compilations import Compilation

from ._check import check_flag
from ._dispatch import DTYPES, forced_backend
from ._operator import OPERATORS, load

__all__ = ["Compilation", "WarmUp", "warm_up"]


class WarmUp(NamedTuple):
    """What `warm_up` did.

    Attributes
    ----------
    operators, dtypes : tuple of str
        What was asked for.
    backend : str
        The backend that later calls find ready.
    compiled : tuple of Compilation
        What had to be compiled: the name, the seconds that it took, and whether the cache on disk keeps it.
    seconds : float
        How long all of it took.
    processes : int
        How many processes compiled.
    """

    operators: tuple[str, ...]
    dtypes: tuple[str, ...]
    backend: str
    compiled: tuple[Compilation, ...]
    seconds: float
    processes: int


def warm_up(
    operators: Iterable[str] | None = None, dtypes: Iterable[str] = ("float32",), backward: bool = True
) -> WarmUp:
    """Compile, or load from the cache on disk, whatever later calls of operators need.

    Kernels compile when they are first called, which takes seconds. After this they are in this process, and
    the first call takes as long as any other: a service calls it before it takes requests, the build of a
    container does with ``python -m dynarray warm-up``, and processes that share a cache folder may all do so
    at once: each compiles what no other is compiling. Each compilation is one INFO line of the logger
    ``dynarray``.

    Small calls are made that go every way through the kernels of an operator, with and without NaN. On
    backend ``"cpu"``, ``"host"`` and ``"ptx"`` other processes help, at most as many as `get_num_threads`
    and cores allow; they are started anew, import only this package and end before this function returns.
    Where files cannot be kept, this process compiles all by itself.

    Parameters
    ----------
    operators : iterable of str, optional
        Names of operators, keys of ``dynarray.OPERATORS``; all by default.
    dtypes : iterable of str
        The dtypes of the arrays.
    backward : bool
        Whether backward passes too will be called.

    Returns
    -------
    WarmUp
        What was compiled, in how many seconds.

    Raises
    ------
    TypeError, ValueError
        If there is no operator of such a name, or no such dtype on this backend.
    RuntimeError
        If the backend is not available here.

    Notes
    -----
    The backend is the one that `use_backend` forces, or else ``"cpu"``. What a kernel is compiled for does
    not depend on sizes there. On ``"host"``, ``"ptx"`` and ``"cuda"`` the sizes of small kernels are compiled
    in, so that every program of a family is compiled, for indices of 32 bits: several dozens for
    `local_filter2d` and its faces. On ``"cuda"`` that is done for the current device, in this process, and
    kept by CuPy. The backend ``"reference"`` compiles nothing, nor does ``"cpu"`` where
    ``NUMBA_DISABLE_JIT`` is set.

    Examples
    --------
    >>> import dynarray as dyn
    >>> done = dyn.warm_up(["compose_atoms"])
    >>> done.operators, done.dtypes, done.backend
    (('compose_atoms',), ('float32',), 'cpu')
    >>> len(dyn.warm_up(["compose_atoms"]).compiled)  # nothing is left to compile
    0
    """
    backend = forced_backend() or "cpu"
    names = _names("operators", OPERATORS if operators is None else operators)
    for name in names:
        if name not in OPERATORS:
            raise ValueError(f"warm_up: there is no operator {name!r}; there are {', '.join(OPERATORS)}")
    kinds = _names("dtypes", dtypes)
    for kind in kinds:
        if kind not in DTYPES[backend]:
            expected = ", ".join(DTYPES[backend])
            raise ValueError(f"warm_up: dtypes: the {backend} backend takes {expected}, got {kind!r}")
    backward = check_flag("warm_up", "backward", backward)
    problem = load("dynarray._info").backend_problem(backend)
    if problem is not None:
        raise RuntimeError(f"warm_up: the {backend} backend is not available here: {problem}")
    return _make(names, kinds, backward, backend)


def _names(argument: str, values: Any) -> tuple[str, ...]:
    """Names without repetition; one alone may stand for itself."""
    names = (values,) if isinstance(values, str) else tuple(values)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"warm_up: {argument} must be names, got {values!r}")
    return tuple(dict.fromkeys(names))


def _make(operators: tuple[str, ...], dtypes: tuple[str, ...], backward: bool, backend: str) -> WarmUp:
    began, sharing = time.perf_counter(), compilations.Sharing()
    processes, typical = load("dynarray._sharing"), load("dynarray.typical._runs")
    plan = typical.Plan(operators, dtypes, backward, backend)
    runs, entries = processes.missing(typical.make_runs(plan))
    helpers = processes.wanted(entries, processes.cache_folder(backend))
    with processes.helping(plan, helpers) as by_others:
        processes.make_all(runs, sharing)
    processes.tidy(backend)
    seconds = time.perf_counter() - began
    return WarmUp(operators, dtypes, backend, (*sharing.done, *by_others), seconds, 1 + helpers)
