"""Fixed filters, mixed anew at each pixel: `mixed_filter2d`, and `mixed_filter1d` on lines.

They are `local_filter2d` with filters that are sums of a few kernels, and never stored.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, SupportsIndex

from ._border import find_outside
from ._check import check_divides, check_shape
from ._geometry import LINE, PLANE, Space, check_window
from ._halo import windowed
from ._operator import Checked, LazyModule, backward_of, forms, modules, register
from .composite._line import OnALine
from .typing import ArrayT, Border, Needs, Pair

__all__ = [
    "MixedFilter1dGradients",
    "MixedFilter2dGradients",
    "mixed_filter1d",
    "mixed_filter1d_backward",
    "mixed_filter2d",
    "mixed_filter2d_backward",
]


if TYPE_CHECKING:
    from rawkernels import local_filter_mixed as _cuda

    from .composite import local_filter as _composite
    from .cpu import local_filter as _cpu
    from .reference import local_filter as _reference
else:
    _reference, _composite, _cpu, _ = modules("local_filter")
    _cuda = LazyModule("rawkernels.local_filter_mixed")


def mixed_filter2d(
    x: ArrayT,
    kernels: ArrayT,
    mixture: ArrayT,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Pair | None = None,
    border: Border = "constant",
) -> ArrayT:
    """Filter each pixel with a mixture of its own of a few kernels that all pixels share.

    ``y[n,c,p] = sum_b mixture[n,g,b,p] * sum_ij kernels[b,c,i,j] * x[n,c,q]`` with group ``g = c // (C/G)``,
    ``q = (h*s_y - pad_y + i*d_y, w*s_x - pad_x + j*d_x)`` at output ``p = (h, w)``, and x outside the image
    as `border` says. Kernels without an axis of channels serve all channels.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input: float32 or float64, on a GPU float16 and bfloat16 too. The notes say which dtypes
        the other arrays may have beside it.
    kernels : array, (B, kh, kw) or (B, C, kh, kw)
        The kernels, of all channels or one set for each.
    mixture : array, (N, G, B, Ho, Wo)
        How much of each kernel an output pixel gets; G divides C, and the channels of a group share it.
    stride, dilation : int or (y, x)
        Step between outputs and between taps, in input pixels.
    padding : int or (y, x), optional
        Pixels added on each side. None means "same", ``dilation*(kernel - 1)/2``, and needs odd kernel sizes.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the image, in the words of `numpy.pad`: zeros; the image mirrored about its last
        pixel, or behind it; its last pixel; the image again. ``scipy.ndimage`` calls "symmetric" "reflect".

    Returns
    -------
    array, (N, C, Ho, Wo)
        ``Ho = floor((H + 2*pad_y - d_y*(kh-1) - 1)/s_y) + 1``.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library, device or dtype (but see below),
        for shapes that do not match, and for parameters out of range. The message names the argument.

    See Also
    --------
    local_filter2d : The same with filters that are given for each pixel.

    Notes
    -----
    The filter of a pixel is ``sum_b mixture[n,g,b,p] * kernels[b]``. All filters of a photograph of 12
    million pixels would be 10.8 GB at 15 x 15 taps; no pass ever stores them, nor the image filtered by each
    kernel. The backward pass needs only the inputs, so nothing else is saved.

    Where x is float16 or bfloat16, which CUDA takes, `kernels` and `mixture` may each be float32. The output
    and the gradient of x have the dtype of x, each other gradient that of its array. Sums are in float32, and
    what is float32 is never rounded to 16 bits on the way.

    References
    ----------
    Xia et al., "Basis Prediction Networks for Effective Burst Denoising with Large Kernels", CVPR 2020.
    Denis et al., "Fast Approximations of Shift-Variant Blur", IJCV 2015.

    Examples
    --------
    Two dots, of which the kernels leave the left one as it is and blur the right one:

    >>> import numpy as np, dynarray as dyn
    >>> x = np.tile(np.array([0.0, 9.0, 0.0, 0.0, 9.0, 0.0]), (1, 1, 3, 1))
    >>> kernels = np.zeros((2, 1, 3))
    >>> kernels[0, 0, 1] = 1
    >>> kernels[1] = 1 / 3
    >>> mixture = np.zeros((1, 1, 2, 3, 6))
    >>> mixture[:, :, 0, :, :3] = 1
    >>> mixture[:, :, 1, :, 3:] = 1
    >>> dyn.mixed_filter2d(x, kernels, mixture)[0, 0, 1].round(6).tolist()
    [0.0, 9.0, 0.0, 3.0, 3.0, 3.0]
    """
    return MIXED_FILTER2D(
        (x, kernels, mixture), stride=stride, dilation=dilation, padding=padding, border=border
    )


def mixed_filter1d(
    x: ArrayT,
    kernels: ArrayT,
    mixture: ArrayT,
    *,
    stride: SupportsIndex = 1,
    dilation: SupportsIndex = 1,
    padding: SupportsIndex | None = None,
    border: Border = "constant",
) -> ArrayT:
    """Filter each sample of a line with a mixture of its own of a few kernels that all samples share.

    ``y[n,c,l] = sum_b mixture[n,g,b,l] * sum_i kernels[b,c,i] * x[n,c, l*stride - padding + i*dilation]``:
    `mixed_filter2d` on images of one row.

    Parameters
    ----------
    x : array, (N, C, L)
        The input; it and the other arrays have dtypes as in `mixed_filter2d`.
    kernels : array, (B, k) or (B, C, k)
        The kernels, of all channels or one set for each.
    mixture : array, (N, G, B, Lo)
        How much of each kernel an output sample gets; G divides C, and the channels of a group share it.
    stride, dilation : int
        Step between outputs and between taps, in input samples.
    padding : int, optional
        Samples added on each side. None means "same", ``dilation*(k - 1)/2``, and needs an odd kernel size.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the line, in the words of `numpy.pad`: zeros; the line mirrored about its last
        sample, or behind it; its last sample; the line again. ``scipy.ndimage`` calls "symmetric" "reflect".

    Returns
    -------
    array, (N, C, Lo)
        ``Lo = floor((L + 2*padding - dilation*(k-1) - 1)/stride) + 1``.

    Raises
    ------
    TypeError, ValueError
        As `mixed_filter2d`, whose notes say which dtypes go together.

    Examples
    --------
    From the samples themselves to the mean of three:

    >>> import numpy as np, dynarray as dyn
    >>> kernels = np.array([[0, 1, 0], [1 / 3, 1 / 3, 1 / 3]])
    >>> amount = np.linspace(0, 1, 5)
    >>> mixture = np.stack([1 - amount, amount])[None, None]
    >>> dyn.mixed_filter1d(np.array([[[6.0, 0.0, 6.0, 0.0, 6.0]]]), kernels, mixture).round(6).tolist()
    [[[6.0, 1.0, 4.0, 3.0, 2.0]]]
    """
    return MIXED_FILTER1D(
        (x, kernels, mixture), stride=stride, dilation=dilation, padding=padding, border=border
    )


def _check_mixed_filter(
    operator: str, space: Space, x: Any, kernels: Any, mixture: Any, *, border: Any, **steps: Any
) -> Checked:
    sizes = check_shape(operator, "x", x, space.pattern("N C image"), {})
    patterns = {len(space.image) + 1: "B kernel", len(space.image) + 2: "B C kernel"}
    pattern = patterns.get(kernels.ndim)
    if pattern is None:
        either = " or ".join(f"({', '.join(space.pattern(each).split())})" for each in patterns.values())
        raise ValueError(f"{operator}: kernels must have shape {either}, got {tuple(kernels.shape)}")
    sizes = check_shape(operator, "kernels", kernels, space.pattern(pattern), sizes)
    of_mixture = space.pattern("N G B outputs")
    sizes = check_shape(operator, "mixture", mixture, of_mixture, sizes)
    window = check_window(operator, "kernels", sizes, space, **steps)
    sizes |= window.sizes
    if mixture.shape[3:] != window.outputs:
        check_shape(operator, "mixture", mixture, of_mixture, {k: v for k, v in sizes.items() if k != "G"})
    if sizes["C"]:
        check_divides(operator, "mixture", "G", "C", sizes)
    # Forms always get kernels with an axis of channels: one, or all.
    kernels = space.in_plane(kernels, pattern)
    kernels = kernels if kernels.ndim == 4 else kernels.reshape(kernels.shape[0], 1, *kernels.shape[1:])
    arrays = space.in_plane(x, "N C image"), kernels, space.in_plane(mixture, "N G B outputs")
    outside = find_outside(operator, border, window, arrays[0].shape, by_output=2)
    shapes = window.output_shapes(sizes["N"], sizes["C"])
    return Checked(arrays, window.shortened(), *shapes, outside=outside)


_register_mixed_filter = partial(
    register,
    forward=forms(_reference.mixed_forward, _cpu.mixed_forward, _cuda.forward),
    backward=forms(_reference.mixed_backward, _cpu.mixed_backward, _cuda.backward),
    may_be_float32=("kernels", "mixture"),
)

MIXED_FILTER2D = _register_mixed_filter(
    mixed_filter2d,
    check=partial(_check_mixed_filter, "mixed_filter2d", PLANE),
    composite=_composite.mixed_forward,
    halo=windowed("mixture", kernel="kernels"),
)
MIXED_FILTER1D = _register_mixed_filter(
    mixed_filter1d,
    check=partial(_check_mixed_filter, "mixed_filter1d", LINE),
    composite=OnALine(_composite.mixed_forward),
    halo=windowed("mixture", kernel="kernels", space=LINE),
)


class MixedFilter2dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `mixed_filter2d` by its arrays; None where one was not asked for."""

    x: ArrayT
    kernels: ArrayT
    mixture: ArrayT


