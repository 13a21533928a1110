"""What a network is made of, and what a call of it costs."""

from typing import Any, NamedTuple

import numpy as np

from ..functions._common import library
from ..layers import Module
from ..layers._inspect import is_parameter
from ..variable import Variable


class Row(NamedTuple):
    """One layer: its path, its kind, the shape of its output, and its own parameters and multiply-adds."""

    path: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


class Summary(list):
    """A list of `Row`, one per layer with parameters or multiply-adds of its own; prints as a table."""

    parameters = property(lambda self: sum(row.parameters for row in self), doc="Parameters of the network.")
    multiply_adds = property(
        lambda self: sum(row.multiply_adds for row in self), doc="Multiply-adds of one call."
    )

    def __str__(self) -> str:
        wide = max([len(row.path) for row in self] + [len("layer")])
        lines = [f"{'layer':<{wide}}  {'kind':<14} {'output':<22} {'parameters':>13} {'multiply-adds':>17}"]
        lines += [
            f"{r.path:<{wide}}  {r.kind:<14} {r.shape!s:<22} {r.parameters:>13,} {r.multiply_adds:>17,}"
            for r in self
        ]
        lines.append(f"{'total':<{wide}}  {'':<14} {'':<22} {self.parameters:>13,} {self.multiply_adds:>17,}")
        return "\n".join(lines)


def summary(network: Module, *input_shapes: tuple[int, ...]) -> Summary:
    """Run a network on zeros and list its layers in the order in which they are called.

    Parameters
    ----------
    network : Module
        Runs in evaluation mode and is left as it was.
    *input_shapes : tuple of int
        The shape of each input.

    Returns
    -------
    Summary
        Multiply-adds are those of convolutions, matrix products and dynamic filters. A layer called twice is
        listed twice, with its parameters counted once.

    Examples
    --------
    >>> from autodiff.layers import Conv2d, ReLU, Sequential
    >>> from autodiff.networks import summary
    >>> print(summary(Sequential(Conv2d(3, 4, 3, rng=0), ReLU()), (1, 3, 8, 8)))
    layer     kind           output                    parameters     multiply-adds
    layers.0  Conv2d         (1, 4, 8, 8)                     112             6,912
    total                                                     112             6,912
    """
    rows = Summary()
    counted: set[Variable] = set()
    modes = [(module, module.training) for _, module in network.modules()]
    watched = {id(module): (path, module) for path, module in network.modules()}

    def watch(path: str, module: Module) -> None:
        def forward(*args: Any, **params: Any) -> Any:
            output = original(*args, **params)
            own = [v for _, v in module._members() if is_parameter(v) and v not in counted]
            counted.update(own)
            cost = module.multiply_adds(args[0], output)
            if own or cost:
                size = sum(v.size for v in own)
                rows.append(Row(path, type(module).__name__, tuple(output.shape), size, cost))
            return output

        original = module.forward
        module.forward = forward  # type: ignore[method-assign]

    parameters = network.parameters()
    dtype = parameters[0].dtype if parameters else np.dtype(np.float32)
    xp = library(parameters[0].data) if parameters else np
    network.eval()
    try:
        for path, module in watched.values():
            watch(path, module)
        network(*(xp.zeros(shape, dtype) for shape in input_shapes))
    finally:
        for module, mode in modes:
            vars(module).pop("forward", None)
            module.training = mode
    return rows
