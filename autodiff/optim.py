"""Optimisers, gradient clipping, and schedules of the learning rate.

An optimiser changes the arrays of its parameters in place: ``optimizer.step(tape.gradient(loss,
optimizer.parameters))``.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from .variable import Variable


class Optimizer:
    """Base of the optimisers.

    Parameters
    ----------
    parameters : list of Variable, or list of dict
        What to train. Groups, such as ``{"parameters": [...], "lr_scale": 0.1}``, have learning rates of
        their own.
    lr : float
        Learning rate; may be assigned between steps.

    Attributes
    ----------
    parameters : list of Variable
        All parameters, in the order in which `step` takes their gradients.
    """

    slots: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable[Any], lr: float) -> None:
        groups: list[Any] = [g if isinstance(g, Mapping) else {"parameters": [g]} for g in parameters]
        self.parameters: list[Variable] = [p for g in groups for p in g["parameters"]]
        self.scales = [float(g.get("lr_scale", 1.0)) for g in groups for _ in g["parameters"]]
        if any(not isinstance(p, Variable) for p in self.parameters):
            raise TypeError(f"{type(self).__name__}: parameters must be Variables or groups of them")
        if len({p.key for p in self.parameters}) != len(self.parameters):
            raise ValueError(f"{type(self).__name__}: a parameter is given twice")
        self.lr = lr
        self.steps = 0
        self.state = [{name: np.zeros_like(p.data) for name in self.slots} for p in self.parameters]

    def step(self, grads: Iterable[Any]) -> None:
        """Move every parameter along its gradient."""
        grads = list(grads)
        if len(grads) != len(self.parameters):
            raise ValueError(
                f"{type(self).__name__}: {len(grads)} gradients for {len(self.parameters)} parameters"
            )
        self.steps += 1
        for parameter, grad, scale, state in zip(self.parameters, grads, self.scales, self.state):
            if grad.shape != parameter.shape:
                raise ValueError(
                    f"{type(self).__name__}: gradient {grad.shape} for a parameter {parameter.shape}"
                )
            self.update(parameter.data, grad, self.lr * scale, state)

    def update(self, value: Any, grad: Any, lr: float, state: dict[str, Any]) -> None:
        """Change `value` and `state` in place."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What continues the training to the same bits: arrays by ``name.index``, ``steps`` and ``lr``."""
        arrays = {f"{name}.{i}": a.copy() for i, state in enumerate(self.state) for name, a in state.items()}
        return {**arrays, "steps": np.asarray(self.steps), "lr": np.asarray(self.lr)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`; unless every name and shape agrees, nothing is changed."""
        own = self.state_dict()
        wrong = sorted(set(own) ^ set(state)) or [k for k in own if np.shape(own[k]) != np.shape(state[k])]
        if wrong:
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: missing, unexpected or misshapen: {', '.join(wrong)}"
            )
        for i, arrays in enumerate(self.state):
            for name, array in arrays.items():
                array[...] = state[f"{name}.{i}"]
        self.steps, self.lr = int(state["steps"]), float(state["lr"])


class SGD(Optimizer):
    """Gradient descent: ``v = momentum*v + g + weight_decay*p; p -= lr*v``, or Nesterov's form."""

    slots = ("velocity",)

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr)
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov

    def update(self, value: Any, grad: Any, lr: float, state: dict[str, Any]) -> None:
        """One step."""
        if self.weight_decay:
            grad = grad + self.weight_decay * value
        velocity = state["velocity"]
        velocity *= self.momentum
        velocity += grad
        value -= lr * (grad + self.momentum * velocity if self.nesterov else velocity)


class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015). ``weight_decay*p`` is added to the gradient; `AdamW` decouples it."""

    slots = ("first", "second")

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr)
        self.betas, self.epsilon, self.weight_decay = betas, epsilon, weight_decay

    def update(self, value: Any, grad: Any, lr: float, state: dict[str, Any]) -> None:
        """One step."""
        if self.weight_decay:
            grad = grad + self.weight_decay * value
        self._move(value, grad, lr, state["first"], state["second"])

    def _move(self, value: Any, grad: Any, lr: float, first: Any, second: Any) -> None:
        beta1, beta2 = self.betas
        first *= beta1
        first += (1 - beta1) * grad
        second *= beta2
        second += (1 - beta2) * (grad * grad)
        # Both averages start at zero; dividing by what their weights add up to removes that bias.
        unbiased = np.sqrt(second / (1 - beta2**self.steps))
        value -= (lr / (1 - beta1**self.steps)) * first / (unbiased + self.epsilon)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019): ``p -= lr*weight_decay*p`` first."""

    def __init__(
        self, parameters: Iterable[Any], lr: float = 1e-3, *, weight_decay: float = 1e-2, **options: Any
    ) -> None:
        super().__init__(parameters, lr, weight_decay=weight_decay, **options)

    def update(self, value: Any, grad: Any, lr: float, state: dict[str, Any]) -> None:
        """One step."""
        value *= 1 - lr * self.weight_decay
        self._move(value, grad, lr, state["first"], state["second"])


def clip_gradients(grads: Iterable[Any], max_norm: float) -> tuple[list, float]:
    """Gradients scaled so that their joint Euclidean norm is at most `max_norm`, and the norm they had."""
    grads = list(grads)
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads))
    scale = max_norm / norm if norm > max_norm else 1.0
    return [g * g.dtype.type(scale) for g in grads] if scale < 1 else grads, norm


def step_schedule(lr: float, every: int, factor: float = 0.1) -> Callable[[int], float]:
    """``schedule(step) -> lr * factor**(step // every)``."""
    return lambda step: lr * factor ** (step // every)


def cosine_schedule(lr: float, total: int, *, warmup: int = 0, final: float = 0.0) -> Callable[[int], float]:
    """A linear rise over `warmup` steps, then half a cosine from `lr` down to `final` at step `total`."""

    def schedule(step: int) -> float:
        if step < warmup:
            return lr * (step + 1) / warmup
        progress = min((step - warmup) / max(total - warmup, 1), 1.0)
        return final + (lr - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return schedule


def poly_schedule(lr: float, total: int, power: float = 0.9) -> Callable[[int], float]:
    """``lr * (1 - step/total)**power``, 0 from step `total` on."""
    return lambda step: lr * max(1 - step / total, 0.0) ** power
