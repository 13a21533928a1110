"""The graph that results carry, and what records in this thread or task.

A node is a `Step`, with rules, or has none (its `saved` is None): a leaf, a call that nothing recorded, a
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

    __slots__ = ("inputs", "level", "name", "number", "variable")
    saved = None
    cause = "not computed on this tape: no tape recorded there (threads of a pool enter it, `with tape:`)"

    def __init__(self, variable: Any, name: str = "", inputs: Iterable = ()) -> None:
        self.name, self.number, self.variable = name, next_number(), ref(variable)
        self.inputs: Any = inputs and list({*inputs} - {None})
        self.level = max([node.level for node in self.inputs]) + 1 if self.inputs else 0
        for node in self.inputs:
            if node.saved is None and type(node.inputs) is list:
                node.inputs = nearest(node.inputs)  # or a running total would keep every value it ever had


def nearest(nodes: Iterable, start: int | None = None) -> tuple:
    """The first on each way back from `nodes`, included, that has a Variable; with `start`, that is older."""
    found, seen, todo = [], {None}, [*nodes]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            if node.variable() is not None if start is None else node.number < start:
                found.append(node)
            else:
                todo += node.inputs
    return tuple(found)


class State:
    """The tapes that record in a thread or task, and what follows from them.
    `entered` has an entry for each block that is open, innermost first, `tapes` each of them once. `check`
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
        self.owner: Any = entered[-1].token if entered else None


# A context variable: asyncio's tasks inherit it, threads do not.
state: ContextVar[State] = ContextVar("autodiff", default=State())  # noqa: B039 (never changed, only replaced)


def recording() -> bool:
    """Whether a tape, or a checkpoint, wants to know what is computed here."""
    now = state.get()
    return bool(now.tapes) or now.listener is not None
