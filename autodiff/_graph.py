"""The graph that results carry, and what records in this thread or task.

A node is a leaf, a `Step` with rules, or without rules (its `reads` are None): a call that nothing recorded,
or a step that was released. A node without rules only knows what it depends on, and is a constant to every
gradient but one by such a node, which must be refused. It knows it exactly, yet not
for ever: nodes without rules that no Variable stands for any more, by which nobody can ask for a gradient,
give way to what they depend on. One counter numbers all nodes: whatever depends on a node has a higher
number.
"""

import itertools
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any
from weakref import ref

next_number = itertools.count().__next__


class Leaf:
    """Where the graph begins."""

    __slots__ = ("number", "variable")
    inputs: Any = ()
    reads = owner = None

    def __init__(self, variable: Any) -> None:
        self.number, self.variable = next_number(), ref(variable)


class Unrecorded:
    """In place of a step where nothing recorded: the name of the function, and what the result depends on."""

    __slots__ = ("inputs", "name", "number", "settled", "variable")
    reads = owner = None

    def __init__(self, name: str, nodes: Iterable, variable: Any) -> None:
        self.name, self.number, self.variable, self.settled = name, next_number(), ref(variable), False
        self.inputs = tuple(set(nodes).difference((None,)))
        for node in self.inputs:
            if type(node) is Unrecorded and not node.settled:
                node.settle()

    def settle(self) -> None:
        """Depend on nothing that is gone: or a running total would keep every value it ever had."""
        found: set = set()
        for node in self.inputs:
            if node.variable() is not None:
                found.add(node)
            else:
                found.update(node.inputs if type(node) is Unrecorded else living(node.inputs))
        # To look at each node would take long for a network with many parameters: now and then is enough.
        self.inputs = tuple(found) if len(found) & (len(found) - 1) else living(found)
        self.settled = True


def living(nodes: Iterable) -> tuple:
    """`nodes`, with what they depend on in place of those that no Variable stands for any more."""
    found, seen, todo = [], {None}, list(nodes)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            if node.variable() is not None:
                found.append(node)
            else:
                todo += node.inputs
    return tuple(found)


def before(end: Any, start: int) -> set:
    """The nodes older than `start` that `end` depends on, without those that they depend on."""
    found: set = set()
    seen, todo = {None}, [end]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            if node.number < start:
                found.add(node)
            else:
                todo += node.inputs
    return found


class State:
    """The tapes that record in a thread or task, and what follows from them.

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


# A context variable: asyncio's tasks inherit it, threads do not.
state: ContextVar[State] = ContextVar("autodiff", default=State())  # noqa: B039 (never changed, only replaced)


def recording() -> bool:
    """Whether a tape, or a checkpoint, wants to know what is computed here."""
    now = state.get()
    return bool(now.tapes) or now.listener is not None
