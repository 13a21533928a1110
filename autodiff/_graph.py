"""The graph that results carry, and what records in this thread or task.

A node is a `Step`, with rules, or has none (its `reads` are None): a leaf, a call that nothing recorded, a
step that was released. What has no rules only knows what it depends on, and is a constant to every gradient
but one by such a node, which must be refused. It knows it exactly, yet not for ever: what no Variable stands
for any more, by which nobody can ask for a gradient, gives way to what it depends on. One counter numbers all
nodes: what depends on a node has a higher number, and a higher level, which follows from the graph alone.
"""

import itertools
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any
from weakref import ref

next_number = itertools.count().__next__


class Node:
    """A leaf; or, where nothing recorded, what was called, and what its result depends on."""

    __slots__ = ("inputs", "level", "name", "number", "settled", "variable")
    reads = owner = None

    def __init__(self, variable: Any, name: str = "", inputs: Iterable = ()) -> None:
        self.name, self.number, self.variable, self.settled = name, next_number(), ref(variable), not name
        self.inputs = inputs and tuple(set(inputs).difference((None,)))
        self.level = max([node.level for node in self.inputs]) + 1 if self.inputs else 0
        for node in self.inputs:
            if type(node) is Node and not node.settled:
                # Depend on nothing that is gone: or a running total would keep every value it ever had.
                node.inputs, node.settled = living(node.inputs), True


def first(nodes: Iterable, wanted: Callable[[Any], bool]) -> tuple:
    """The first wanted node on each way back from `nodes`, themselves included."""
    found, seen, todo = [], {None}, list(nodes)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            if wanted(node):
                found.append(node)
            else:
                todo += node.inputs
    return tuple(found)


def living(nodes: Iterable) -> tuple:
    """`nodes`, with what they depend on in place of those that no Variable stands for any more."""
    return first(nodes, lambda node: node.variable() is not None)


def before(nodes: Iterable, start: int) -> set:
    """What is older than `start` that `nodes` depend on, without what it depends on itself."""
    return set(first(nodes, lambda node: node.number < start))


class State:
    """The tapes that record in a thread or task, and what follows from them.

    `entered` has an entry for each block that is open, outermost first, `tapes` each of them once. `check`
    says whether saved values are watched; `owner` is the token of the outermost tape, which may release what
    is recorded. The `listener` of a checkpoint hears name, arguments, parameters and result of each call.
    `before` leads back to the state before.
    """

    __slots__ = ("before", "check", "entered", "listener", "owner", "tapes")

    def __init__(self, entered: tuple = (), listener: Callable | None = None) -> None:
        self.entered, self.listener = entered, listener
        self.before: Any = None
        self.tapes = tuple(dict.fromkeys(entered))
        self.check = any(tape.check for tape in self.tapes)
        self.owner: Any = self.tapes[0].token if self.tapes else None


# A context variable: asyncio's tasks inherit it, threads do not.
state: ContextVar[State] = ContextVar("autodiff", default=State())  # noqa: B039 (never changed, only replaced)


def recording() -> bool:
    """Whether a tape, or a checkpoint, wants to know what is computed here."""
    now = state.get()
    return bool(now.tapes) or now.listener is not None
