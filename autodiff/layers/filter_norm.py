"""The normalisation of filters that are computed."""

from typing import Any

import numpy as np

from .. import functions as F
from ..functions._arguments import (
    arguments,
    as_parameters,
    choice,
    floating,
    fractional,
    generator,
    integer,
    optional,
    pair,
)
from ..functions.reductions import centred, root
from ..functions.shapes import narrow
from ..variable import Variable
from .module import Module

GAIN = {"relu": np.sqrt(2.0), "linear": 1.0}


class FilterNorm(Module):
    """Gives each generated filter mean 0 and a standard deviation of its own choosing.

    Over the taps of one filter: ``(f - mean)/(std + 1e-10) * alpha``, std with ``ddof=1``.

    Parameters
    ----------
    kernel_size : int or (y, x)
        Size of the filters; at least two taps.
    channels : int, optional
        If given, alpha is learned, one per channel and tap, at first normal * gain/k. Otherwise it is fixed:
        gain/k. (k*k is the number of taps.)
    nonlinearity : {"relu", "linear"}
        What follows the filters; sets the gain, sqrt(2) or 1.
    rng : Generator or int, optional
        For the initial alpha.
    dtype : dtype
        Of alpha.

    Raises
    ------
    ValueError
        If `kernel_size` is one tap.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import FilterNorm
    >>> filters = np.random.default_rng(0).standard_normal((1, 9, 4, 4)).astype(np.float32)
    >>> normed = FilterNorm(3, rng=0)(filters)  # a filter of 3 x 3 for each of 4 x 4 pixels
    >>> normed.shape, bool(abs(normed.mean(axis=(2, 3))).max() < 1e-6)
    ((1, 1, 3, 3, 4, 4), True)
    """

    @arguments(
        kernel_size=pair(1),
        channels=optional(integer(1)),
        nonlinearity=choice(*GAIN),
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        kernel_size: Any,
        channels: int | None = None,
        *,
        nonlinearity: str = "relu",
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        self.kernel_size = kernel_size
        taps = self.kernel_size[0] * self.kernel_size[1]
        if taps < 2:
            raise ValueError(
                f"FilterNorm: kernel_size {kernel_size!r} has one tap, which has no standard deviation"
            )
        scale = float(GAIN[nonlinearity] / np.sqrt(taps))
        self.alpha: Any = scale
        self.learned = channels is not None
        if channels is not None:
            self.alpha = Variable((rng.standard_normal(channels * taps) * scale).astype(dtype))

    def forward(self, filters: Any) -> Any:
        """Normalise filters.

        Parameters
        ----------
        filters : array, (N, F*kh*kw, ...)
            F generated filters for each image and place; if alpha is learned, in its dtype.

        Returns
        -------
        array or Variable, (N, F, kh, kw, ...)
            The filters, in their dtype; a Variable if they are or alpha is learned.

        Raises
        ------
        ValueError
            If the second axis is not one of whole filters.
        """
        filters = fractional("FilterNorm", "filters", filters)
        if self.learned:
            filters, _ = as_parameters("FilterNorm", filters, argument="filters", alpha=self.alpha)
        kh, kw = self.kernel_size
        if filters.ndim < 2 or filters.shape[1] % (kh * kw):
            raise ValueError(
                f"FilterNorm: filters must have shape (N, F*kh*kw, ...) with kh*kw = {kh * kw}, "
                f"got {tuple(filters.shape)}"
            )
        n, channels, *rest = filters.shape
        filters = filters.reshape((n, channels // (kh * kw), kh * kw, *rest))
        _, deviations = centred(filters, 2)
        variance = F.sum(F.square(deviations), 2, keepdims=True) / (kh * kw - 1)
        # Where a filter is constant (over a black patch), the slope of this root is 0, not infinite.
        scale = 1 / (root(variance) + 1e-10)
        if self.learned:
            normed = (deviations * scale) * self.alpha.reshape((-1, kh * kw) + (1,) * len(rest))
        else:
            normed = deviations * (scale * self.alpha)
        return narrow(normed, filters.dtype).reshape((n, channels // (kh * kw), kh, kw, *rest))
