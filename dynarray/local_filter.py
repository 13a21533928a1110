"""Filters that change from pixel to pixel, each shared by the channels of a group.

`local_filter2d`, and `local_filter1d` on lines. The published faces of the first, Decoupled Dynamic Filters,
CARAFE and involution, are in `local_filter_faces`.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, SupportsIndex, get_args

from ._border import find_outside
from ._check import check_choice, check_divides, check_int, check_pair, check_shape
from ._geometry import LINE, PLANE, Space, check_window
from ._halo import windowed
from ._operator import Checked, backward_of, forms, modules, register
from .composite._line import OnALine
from .typing import ArrayT, Border, Needs, Pair

__all__ = [
    "LocalFilter1dGradients",
    "LocalFilter2dGradients",
    "local_filter1d",
    "local_filter1d_backward",
    "local_filter2d",
    "local_filter2d_backward",
]


if TYPE_CHECKING:
    from rawkernels import local_filter as _cuda

    from .composite import local_filter as _composite
    from .cpu import local_filter as _cpu
    from .reference import local_filter as _reference
else:
    _reference, _composite, _cpu, _cuda = modules("local_filter")

Combine = Literal["mul", "add"]


def local_filter2d(
    x: ArrayT,
    weight: ArrayT,
    channel_weight: ArrayT | None = None,
    *,
    combine: Combine = "mul",
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Pair | None = None,
    upsample: SupportsIndex = 1,
    border: Border = "constant",
) -> ArrayT:
    """Filter each pixel with its own kernel, shared by the channels of a group.

    ``y[n,c,h,w] = sum_ab (weight[n,g,a,b,h,w] o channel_weight[n,c,a,b]) * x[n,c,q]`` with group ``g = c //
    (C/G)``, ``q = (h*s_y - pad_y + a*d_y, w*s_x - pad_x + b*d_x)``, x outside the image as `border` says, and
    o the operation of `combine`. With ``upsample = u`` tap (a, b) of output (h, w) reads around
    ``(h // u, w // u)`` instead, and each of the u*u sub-pixel phases ``(h % u, w % u)`` has its own channel
    weights.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input: float32 or float64, on a GPU float16 and bfloat16 too. The notes say which dtypes
        the other arrays may have beside it.
    weight : array, (N, G, kh, kw, Ho, Wo)
        One kernel per output pixel and group; G divides C.
    channel_weight : array, (N, C, kh, kw) or, with `upsample` u, (N, u, u, C, kh, kw), optional
        One kernel per channel, combined with the kernel of the pixel.
    combine : {"mul", "add"}
        How the two kernels are combined.
    stride, dilation : int or (y, x)
        Step between outputs and between taps, in input pixels.
    padding : int or (y, x), optional
        Pixels added on each side. None means "same", ``dilation*(kernel - 1)/2``, and needs odd kernel sizes.
    upsample : int
        Outputs per input pixel and axis; above 1 it needs stride 1, odd kernels and ``padding=None``.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the image, in the words of `numpy.pad`: zeros; the image mirrored about its last
        pixel, or behind it; its last pixel; the image again. ``scipy.ndimage`` calls "symmetric" "reflect".

    Returns
    -------
    array, (N, C, Ho, Wo)
        ``Ho = floor((H + 2*pad_y - d_y*(kh-1) - 1)/s_y) + 1``, or u*H when upsampling.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library, device or dtype (but see below),
        for shapes that do not match, and for parameters out of range. The message names the argument.

    Notes
    -----
    The backward pass needs only the inputs, so nothing else is saved and nothing is recomputed.

    Where x is float16 or bfloat16, which CUDA takes, `weight` and `channel_weight` may each be float32. The
    output and the gradient of x have the dtype of x, each other gradient that of its array. Sums are in
    float32, and what is float32 is never rounded to 16 bits on the way.

    References
    ----------
    Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021. Wang et al., "CARAFE", ICCV 2019. Li et al.,
    "Involution", CVPR 2021. De Brabandere et al., "Dynamic Filter Networks", NeurIPS 2016.

    Examples
    --------
    A 3 x 3 box filter in the left half of the image, the identity in the right half:

    >>> import numpy as np, dynarray as dyn
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> weight = np.zeros((1, 1, 3, 3, 4, 4))
    >>> weight[..., :2] = 1 / 9
    >>> weight[:, :, 1, 1, :, 2:] = 1
    >>> dyn.local_filter2d(x, weight)[0, 0, 1].round(6).tolist()
    [3.0, 5.0, 6.0, 7.0]
    """
    return LOCAL_FILTER2D(
        (x, weight, channel_weight),
        combine=combine,
        stride=stride,
        dilation=dilation,
        padding=padding,
        upsample=upsample,
        border=border,
    )


def local_filter1d(
    x: ArrayT,
    weight: ArrayT,
    channel_weight: ArrayT | None = None,
    *,
    combine: Combine = "mul",
    stride: SupportsIndex = 1,
    dilation: SupportsIndex = 1,
    padding: SupportsIndex | None = None,
    border: Border = "constant",
) -> ArrayT:
    """Filter each sample of a line with its own kernel, shared by the channels of a group.

    ``y[n,c,l] = sum_a (weight[n,g,a,l] o channel_weight[n,c,a]) * x[n,c, l*stride - padding + a*dilation]``:
    `local_filter2d` on images of one row.

    Parameters
    ----------
    x : array, (N, C, L)
        The input; it and the other arrays have dtypes as in `local_filter2d`.
    weight : array, (N, G, k, Lo)
        One kernel per output sample and group; G divides C.
    channel_weight : array, (N, C, k), optional
        One kernel per channel, combined with the kernel of the sample.
    combine : {"mul", "add"}
        How the two kernels are combined.
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
        As `local_filter2d`, whose notes say which dtypes go together.

    Examples
    --------
    The mean of three samples on the left, the samples themselves on the right:

    >>> import numpy as np, dynarray as dyn
    >>> weight = np.zeros((1, 1, 3, 4))
    >>> weight[..., :2] = 1 / 3
    >>> weight[:, :, 1, 2:] = 1
    >>> dyn.local_filter1d(np.array([[[0.0, 6.0, 9.0, 4.0]]]), weight).round(6).tolist()
    [[[2.0, 5.0, 9.0, 4.0]]]
    """
    return LOCAL_FILTER1D(
        (x, weight, channel_weight),
        combine=combine,
        stride=stride,
        dilation=dilation,
        padding=padding,
        border=border,
    )


def check_local_filter(
    operator: str,
    arrays: tuple[Any, Any, Any],
    names: tuple[str, str, str],
    *,
    combine: Any = "mul",
    upsample: int = 1,
    border: Any = "constant",
    space: Space = PLANE,
    **steps: Any,
) -> Checked:
    """The check that all faces share; `names` are the face's own names for x, weight and channel_weight."""
    x, weight, channel_weight = arrays
    check_choice(operator, "combine", combine, get_args(Combine))
    of_images, of_weights = space.pattern("N C image"), space.pattern("N G kernel outputs")
    sizes = check_shape(operator, names[0], x, of_images, {})
    sizes = check_shape(operator, names[1], weight, of_weights, sizes)
    window = check_window(operator, names[1], sizes, space, **steps, upsample=upsample)
    sizes |= window.sizes
    if weight.shape[-len(window.outputs) :] != window.outputs:
        check_shape(operator, names[1], weight, of_weights, {k: v for k, v in sizes.items() if k != "G"})
    if sizes["C"]:
        check_divides(operator, names[1], "G", "C", sizes)
    x, weight = space.in_plane(x, "N C image"), space.in_plane(weight, "N G kernel outputs")
    if channel_weight is not None:
        # Forms always get one set of channel weights per phase.
        phases = "u u " if upsample > 1 or (channel_weight.ndim == 6 and space is PLANE) else ""
        pattern = space.pattern(f"N {phases}C kernel")
        check_shape(operator, names[2], channel_weight, pattern, {**sizes, "u": upsample})
        shape = (sizes["N"], upsample, upsample, sizes["C"], *weight.shape[2:4])
        channel_weight = channel_weight.reshape(shape)
    outside = find_outside(operator, border, window, x.shape, by_output=1)
    params = {"combine": combine, **window.shortened(), "upsample": upsample}
    shapes = window.output_shapes(sizes["N"], sizes["C"])
    return Checked((x, weight, channel_weight), params, *shapes, outside=outside)


def _check_local_filter2d(
    x: Any, weight: Any, channel_weight: Any, *, upsample: Any, **params: Any
) -> Checked:
    name = "local_filter2d"
    upsample = check_int(name, "upsample", upsample, 1)
    if upsample > 1:
        if check_pair(name, "stride", params["stride"], 1) != (1, 1):
            raise ValueError(f"{name}: stride must be 1 when upsampling, got {params['stride']!r}")
        if params["padding"] is not None:
            raise ValueError(f"{name}: padding must be None when upsampling, got {params['padding']!r}")
    return check_local_filter(
        name, (x, weight, channel_weight), ("x", "weight", "channel_weight"), upsample=upsample, **params
    )


def _check_local_filter1d(x: Any, weight: Any, channel_weight: Any, **params: Any) -> Checked:
    names = ("x", "weight", "channel_weight")
    return check_local_filter("local_filter1d", (x, weight, channel_weight), names, space=LINE, **params)


register_local_filter = partial(
    register,
    forward=forms(_reference.forward, _cpu.forward, _cuda.forward),
    backward=forms(_reference.backward, _cpu.backward, _cuda.backward),
    composite=_composite.forward,
)

LOCAL_FILTER2D = register_local_filter(
    local_filter2d,
    check=_check_local_filter2d,
    may_be_float32=("weight", "channel_weight"),
    halo=windowed("weight", kernel="weight", scale="upsample", per_image="channel_weight"),
)
LOCAL_FILTER1D = register_local_filter(
    local_filter1d,
    check=_check_local_filter1d,
    composite=OnALine(_composite.forward),
    may_be_float32=("weight", "channel_weight"),
    halo=windowed("weight", kernel="weight", per_image="channel_weight", space=LINE),
)


class LocalFilter2dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `local_filter2d` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    weight: ArrayT
    channel_weight: ArrayT | None


@backward_of(LOCAL_FILTER2D, LocalFilter2dGradients)
def local_filter2d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    weight: ArrayT,
    channel_weight: ArrayT | None = None,
    *,
    combine: Combine = "mul",
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Pair | None = None,
    upsample: SupportsIndex = 1,
    border: Border = "constant",
    needs: Needs = None,
) -> LocalFilter2dGradients[ArrayT]:
    """Gradients of `local_filter2d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, weight = np.arange(16.0).reshape(1, 1, 4, 4), np.full((1, 1, 3, 3, 4, 4), 1 / 9)
    >>> grads = dyn.local_filter2d_backward(np.ones_like(x), x, weight, needs=(True, True, False))
    >>> grads.weight[0, 0, :, :, 1, 1].tolist()  # what pixel (1, 1) reads
    [[0.0, 1.0, 2.0], [4.0, 5.0, 6.0], [8.0, 9.0, 10.0]]
    >>> grads.x[0, 0].round(6).tolist()[0], grads.channel_weight
    ([0.444444, 0.666667, 0.666667, 0.444444], None)
    """


class LocalFilter1dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `local_filter1d` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    weight: ArrayT
    channel_weight: ArrayT | None


@backward_of(LOCAL_FILTER1D, LocalFilter1dGradients)
def local_filter1d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    weight: ArrayT,
    channel_weight: ArrayT | None = None,
    *,
    combine: Combine = "mul",
    stride: SupportsIndex = 1,
    dilation: SupportsIndex = 1,
    padding: SupportsIndex | None = None,
    border: Border = "constant",
    needs: Needs = None,
) -> LocalFilter1dGradients[ArrayT]:
    """Gradients of `local_filter1d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, weight = np.array([[[1.0, 2.0, 3.0]]]), np.ones((1, 1, 3, 3))
    >>> grads = dyn.local_filter1d_backward(np.ones_like(x), x, weight)
    >>> grads.weight[0, 0].T.tolist()  # what each pixel reads, zeros outside
    [[0.0, 1.0, 2.0], [1.0, 2.0, 3.0], [2.0, 3.0, 0.0]]
    """
