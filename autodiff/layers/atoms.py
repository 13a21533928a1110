"""AtomConv: a convolution whose filters are composed, pixel by pixel, of atoms that the input chooses."""

from typing import Any

import numpy as np

import dynarray as dyn

from .. import functions as F
from ..functions._arguments import (
    arguments,
    choice,
    flag,
    floating,
    generator,
    integer,
    layer_input,
    optional,
    pair,
)
from ..functions.borders import MODES
from ..variable import Variable
from .basic import Conv2d, _uniform
from .module import Module, Sequential
from .normalization import BatchNorm2d
from .stateless import Tanh


class AtomConv(Module):
    """Adaptive convolution with per-pixel filter atoms (Wang et al., ICCV 2021), in place of a `Conv2d`.

    A small network looks at the input and gives each output pixel `num_atoms` atoms, as sums of fixed
    multi-scale Fourier-Bessel bases: conv 3x3, `BatchNorm2d`, tanh, conv 3x3, `BatchNorm2d`, tanh. The atoms
    filter all channels, and the coefficients, the same for all pixels, mix what they filtered. See
    `dynarray.atom_conv2d`.

    Parameters
    ----------
    in_channels, out_channels : int
        C and O.
    kernel_size : int
        Odd size of the filters, at least 3.
    num_atoms : int
        Atoms of a pixel, M.
    num_bases : int
        Bases of each scale, at most 6: an atom of size 3, 5, 7 is a sum of this many times 1, 2, 3.
    stride : int or (y, x)
        Step between outputs.
    padding : int or (y, x), optional
        Pixels added on each side. None means "same", ``dilation*(kernel - 1)/2``.
    dilation : int or (y, x)
        Step between taps.
    hidden_channels : int, optional
        Width of the network that chooses the atoms. The paper's, by default: half of the numbers that it
        gives for a pixel, ``num_atoms * bases``, and at least 64.
    learn_bases : bool
        Train the bases too: they start as the fixed ones.
    bias : bool
        Whether to add a bias.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What the filters read outside of x, as for `dynarray.atom_conv2d`. The convolutions inside read zeros.
    rng : Generator or int, optional
        For the initial weights; coefficients are normal with standard deviation ``sqrt(2/out_channels)``.
    dtype : dtype
        Of the parameters.

    Notes
    -----
    At first the output is about five times larger than the input (in units of standard deviations, for size
    3 and equally many channels in and out): the layer is made to be followed by a normalisation.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import AtomConv
    >>> AtomConv(4, 8, num_atoms=3, rng=0)(np.ones((2, 4, 6, 5), np.float32)).shape
    (2, 8, 6, 5)
    """

    @arguments(
        in_channels=integer(1),
        out_channels=integer(1),
        kernel_size=integer(1),
        num_atoms=integer(1),
        num_bases=integer(1),
        stride=pair(1),
        padding=optional(pair()),
        dilation=pair(1),
        hidden_channels=optional(integer(1)),
        learn_bases=flag,
        bias=flag,
        border=choice(*MODES),
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        num_atoms: int = 6,
        num_bases: int = 6,
        stride: Any = 1,
        padding: Any = None,
        dilation: Any = 1,
        hidden_channels: int | None = None,
        learn_bases: bool = False,
        bias: bool = True,
        border: str = "constant",
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        bases = dyn.multiscale_bases(kernel_size, num_bases).astype(dtype)
        chosen = num_atoms * len(bases)
        hidden = max(64, chosen // 2) if hidden_channels is None else hidden_channels
        self.bases = Variable(bases) if learn_bases else bases
        self.num_atoms = num_atoms
        self.choose = Sequential(
            Conv2d(in_channels, hidden, 3, stride=stride, rng=rng, dtype=dtype),
            BatchNorm2d(hidden, dtype=dtype),
            Tanh(),
            Conv2d(hidden, chosen, 3, rng=rng, dtype=dtype),
            BatchNorm2d(chosen, dtype=dtype),
            Tanh(),
        )
        coefficients = rng.standard_normal((out_channels, in_channels, num_atoms))
        self.coefficients = Variable((coefficients * np.sqrt(2 / out_channels)).astype(dtype))
        self.bias = _uniform(rng, out_channels, in_channels * num_atoms, dtype) if bias else None
        self.stride, self.dilation, self.border = stride, dilation, border
        same = tuple(d * (kernel_size // 2) for d in dilation)
        self.padding = same if padding is None else padding
        # Windows are centred on the pixels from here on, and as far from the other edges.
        self.margin = tuple(centre - zeros for centre, zeros in zip(same, self.padding))

    def alpha(self, x: Any) -> Any:
        """The share of each basis in each atom.

        Parameters
        ----------
        x : array, (N, C, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, M, B, Ho, Wo)
            From -1 to 1, for B bases.
        """
        x = layer_input(self, "x", x, self.coefficients)
        for axis, margin in zip((2, 3), self.margin):
            if margin > 0:
                inside = slice(margin, max(x.shape[axis] - margin, margin))
                x = x[(slice(None),) * axis + (inside,)]
            elif margin < 0:
                x = F.pad(x, [(-margin, -margin) if i == axis else (0, 0) for i in range(4)])
        chosen = self.choose(x)
        n, _, high, wide = chosen.shape
        return chosen.reshape((n, self.num_atoms, len(self.bases), high, wide))

    def atoms(self, x: Any) -> Any:
        """The filters of every output pixel.

        Parameters
        ----------
        x : array, (N, C, H, W)
            As for `alpha`.

        Returns
        -------
        Variable, (N, M, k, k, Ho, Wo)
            M atoms of k x k taps.
        """
        return F.compose_atoms(self.alpha(x), self.bases)

    def forward(self, x: Any) -> Any:
        """Filter images by the atoms that they choose.

        Parameters
        ----------
        x : array, (N, C, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, O, Ho, Wo)
            What the filters give, of sizes as for `dynarray.atom_conv2d`.
        """
        x = layer_input(self, "x", x, self.coefficients)
        return F.atom_conv2d(
            x,
            self.atoms(x),
            self.coefficients,
            bias=self.bias,
            stride=self.stride,
            dilation=self.dilation,
            padding=self.padding,
            border=self.border,
        )

    def multiply_adds(self, x: Any, output: Any) -> int:
        """For each output pixel C*M*(k*k + O), and M*B*k*k to compose its atoms."""
        outputs, channels, m = self.coefficients.shape
        count, *kernel = self.bases.shape
        taps = kernel[0] * kernel[1]
        return output.size // outputs * m * (channels * (taps + outputs) + count * taps)
