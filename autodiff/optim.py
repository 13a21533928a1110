"""Optimisers, gradient clipping, and schedules of the learning rate.

An optimiser changes the arrays of its parameters in place: ``optimizer.step(tape.gradient(loss,
optimizer.parameters))``.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ._show import Shown
from ._state import assign, mismatches
from .variable import Variable


class Optimizer(Shown):
    """Base of the optimisers.

    Parameters of 16 bits are moved in float32, and what is kept of their gradients is float32.

    Parameters
    ----------
    parameters : list of Variable, or list of dict
        What to train. A group ``{"parameters": [...], "lr_scale": 0.1, "weight_decay": 0.0}`` has a learning
        rate of its own, relative to that of the optimiser, or a weight decay of its own, or both.
    lr : float
        Learning rate; may be assigned between steps.
    weight_decay : float
        Of all groups that say nothing else.

    Attributes
    ----------
    parameters : list of Variable
        All parameters, in the order in which `step` takes their gradients.
    steps : int
        Number of steps taken.

    Raises
    ------
    TypeError
        If a parameter is no Variable.
    ValueError
        If a parameter is given twice, or a group has unknown entries.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import Variable
    >>> from autodiff.optim import SGD
    >>> weight, bias = Variable(np.array([1.0])), Variable(np.array([1.0]))
    >>> optimizer = SGD([weight, {"parameters": [bias], "lr_scale": 0.1}], lr=0.5)
    >>> optimizer.step([np.array([1.0]), np.array([1.0])])
    >>> weight.data.tolist(), bias.data.tolist(), optimizer.steps
    ([0.5], [0.95], 1)
    """

    slots: tuple[str, ...] = ()

    def __init__(self, parameters: Iterable[Any], lr: float, weight_decay: float = 0.0) -> None:
        self._name = type(self).__name__
        self.parameters: list[Variable] = []
        self.scales: list[float] = []
        self.decays: list[float] = []
        for entry in parameters:
            group: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"parameters": [entry]}
            unknown = set(group) - {"parameters", "lr_scale", "weight_decay"}
            if unknown or "parameters" not in group:
                raise ValueError(
                    f"{self._name}: a group has parameters, lr_scale, weight_decay, got {sorted(group)}"
                )
            members = list(group["parameters"])
            self.parameters += members
            self.scales += [float(group.get("lr_scale", 1.0))] * len(members)
            self.decays += [float(group.get("weight_decay", weight_decay))] * len(members)
        if any(not isinstance(p, Variable) for p in self.parameters):
            raise TypeError(f"{self._name}: parameters must be Variables or groups of them")
        if len(set(self.parameters)) != len(self.parameters):
            raise ValueError(f"{self._name}: a parameter is given twice")
        self.lr = lr
        self.steps = 0
        self.state = [
            {name: np.zeros_like(p.data, dtype=_wide(p.dtype)) for name in self.slots}
            for p in self.parameters
        ]

    def step(self, grads: Iterable[Any]) -> None:
        """Move every parameter along its gradient; a gradient that does not fit leaves all as they were.

        Parameters
        ----------
        grads : iterable of array, Variable or None
            One for each parameter, of its shape. Where it is None, parameter and state stay as they are.

        Raises
        ------
        ValueError
            If their number or a shape is wrong, or parameters have moved to another device.
        """
        grads = [g.data if isinstance(g, Variable) else g for g in grads]
        if len(grads) != len(self.parameters):
            raise ValueError(f"{self._name}: {len(grads)} gradients for {len(self.parameters)} parameters")
        for parameter, grad, state in zip(self.parameters, grads, self.state):
            if grad is not None and grad.shape != parameter.shape:
                raise ValueError(f"{self._name}: gradient {grad.shape} for a parameter {parameter.shape}")
            if any(type(array) is not type(parameter.data) for array in state.values()):
                raise ValueError(f"{self._name}: its parameters moved to another device; make it after that")
        self.steps += 1
        for parameter, grad, scale, decay, state in zip(
            self.parameters, grads, self.scales, self.decays, self.state
        ):
            if grad is not None:
                value = parameter.data
                wide = value.astype(_wide(value.dtype), copy=False)
                self.update(wide, grad.astype(wide.dtype, copy=False), self.lr * scale, decay, state)
                if wide is not value:
                    value[...] = wide.astype(value.dtype)

    def update(self, value: Any, grad: Any, lr: float, weight_decay: float, state: dict[str, Any]) -> None:
        """Change `value` and `state` in place: the formula of the optimiser.

        Parameters
        ----------
        value : array, any shape
            Of a parameter; 16 bits as float32.
        grad : array, any shape
            Its gradient, with the shape and dtype of `value`.
        lr, weight_decay : float
            Those of this parameter.
        state : dict of str to array
            What is kept of it, by the names in `slots`, with the shape and dtype of `value`.

        Raises
        ------
        NotImplementedError
            If the optimiser does not define it.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What continues the training to the same bits.

        Everything else (momentum, betas, decay, groups) is given where the optimiser is made.

        Returns
        -------
        dict of str to array
            Copies of the state by ``name.index``, and ``steps`` and ``lr``, 0-d.
        """
        arrays = {f"{name}.{i}": a.copy() for i, state in enumerate(self.state) for name, a in state.items()}
        return {**arrays, "steps": np.asarray(self.steps), "lr": np.asarray(self.lr, dtype=np.float64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`.

        Parameters
        ----------
        state : mapping of str to array
            By the names of `state_dict`, in the shapes and dtypes that it has.

        Raises
        ------
        ValueError
            Unless all names, shapes and dtypes agree; nothing is changed then.
        """
        faults = mismatches(self.state_dict(), state)
        if faults:
            raise ValueError(f"{self._name}.load_state_dict:\n  " + "\n  ".join(faults))
        steps, lr = int(state["steps"]), float(state["lr"])
        own = [(a, state[f"{name}.{i}"]) for i, arrays in enumerate(self.state) for name, a in arrays.items()]
        assign(own)
        self.steps, self.lr = steps, lr

    def __repr__(self) -> str:
        count, values = len(self.parameters), sum(p.size for p in self.parameters)
        options = {"lr": self.lr, **self._options()}
        if len(set(self.decays)) == 1 and self.decays[0]:
            options["weight_decay"] = self.decays[0]
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        plural = "" if count == 1 else "s"
        return (
            f"{self._name}({given}): {count} parameter{plural} of {values:,} values, {self.steps} steps taken"
        )

    def _options(self) -> dict[str, Any]:
        """What a subclass was given beside, for `repr`."""
        return {}


