"""Sampling at learned points: deformable convolution, and the bare sampling that it is made of.

`deform_conv2d` is deformable convolution v1 and, with `mask`, v2; with one set of points predicted from
high-level features it is the sampling of Context Guided Dynamic Sampling. `sample_points` reads an image at
any points.
"""

from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, SupportsIndex

from ._border import check_samples
from ._check import check_divides, check_flag, check_shape
from ._geometry import LINE, PLANE, Space, check_window, with_taps
from ._halo import AtPoints, windowed
from ._operator import Checked, backward_of, forms, modules, register
from .composite._line import OnALine
from .typing import ArrayT, Border, Needs, Pair

__all__ = [
    "DeformConv1dGradients",
    "DeformConv2dGradients",
    "SamplePointsGradients",
    "deform_conv1d",
    "deform_conv1d_backward",
    "deform_conv2d",
    "deform_conv2d_backward",
    "sample_points",
    "sample_points_backward",
]


if TYPE_CHECKING:
    from rawkernels import deform as _cuda

    from .composite import deform as _composite
    from .cpu import deform as _cpu
    from .reference import deform as _reference
else:
    _reference, _composite, _cpu, _cuda = modules("deform")


def deform_conv2d(
    x: ArrayT,
    offset: ArrayT,
    weight: ArrayT,
    *,
    mask: ArrayT | None = None,
    bias: ArrayT | None = None,
    stride: Pair = 1,
    padding: Pair | None = 0,
    dilation: Pair = 1,
    border: Border = "constant",
    deterministic: bool = True,
) -> ArrayT:
    """Convolution whose taps are read at learned points, with bilinear interpolation.

    ``y[n,o,p] = bias[o] + sum_c sum_ab weight[o,c,a,b] * mask[n,d,a,b,p] * x[n,c](q + offset[n,d,a,b,:,p])``
    with ``q = (h*s_y - pad_y + a*d_y, w*s_x - pad_x + b*d_x)`` for ``p = (h, w)`` and offset group ``d = c //
    (C/D)``. ``x(point)`` is bilinear interpolation between the four pixels around the point, each of which is
    what `border` says if it is outside the image; c runs over the channels of the group of o.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input: float32 or float64, on a GPU float16 and bfloat16 too. The notes say which dtypes
        the other arrays may have beside it.
    offset : array, (N, D, kh, kw, 2, Ho, Wo) or the same memory as (N, 2*D*kh*kw, Ho, Wo)
        How far (y, x) each point lies from the regular grid, in pixels; any distance. D divides C.
    weight : array, (O, C/groups, kh, kw)
        The kernel. Its second extent says how many groups there are; they divide C and O.
    mask : array, (N, D, kh, kw, Ho, Wo) or the same memory as (N, D*kh*kw, Ho, Wo), optional
        A factor for each point.
    bias : array, (O,), optional
        Added to each output channel.
    stride : int or (y, x)
        Step between outputs, in pixels.
    padding : int or (y, x), optional
        Where the regular grid begins, before the image. None means "same" and needs odd kernel sizes.
    dilation : int or (y, x)
        Step between taps, in pixels.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the image, in the words of `numpy.pad`: zeros; the image mirrored about its last
        pixel, or behind it; its last pixel; the image again. ``scipy.ndimage`` calls "symmetric" "reflect".
    deterministic : bool
        False lets CUDA kernels add up the gradient of x by atomics, in any order: its bits may differ from
        run to run. All else has the same bits in each run anyway.

    Returns
    -------
    array, (N, O, Ho, Wo)
        ``Ho = floor((H + 2*pad_y - d_y*(kh-1) - 1)/s_y) + 1``.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library, device or dtype (but see below),
        for shapes that do not match, and for parameters out of range. The message names the argument.

    Notes
    -----
    Only the inputs are saved. The sampled columns, kh*kw times the size of x, are never there as a whole:
    forward and backward pass make them in tiles, and the backward pass samples x once more.

    The derivative by a point is that of the interpolation, from the right where a coordinate is an integer.
    Points one pixel or more outside the image, at infinity too, read zero and have zero gradient, unless
    `border` puts copies of pixels there: then those of an edge read it at infinity too, and with the other
    words infinity is NaN. A NaN coordinate makes all that depends on it NaN. Coordinates are float32 at
    least, whatever the dtype, and kept as whole pixels and a fraction, so that the offset counts to its last
    digit however far q lies from the origin.

    A point is its four corners, each of which takes part with a weight, `mask` times its share of the
    interpolation, whatever that is, and as 0 if it lies outside. The point and its mask get their gradients
    through these weights, each from its own sum over channels. So infinite values, masks and gradients give
    NaN where they meet a share of 0, a pixel outside, or an infinity of the other sign.

    Where x is float16 or bfloat16, which CUDA takes, each of the others may be float32. The output and the
    gradient of x have the dtype of x, each other gradient that of its array. Sums are in float32, and what is
    float32 is never rounded to 16 bits on the way.

    References
    ----------
    Dai et al., "Deformable Convolutional Networks", ICCV 2017. Zhu et al., "Deformable ConvNets v2", CVPR
    2019. "Context Guided Dynamic Sampling" (DSNet), AAAI 2020.

    Examples
    --------
    A kernel of one tap, moved half a pixel to the right, halves the way between neighbours:

    >>> import numpy as np, dynarray as dyn
    >>> x = np.array([0.0, 2.0, 6.0]).reshape(1, 1, 1, 3)
    >>> offset = np.zeros((1, 1, 1, 1, 2, 1, 3))
    >>> offset[:, :, :, :, 1] = 0.5
    >>> dyn.deform_conv2d(x, offset, np.ones((1, 1, 1, 1))).ravel().tolist()
    [1.0, 4.0, 3.0]
    """
    return DEFORM_CONV2D(
        (x, offset, weight, mask, bias),
        stride=stride,
        padding=padding,
        dilation=dilation,
        border=border,
        deterministic=deterministic,
    )


