"""What records in this thread or task: a context variable, which asyncio's tasks inherit and threads do
not.
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any


class State:
    """The tapes that record here, and what follows from them.

    Attributes
    ----------
    entered : tuple of Tape
        One entry for each block that is open, outermost first.
    tapes : tuple of Tape
        Each of them once.
    check, owner
        Whether saved values are watched, and the token of the outermost tape, which may release what is
        recorded.
    listener : callable or None
        Called with the function, arguments, parameters and result of each call: what a checkpoint hears.
    """

    __slots__ = ("check", "entered", "listener", "owner", "tapes")

    def __init__(self, entered: tuple = (), listener: Callable | None = None) -> None:
        self.entered, self.listener = entered, listener
        self.tapes = tuple(dict.fromkeys(entered))
        self.check = any(tape.check for tape in self.tapes)
        self.owner: Any = self.tapes[0].token if self.tapes else None


state: ContextVar[State] = ContextVar("autodiff", default=State())  # noqa: B039 (never changed, only replaced)


def recording() -> bool:
    """Whether a tape, or a checkpoint, wants to know what is computed here."""
    now = state.get()
    return bool(now.tapes) or now.listener is not None
