"""Random numbers that can be drawn again, for functions that are computed again."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

# Of each generator drawn from, the generator and its state before.
States = list[tuple[np.random.Generator, Any]]


class _Thread(threading.local):
    """What goes on in this thread: the lists that note generators, and whether a function is run again."""

    def __init__(self) -> None:
        self.notebooks: list[States] = []
        self.again = False


_thread = _Thread()


def drawing(generator: Any, function: str) -> np.random.Generator:
    """The generator itself, its state noted by whoever may run the function again."""
    if not isinstance(generator, np.random.Generator):
        raise TypeError(f"{function}: rng must be a numpy.random.Generator, got {type(generator).__name__}")
    for notebook in _thread.notebooks:
        if all(known is not generator for known, _ in notebook):
            notebook.append((generator, generator.bit_generator.state))
    return generator


@contextmanager
def noting() -> Iterator[States]:
    """Note the states of the generators that are drawn from in the block."""
    notebook: States = []
    _thread.notebooks.append(notebook)
    try:
        yield notebook
    finally:
        _thread.notebooks.remove(notebook)


@contextmanager
def replaying(states: States) -> Iterator[None]:
    """Draw the same numbers again in the block; afterwards the generators go on where they were."""
    now = [(generator, generator.bit_generator.state) for generator, _ in states]
    before, _thread.again = _thread.again, True
    try:
        for generator, state in states:
            generator.bit_generator.state = state
        yield
    finally:
        _thread.again = before
        for generator, state in now:
            generator.bit_generator.state = state


def recomputing() -> bool:
    """Whether a checkpoint runs its function again: layers that count their calls must not count this one.

    Returns
    -------
    bool
        True inside of a function that the backward pass of `checkpoint` runs again.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import Tape, Variable, checkpoint, functions as F, recomputing
    >>> calls, x = [], Variable(np.array([3.0]))
    >>> def f(x):
    ...     calls.append(recomputing())
    ...     return F.square(x)
    >>> with Tape() as tape:
    ...     y = checkpoint(f)(x)
    >>> tape.gradient(y, x).tolist(), calls
    ([6.0], [False, True])
    """
    return _thread.again
