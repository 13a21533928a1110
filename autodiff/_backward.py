"""The way back: from a result through the steps that led to it, adding up gradients."""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from ._graph import Paths, next_number, paths
from ._recording import recording
from .function import NOTHING, Step, differentiable
from .variable import Variable, constant

UNUSED = ("raise", "zero", "none")


def find(target: Variable, sources: list[Variable], unused: str, stop: Collection = ()) -> Paths:
    """The way from `target` back to `sources`; complains where there is none, or where it cannot be gone."""

    def refuse(node: Any, reached: set) -> None:
        raise ValueError(_refusal(node, reached, target, sources))

    way = paths(target.node, {source.node for source in sources}, stop, refuse)
    if unused == "raise":
        for place, source in enumerate(sources):
            if source.node not in way.seen:
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
    way: Paths,
    target: Variable,
    sources: list[Variable],
    grad: Any,
    *,
    unused: str = "zero",
    owner: object = None,
    on_final: Callable[[int, Any], None] | None = None,
) -> list:
    """The gradients of `sources`: none of them an alias of another, and Variables if anything records."""
    records = recording()
    if isinstance(grad, Variable) and not records:
        grad = grad.data
    steps, reached = way.steps, way.reached
    grads = {target.node: grad} if target.node in reached else {}
    sums: set = set()
    verdicts: list[tuple[Any, str]] = []
    results: dict[int, Any] = {}
    held, start = {id(grad)}, next_number()

    def finish(place: int) -> None:
        source = sources[place]
        found = grads.get(source.node)
        if found is None and (unused != "none" or source.node in way.seen):
            found = np.zeros_like(source.data)
        if found is not None and not isinstance(found, Variable):
            # Rules may hand on a view of the gradient they are given, or one array to two arguments.
            shared = id(found) in held or getattr(found, "base", None) is not None
            if shared or (on_final and source.node not in sums):
                found = found.copy()
            found = np.asarray(found) if isinstance(found, np.generic) else found
            held.add(id(found))  # the array, before a Variable holds it
            found = constant(found) if records else found
        elif found is not None and (id(found) in held or found.node.number < start):
            found = _copied(found)  # a rule may hand on what it reads, too
        held.add(id(found))
        results[place] = found
        if on_final:
            on_final(place, found)

    inner = {source.node for source in sources}.intersection(steps)
    last = _last_uses(way, sources) if on_final else {}
    while steps:
        step = steps.pop()
        total = grads.pop(step, None)
        if total is not None:
            if inner and step in inner:
                grads[step] = total
            step.pull(total, reached, grads, sums, records, verdicts)
        if owner is not None and step.owner is owner:  # `Step.release`, without a call for each step
            step.inputs, step.__dict__, step.residual, step.watched = tuple(step.inputs), NOTHING, None, ()
        if last and step in last:
            for place in last[step]:
                finish(place)
    for verdict, message in verdicts:
        if not verdict:
            raise RuntimeError(message)
    for place in [place for place in range(len(sources)) if place not in results]:
        finish(place)
    return [results[place] for place in range(len(sources))]


@differentiable("x", x=("", lambda g, s: g))
def _copied(x: Any) -> Any:
    return x.copy()


def _last_uses(way: Paths, sources: list[Variable]) -> dict[Step, list[int]]:
    """For each step after which gradients are final, whose they are."""
    places: dict[Any, list[int]] = {}
    for place, source in enumerate(sources):
        places.setdefault(source.node, []).append(place)
    last: dict[Step, list[int]] = {}
    for step in way.steps:
        for node in step.inputs:
            if node in places:
                last.setdefault(step, []).extend(places.pop(node))
    return last