def _wide(dtype: Any) -> Any:
    """In which dtype parameters are moved: 16 bits would lose small steps, and squares of gradients."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype


class SGD(Optimizer):
    """Gradient descent: ``v = momentum*v + g + weight_decay*p; p -= lr*v``, or Nesterov's form.

    Parameters
    ----------
    parameters, lr
        As for `Optimizer`.
    momentum : float
        How much of the last step goes on.
    weight_decay : float
        As for `Optimizer`.
    nesterov : bool
        Step along ``g + weight_decay*p + momentum*v`` instead of v.

    Raises
    ------
    ValueError
        If `nesterov` is given without momentum; and as for `Optimizer`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import Variable
    >>> from autodiff.optim import SGD
    >>> w = Variable(np.array([1.0]))
    >>> optimizer = SGD([w], lr=0.5, momentum=0.5)
    >>> for _ in range(2):
    ...     optimizer.step([np.array([1.0])])
    ...     print(w.data.tolist())
    [0.5]
    [-0.25]
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov needs momentum")
        self.slots = ("velocity",) if momentum else ()
        super().__init__(parameters, lr, weight_decay)
        self.momentum, self.nesterov = momentum, nesterov

    def _options(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "nesterov": self.nesterov} if self.momentum else {}

    def update(self, value: Any, grad: Any, lr: float, weight_decay: float, state: dict[str, Any]) -> None:
        """One step."""
        if weight_decay:
            grad = grad + weight_decay * value
        if self.momentum:
            velocity = state["velocity"]
            velocity *= self.momentum
            velocity += grad
            grad = grad + self.momentum * velocity if self.nesterov else velocity
        value -= lr * grad


