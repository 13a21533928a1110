"""The way back: from a result through the steps that led to it, adding up gradients."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from ._graph import next_number, recording
from .function import Step, differentiable
from .variable import Variable, constant


class Way(NamedTuple):
    """What lies between sources and a target.

    `steps` are in an order that depends on the graph alone, sources first; `reached` are the nodes that
    depend on a source, `seen` all that the target depends on, `older` those of them that are older than every
    source, of which only the first on each path are known.
    """

    steps: list
    reached: set
    seen: set
    older: set


def find(target: Variable, sources: Mapping[Any, Variable], unused: str, stop: Collection = ()) -> Way:
    """The way from `target` back to `sources`; complains where there is none, or where it cannot be gone.

    Nodes in `stop` count as leaves. What is older than every source depends on none, and is not looked at.
    """
    nodes = {source.node for source in sources.values()}
    oldest = min((node.number for node in nodes), default=target.node.number + 1)
    steps, reached, seen, older = way = Way([], set(), {None}, set())
    # Depth first, the first argument first: weights come later, and their gradients are final early.
    node: Any = None
    inputs, begun = iter((target.node,)), []
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
                if other in nodes:
                    reached.add(other)
        else:
            if not begun:
                break
            if not reached.isdisjoint(node.inputs):
                if node.reads is None:
                    raise ValueError(_refusal(node, reached, target, list(sources.values())))
                steps.append(node)
                reached.add(node)
            elif node in nodes:
                reached.add(node)
            node, inputs = begun.pop()
    if unused == "raise":
        for place, source in enumerate(sources.values()):
            if source.node not in seen:
                raise ValueError(
                    f"gradient: target does not depend on source {place}, {source!r}: no path of calls leads "
                    "from it to target; with unused='zero' or 'none' its gradient is that"
                )
    return way


def _refusal(node: Any, reached: set, target: Variable, sources: list[Variable]) -> str:
    places, origin = {source.node: i for i, source in enumerate(sources)}, None
    while origin not in places:
        origin = next(other for other in (origin or node).inputs if other in reached)
    place = places[origin]
    what = "target is" if node is target.node else "target depends on"
    cause = (
        "released by an earlier gradient() (keep=True keeps it)"
        if isinstance(node, Step)
        else "not computed on this tape: no tape recorded there (threads of a pool enter it, `with tape:`)"
    )
    return (
        f"gradient: {what} a result of {node.name!r} that was {cause}, and that depends on source {place}, "
        f"{sources[place]!r}; what is meant as a constant is passed on as stop_gradient(x)"
    )


def walk(
    way: Way,
    target: Variable,
    sources: Mapping[Any, Variable],
    grad: Any,
    *,
    unused: str = "zero",
    owner: object = None,
    on_final: Callable[[Any, Any], None] | None = None,
) -> dict:
    """The gradients of `sources`: none of them an alias of another, and Variables if anything records.

    Steps of `owner` are released on the way.
    """
    records = recording()
    if isinstance(grad, Variable) and not records:
        grad = grad.data
    steps, reached, seen, _ = way
    grads = {target.node: grad} if target.node in reached else {}
    sums: dict[Any, np.dtype] = {}
    verdicts: list[tuple[Any, str]] = []
    results: dict = {}
    held, start = {id(grad)}, next_number()

    def finish(key: Any) -> None:
        node = sources[key].node
        found = _rounded(grads.get(node), node, sums)
        if found is None and (unused != "none" or node in seen):
            found = np.zeros_like(sources[key].data)
        if found is not None:
            found = _own(found, held, start, on_final is not None and node not in sums)
            found = constant(found) if records and not isinstance(found, Variable) else found
        results[key] = found
        if on_final:
            on_final(key, found)

    inner = {source.node for source in sources.values()}.intersection(steps)
    last = _last_uses(steps, sources) if on_final else {}
    while steps:
        step = steps.pop()
        total = grads.pop(step, None)
        if total is not None:
            if step in sums:
                total = _rounded(total, step, sums)
            if inner and step in inner:
                grads[step] = total
            step.pull(total, reached, grads, sums, records, verdicts)
        if step.owner is owner:
            step.release()
        if last:
            for key in last.get(step, ()):
                finish(key)
    for verdict, message in verdicts:
        if not verdict:
            raise RuntimeError(message)
    for key in sources:
        if key not in results:
            finish(key)
    return {key: results[key] for key in sources}


def _own(found: Any, held: set[int], start: int, shared: bool) -> Any:
    """A gradient that nobody else has; `held` are the ids of those that are given away.

    Rules may hand on what they read, a view of what they are given, or one array to two arguments.
    """
    if isinstance(found, Variable):
        shared = found.node.number < start
    if shared or id(found) in held or getattr(found, "base", None) is not None:
        found = _copied(found)
    found = np.asarray(found) if isinstance(found, np.generic) else found
    held.add(id(found))
    return found


def _rounded(total: Any, node: Any, sums: dict[Any, np.dtype]) -> Any:
    """A gradient in the dtype of its parts, of which 16-bit ones are added up in float32."""
    dtype = sums.get(node)
    return total if dtype is None or total.dtype == dtype else total.astype(dtype)


@differentiable("x", x=("", lambda g, s: g))
def _copied(x: Any) -> Any:
    return x.copy()


def _last_uses(steps: list[Step], sources: Mapping[Any, Variable]) -> dict[Step, list]:
    """For each step after which gradients are final, whose they are."""
    keys: dict[Any, list] = {}
    for key, source in sources.items():
        keys.setdefault(source.node, []).append(key)
    last: dict[Step, list] = {}
    for step in steps:
        for node in step.inputs:
            if node in keys:
                last.setdefault(step, []).extend(keys.pop(node))
    return last
