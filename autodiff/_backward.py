"""The way back: from a result through the steps that led to it, adding up gradients."""

import math
from collections.abc import Callable, Collection, Mapping
from operator import attrgetter, iadd
from typing import Any

import numpy as np

from ._fingerprint import fingerprint
from ._graph import next_number, recording
from .function import RELEASED, Step, differentiable
from .variable import Variable, constant, plain

_level = attrgetter("level")


class Way:
    """What lies between sources and a target; refused where there is no way, or none that can be gone.

    `steps` are in an order that depends on the graph alone, sources first; `reached` are the nodes that
    depend on a source, `seen` all that the target depends on, except those older than every source: of these
    the first on each path are `older`. Nodes in `stop` count as leaves. `grads` are the gradients of nodes so
    far; those in `sums` were added up here, so that nobody else holds them: 16-bit parts in float32, with
    their dtype in `wide`.
    """

    def __init__(
        self, target: Variable, sources: Mapping[Any, Variable], unused: str = "zero", stop: Collection = ()
    ) -> None:
        self.target, self.sources, self.unused, self.records = target.node, sources, unused, recording()
        self.seen: set = set()
        self.older: set = set()
        self.grads: dict[Any, Any] = {}
        self.sums: set = set()
        self.wide: dict[Any, np.dtype] = {}
        self.verdicts: list[tuple[Any, str]] = []
        self.reached, self.steps = self._found({source.node for source in sources.values()}, stop)
        for place, source in enumerate(sources.values()):
            if unused == "raise" and source.node not in self.seen:
                raise ValueError(
                    f"gradient: target does not depend on source {place}, {source!r}: no path of calls leads "
                    "from it to target; with unused='zero' or 'none' its gradient is that"
                )

    def _found(self, nodes: set, stop: Collection) -> tuple[set, list[Step]]:
        seen, older = self.seen, self.older
        oldest = min((node.number for node in nodes), default=math.inf)
        found: list[Any] = [self.target] if self.target.number >= oldest else []
        seen.update(found, (None,))
        bare = []
        for node in found:  # which grows
            if stop and node in stop:
                continue
            if node.reads is None:
                bare.append(node)
            for other in node.inputs:
                if other not in seen:
                    if other.number < oldest:  # it depends on no source
                        older.add(other)
                    else:
                        seen.add(other)
                        found.append(other)
        seen.remove(None)
        # Inputs first, and of the same level in the order of the walk: threads, which change numbers, do not.
        found.sort(key=_level)
        # If all that has no rules is a leaf and a source, the rest is reached.
        if not (stop or older or any(node.level for node in bare)) and nodes.issuperset(bare):
            return seen, found[len(bare) :]
        reached, steps = nodes & seen, []
        for node in found:
            if not reached.isdisjoint(node.inputs) and not (stop and node in stop):
                if node.reads is None:
                    raise ValueError(self._refusal(node, reached))
                steps.append(node)
                reached.add(node)
        return reached, steps

    def _refusal(self, node: Any, reached: set) -> str:
        places = {source.node: (i, source) for i, source in enumerate(self.sources.values())}
        origin = node
        while origin is node or origin not in places:
            origin = next(other for other in origin.inputs if other in reached)
        place, source = places[origin]
        cause = "not computed on this tape: no tape recorded there (threads of a pool enter it, `with tape:`)"
        if isinstance(node, Step):
            cause = "released by an earlier gradient() (keep=True keeps it)"
        what = "target is" if node is self.target else "target depends on"
        return (
            f"gradient: {what} a result of {node.name!r} that was {cause}, and that depends on source "
            f"{place}, {source!r}; what is meant as a constant is passed on as stop_gradient(x)"
        )

    def go(self, grad: Any, owner: object = None, on_final: Callable[[Any, Any], None] | None = None) -> dict:
        """The gradients of the sources: arrays that nobody else has, or Variables if anything records.

        Steps of `owner` are released on the way.
        """
        self.grads[self.target] = grad if self.records else plain(grad)
        results, start = {}, next_number()
        held = {id(plain(grad)), *(id(source.data) for source in self.sources.values())}
        # Gradients are final after the last step that uses the source.
        last = {node: step for step in reversed(self.steps) for node in step.inputs} if on_final else {}
        due: dict[Any, list] = {}
        for key, source in self.sources.items():
            due.setdefault(last.get(source.node), []).append(key)

        def finish(step: Step | None) -> None:
            keys = due.get(step, ())
            results.update({key: self._result(self.sources[key], bool(last), held, start) for key in keys})
            if on_final:  # it may write to them: hence all of them are made before
                for key in keys:
                    on_final(key, results[key])

        self._pull(owner, finish if last else None)
        for verdict, message in self.verdicts:
            if not verdict:
                raise RuntimeError(message)
        finish(None)
        return {key: results[key] for key in self.sources}

    def _pull(self, owner: object, finish: Callable | None) -> None:
        """Add to `grads` what the rules of each step make of the gradient of its result."""
        reached, grads, sums, wide, records = self.reached, self.grads, self.sums, self.wide, self.records
        inner = {source.node for source in self.sources.values() if source.node.reads is not None}
        # Each small operation passes here: hence one loop, without calls that could be saved.
        for step in reversed(self.steps):
            grad = grads.pop(step, None)
            if grad is not None:
                if wide and step in wide:
                    grad = grad.astype(wide[step])
                if inner and step in inner:
                    grads[step] = grad
                for name, value, before in step.watched:
                    if type(before) is not bytes or before != value.tobytes():
                        self._note(before == fingerprint(value), step, name)
                saved, rules = step.linked() if records else step, step.function
                joint, parts = rules.joint, rules.gradients
                if joint is not None:
                    parts = joint(grad, saved, tuple(map(reached.__contains__, step.inputs)))
                shapes, dtypes, place = step.shapes, step.dtypes, -1
                for node in step.inputs:
                    place += 1
                    if node not in reached or (part := parts[place]) is None:
                        continue
                    if joint is None:
                        part = part(grad, saved)
                    if part.shape != shapes[place] or part.dtype is not dtypes[place]:
                        part = rules.fitted(part, shapes[place], dtypes[place])
                    total = grads.get(node)
                    if total is None:
                        grads[node] = part
                    elif node not in sums:
                        sums.add(node)
                        if part.dtype.itemsize == 2:
                            wide[node], total = part.dtype, total.astype(np.float32)
                        grads[node] = total + part
                    else:  # what is recorded is not written to
                        grads[node] = total + part if records else iadd(total, part)
            if step.owner is owner:
                step.reads, step.watched, step.__dict__ = RELEASED
            if finish:
                finish(step)

    def _note(self, verdict: Any, step: Step, name: str) -> None:
        """Complain if a value was overwritten: now, or when a device has come to its verdict."""
        if verdict is not True:
            what = "its output" if name == "output" else f"its argument {name!r}"
            message = (
                f"{step.name}: {what} was overwritten after the forward pass, but its gradient needs the old "
                "values; write to a copy, or take the gradient first"
            )
            if verdict is False:
                raise RuntimeError(message)
            self.verdicts.append((verdict, message))

    def _result(self, source: Variable, shared: bool, held: set[int], start: int) -> Any:
        """The gradient of a source, as an array or a Variable whose array nobody else has.

        Rules may hand on a source, a view of what they are given, or one array to two arguments: `held` are
        the ids of what others have. (What they saved they do not hand on: a gradient is linear in `grad`.) It
        is `shared` if others are told of it while the pass goes on, which may still read what came from a
        rule, or is the gradient of a step's own result.
        """
        node = source.node
        found = self.grads.get(node)
        if found is None:
            if self.unused == "none" and node not in self.seen:
                return None
            found = np.zeros_like(source.data)
        elif node in self.wide:
            found = found.astype(self.wide[node])
        data = plain(found)
        shared = shared and (node not in self.sums or node.reads is not None)
        if isinstance(found, Variable):
            shared = found.node.number < start
        if shared or id(data) in held or getattr(data, "base", None) is not None:
            found = _copied(found)
        held.add(id(data))
        if self.records:
            return found if isinstance(found, Variable) else constant(found)
        return np.asarray(found) if isinstance(found, np.generic) else found


@differentiable("x", x=("", lambda g, s: g))
def _copied(x: Any) -> Any:
    return x.copy()