class Adam(Optimizer):
    """Adam (Kingma & Ba, 2015). ``weight_decay*p`` is added to the gradient; `AdamW` decouples it.

    Parameters
    ----------
    parameters, lr
        As for `Optimizer`.
    betas : (float, float)
        Weights of the past in the running averages of the gradient and of its square.
    epsilon : float
        Added to the root of the second average.
    weight_decay : float
        As for `Optimizer`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import Tape, Variable, functions as F
    >>> from autodiff.optim import Adam
    >>> w = Variable(np.array([5.0]))
    >>> optimizer = Adam([w], lr=0.1)
    >>> for _ in range(200):
    ...     with Tape() as tape:
    ...         loss = F.sum(F.square(w - 3))
    ...     optimizer.step(tape.gradient(loss, [w]))
    >>> w.data.round(2).tolist()
    [3.0]
    """

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
        super().__init__(parameters, lr, weight_decay)
        self.betas, self.epsilon = betas, epsilon

    def _options(self) -> dict[str, Any]:
        return {"betas": self.betas, "epsilon": self.epsilon}

    def update(self, value: Any, grad: Any, lr: float, weight_decay: float, state: dict[str, Any]) -> None:
        """One step."""
        if weight_decay:
            grad = grad + weight_decay * value
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
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019): ``p -= lr*weight_decay*p`` first.

    Parameters
    ----------
    parameters, lr, weight_decay
        As for `Optimizer`.
    **options
        As for `Adam`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import Variable
    >>> from autodiff.optim import AdamW
    >>> w = Variable(np.array([1.0]))
    >>> AdamW([w], lr=0.1, weight_decay=0.5).step([np.array([0.0])])
    >>> w.data.tolist()  # 1 - lr*weight_decay
    [0.95]
    """

    def __init__(
        self, parameters: Iterable[Any], lr: float = 1e-3, *, weight_decay: float = 1e-2, **options: Any
    ) -> None:
        super().__init__(parameters, lr, weight_decay=weight_decay, **options)

    def update(self, value: Any, grad: Any, lr: float, weight_decay: float, state: dict[str, Any]) -> None:
        """One step."""
        value *= 1 - lr * weight_decay
        self._move(value, grad, lr, state["first"], state["second"])


def clip_gradients(grads: Iterable[Any], max_norm: float) -> tuple[list, float]:
    """Gradients scaled so that their joint Euclidean norm is at most `max_norm`, and the norm they had.

    Gradients whose norm is not finite are returned as they are: scaling would not make them usable. None
    counts as zero, and stays None.

    Parameters
    ----------
    grads : iterable of array, Variable or None
        Of any shapes, which stay as they are.
    max_norm : float
        The largest norm of all of them together.

    Returns
    -------
    grads : list of array or None
        In the order given, with their dtypes.
    norm : float
        Before scaling; not finite if a gradient is not.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.optim import clip_gradients
    >>> grads, norm = clip_gradients([np.array([3.0]), np.array([4.0])], 1.0)
    >>> [g.round(6).tolist() for g in grads], float(norm)
    ([[0.6], [0.8]], 5.0)
    """
    grads = [g.data if isinstance(g, Variable) else g for g in grads]
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in grads if g is not None))
    scale = max_norm / norm if max_norm < norm < math.inf else 1.0
    if scale == 1:
        return grads, norm
    return [None if g is None else g * g.dtype.type(scale) for g in grads], norm


def step_schedule(lr: float, every: int, factor: float = 0.1) -> Callable[[int], float]:
    """``schedule(step) -> lr * factor**(step // every)``.

    Parameters
    ----------
    lr : float
        At the beginning.
    every : int
        Steps with the same rate.
    factor : float
        Of the rate, from one level to the next.

    Returns
    -------
    callable
        ``schedule(step)``, a learning rate; steps count from 0.

    Examples
    --------
    >>> from autodiff.optim import step_schedule
    >>> schedule = step_schedule(1.0, every=10, factor=0.5)
    >>> [schedule(step) for step in (0, 9, 10, 20)]
    [1.0, 1.0, 0.5, 0.25]
    """
    return lambda step: lr * factor ** (step // every)


def cosine_schedule(lr: float, total: int, *, warmup: int = 0, final: float = 0.0) -> Callable[[int], float]:
    """A linear rise over `warmup` steps, then half a cosine from `lr` down to `final` at step `total`.

    Parameters
    ----------
    lr : float
        The highest rate.
    total : int
        Steps until the lowest, those of `warmup` among them.
    warmup : int
        Steps of the rise; 0: none.
    final : float
        The lowest rate, which stays after `total` steps.

    Returns
    -------
    callable
        ``schedule(step)``, a learning rate; steps count from 0.

    Examples
    --------
    >>> from autodiff.optim import cosine_schedule
    >>> schedule = cosine_schedule(1.0, 12, warmup=2)
    >>> [round(schedule(step), 3) for step in (0, 1, 2, 7, 12)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    def schedule(step: int) -> float:
        if step < warmup:
            return lr * (step + 1) / warmup
        progress = min((step - warmup) / max(total - warmup, 1), 1.0)
        return final + (lr - final) * 0.5 * (1 + math.cos(math.pi * progress))

    return schedule


def poly_schedule(lr: float, total: int, power: float = 0.9) -> Callable[[int], float]:
    """``lr * (1 - step/total)**power``, 0 from step `total` on.

    Parameters
    ----------
    lr : float
        At the beginning.
    total : int
        Steps until 0.
    power : float
        1 is a straight line.

    Returns
    -------
    callable
        ``schedule(step)``, a learning rate; steps count from 0.

    Examples
    --------
    >>> from autodiff.optim import poly_schedule
    >>> schedule = poly_schedule(1.0, 10, power=1)
    >>> [schedule(step) for step in (0, 5, 10, 11)]
    [1.0, 0.5, 0.0, 0.0]
    """
    return lambda step: lr * max(1 - step / total, 0.0) ** power
