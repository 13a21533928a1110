"""Residual blocks."""

from typing import Any

import numpy as np

from .. import functions as F
from ..functions._arguments import arguments, floating, generator, integer, layer_input
from .basic import Conv2d
from .module import Module, Sequential
from .normalization import BatchNorm2d


class Bottleneck(Module):
    """1 x 1 convolution, spatial filter, 1 x 1 convolution, each normalised, added to a shortcut.

    He et al., "Deep Residual Learning", CVPR 2016, with the stride in the middle.

    Parameters
    ----------
    in_channels, middle_channels, out_channels : int
        Of the input, of the spatial filter, and of the output.
    stride : int
        Step of the spatial filter. The shortcut is the identity, or a strided 1 x 1 convolution where shapes
        differ.
    middle : Module, optional
        The spatial filter, middle_channels to middle_channels with this stride; a 3 x 3 convolution by
        default.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Bottleneck
    >>> Bottleneck(8, 4, 16, stride=2, rng=0)(np.ones((2, 8, 6, 6), np.float32)).shape
    (2, 16, 3, 3)
    """

    @arguments(
        in_channels=integer(1),
        middle_channels=integer(1),
        out_channels=integer(1),
        stride=integer(1),
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        in_channels: int,
        middle_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        middle: Module | None = None,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        options: dict[str, Any] = {"bias": False, "rng": rng, "dtype": dtype}
        self.reduce = Conv2d(in_channels, middle_channels, 1, **options)
        self.reduce_norm = BatchNorm2d(middle_channels, dtype=dtype)
        self.middle = middle or Conv2d(middle_channels, middle_channels, 3, stride=stride, **options)
        self.middle_norm = BatchNorm2d(middle_channels, dtype=dtype)
        self.expand = Conv2d(middle_channels, out_channels, 1, **options)
        self.expand_norm = BatchNorm2d(out_channels, dtype=dtype)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = Sequential(
                Conv2d(in_channels, out_channels, 1, stride=stride, **options),
                BatchNorm2d(out_channels, dtype=dtype),
            )

    def forward(self, x: Any) -> Any:
        """Add what the three convolutions see to the shortcut.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, out_channels, ceil(H/stride), ceil(W/stride))
            The sum, after a ReLU.
        """
        x = layer_input(self, "x", x, self.reduce.weight)
        y = F.relu(self.reduce_norm(self.reduce(x)))
        y = F.relu(self.middle_norm(self.middle(y)))
        y = self.expand_norm(self.expand(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))
