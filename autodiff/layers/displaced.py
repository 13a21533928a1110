"""A layer whose filters are a few units that learn where they lie: DisplacedConv."""

import math
from typing import Any, NamedTuple

import numpy as np

from .. import functions as F
from .._state import to_numpy
from ..functions._arguments import (
    arguments,
    choice,
    flag,
    floating,
    generator,
    integer,
    layer_input,
    number,
    optional,
    pair,
)
from ..functions._common import library
from ..variable import Variable
from .basic import _uniform
from .module import Module

# Narrower, the blur leaves the image as it is, and sigma would never get a gradient again.
LEAST_SIGMA = 0.25


class Units(NamedTuple):
    """The K units of a layer that have not been pruned, as NumPy arrays."""

    displacement: np.ndarray  # (K, 2), pixels (y, x)
    weight: np.ndarray  # (K,)
    output: np.ndarray  # (K,), the output channel of each unit
    input: np.ndarray  # (K,), the input channel that it reads


class DisplacedConv(Module):
    """Displaced aggregation units (Tabernik et al., CVPR 2018); see `dynarray.displaced_conv2d`.

    A drop-in for a convolution with stride 1 and "same" padding. Instead of a kernel it has, for each pair of
    channels, a grid of units, each with a weight and a displacement that is learned.

    Parameters
    ----------
    in_channels, out_channels : int
        C and O.
    units : int or (y, x)
        The grid on which the units start; their number G is y*x.
    extent : float
        The grid covers ``2*extent + 1`` pixels along each axis at first, as a kernel of that size does, and
        each unit begins in the middle of an equal share of them. With ``units=3, extent=1`` they begin where
        the taps of a 3 x 3 kernel lie.
    sigma : float
        Standard deviation of the units in pixels. The default is that of the authors' code; their networks
        for CIFAR-10 have ``sigma**2 = sqrt(0.5)``, which is 0.841.
    learn_sigma : bool
        Whether `sigma`, which all units share, is a parameter.
    bias : bool
        Whether to add a bias.
    displacement_rate : float
        Learning rate of the displacements, relative to that of the weights; see `parameter_groups`.
        Displacements are pixels, weights are much smaller than 1.
    bound : float, optional
        Largest displacement along each axis, enforced by `project`.
    displacement_gradient : {"exact", "smooth"}
        As for `dynarray.displaced_conv2d`.
    rng : Generator or int, optional
        For the initial weights: normal with variance ``2/(C*G)``.
    dtype : dtype
        Of the parameters.

    Attributes
    ----------
    weight, displacement : Variable
        (O, C, G) and (O, C, G, 2).
    alive : array of bool, (O, C, G)
        False for units that were pruned; their weights count as zero.

    Raises
    ------
    ValueError
        If `sigma` is learned and too small for its derivative.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import DisplacedConv
    >>> layer = DisplacedConv(8, 16, units=2, rng=0)
    >>> layer(np.ones((1, 8, 6, 6), np.float32)).shape
    (1, 16, 6, 6)
    >>> layer.num_units, layer.num_parameters
    (512, 1552)
    >>> layer.displacement.data[0, 0].tolist()
    [[-0.75, -0.75], [-0.75, 0.75], [0.75, -0.75], [0.75, 0.75]]
    """

    @arguments(
        in_channels=integer(0),
        out_channels=integer(0),
        units=pair(1),
        extent=number(0),
        sigma=number(above=0),
        learn_sigma=flag,
        bias=flag,
        displacement_rate=number(above=0),
        bound=optional(number(above=0)),
        displacement_gradient=choice("exact", "smooth"),
        rng=generator,
        dtype=floating,
    )
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        units: Any = 2,
        *,
        extent: float = 1.0,
        sigma: float = 0.5,
        learn_sigma: bool = False,
        bias: bool = True,
        displacement_rate: float = 1.0,
        bound: float | None = None,
        displacement_gradient: str = "exact",
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        if learn_sigma and sigma < LEAST_SIGMA:
            raise ValueError(f"DisplacedConv: a learned sigma must be at least {LEAST_SIGMA}, got {sigma!r}")
        shape = (out_channels, in_channels, units[0] * units[1])
        fan_in = in_channels * shape[2]
        self.weight = Variable((rng.standard_normal(shape) * np.sqrt(2 / max(fan_in, 1))).astype(dtype))
        self.displacement = Variable(np.broadcast_to(_start(units, extent), (*shape, 2)).astype(dtype))
        self.bias = _uniform(rng, out_channels, fan_in, dtype) if bias else None
        self.sigma: Any = Variable(np.asarray(sigma, dtype)) if learn_sigma else sigma
        self.alive = np.ones(shape, bool)
        self.displacement_rate, self.bound = displacement_rate, bound
        self.displacement_gradient = displacement_gradient
        self.project()

    def forward(self, x: Any) -> Any:
        """Add up what the units read.

        Parameters
        ----------
        x : array, (N, C, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        Variable, (N, O, H, W)
            The sums, of the size of `x`.
        """
        x = layer_input(self, "x", x, self.weight)
        return F.displaced_conv2d(
            x,
            self.weight * self.alive,
            self.displacement,
            sigma=self.sigma,
            bias=self.bias,
            displacement_gradient=self.displacement_gradient,
        )

    def multiply_adds(self, x: Any, output: Any) -> int:
        """Four per unit for each output, and those of the blur along both axes for each input."""
        blur = 2 * (2 * math.ceil(5 * float(self.sigma)) + 1)
        return 4 * output.size * math.prod(self.weight.shape[1:]) + blur * x.size

    @property
    def num_units(self) -> int:
        """Number of units that have not been pruned."""
        return int(self.alive.sum())

    def project(self) -> None:
        """Move displacements beyond `bound`, and a learned sigma that is too small, back to the limit.

        To be called after each step of an optimiser. A unit at the bound still has its gradient, and the
        next step may lead it back. Limiting displacements in the forward pass instead would make their
        gradients zero for good, and without a bound the gradients end outside the image, where units read
        nothing.
        """
        if self.bound is not None:
            # Rounded towards zero: in a shorter dtype, too, nothing lies beyond the bound.
            limit = np.asarray(self.bound, self.displacement.dtype)
            if float(limit) > self.bound:
                limit = np.nextafter(limit, np.zeros_like(limit))
            self.displacement.data.clip(-float(limit), float(limit), out=self.displacement.data)
        if isinstance(self.sigma, Variable):
            self.sigma.data[self.sigma.data < LEAST_SIGMA] = LEAST_SIGMA

    @arguments(factor=number(above=0))
    def rescale(self, factor: float) -> None:
        """Multiply all displacements, and the bound, by a factor.

        This is what dilation is to a kernel: a network that was trained to classify, and loses a pooling step
        or a stride of 2 for the sake of resolution, sees nearly what it saw before if the layers after it are
        rescaled by 2. It is the same, at the pixels that there were, where displacements are whole pixels and
        sigma is so small that the blur leaves the image alone. Otherwise units, which keep their size, and
        the interpolation between pixels now look at a quarter of the area.

        Parameters
        ----------
        factor : float
            Above 0.
        """
        self.displacement.data *= self.displacement.dtype.type(factor)
        if self.bound is not None:
            self.bound *= factor

    @arguments(threshold=number(0, most=1))
    def prune(self, threshold: float) -> int:
        """Remove units whose absolute weight is less than `threshold` times the largest of the layer.

        They stay removed, whatever training does later. The units that are left move to the front, and slots
        that are free in every filter go, which makes parameters smaller: make the optimiser after pruning.

        Parameters
        ----------
        threshold : float
            From 0, which removes nothing, to 1.

        Returns
        -------
        int
            How many units were removed.
        """
        if not self.alive.size:
            return 0
        xp = library(self.weight.data)
        size = abs(self.weight.data) * self.alive
        before = self.num_units
        self.alive = self.alive & ~(size < threshold * size.max())
        order = xp.argsort(~self.alive, axis=2, kind="stable")
        order = order[:, :, : max(int(self.alive.sum(axis=2).max()), 1)]
        self.alive = xp.take_along_axis(self.alive, order, axis=2)
        self.weight.data = xp.take_along_axis(self.weight.data, order, axis=2) * self.alive
        self.displacement.data = xp.take_along_axis(self.displacement.data, order[..., None], axis=2)
        return before - self.num_units

    def displacements(self) -> Units:
        """Where the units lie and how much they weigh, for analysis.

        Returns
        -------
        Units
            Arrays of NumPy, with an entry for each of the K units that were not pruned: ``displacement``
            (K, 2), in pixels (y, x); ``weight`` (K,); and the channels that it joins, ``output`` and
            ``input``, (K,) each.
        """
        alive, weight, displacement = map(to_numpy, (self.alive, self.weight.data, self.displacement.data))
        outputs, inputs, _ = np.nonzero(alive)
        return Units(displacement[alive], weight[alive], outputs, inputs)


