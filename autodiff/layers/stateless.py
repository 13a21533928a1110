"""Layers without parameters: activations, pooling, shapes, dropout."""

from inspect import Signature, signature
from typing import Any

from .. import functions as F
from ..functions._arguments import arguments, array, generator, number
from .module import Module


class Stateless(Module):
    """A function as a layer; further arguments are those of the function after x.

    Subclasses name the `function`.

    Parameters
    ----------
    *args, **params
        As the function takes them after x.

    Raises
    ------
    TypeError, ValueError
        If the function would refuse an argument.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> from autodiff.layers import Stateless
    >>> class Clip(Stateless):
    ...     function = staticmethod(F.clip)
    >>> Clip(0, 1)(np.array([-1.0, 0.5, 2.0])).tolist()
    [0.0, 0.5, 1.0]
    """

    function: Any = None
    __signature__: Any = None  # of the constructor, for `help` and editors

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__init__" in vars(cls):
            cls.__signature__ = None  # its own constructor says it
        elif "function" in vars(cls):
            given = signature(cls.function)
            rest = [*given.parameters.values()][1:]
            cls.__signature__ = given.replace(parameters=rest, return_annotation=Signature.empty)

    def __init__(self, *args: Any, **params: Any) -> None:
        _try(type(self).__name__, type(self).function, args, params)
        self.args, self.params = args, params

    def forward(self, x: Any) -> Any:
        """Apply the function.

        Parameters
        ----------
        x : array, any shape
            What the function takes first.

        Returns
        -------
        array or Variable
            What it gives: see the function for shape and dtype.
        """
        return type(self).function(x, *self.args, **self.params)

    def _label(self) -> str:
        given = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.params.items())]
        return f"{type(self).__name__}({', '.join(given)})"


def _try(name: str, function: Any, args: tuple, params: dict[str, Any]) -> None:
    """Refuse now, in the name of a layer, what its function would refuse when it is called."""
    checks = getattr(function, "checks", {})
    try:
        bound = signature(function).bind(None, *args, **params)
    except TypeError as error:
        raise TypeError(f"{name}: {error}; see functions.{function.__name__}") from None
    for argument, value in list(bound.arguments.items())[1:]:
        if argument in checks:
            checks[argument](name, argument, value)


class Dropout(Module):
    """In training, elements are set to zero with probability `rate`; in evaluation it does nothing.

    Parameters
    ----------
    rate : float
        At least 0 and less than 1.
    rng : Generator or int, optional
        Where the random numbers come from. Its state is kept in the checkpoints of a training.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Dropout
    >>> layer = Dropout(0.5, rng=0)
    >>> np.unique(layer(np.ones(1000))).tolist(), np.unique(layer.eval()(np.ones(1000))).tolist()
    ([0.0, 2.0], [1.0])
    """

    @arguments(rate=number(0, below=1), rng=generator)
    def __init__(self, rate: float = 0.5, *, rng: Any = None) -> None:
        self.rate, self.rng = rate, rng

    def forward(self, x: Any) -> Any:
        """In training, set elements to zero.

        Parameters
        ----------
        x : array, any shape
            Numbers of any dtype.

        Returns
        -------
        array or Variable
            Of the shape of `x`; floats keep their dtype, of integers come float64 in training.
        """
        x = array("Dropout", "x", x)
        return F.dropout(x, self.rate, rng=self.rng) if self.training else x


class ReLU(Stateless):
    """`autodiff.functions.relu`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import ReLU
    >>> ReLU()(np.array([-2.0, 3.0])).tolist()
    [0.0, 3.0]
    """

    function = F.relu


class LeakyReLU(Stateless):
    """`autodiff.functions.leaky_relu`.

    Parameters
    ----------
    slope : float
        Factor of what is not positive.

    Raises
    ------
    TypeError, ValueError
        If the function would refuse an argument.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import LeakyReLU
    >>> LeakyReLU(slope=0.1)(np.array([-2.0, 3.0])).tolist()
    [-0.2, 3.0]
    """

    function = F.leaky_relu


class GELU(Stateless):
    """`autodiff.functions.gelu`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import GELU
    >>> GELU()(np.array([-1.0, 0.0, 1.0])).round(4).tolist()
    [-0.1587, 0.0, 0.8413]
    """

    function = F.gelu


class SiLU(Stateless):
    """`autodiff.functions.silu`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import SiLU
    >>> SiLU()(np.array([-2.0, 0.0, 2.0])).round(4).tolist()
    [-0.2384, 0.0, 1.7616]
    """

    function = F.silu