def deform_conv1d(
    x: ArrayT,
    offset: ArrayT,
    weight: ArrayT,
    *,
    mask: ArrayT | None = None,
    bias: ArrayT | None = None,
    stride: SupportsIndex = 1,
    padding: SupportsIndex | None = 0,
    dilation: SupportsIndex = 1,
    border: Border = "constant",
    deterministic: bool = True,
) -> ArrayT:
    """Convolution of a line whose taps are read at learned points, with linear interpolation.

    ``y[n,o,l] = bias[o] + sum_c sum_a weight[o,c,a] * mask[n,d,a,l] * x[n,c](q + offset[n,d,a,l])`` with
    ``q = l*stride - padding + a*dilation``: `deform_conv2d` on images of one row, whose points stay in it.

    Parameters
    ----------
    x : array, (N, C, L)
        The input; it and the other arrays have dtypes as in `deform_conv2d`.
    offset : array, (N, D, k, Lo) or the same memory as (N, D*k, Lo)
        How far each point lies from the regular grid, in samples; any distance. D divides C.
    weight : array, (O, C/groups, k)
        The kernel. Its second extent says how many groups there are; they divide C and O.
    mask : array, (N, D, k, Lo) or the same memory as (N, D*k, Lo), optional
        A factor for each point.
    bias : array, (O,), optional
        Added to each output channel.
    stride : int
        Step between outputs, in samples.
    padding : int, optional
        Where the regular grid begins, before the line. None means "same" and needs an odd kernel size.
    dilation : int
        Step between taps, in samples.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the line, in the words of `numpy.pad`: zeros; the line mirrored about its last
        sample, or behind it; its last sample; the line again. ``scipy.ndimage`` calls "symmetric" "reflect".
    deterministic : bool
        See `deform_conv2d`.

    Returns
    -------
    array, (N, O, Lo)
        ``Lo = floor((L + 2*padding - dilation*(k-1) - 1)/stride) + 1``.

    Raises
    ------
    TypeError, ValueError
        As `deform_conv2d`.

    Examples
    --------
    A kernel of one tap, moved half a sample to the right, halves the way between neighbours:

    >>> import numpy as np, dynarray as dyn
    >>> x = np.array([[[0.0, 2.0, 6.0]]])
    >>> dyn.deform_conv1d(x, np.full((1, 1, 1, 3), 0.5), np.ones((1, 1, 1))).tolist()
    [[[1.0, 4.0, 3.0]]]
    """
    return DEFORM_CONV1D(
        (x, offset, weight, mask, bias),
        stride=stride,
        padding=padding,
        dilation=dilation,
        border=border,
        deterministic=deterministic,
    )


