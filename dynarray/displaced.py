"""Convolutions whose filters are a few units at learned, fractional displacements instead of a grid of taps.

`displaced_conv2d`, and `displaced_conv1d` on lines: displaced aggregation units, also called
spatially-adaptive filter units.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from numbers import Real
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, get_args

from ._check import check_choice, check_shape
from ._dispatch import library_of
from ._geometry import LINE, PLANE, Space
from ._halo import Halo, Reach, farthest
from ._operator import Checked, backward_of, forms, modules, register
from .composite._line import OnALine
from .typing import ArrayT, Needs

__all__ = [
    "DisplacedConv1dGradients",
    "DisplacedConv2dGradients",
    "displaced_conv1d",
    "displaced_conv1d_backward",
    "displaced_conv2d",
    "displaced_conv2d_backward",
]


if TYPE_CHECKING:
    from rawkernels import displaced as _cuda

    from .composite import displaced as _composite
    from .cpu import displaced as _cpu
    from .reference import displaced as _reference
else:
    _reference, _composite, _cpu, _cuda = modules("displaced")

DisplacementGradient = Literal["exact", "smooth"]
SIGMA = 0.5
MAX_SIGMA = 10_000.0
ROWS_TOGETHER = 7  # of outputs, that the kernels of the CPU make from shared sums


def displaced_conv2d(
    x: ArrayT,
    weight: ArrayT,
    displacement: ArrayT,
    *,
    sigma: float | ArrayT = SIGMA,
    bias: ArrayT | None = None,
    displacement_gradient: DisplacementGradient = "exact",
) -> ArrayT:
    """Convolution with a few weighted units per filter, each at its own fractional displacement.

    ``y[n,o,p] = bias[o] + sum_c sum_g weight[o,c,g] * bilinear(xb[n,c], p + displacement[o,c,g])``, where
    ``xb`` is x blurred along both axes by a Gaussian with taps ``k[i]``, proportional to ``exp(-i**2 /
    (2*sigma**2))`` for whole ``|i| <= ceil(5*sigma)`` and of sum 1. Both x and xb are zero outside the image.
    A unit may lie any distance away: outside the image, and if its displacement is infinite, it reads zeros.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input: float32 or float64, on a GPU float16 and bfloat16 too. The other arrays have its dtype.
    weight : array, (O, C, G)
        Weights of the G units between each input and each output channel.
    displacement : array, (O, C, G, 2)
        Where the units lie, in pixels, (y, x). NaN makes the whole output channel NaN, and no other.
    sigma : positive float or 0-d array
        Standard deviation of the blur in pixels, at most 10000. Only an array has a gradient.
    bias : array, (O,), optional
        Added to the output channels.
    displacement_gradient : {"exact", "smooth"}
        Which gradient `displacement` gets. "exact": that of the formula above, where interpolation between
        pixels is piecewise bilinear; at whole displacements, where it has kinks, its derivative to the right.
        "smooth": that of the paper, see below. The other gradients are exact in either case.

    Returns
    -------
    array, (N, O, H, W)
        The units' weighted sum.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library, device or dtype, for shapes that do
        not match, and for a `sigma` that is not positive. The message names the argument.

    Notes
    -----
    Smooth gradient. A unit of the continuous theory reads x through a Gaussian centred where it lies,
    ``r(d) = sum_j k(j - p - d) * x[j]``. Its derivative goes to the Gaussian: ``dk(t)/dd = t/sigma**2 *
    k(t)`` with ``t = j - p - d``. So ``dr/dd`` is x correlated with ``k'[i] = i/sigma**2 * k[i]`` along one
    axis and with k along the other, read at ``p + d``. The paper makes the maps of k and of k' on the pixel
    grid and interpolates both; the second is then no longer the derivative of the first, but has no kinks.

    Only the inputs are saved. The blurred image is as large as x, and keeping it would double what training
    holds in memory; blurring anew takes ``4*ceil(5*sigma) + 2`` multiply-adds a pixel, while the units take
    ``4*O*G`` and more.

    On CUDA a `sigma` that is an array is read by the host once a call, because the size of the launch depends
    on it: the call waits for the stream and cannot be captured in a graph. A number avoids that.

    The gradient of x is that of the units, at the opposite displacements, and blurred after that. Blurred
    before, as in published code, it would be wrong near the border.

    References
    ----------
    Tabernik et al., "Spatially-Adaptive Filter Units for Deep Neural Networks", CVPR 2018. Tabernik et al.,
    "Spatially-Adaptive Filter Units for Compact and Efficient Deep Neural Networks", IJCV 2020.

    Examples
    --------
    One unit, half a pixel to the right of each position, on an image that the blur leaves as it is:

    >>> import numpy as np, dynarray as dyn
    >>> x = np.array([1.0, 2.0, 4.0, 8.0]).reshape(1, 1, 1, 4)
    >>> weight, displacement = np.ones((1, 1, 1)), np.array([0.0, 0.5]).reshape(1, 1, 1, 2)
    >>> dyn.displaced_conv2d(x, weight, displacement, sigma=0.01).tolist()
    [[[[1.5, 3.0, 6.0, 4.0]]]]
    """
    return DISPLACED_CONV2D(
        (x, weight, displacement, sigma, bias), displacement_gradient=displacement_gradient
    )


def displaced_conv1d(
    x: ArrayT,
    weight: ArrayT,
    displacement: ArrayT,
    *,
    sigma: float | ArrayT = SIGMA,
    bias: ArrayT | None = None,
    displacement_gradient: DisplacementGradient = "exact",
) -> ArrayT:
    """Convolution of a line with a few weighted units per filter, each at its own fractional displacement.

    ``y[n,o,l] = bias[o] + sum_c sum_g weight[o,c,g] * xb[n,c](l + displacement[o,c,g])``, where ``xb`` is x
    blurred by the Gaussian of `displaced_conv2d` and interpolated linearly. Both x and xb are zero outside.

    Parameters
    ----------
    x : array, (N, C, L)
        The input; it and the other arrays have dtypes as in `displaced_conv2d`.
    weight : array, (O, C, G)
        Weights of the G units between each input and each output channel.
    displacement : array, (O, C, G)
        Where the units lie, in samples. NaN makes the whole output channel NaN, and no other.
    sigma : positive float or 0-d array
        Standard deviation of the blur in samples, at most 10000. Only an array has a gradient.
    bias : array, (O,), optional
        Added to the output channels.
    displacement_gradient : {"exact", "smooth"}
        Which gradient `displacement` gets: see `displaced_conv2d`.

    Returns
    -------
    array, (N, O, L)
        The units' weighted sum.

    Raises
    ------
    TypeError, ValueError
        As `displaced_conv2d`.

    Notes
    -----
    `displaced_conv2d` on images of one row would blur that row into its empty neighbours too.

    Examples
    --------
    One unit, half a sample to the right of each position, on a line that the blur leaves as it is:

    >>> import numpy as np, dynarray as dyn
    >>> x = np.array([[[1.0, 2.0, 4.0, 8.0]]])
    >>> dyn.displaced_conv1d(x, np.ones((1, 1, 1)), np.full((1, 1, 1), 0.5), sigma=0.01).tolist()
    [[[1.5, 3.0, 6.0, 4.0]]]
    """
    return DISPLACED_CONV1D(
        (x, weight, displacement, sigma, bias), displacement_gradient=displacement_gradient
    )


def _check_sigma(name: str, sigma: Any) -> float:
    """The value of `sigma` on the host."""
    is_array = library_of(sigma) is not None
    if isinstance(sigma, bool) or not (is_array or isinstance(sigma, Real)):
        raise TypeError(f"{name}: sigma must be a positive number or a 0-d array, got {sigma!r}")
    if is_array:
        check_shape(name, "sigma", sigma, "", {})
    value = float(sigma.real)
    if not 0 < value <= MAX_SIGMA:
        raise ValueError(f"{name}: sigma must be positive and at most {MAX_SIGMA:g}, got {value!r}")
    return value


def _check(
    name: str,
    space: Space,
    x: Any,
    weight: Any,
    displacement: Any,
    sigma: Any,
    bias: Any,
    *,
    displacement_gradient: Any,
) -> Checked:
    check_choice(name, "displacement_gradient", displacement_gradient, get_args(DisplacementGradient))
    sizes = check_shape(name, "x", x, space.pattern("N C image"), {})
    sizes = check_shape(name, "weight", weight, "O C G", sizes)
    check_shape(
        name, "displacement", displacement, "O C G" if space is LINE else "O C G 2", {**sizes, "2": 2}
    )
    if bias is not None:
        check_shape(name, "bias", bias, "O", sizes)
    spread = _check_sigma(name, SIGMA if sigma is None else sigma)
    radius, zeros = ceil(5 * spread), {}
    if space is LINE:
        displacement, zeros = displacement[..., None], {"displacement": 3}
    params = {
        "spread": spread,
        "radius": (0 if space is LINE else radius, radius),
        "displacement_gradient": displacement_gradient,
    }
    x = space.in_plane(x, "N C image")
    arrays = (x, weight, displacement, sigma if library_of(sigma) else None, bias)
    form_shape = (sizes["N"], sizes["O"], *x.shape[2:])
    shape = (*form_shape[:2], *(sizes[symbol] for symbol in space.image))
    return Checked(arrays, params, shape, form_shape, zeros)


class _Displaced(Halo):
    """All outputs read at the same displacements, and the blur around them."""

    def into(
        self, name: str, params: Mapping[str, Any], arrays: Mapping[str, Any], origin: Sequence[int]
    ) -> dict[str, tuple[Reach, ...]]:
        units, radius = arrays["displacement"], ceil(5 * _check_sigma(name, arrays.get("sigma", SIGMA)))
        along = [units] if self.space is LINE else [units[..., 0], units[..., 1]]
        ranges = [farthest(distances) for distances in along]
        reaches = [Reach(radius - low, radius + high + 1) for low, high in ranges]
        if self.space is not LINE:
            reaches[0] = reaches[0]._replace(align=ROWS_TOGETHER)
        return {"x": tuple(reaches)}


DISPLACED_CONV2D = register(
    displaced_conv2d,
    forward=forms(_reference.forward, _cpu.forward, _cuda.forward),
    backward=forms(_reference.backward, _cpu.backward, _cuda.backward),
    check=partial(_check, "displaced_conv2d", PLANE),
    composite=_composite.forward,
    keywords=("sigma", "bias"),
    halo=_Displaced(values="displacement sigma"),
)
DISPLACED_CONV1D = register(
    displaced_conv1d,
    forward=DISPLACED_CONV2D.forward,
    backward=DISPLACED_CONV2D.backward,
    check=partial(_check, "displaced_conv1d", LINE),
    composite=OnALine(_composite.forward, {2: 3}),
    keywords=("sigma", "bias"),
    halo=_Displaced(values="displacement sigma", space=LINE),
)


class DisplacedConv2dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `displaced_conv2d` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    weight: ArrayT
    displacement: ArrayT
    sigma: ArrayT | None
    bias: ArrayT | None


@backward_of(DISPLACED_CONV2D, DisplacedConv2dGradients)
def displaced_conv2d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    weight: ArrayT,
    displacement: ArrayT,
    *,
    sigma: float | ArrayT = SIGMA,
    bias: ArrayT | None = None,
    displacement_gradient: DisplacementGradient = "exact",
    needs: Needs = None,
) -> DisplacedConv2dGradients[ArrayT]:
    """Gradients of `displaced_conv2d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, weight = np.array([1.0, 2.0, 4.0, 8.0]).reshape(1, 1, 1, 4), np.ones((1, 1, 1))
    >>> displacement = np.array([0.0, 0.5]).reshape(1, 1, 1, 2)
    >>> grads = dyn.displaced_conv2d_backward(np.ones_like(x), x, weight, displacement, sigma=0.01)
    >>> grads.weight.tolist(), grads.displacement.shape
    ([[[14.5]]], (1, 1, 1, 2))
    """


class DisplacedConv1dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `displaced_conv1d` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    weight: ArrayT
    displacement: ArrayT
    sigma: ArrayT | None
    bias: ArrayT | None


@backward_of(DISPLACED_CONV1D, DisplacedConv1dGradients)
def displaced_conv1d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    weight: ArrayT,
    displacement: ArrayT,
    *,
    sigma: float | ArrayT = SIGMA,
    bias: ArrayT | None = None,
    displacement_gradient: DisplacementGradient = "exact",
    needs: Needs = None,
) -> DisplacedConv1dGradients[ArrayT]:
    """Gradients of `displaced_conv1d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, weight = np.array([[[1.0, 2.0, 4.0, 8.0]]]), np.ones((1, 1, 1))
    >>> grads = dyn.displaced_conv1d_backward(np.ones_like(x), x, weight, np.full((1, 1, 1), 0.5), sigma=0.01)
    >>> grads.weight.tolist(), grads.x.round(6).tolist()
    ([[[14.5]]], [[[0.5, 1.0, 1.0, 1.0]]])
    """
