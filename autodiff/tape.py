"""The tape: records differentiable functions, takes gradients, and lets go of what it recorded."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ._backward import Way
from ._binding import real
from ._graph import State, living, recording, state
from ._show import ShownSteps
from .function import RELEASED, Step
from .variable import Variable

UNUSED = ("raise", "zero", "none")


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
    >>> import numpy as np
    >>> from autodiff import Tape, Variable, functions as F
    >>> w = Variable(np.array([1.0, 2.0]))
    >>> with Tape() as tape:
    ...     loss = F.sum(w**2)
    >>> tape.gradient(loss, w)
    array([2., 4.])
    """

    def __init__(self, check: bool = True) -> None:
        self.steps: list[Step] = []
        self.check = check
        self.token = object()  # what steps know of it, whom they would keep alive

    def __enter__(self) -> "Tape":
        now = state.get()
        entered = State((*now.entered, self), now.listener)
        entered.before = state.set(entered)
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        now = state.get()
        entered, ordered = list(now.entered), now.entered[-1:] == (self,)
        before: Any = now.before if ordered else None
        try:  # to leave nothing: NumPy looks into the context at every call, the sooner if it is empty
            state.reset(before)
        except (TypeError, ValueError, RuntimeError):  # out of order, or in the context of another task
            if self in entered:
                del entered[len(entered) - 1 - entered[::-1].index(self)]
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
        ValueError
            If a source is not used, or is used in a way that was not recorded, or was released.
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

    def _release(self, way: Way | None = None) -> None:
        steps, self.steps = self.steps, []
        for step in steps:
            if step.reads is not None and step.owner is self.token:
                step.reads, step.watched, step.__dict__ = RELEASED
        # Those that a Variable stands for depend on what lives: else they would keep all steps before them.
        alive = [step for step in steps if step.variable() is not None]
        for step in alive:
            if step.owner is not self.token:
                continue
            if way is not None and step is way.target and step in way.seen:
                known = way.seen.difference(steps) | way.seen.intersection(alive) | way.older
                step.inputs = tuple(known - {None, step})
            else:
                step.inputs = living(step.inputs)


def _checked(target: Any, members: Collection, grad: Any, unused: str) -> Any:
    """The gradient to start from, once all arguments are found to be right."""
    for what, value in [("target", target), *(("sources", m) for m in members)]:
        if not isinstance(value, Variable):
            got = f"got {type(value).__name__}; it does not come from Variables"
            raise TypeError(f"gradient: {what} must be a Variable, {got}")
    if unused not in UNUSED:
        raise ValueError(f"gradient: unused must be one of {UNUSED}, got {unused!r}")
    shape = target.shape
    if grad is None:
        if target.size != 1:
            must = "must be a single number unless grad is given"
            raise ValueError(f"gradient: target {must}, got shape {shape}")
        return np.ones_like(target.data)
    grad = real(grad, "gradient: grad")
    if tuple(grad.shape) != shape:
        raise ValueError(f"gradient: grad must have the shape of target, {shape}, got {tuple(grad.shape)}")
    return grad if grad.dtype == target.dtype else grad.astype(target.dtype)