class Sigmoid(Stateless):
    """`autodiff.functions.sigmoid`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Sigmoid
    >>> Sigmoid()(np.zeros(2)).tolist()
    [0.5, 0.5]
    """

    function = F.sigmoid


class Softplus(Stateless):
    """`autodiff.functions.softplus`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Softplus
    >>> Softplus()(np.array([0.0, 1000.0])).round(4).tolist()
    [0.6931, 1000.0]
    """

    function = F.softplus


class Tanh(Stateless):
    """`autodiff.functions.tanh`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Tanh
    >>> Tanh()(np.zeros(2)).tolist()
    [0.0, 0.0]
    """

    function = F.tanh


class Softmax(Stateless):
    """`autodiff.functions.softmax`.

    Parameters
    ----------
    axis : int
        The axis of the classes; the last by default.

    Raises
    ------
    TypeError, ValueError
        If the function would refuse an argument.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Softmax
    >>> Softmax(axis=1)(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    function = F.softmax


class LogSoftmax(Stateless):
    """`autodiff.functions.log_softmax`.

    Parameters
    ----------
    axis : int
        The axis of the classes; the last by default.

    Raises
    ------
    TypeError, ValueError
        If the function would refuse an argument.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import LogSoftmax
    >>> LogSoftmax(axis=1)(np.zeros((1, 2))).round(4).tolist()
    [[-0.6931, -0.6931]]
    """

    function = F.log_softmax


class LocalResponseNorm(Stateless):
    """`autodiff.functions.local_response_norm`.

    Parameters
    ----------
    size : int
        Channels that are summed.
    alpha, beta, k : float
        Of the formula there.

    Raises
    ------
    TypeError, ValueError
        If the function would refuse an argument.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import LocalResponseNorm
    >>> LocalResponseNorm(3, alpha=3.0, beta=1.0)(np.ones((1, 3, 1, 1))).ravel().round(4).tolist()
    [0.3333, 0.25, 0.3333]
    """

    function = F.local_response_norm


class MaxPool2d(Stateless):
    """`autodiff.functions.max_pool2d`.

    Parameters
    ----------
    kernel_size : int or (y, x)
        Of the windows, in pixels.
    stride : int or (y, x), optional
        Step between windows; None: the size of a window.
    padding : int or (y, x)
        Pixels added on each side, at most half of a window.

    Raises
    ------
    TypeError, ValueError
        If the function would refuse an argument.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import MaxPool2d
    >>> MaxPool2d(2)(np.arange(8.0).reshape(1, 1, 2, 4)).tolist()
    [[[[5.0, 7.0]]]]
    """

    function = F.max_pool2d


class AvgPool2d(Stateless):
    """`autodiff.functions.avg_pool2d`.

    Parameters
    ----------
    kernel_size : int or (y, x)
        Of the windows, in pixels.
    stride : int or (y, x), optional
        Step between windows; None: the size of a window.
    padding : int or (y, x)
        Pixels added on each side, at most half of a window.

    Raises
    ------
    TypeError, ValueError
        If the function would refuse an argument.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import AvgPool2d
    >>> AvgPool2d(2)(np.arange(8.0).reshape(1, 1, 2, 4)).tolist()
    [[[[2.5, 4.5]]]]
    """

    function = F.avg_pool2d


class AdaptiveAvgPool2d(Stateless):
    """`autodiff.functions.adaptive_avg_pool2d`.

    Parameters
    ----------
    output_size : int or (y, x)
        Number of cells along each axis.

    Raises
    ------
    TypeError, ValueError
        If the function would refuse an argument.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import AdaptiveAvgPool2d
    >>> AdaptiveAvgPool2d(2)(np.ones((1, 3, 7, 9))).shape
    (1, 3, 2, 2)
    """

    function = F.adaptive_avg_pool2d


class GlobalAvgPool(Stateless):
    """`autodiff.functions.global_avg_pool`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import GlobalAvgPool
    >>> GlobalAvgPool()(np.ones((2, 3, 4, 5))).shape
    (2, 3, 1, 1)
    """

    function = F.global_avg_pool


class Flatten(Stateless):
    """`autodiff.functions.flatten`: (N, C, H, W) -> (N, C*H*W).

    Parameters
    ----------
    start : int
        The first axis that is joined; 1 keeps the images of a batch apart.

    Raises
    ------
    TypeError, ValueError
        If the function would refuse an argument.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Flatten
    >>> Flatten()(np.ones((2, 3, 4, 5))).shape
    (2, 60)
    """

    function = F.flatten
