"""The tape: records differentiable functions, takes gradients, and lets go of what it recorded."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from operator import attrgetter, iadd
from typing import Any

import numpy as np

from dynarray._check import check_choice

from ._binding import real
from ._fingerprint import fingerprint
from ._graph import State, nearest, recording, state
from ._show import ShownSteps
from .function import RELEASED, Step, alias
from .variable import Variable, constant, plain


class Tape(ShownSteps):
    """Records every function of a Variable called in its ``with`` block.

    The graph is in the results: `gradient` follows them, whichever tape recorded them. Asyncio's tasks
    inherit the block; threads of a pool enter it, ``with tape:``. What is computed elsewhere is a constant,
    and a gradient by what it was computed from is refused.

    Parameters
    ----------
    check : bool
        Detect arrays that are overwritten before `gradient`. It costs one read of each saved array.

    Examples
    --------
    >>> from autodiff import Tape, Variable
    >>> w = Variable([1.0, 2.0])
    >>> with Tape() as tape:
    ...     loss = (w**2).sum()
    >>> tape.gradient(loss, w)
    array([2., 4.])
    """

    def __init__(self, check: bool = True) -> None:
        self.steps: list[Step] = []
        self.check = check
        self.token = object()  # what steps know of it, whom they would keep alive

    def __enter__(self) -> "Tape":
        now = state.get()
        entered = State((self, *now.entered), now.listener)
        entered.before = state.set(entered)
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        now = state.get()
        entered, ordered = list(now.entered), now.entered[:1] == (self,)
        try:  # to leave nothing: NumPy looks into the context at every call, the sooner if it is empty
            state.reset((now if ordered else State()).before)
        except (TypeError, ValueError, RuntimeError):  # out of order, or in the context of another task
            if self in entered:
                entered.remove(self)
                state.set(State(tuple(entered), now.listener))
        if kind is not None:
            self.steps = []
        elif not ordered:
            raise ValueError("Tape: blocks end in the reverse order of their beginnings, each in its thread")

    def gradient(
        self,
        target: Variable,
        sources: Any,
        *,
        grad: Any = None,
        keep: bool = False,
        unused: str = "raise",
        on_final: Callable[[Any, Any], None] | None = None,
    ) -> Any:
        """Gradients of `target`, with the shape and dtype of each source; Variables while any tape records.

        Parameters
        ----------
        target : Variable
            A single number unless `grad` is given.
        sources : Variable, or list, tuple or dict of them
            Leaves or intermediate results; the gradients come as one array, a list or a dict.
        grad : array, optional
            Gradient of the final quantity with respect to `target` (a vector-Jacobian product); 1 by default.
        keep : bool
            Keep the recorded steps for another call. By default what this tape recorded as the outermost one
            is released as the pass goes, unless a tape still records, which may need it.
        unused : {"raise", "zero", "none"}
            What to do about a source from which no path of calls leads to `target`: complain, or return zeros
            or None. A path of slope zero counts, one that `stop_gradient` cut does not.
        on_final : callable, optional
            ``on_final(key, gradient)`` is called as soon as the gradient of a source is final, with its place
            among `sources`, or its key, and what will be returned for it; only then the pass goes on.

        Raises
        ------
        TypeError, ValueError
            If an argument is wrong, or a source not used, or used in a way not recorded, or released.
        RuntimeError
            If an array that the gradient needs was overwritten.
        """
        many = isinstance(sources, list | tuple)
        group = sources if isinstance(sources, Mapping) else dict(enumerate(sources if many else [sources]))
        grad = _checked(target, group.values(), grad, unused)
        way, owner = Way(target, group, unused), None if keep or recording() else self.token
        try:
            found = way.go(grad, owner, on_final)
        finally:
            if owner is not None:
                self._release(way)
        if isinstance(sources, Mapping):
            return found
        return list(found.values()) if many else found[0]

    def release(self) -> None:
        """Let go of all arrays that were recorded; a gradient that would need one of them says so."""
        self._release()

    def _release(self, way: "Way | None" = None) -> None:
        own, self.steps = [step for step in self.steps if step.owner is self.token], []
        for step in own:
            if step.saved is not None:
                step.saved, step.__dict__ = RELEASED
        # Those that a Variable stands for depend on what lives: else they would keep all steps before them.
        alive = {step for step in own if step.variable() is not None}
        for step in alive:
            if way is not None and step is way.target and step in way.seen:
                step.inputs = tuple(way.seen.difference(own).union(way.older, way.seen & alive - {step}))
            else:
                step.inputs = nearest(step.inputs)


def _checked(target: Any, members: Collection, grad: Any, unused: str) -> Any:
    """The gradient to start from, once all arguments are found to be right."""
    for what, value in [("target", target), *(("sources", m) for m in members)]:
        if not isinstance(value, Variable):
            got = f"got {type(value).__name__}; it does not come from Variables"
            raise TypeError(f"gradient: {what} must be a Variable, {got}")
    check_choice("gradient", "unused", unused, ("raise", "zero", "none"))
    if grad is None:
        if target.size != 1:
            must = "must be a single number unless grad is given"
            raise ValueError(f"gradient: target {must}, got shape {target.shape}")
        return np.ones_like(target.data)
    grad = real(grad, "gradient: grad", target, "target")
    return grad if grad.dtype == target.dtype else grad.astype(target.dtype)


class Way:
    """What lies between sources and a target; refused where there is no way, or none that can be gone.
    `steps` are in an order that depends on the graph alone, sources first; `reached` are the nodes that
    depend on a source, `seen` all that the target depends on, but of what is `older` than every source, which
    depends on none, only the first on each path. Nodes in `stop` count as leaves. `grads` are the gradients
    of nodes so far: sums of 16-bit parts in float32, with their dtype in `wide`.
    """

    def __init__(
        self, target: Variable, sources: Mapping, unused: str = "zero", stop: Collection = ()
    ) -> None:
        self.target, self.sources, self.unused, self.records = target.node, sources, unused, recording()
        self.grads: dict[Any, Any] = {}
        self.wide: dict[Any, np.dtype] = {}
        self.verdicts: list[tuple[Any, str, str]] = []
        self.reached, self.steps = self._found({source.node for source in sources.values()}, stop)
        for place, source in enumerate(sources.values()):
            if unused == "raise" and source.node not in self.seen:
                raise ValueError(
                    f"gradient: target does not depend on source {place}, {source!r}: no path of calls leads "
                    "from it to target; unused='zero' or 'none' gives zeros or None as its gradient instead"
                )

    def _found(self, nodes: set, stop: Collection) -> tuple[set, list[Step]]:
        oldest = min((node.number for node in nodes), default=math.inf)
        found: list[Any] = [self.target] if self.target.number >= oldest else []
        self.seen, self.older = seen, older = {None, *stop, *found}, list[Any]()
        bare = []
        for node in found:  # which grows
            if node.saved is None:
                bare.append(node)
            for other in node.inputs:
                if other not in seen:
                    seen.add(other)
                    (found if other.number >= oldest else older).append(other)
        seen.remove(None)
        # Inputs first, and of the same level in the order of the walk: threads, which change numbers, do not.
        found.sort(key=attrgetter("level"))
        # If all that has no rules is a leaf and a source, the rest is reached.
        if len(found) == len(seen) and nodes.issuperset(bare) and not any(node.level for node in bare):
            return seen, found[len(bare) :]
        reached, steps = nodes & seen, []
        for node in found:
            if not reached.isdisjoint(node.inputs):
                if node.saved is None:
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
        verb = "is" if node is self.target else "depends on"
        return (
            f"gradient: target {verb} a result of {node.name!r} that was {node.cause}, and that depends on "
            f"source {place}, {source!r}; what is meant as a constant is passed on as stop_gradient(x)"
        )

    def go(self, grad: Any, owner: object = None, on_final: Callable[[Any, Any], None] | None = None) -> dict:
        """Gradients: arrays that nobody else has, Variables if anything records; releases steps of `owner`"""
        self.grads[self.target] = grad if self.records else plain(grad)
        # Gradients are final after the last step that uses the source.
        last = {node: step for step in reversed(self.steps) for node in step.inputs} if on_final else {}
        due: dict[Any, list] = {}
        for key, source in self.sources.items():
            due.setdefault(last.get(source.node), []).append(key)
        results = dict.fromkeys(self.sources)
        held = {id(plain(grad)), *(id(source.data) for source in self.sources.values())}
        for step in self._pull(owner, due):
            for key in due.get(step, ()):
                results[key] = self._result(self.sources[key], held, on_final is not None)
            if on_final:  # it may write to them: hence all of them are made before
                for key in due.get(step, ()):
                    on_final(key, results[key])
        return results

    def _pull(self, owner: object, due: Collection) -> Iterator[Step | None]:
        """Go through the steps, adding to `grads`; yield each in `due` when it is done, and None at last."""
        reached, grads, wide, records = self.reached, self.grads, self.wide, self.records
        sums: set = set()  # gradients that were added up here, so that nobody else holds them
        inner = {source.node for source in self.sources.values() if source.node.saved is not None}
        # Each small operation passes here: hence one loop, without calls that could be saved.
        for step in reversed(self.steps):
            grad = grads.pop(step, None)
            if grad is not None:
                if wide and step in wide:
                    grad = grad.astype(wide[step])
                if inner and step in inner:
                    grads[step] = grad
                for name, value, before in step.saved:
                    if before != value.tobytes() if type(before) is bytes else before:
                        self._note(before == fingerprint(value), step.name, name)
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
                step.saved, step.__dict__ = RELEASED
            if step in due:
                yield step
        for verdict in self.verdicts:
            self._note(*verdict, final=True)
        yield None

    def _note(self, verdict: Any, function: str, name: str, final: bool = False) -> None:
        """Complain if a value was overwritten: now, or in the end, when a device has come to its verdict."""
        if not (final or isinstance(verdict, bool)):
            self.verdicts.append((verdict, function, name))
        elif not verdict:
            what = "its output" if name == "output" else f"its argument {name!r}"
            raise RuntimeError(
                f"{function}: {what} was overwritten after the forward pass, but its gradient needs the old "
                "values; write to a copy, or take the gradient first"
            )

    def _result(self, source: Variable, held: set[int], told: bool) -> Any:
        """The gradient of a source, an array or a Variable whose array nobody else has. Rules may hand on a
        source, a view of what they are given, or one array to two arguments: `held` are the ids of what
        others have. (Not what they saved: a gradient is linear in `grad`.) Who is `told` may write to it.
        """
        node = source.node
        found = self.grads.get(node)
        if found is None:
            if self.unused == "none" and node not in self.seen:
                return None
            found = np.zeros_like(source.data)
        elif node in self.wide:
            found = found.astype(self.wide[node])
        found = found if isinstance(found, Variable) else constant(found)
        if told or id(found.data) in held or getattr(found.data, "base", None) is not None:
            found = alias(found)
            found.data = found.data.copy()
        held.add(id(found.data))
        return found if self.records else found.data
