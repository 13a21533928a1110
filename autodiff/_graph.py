"""The graph that results carry: its nodes, and the way from a result back to what it depends on.

A node is a leaf, a `Step` with rules, or without rules: a call that nothing recorded, or a step that was
released. A node without rules holds no step and no array, only a frozen set of nodes that it may depend on,
and is a constant to every gradient but one by such a node, which must be refused. One counter numbers all
nodes: whatever depends on a node has a higher number.
"""

import itertools
import weakref
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

next_number = itertools.count().__next__


class Leaf:
    """Where the graph begins."""

    __slots__ = ("number", "variable")
    inputs: Any = ()
    owner: Any = None

    def __init__(self, variable: Any) -> None:
        self.number = next_number()
        self.variable = weakref.ref(variable)


class Unrecorded:
    """In place of a step where nothing recorded: the name of the function, and what the result may depend on.

    Attributes
    ----------
    inputs : frozenset
        Leaves, and nodes that had rules when they were used.
    since : int
        The lowest number of a node without rules that the result may depend on, or its own: those between are
        not in `inputs`, or a running total would keep every value it ever had.
    """

    __slots__ = ("inputs", "name", "number", "since")
    owner: Any = None

    def __init__(self, name: str, nodes: Iterable) -> None:
        self.name, self.number = name, next_number()
        found, since = None, self.number
        for node in nodes:
            if node is None:
                continue
            own = node.inputs
            if type(own) is frozenset:
                since = min(since, node.since)
            else:
                own = frozenset((node,))
            if found is None or found <= own:
                found = own
            elif not own <= found:
                found |= own
                if not len(found) & len(found) - 1:  # at every power of two: what was released or is gone
                    found, since = settled(found, since)
        self.inputs, self.since = found or frozenset(), since


def settled(nodes: Iterable, since: int) -> tuple[frozenset, int]:
    """`nodes` with what those without rules depend on in their place, and without leaves that are gone."""
    found, todo = set(), list(nodes)
    while todo:
        node = todo.pop()
        if type(node.inputs) is frozenset:
            todo += node.inputs
            since = min(since, node.since)
        elif type(node) is not Leaf or node.variable() is not None:
            found.add(node)
    return frozenset(found), since


class Paths(NamedTuple):
    """What lies between sources and a target: the steps to walk back, sources first, and the nodes among
    which.
    """

    steps: list
    reached: set
    seen: set


def paths(end: Any, sources: set, stop: Collection, refuse: Callable[[Any, Any], None]) -> Paths:
    """All steps on paths from `sources` to `end`, in an order that depends on the graph alone.

    Nodes in `stop` count as leaves. `refuse` is called with a node without rules and a node that it may
    depend on; nodes older than every source depend on none and are not looked at.
    """
    oldest = min((node.number for node in sources), default=end.number + 1)
    steps, reached, seen = [], set(), {None}
    # Depth first, the first argument first: weights come later, and their gradients are final early.
    node: Any = None
    inputs, begun = iter((end,)), []
    while True:
        for other in inputs:
            if other not in seen and other.number >= oldest:
                seen.add(other)
                if other.inputs and other not in stop:
                    begun.append((node, inputs))
                    node, inputs = other, iter(other.inputs)
                    break
                if other in sources:
                    reached.add(other)
        else:
            if not begun:
                break
            if not reached.isdisjoint(node.inputs):
                if type(node.inputs) is frozenset:
                    refuse(node, next(other for other in node.inputs if other in reached))
                steps.append(node)
                reached.add(node)
            elif node in sources:
                reached.add(node)
            node, inputs = begun.pop()
    _check_past(sources, seen, refuse)
    return Paths(steps, reached, seen)


def _check_past(sources: set, seen: set, refuse: Callable[[Any, Any], None]) -> None:
    """Sources without rules: of what has none either, numbers and leaves tell what may depend on them."""
    past = [source for source in sources if type(source.inputs) is frozenset]
    ended = [node for node in seen - {None} if type(node.inputs) is frozenset] if past else ()
    for source in past:
        leaves = settled(source.inputs, 0)[0]
        for node in ended:
            later = node.since <= source.number < node.number
            if later and leaves <= settled(node.inputs, 0)[0]:
                refuse(node, source)
