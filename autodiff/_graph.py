"""The graph that results carry: its nodes, and the way from a result back to what it depends on.

A node is a leaf, a `Step` with rules, or without rules: a call that nothing recorded, or a step that was
released. The inputs of a step with rules are a list; a node without rules only knows what it depends on, and
is a constant to every gradient but one by such a node, which must be refused. It knows it exactly, yet not
for ever: nodes without rules that no Variable stands for any more, by which nobody can ask for a gradient,
give way to what they depend on. One counter numbers all nodes: whatever depends on a node has a higher
number.
"""

import itertools
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple
from weakref import ref

next_number = itertools.count().__next__


class Leaf:
    """Where the graph begins."""

    __slots__ = ("number", "variable")
    inputs: Any = ()
    owner: Any = None

    def __init__(self, variable: Any) -> None:
        self.number, self.variable = next_number(), ref(variable)


class Unrecorded:
    """In place of a step where nothing recorded: the name of the function, and what the result depends on."""

    __slots__ = ("inputs", "name", "number", "settled", "variable")
    owner: Any = None

    def __init__(self, name: str, nodes: Iterable, variable: Any) -> None:
        self.name, self.number, self.variable, self.settled = name, next_number(), ref(variable), False
        self.inputs = frozenset(nodes).difference((None,))
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
                found |= node.inputs if type(node) is Unrecorded else living(node.inputs)
        # To look at each node would take long for a network with many parameters: now and then is enough.
        self.inputs = frozenset(found) if len(found) & (len(found) - 1) else living(found)
        self.settled = True


def living(nodes: Iterable) -> frozenset:
    """`nodes`, with what they depend on in place of those that no Variable stands for any more."""
    found, seen, todo = set(), {None}, list(nodes)
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            if node.variable() is not None:
                found.add(node)
            else:
                todo += node.inputs
    return frozenset(found)


class Paths(NamedTuple):
    """What lies between sources and a target: the steps to walk back, sources first, and sets of nodes.

    `reached` are those that depend on a source, `seen` all that the target depends on, `older` those of them
    that are older than every source, of which only the first on each path are known.
    """

    steps: list
    reached: set
    seen: set
    older: set


def paths(end: Any, sources: set, stop: Collection, refuse: Callable[[Any, Any], None]) -> Paths:
    """All steps on paths from `sources` to `end`, in an order that depends on the graph alone.

    Nodes in `stop` count as leaves. `refuse` is called with a node without rules that depends on a source,
    and with all that do so far.
    Nodes older than every source depend on none and are not looked at.
    """
    oldest = min((node.number for node in sources), default=end.number + 1)
    steps: list = []
    reached, seen, older = set(), {None}, set()
    # Depth first, the first argument first: weights come later, and their gradients are final early.
    node: Any = None
    inputs, begun = iter((end,)), []
    while True:
        for other in inputs:
            if other not in seen:
                if other.number < oldest:
                    older.add(other)
                    continue
                seen.add(other)
                if (further := other.inputs) and (not stop or other not in stop):
                    begun.append((node, inputs))
                    node, inputs = other, iter(further)
                    break
                if other in sources:
                    reached.add(other)
        else:
            if not begun:
                return Paths(steps, reached, seen, older)
            further = node.inputs
            if not reached.isdisjoint(further):
                if type(further) is not list:
                    refuse(node, reached)
                steps.append(node)
                reached.add(node)
            elif node in sources:
                reached.add(node)
            node, inputs = begun.pop()