def _start(grid: tuple[int, int], extent: float) -> np.ndarray:
    """Displacements (G, 2): the middles of equal shares of a square of ``2*extent + 1`` pixels."""
    axes = [(2 * extent + 1) * ((np.arange(count) + 0.5) / count - 0.5) for count in grid]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def parameter_groups(network: Module) -> list[dict[str, Any]]:
    """The parameters of a network as groups for an optimiser, with units treated as they should be.

    In each `DisplacedConv`, displacements have a learning rate of their own, `displacement_rate`, and only
    the weights decay: decay would pull the units to the centre, and nothing speaks for the centre. All other
    parameters are in the first group, which leaves the decay to the optimiser.

    Parameters
    ----------
    network : Module
        Parameters that it holds twice are listed once.

    Returns
    -------
    list of dict
        For `Optimizer`: ``SGD(parameter_groups(network), lr, weight_decay=5e-4)``.

    Examples
    --------
    >>> from autodiff.layers import DisplacedConv, parameter_groups
    >>> layer = DisplacedConv(2, 3, displacement_rate=10.0, rng=0)
    >>> for group in parameter_groups(layer):
    ...     print([p.shape for p in group.pop("parameters")], group)
    [(3, 2, 4)] {}
    [(3, 2, 4, 2)] {'weight_decay': 0.0, 'lr_scale': 10.0}
    [(3,)] {'weight_decay': 0.0}
    """
    special: dict[Variable, dict[str, Any]] = {}
    for _, layer in network.modules():
        if isinstance(layer, DisplacedConv):
            for variable in (layer.displacement, layer.sigma, layer.bias):
                if isinstance(variable, Variable):
                    special[variable] = {"parameters": [variable], "weight_decay": 0.0}
            special[layer.displacement]["lr_scale"] = layer.displacement_rate
    others = [p for p in network.parameters() if p not in special]
    return [{"parameters": others}, *special.values()]


def project(network: Module) -> None:
    """`DisplacedConv.project` of every such layer of a network: the last line of a step of training.

    Parameters
    ----------
    network : Module
        Whose displacements are limited to their `bound`, in place.

    Examples
    --------
    >>> from autodiff.layers import DisplacedConv, project
    >>> layer = DisplacedConv(2, 3, bound=4.0, rng=0)
    >>> layer.displacement.data[...] = 100.0  # where a step that was too long may lead
    >>> project(layer)
    >>> float(layer.displacement.data.max())
    4.0
    """
    for _, layer in network.modules():
        if isinstance(layer, DisplacedConv):
            layer.project()