@backward_of(MIXED_FILTER2D, MixedFilter2dGradients)
def mixed_filter2d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    kernels: ArrayT,
    mixture: ArrayT,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Pair | None = None,
    border: Border = "constant",
    needs: Needs = None,
) -> MixedFilter2dGradients[ArrayT]:
    """Gradients of `mixed_filter2d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, mixture = np.array([6.0, 0.0, 6.0]).reshape(1, 1, 1, 3), np.ones((1, 1, 2, 1, 3))
    >>> kernels = np.array([[[0, 1, 0]], [[1 / 3, 1 / 3, 1 / 3]]])
    >>> grads = dyn.mixed_filter2d_backward(np.ones_like(x), x, kernels, mixture)
    >>> grads.mixture[0, 0, :, 0].tolist()  # what either kernel makes of the image
    [[6.0, 0.0, 6.0], [2.0, 4.0, 2.0]]
    """


class MixedFilter1dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `mixed_filter1d` by its arrays; None where one was not asked for."""

    x: ArrayT
    kernels: ArrayT
    mixture: ArrayT


@backward_of(MIXED_FILTER1D, MixedFilter1dGradients)
def mixed_filter1d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    kernels: ArrayT,
    mixture: ArrayT,
    *,
    stride: SupportsIndex = 1,
    dilation: SupportsIndex = 1,
    padding: SupportsIndex | None = None,
    border: Border = "constant",
    needs: Needs = None,
) -> MixedFilter1dGradients[ArrayT]:
    """Gradients of `mixed_filter1d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, kernels = np.array([[[6.0, 0.0, 6.0]]]), np.array([[0, 1, 0], [1 / 3, 1 / 3, 1 / 3]])
    >>> grads = dyn.mixed_filter1d_backward(np.ones_like(x), x, kernels, np.ones((1, 1, 2, 3)))
    >>> grads.mixture[0, 0].tolist(), grads.kernels.tolist()
    ([[6.0, 0.0, 6.0], [2.0, 4.0, 2.0]], [[6.0, 12.0, 6.0], [6.0, 12.0, 6.0]])
    """
