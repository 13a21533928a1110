"""The tape: records differentiable functions as they run and walks back through them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._show import table
from .function import Step, active
from .variable import Variable, result


class Tape:
    """Records every function of a Variable called in its ``with`` block.

    Parameters
    ----------
    check : bool
        Detect arrays that are overwritten between recording and `gradient`. It costs one read of each saved
        array.

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
        self._depth = 0
        self._constants: set[int] = set()

    def __enter__(self) -> "Tape":
        if self not in active.tapes:
            active.tapes.append(self)
        elif active.tapes[-1] is not self:
            raise RuntimeError("Tape: cannot be entered again inside another tape")
        self._depth += 1
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self._depth -= 1
        if not self._depth:
            active.tapes.remove(self)
        if kind is not None:
            self.steps.clear()

    def add(self, step: Step, args: tuple) -> None:
        """Called for every call recorded, with its arguments."""
        self.steps.append(step)

    def gradient(self, target: Variable, sources: Any, *, grad: Any = None, keep: bool = False) -> Any:
        """Gradients of `target` with respect to `sources`.

        Parameters
        ----------
        target : Variable
            What was computed on this tape; a single number unless `grad` is given.
        sources : Variable, or list, tuple or dict of them
            Leaves or intermediate results.
        grad : array, optional
            Gradient of the final quantity with respect to `target` (a vector-Jacobian product); 1 by default.
        keep : bool
            Keep the recorded steps for another call. By default saved arrays are released as the pass goes.

        Returns
        -------
        array, or list or dict of arrays
            As `sources`, each with the shape and dtype of its source; zero where `target` does not depend on
            it. While an outer tape records, Variables instead of arrays.
        """
        group = sources if isinstance(sources, list | tuple | Mapping) else [sources]
        members = list(group.values()) if isinstance(group, Mapping) else list(group)
        self._check_call(target, members, grad)
        steps = list(self.steps) if keep else self.steps
        if grad is None:
            grad = np.ones_like(target.data)
        elif grad.dtype != target.dtype:
            grad = grad.astype(target.dtype)
        grads = self._backward(steps, target, members, grad)
        if isinstance(group, Mapping):
            return dict(zip(group, grads, strict=True))
        return grads if group is sources else grads[0]

    def _check_call(self, target: Any, members: list, grad: Any) -> None:
        for what, value in [("target", target), *(("sources", m) for m in members)]:
            if not isinstance(value, Variable):
                kind = type(value).__name__
                raise TypeError(
                    f"gradient: {what} must be a Variable, got {kind}; it was not computed from Variables"
                )
        known = target.key in self._constants or any(target.key == m.key for m in members)
        if not known and all(step.output_key != target.key for step in self.steps):
            raise ValueError(
                "gradient: target was not computed on this tape, or its steps were released by an earlier "
                "gradient() (keep=True keeps them)"
            )
        if grad is None and target.size != 1:
            raise ValueError(
                f"gradient: target must be a single number unless grad is given, got shape {target.shape}"
            )
        if grad is not None and tuple(grad.shape) != target.shape:
            raise ValueError(
                f"gradient: grad must have the shape of target, {target.shape}, got {tuple(grad.shape)}"
            )

    def _backward(self, steps: list[Step], target: Variable, members: list[Variable], grad: Any) -> list:
        reached = {m.key for m in members}
        wanted = frozenset(reached)
        for step in steps:
            if not reached.isdisjoint(step.keys):
                reached.add(step.output_key)
        grads = {target.key: grad} if target.key in reached else {}
        sums: set[int] = set()
        verdicts: list[tuple[Any, str]] = []
        outer, active.tapes = active.tapes, [tape for tape in active.tapes if tape is not self]
        recording = bool(active.tapes)
        try:
            while steps:
                step = steps.pop()
                key = step.output_key
                if key not in grads:
                    continue
                if key not in wanted:
                    step.pull(grads.pop(key), reached, grads, sums, recording, verdicts)
                elif not reached.isdisjoint(step.keys):
                    step.pull(grads[key], reached, grads, sums, recording, verdicts)
            for verdict, message in verdicts:
                if not verdict:
                    raise RuntimeError(message)
            return self._finish(grads, members, grad)
        finally:
            active.tapes = outer

    def _finish(self, grads: dict, members: list[Variable], given: Any) -> list:
        """Gradients as they are returned: none of them an alias of another, and known to the outer tapes."""
        results, seen = [], {id(given)}
        for source in members:
            grad = grads.get(source.key)
            if grad is None:
                grad = np.zeros_like(source.data)
            if not isinstance(grad, Variable):
                # Rules may hand on a view of the gradient they are given, or one array to two arguments.
                shared = id(grad) in seen or getattr(grad, "base", None) is not None
                grad = grad.copy() if shared else np.asarray(grad) if isinstance(grad, np.generic) else grad
                seen.add(id(grad))
                if active.tapes:
                    grad = result(grad)
                    for tape in active.tapes:
                        tape._constants.add(grad.key)
            results.append(grad)
        return results

    def show(self) -> None:
        """Print the recorded steps: shapes, and what each saves for the backward pass, with its bytes."""
        print(table(self.steps))