def sample_points(
    x: ArrayT,
    points: ArrayT,
    *,
    border: Border = "constant",
    deterministic: bool = True,
) -> ArrayT:
    """Read an image at any points, with bilinear interpolation.

    ``y[n,c,i,p] = x[n,c](points[n,i,:,p])``, where ``x(point)`` interpolates between the four pixels around
    the point, each of which is what `border` says if it is outside the image.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input: float32 or float64, on a GPU float16 and bfloat16 too. The notes say which dtypes
        the other arrays may have beside it.
    points : array, (N, P, 2, Ho, Wo)
        P points (y, x) for each output position, in pixels; pixel centres have integer coordinates.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the image, in the words of `numpy.pad`: zeros; the image mirrored about its last
        pixel, or behind it; its last pixel; the image again. ``scipy.ndimage`` calls "symmetric" "reflect".
    deterministic : bool
        See `deform_conv2d`.

    Returns
    -------
    array, (N, C, P, Ho, Wo)
        The sampled values.

    Raises
    ------
    TypeError, ValueError
        As `deform_conv2d`.

    Notes
    -----
    Only the inputs are saved; the backward pass reads x once more. Points far outside, at infinity and NaN
    are treated as by `deform_conv2d`, and so are derivatives at integers and infinite values.

    Where x has 16 bits, `points` may be float32, and mostly must be: float16 has no half pixels from the
    1,024th column on, bfloat16 none from the 128th. The output and the gradient of x have the dtype of x.

    Points are taken as they are given. From the 16,384th column on the next number in float32 is 1/512 pixel
    away; the offsets of `deform_conv2d`, which begin at the regular grid, do not lose digits like that.

    References
    ----------
    Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x = np.arange(12.0).reshape(1, 1, 3, 4)
    >>> points = np.array([[1.0, 2.0], [0.5, 0.5], [-0.5, 3.0]]).reshape(1, 3, 2, 1, 1)
    >>> dyn.sample_points(x, points).ravel().tolist()
    [6.0, 2.5, 1.5]
    """
    return SAMPLE_POINTS((x, points), border=border, deterministic=deterministic)


def _check_deform_conv(
    name: str,
    space: Space,
    x: Any,
    offset: Any,
    weight: Any,
    mask: Any,
    bias: Any,
    *,
    border: Any,
    deterministic: Any,
    **steps: Any,
) -> Checked:
    deterministic = check_flag(name, "deterministic", deterministic)
    sizes = check_shape(name, "x", x, space.pattern("N C image"), {})
    sizes = check_shape(name, "weight", weight, space.pattern("O C/groups kernel"), sizes)
    window = check_window(name, "weight", sizes, space, **steps)
    _check_groups(name, sizes)
    sizes |= window.sizes
    offset = with_taps(name, "offset", offset, sizes, space, len(space.image))
    per_tap = "N D kernel outputs"
    pattern = space.pattern(per_tap if space is LINE else "N D kernel 2 outputs")
    sizes = check_shape(name, "offset", offset, pattern, {**sizes, "2": 2})
    check_divides(name, "offset", "D", "C", sizes)
    if mask is not None:
        mask = with_taps(name, "mask", mask, sizes, space, 1)
        check_shape(name, "mask", mask, space.pattern(per_tap), sizes)
        mask = space.in_plane(mask, per_tap)
    if bias is not None:
        check_shape(name, "bias", bias, "O", sizes)
    border = check_samples(name, border, space.image, x.shape, prod(window.outputs))
    params = {**window.bounded(name), "border": border, "deterministic": deterministic}
    x, weight = space.in_plane(x, "N C image"), space.in_plane(weight, "O C/groups kernel")
    zeros = {}
    if space is LINE:
        offset, zeros = space.in_plane(offset, per_tap)[:, :, :, :, None], {"offset": 4}
    shapes = window.output_shapes(sizes["N"], sizes["O"])
    return Checked((x, offset, weight, mask, bias), params, *shapes, zeros)


def _check_groups(name: str, sizes: dict[str, int]) -> None:
    """Require the kernel's number of channels to divide C into groups that divide O."""
    per_group, channels, outputs = sizes["C/groups"], sizes["C"], sizes["O"]
    if per_group == channels:
        return
    if not per_group or not channels or channels % per_group:
        raise ValueError(
            f"{name}: weight has C/groups = {per_group} channels; they must be a divisor of C = {channels}"
        )
    groups = channels // per_group
    if outputs % groups:
        raise ValueError(
            f"{name}: weight has O = {outputs} and C/groups = {per_group}, so groups = {groups}; "
            "it must divide O"
        )


def _check_sample_points(x: Any, points: Any, *, border: Any, deterministic: Any) -> Checked:
    name = "sample_points"
    deterministic = check_flag(name, "deterministic", deterministic)
    sizes = check_shape(name, "x", x, "N C H W", {})
    sizes = check_shape(name, "points", points, "N P 2 Ho Wo", {**sizes, "2": 2})
    shape = tuple(sizes[key] for key in ("N", "C", "P", "Ho", "Wo"))
    border = check_samples(name, border, PLANE.image, x.shape, prod(shape[2:]))
    return Checked((x, points), {"border": border, "deterministic": deterministic}, shape)


