"""Layers without parameters: activations, pooling, shapes, dropout."""

from inspect import signature
from typing import Any

from .. import functions as F
from ..functions._arguments import arguments, array, generator, number
from .module import Module


class Stateless(Module):
    """A function as a layer; further arguments are those of the function after x.

    Subclasses name the `function`.
    """

    function: Any = None

    def __init__(self, *args: Any, **params: Any) -> None:
        function = type(self).function
        name, checks = type(self).__name__, getattr(function, "checks", {})
        try:
            bound = signature(function).bind(None, *args, **params)
        except TypeError as error:
            raise TypeError(f"{name}: {error}; see functions.{function.__name__}") from None
        for argument, value in list(bound.arguments.items())[1:]:
            if argument in checks:
                checks[argument](name, argument, value)
        self.args, self.params = args, params

    def forward(self, x: Any) -> Any:
        """The function of x."""
        return type(self).function(x, *self.args, **self.params)

    def _label(self) -> str:
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.params.items())]
        return f"{type(self).__name__}({', '.join(given)})"


class Dropout(Module):
    """In training, elements are set to zero with probability `rate`; in evaluation it does nothing.

    Parameters
    ----------
    rate : float
        At least 0 and less than 1.
    rng : Generator or int, optional
        Where the random numbers come from. Its state is kept in the checkpoints of a training.
    """

    @arguments(rate=number(0, below=1), rng=generator)
    def __init__(self, rate: float = 0.5, *, rng: Any = None) -> None:
        self.rate, self.rng = rate, rng

    def forward(self, x: Any) -> Any:
        """x with holes."""
        x = array("Dropout", "x", x)
        return F.dropout(x, self.rate, rng=self.rng) if self.training else x


class ReLU(Stateless):
    """`autodiff.functions.relu`."""

    function = F.relu


class LeakyReLU(Stateless):
    """`autodiff.functions.leaky_relu`; ``slope`` may be given."""

    function = F.leaky_relu


class GELU(Stateless):
    """`autodiff.functions.gelu`."""

    function = F.gelu


class SiLU(Stateless):
    """`autodiff.functions.silu`."""

    function = F.silu


class Sigmoid(Stateless):
    """`autodiff.functions.sigmoid`."""

    function = F.sigmoid


class Softplus(Stateless):
    """`autodiff.functions.softplus`."""

    function = F.softplus


class Tanh(Stateless):
    """`autodiff.functions.tanh`."""

    function = F.tanh


class Softmax(Stateless):
    """`autodiff.functions.softmax`; ``axis`` may be given."""

    function = F.softmax


class LogSoftmax(Stateless):
    """`autodiff.functions.log_softmax`; ``axis`` may be given."""

    function = F.log_softmax


class LocalResponseNorm(Stateless):
    """`autodiff.functions.local_response_norm`, of ``size``; ``alpha``, ``beta`` and ``k`` may be given."""

    function = F.local_response_norm


class MaxPool2d(Stateless):
    """`autodiff.functions.max_pool2d`, of ``kernel_size``; ``stride`` and ``padding`` may be given."""

    function = F.max_pool2d


class AvgPool2d(Stateless):
    """`autodiff.functions.avg_pool2d`, of ``kernel_size``; ``stride`` and ``padding`` may be given."""

    function = F.avg_pool2d


class AdaptiveAvgPool2d(Stateless):
    """`autodiff.functions.adaptive_avg_pool2d`, to ``output_size``."""

    function = F.adaptive_avg_pool2d


class GlobalAvgPool(Stateless):
    """`autodiff.functions.global_avg_pool`."""

    function = F.global_avg_pool


class Flatten(Stateless):
    """`autodiff.functions.flatten`: (N, C, H, W) -> (N, C*H*W)."""

    function = F.flatten
