"""Layers that multiply by weights: convolutions and matrices."""

import math
from typing import Any

import numpy as np

from .. import functions as F
from ..functions._arguments import arguments, flag, floating, generator, integer, optional, pair
from ..variable import Variable
from .module import Module


def _uniform(rng: np.random.Generator, size: int, fan_in: float, dtype: Any) -> Variable:
    """Initial biases. Never all zero: a filter generated from a black patch must not be constant."""
    bound = 1 / np.sqrt(max(fan_in, 1))
    return Variable(rng.uniform(-bound, bound, size).astype(dtype))


class Conv2d(Module):
    """Convolution; see `autodiff.functions.conv2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and O.
    kernel_size, stride : int or (y, x)
        Size of the kernels, step between outputs.
    padding : int or (y, x), optional
        Zeros added on each side. None means "same", ``dilation*(kernel - 1)/2``, and needs odd kernels.
    dilation : int or (y, x)
        Step between taps.
    groups : int
        Divides C and O.
    bias : bool
        Whether to add a bias.
    rng : Generator or int, optional
        For the initial weights: normal with variance ``2/fan_in`` (He et al., 2015).
    dtype : dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If `groups` does not divide both numbers of channels, or an even kernel comes without `padding`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Conv2d
    >>> layer = Conv2d(3, 8, 3, stride=2, rng=0)
    >>> layer(np.ones((1, 3, 9, 9), np.float32)).shape, layer.weight.shape
    ((1, 8, 5, 5), (8, 3, 3, 3))
    """

    @arguments(
        in_channels=integer(0),
        out_channels=integer(0),
        kernel_size=pair(1),
        stride=pair(1),
        padding=optional(pair()),
        dilation=pair(1),
        groups=integer(1),
        bias=flag,
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        *,
        stride: Any = 1,
        padding: Any = None,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"Conv2d: groups {groups} must divide {in_channels} and {out_channels} channels")
        if padding is None and not (kernel_size[0] % 2 and kernel_size[1] % 2):
            raise ValueError(
                f"Conv2d: padding must be given for an even kernel size, got kernel_size {kernel_size!r}"
            )
        fan_in = in_channels // groups * math.prod(kernel_size)
        shape = (out_channels, in_channels // groups, *kernel_size)
        self.weight = Variable((rng.standard_normal(shape) * np.sqrt(2 / max(fan_in, 1))).astype(dtype))
        self.bias = _uniform(rng, out_channels, fan_in, dtype) if bias else None
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.padding = padding
        if padding is None:
            self.padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel_size))

    def forward(self, x: Any) -> Any:
        """Convolve images.

        Parameters
        ----------
        x : array, (N, C, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, O, Ho, Wo)
            What the kernels give, of sizes as for `autodiff.functions.conv2d`.
        """
        return F.conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def multiply_adds(self, x: Any, output: Any) -> int:
        """One per tap and input channel of the group for each output."""
        return output.size * math.prod(self.weight.shape[1:])


class ConvTranspose2d(Module):
    """Transposed convolution, which makes images larger; see `autodiff.functions.conv_transpose2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and O.
    kernel_size, stride : int or (y, x)
        Size of the kernels, step between them in the output.
    padding : int or (y, x)
        Pixels cut off on each side.
    output_padding : int or (y, x)
        Rows and columns added at the bottom and on the right, fewer than `stride`.
    dilation : int or (y, x)
        Step between taps.
    groups : int
        Divides C and O.
    bias : bool
        Whether to add a bias.
    rng : Generator or int, optional
        For the initial weights: normal with variance 2 over the number of inputs that meet in an output.
    dtype : dtype
        Of the parameters.

    Raises
    ------
    ValueError
        If `groups` does not divide both numbers of channels, or `output_padding` is not less than `stride`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import ConvTranspose2d
    >>> ConvTranspose2d(8, 3, 4, stride=2, padding=1, rng=0)(np.ones((1, 8, 5, 6), np.float32)).shape
    (1, 3, 10, 12)
    """

    @arguments(
        in_channels=integer(0),
        out_channels=integer(0),
        kernel_size=pair(1),
        stride=pair(1),
        padding=pair(),
        output_padding=pair(),
        dilation=pair(1),
        groups=integer(1),
        bias=flag,
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        *,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"ConvTranspose2d: groups {groups} must divide {in_channels} and {out_channels} channels"
            )
        if any(extra >= step for extra, step in zip(output_padding, stride)):
            raise ValueError(
                f"ConvTranspose2d: output_padding must be less than stride, got {output_padding} and {stride}"
            )
        fan_in = in_channels // groups * math.prod(kernel_size) / math.prod(stride)
        shape = (in_channels, out_channels // groups, *kernel_size)
        self.weight = Variable((rng.standard_normal(shape) * np.sqrt(2 / max(fan_in, 1))).astype(dtype))
        self.bias = _uniform(rng, out_channels, fan_in, dtype) if bias else None
        self.options = {
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "dilation": dilation,
            "groups": groups,
        }

    def forward(self, x: Any) -> Any:
        """Enlarge images.

        Parameters
        ----------
        x : array, (N, C, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, O, Ho, Wo)
            Larger images, of sizes as for `autodiff.functions.conv_transpose2d`.
        """
        return F.conv_transpose2d(x, self.weight, self.bias, **self.options)

    def multiply_adds(self, x: Any, output: Any) -> int:
        """One per tap and output channel of the group for each input."""
        return x.size * math.prod(self.weight.shape[1:])


class Linear(Module):
    """``x @ weight.T + bias``, with normal weights of variance ``2/in_features`` at first.

    Parameters
    ----------
    in_features, out_features : int
        I and O: x (..., I) -> (..., O).
    bias : bool
        Whether to add a bias.
    rng : Generator or int, optional
        For the initial weights; None: other ones each time.
    dtype : dtype
        Of the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Linear
    >>> Linear(3, 2, rng=0)(np.ones((5, 3), np.float32)).shape
    (5, 2)
    """

    @arguments(in_features=integer(0), out_features=integer(0), bias=flag, rng=generator, dtype=floating)
    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        weight = rng.standard_normal((out_features, in_features)) * np.sqrt(2 / max(in_features, 1))
        self.weight = Variable(weight.astype(dtype))
        self.bias = _uniform(rng, out_features, in_features, dtype) if bias else None

    def forward(self, x: Any) -> Any:
        """Multiply by the weights, and add the bias.

        Parameters
        ----------
        x : array, (..., in_features)
            The inputs, in the dtype of the parameters.

        Returns
        -------
        Variable, (..., out_features)
            The outputs.
        """
        return F.linear(x, self.weight, self.bias)

    def multiply_adds(self, x: Any, output: Any) -> int:
        """One per input feature for each output."""
        return output.size * self.weight.shape[1]