DEFORM_CONV2D = register(
    deform_conv2d,
    forward=forms(_reference.forward, _cpu.forward, _cuda.forward),
    backward=forms(_reference.backward, _cpu.backward, _cuda.backward),
    check=partial(_check_deform_conv, "deform_conv2d", PLANE),
    composite=_composite.forward,
    keywords=("mask", "bias"),
    may_be_float32=("offset", "weight", "mask", "bias"),
    halo=windowed("offset mask", kernel="weight", moved="offset"),
)
DEFORM_CONV1D = register(
    deform_conv1d,
    forward=DEFORM_CONV2D.forward,
    backward=DEFORM_CONV2D.backward,
    check=partial(_check_deform_conv, "deform_conv1d", LINE),
    composite=OnALine(_composite.forward, {1: 4}),
    keywords=("mask", "bias"),
    may_be_float32=DEFORM_CONV2D.may_be_float32,
    halo=windowed("offset mask", kernel="weight", moved="offset", space=LINE),
    by_x=("cpu",),
)
SAMPLE_POINTS = register(
    sample_points,
    forward=forms(_reference.sample_forward, _cpu.sample_forward, _cuda.sample_forward),
    backward=forms(_reference.sample_backward, _cpu.sample_backward, _cuda.sample_backward),
    check=_check_sample_points,
    composite=_composite.sample_forward,
    may_be_float32=("points",),
    halo=AtPoints("points", values="points"),
)


class DeformConv2dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `deform_conv2d` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    offset: ArrayT
    weight: ArrayT
    mask: ArrayT | None
    bias: ArrayT | None


class SamplePointsGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `sample_points` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    points: ArrayT


@backward_of(DEFORM_CONV2D, DeformConv2dGradients)
def deform_conv2d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    offset: ArrayT,
    weight: ArrayT,
    *,
    mask: ArrayT | None = None,
    bias: ArrayT | None = None,
    stride: Pair = 1,
    padding: Pair | None = 0,
    dilation: Pair = 1,
    border: Border = "constant",
    deterministic: bool = True,
    needs: Needs = None,
) -> DeformConv2dGradients[ArrayT]:
    """Gradients of `deform_conv2d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, weight = np.array([0.0, 2.0, 6.0]).reshape(1, 1, 1, 3), np.ones((1, 1, 1, 1))
    >>> offset = np.full((1, 1, 1, 1, 2, 1, 3), [[[0.0]], [[0.5]]])  # half a pixel to the right
    >>> grads = dyn.deform_conv2d_backward(np.ones_like(x), x, offset, weight)
    >>> grads.x.ravel().tolist(), grads.offset[0, 0, 0, 0, 1, 0].tolist()
    ([0.5, 1.0, 1.0], [2.0, 4.0, -6.0])
    """


class DeformConv1dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `deform_conv1d` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    offset: ArrayT
    weight: ArrayT
    mask: ArrayT | None
    bias: ArrayT | None


@backward_of(DEFORM_CONV1D, DeformConv1dGradients)
def deform_conv1d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    offset: ArrayT,
    weight: ArrayT,
    *,
    mask: ArrayT | None = None,
    bias: ArrayT | None = None,
    stride: SupportsIndex = 1,
    padding: SupportsIndex | None = 0,
    dilation: SupportsIndex = 1,
    border: Border = "constant",
    deterministic: bool = True,
    needs: Needs = None,
) -> DeformConv1dGradients[ArrayT]:
    """Gradients of `deform_conv1d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, offset = np.array([[[0.0, 2.0, 6.0]]]), np.full((1, 1, 1, 3), 0.5)
    >>> grads = dyn.deform_conv1d_backward(np.ones_like(x), x, offset, np.ones((1, 1, 1)))
    >>> grads.x.ravel().tolist(), grads.offset.ravel().tolist()
    ([0.5, 1.0, 1.0], [2.0, 4.0, -6.0])
    """


@backward_of(SAMPLE_POINTS, SamplePointsGradients)
def sample_points_backward(
    grad_output: ArrayT,
    x: ArrayT,
    points: ArrayT,
    *,
    border: Border = "constant",
    deterministic: bool = True,
    needs: Needs = None,
) -> SamplePointsGradients[ArrayT]:
    """Gradients of `sample_points`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, points = np.array([0.0, 2.0, 6.0]).reshape(1, 1, 1, 3), np.array([0.0, 1.5])
    >>> grads = dyn.sample_points_backward(np.ones((1, 1, 1, 1, 1)), x, points.reshape(1, 1, 2, 1, 1))
    >>> grads.x.ravel().tolist(), grads.points.ravel().tolist()
    ([0.0, 0.5, 0.5], [-4.0, 4.0])
    """
