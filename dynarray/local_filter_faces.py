"""The published faces of `local_filter2d`: `ddf`, `ddf_upsample`, `carafe` and `involution`.

A face differs in the order and shape of its arguments only: it is a check, and runs the same forms.
"""

from typing import Any, Generic, NamedTuple, SupportsIndex

from ._check import check_int, check_pair, check_shape
from ._halo import windowed
from ._operator import Checked, backward_of
from .local_filter import Combine, check_local_filter, register_local_filter
from .typing import ArrayT, Border, Needs, Pair

__all__ = [
    "CarafeGradients",
    "DdfGradients",
    "DdfUpsampleGradients",
    "InvolutionGradients",
    "carafe",
    "carafe_backward",
    "ddf",
    "ddf_backward",
    "ddf_upsample",
    "ddf_upsample_backward",
    "involution",
    "involution_backward",
]


def ddf(
    x: ArrayT,
    channel_filter: ArrayT,
    spatial_filter: ArrayT,
    *,
    combine: Combine = "mul",
    stride: Pair = 1,
    dilation: Pair = 1,
    border: Border = "constant",
) -> ArrayT:
    """Decoupled dynamic filter: a filter per pixel combined with a filter per channel.

    ``y[n,c,p] = sum_ab (spatial_filter[n,g,a,b,p] o channel_filter[n,c,a,b]) * x[n,c,q]``: see
    `local_filter2d`.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input; it and the other arrays have dtypes as in `local_filter2d`.
    channel_filter : array, (N, C, kh, kw)
        One filter per channel.
    spatial_filter : array, (N, heads, kh, kw, Ho, Wo)
        One filter per output pixel and head; heads divides C, and kernel sizes are odd.
    combine : {"mul", "add"}
        How the two filters are combined.
    stride, dilation : int or (y, x)
        Step between outputs and between taps, in pixels of x. Padding is "same".
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the image, in the words of `numpy.pad`: zeros; the image mirrored about its last
        pixel, or behind it; its last pixel; the image again. ``scipy.ndimage`` calls "symmetric" "reflect".

    Returns
    -------
    array, (N, C, Ho, Wo)
        ``Ho = ceil(H / stride)``.

    Raises
    ------
    TypeError, ValueError
        As `local_filter2d`.

    Notes
    -----
    Where x has 16 bits, either filter may be float32: see the notes of `local_filter2d`.

    References
    ----------
    Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x = np.ones((1, 2, 3, 3))
    >>> channel_filter = np.stack([np.full((3, 3), 1.0), np.full((3, 3), 2.0)])[None]
    >>> dyn.ddf(x, channel_filter, np.ones((1, 1, 3, 3, 3, 3)))[0, :, 1, 1].tolist()
    [9.0, 18.0]
    """
    return DDF(
        (x, channel_filter, spatial_filter), combine=combine, stride=stride, dilation=dilation, border=border
    )


def ddf_upsample(
    x: ArrayT,
    channel_filters: ArrayT,
    spatial_filters: ArrayT,
    *,
    combine: Combine = "mul",
    dilation: Pair = 1,
    border: Border = "constant",
) -> ArrayT:
    """Decoupled dynamic filters that upsample: each sub-pixel phase has filters of its own.

    Output pixel (h, w) filters x around ``(h // u, w // u)``: see `local_filter2d` with ``upsample = u``.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input; it and the other arrays have dtypes as in `local_filter2d`.
    channel_filters : array, (N, u, u, C, kh, kw)
        One filter per sub-pixel phase and channel; the upsampling factor u is its second extent.
    spatial_filters : array, (N, heads, kh, kw, u*H, u*W)
        One filter per output pixel and head; heads divides C, and kernel sizes are odd.
    combine : {"mul", "add"}
        How the two filters are combined.
    dilation : int or (y, x)
        Step between taps, in pixels of x.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the image, in the words of `numpy.pad`: zeros; the image mirrored about its last
        pixel, or behind it; its last pixel; the image again. ``scipy.ndimage`` calls "symmetric" "reflect".

    Returns
    -------
    array, (N, C, u*H, u*W)
        The upsampled output.

    Raises
    ------
    TypeError, ValueError
        As `local_filter2d`.

    Notes
    -----
    Where x has 16 bits, either array of filters may be float32: see the notes of `local_filter2d`.

    References
    ----------
    Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021.

    Examples
    --------
    A delta at the centre of every filter is nearest-neighbour upsampling:

    >>> import numpy as np, dynarray as dyn
    >>> x = np.array([[[[1.0, 2.0]]]])
    >>> spatial = np.zeros((1, 1, 3, 3, 2, 4))
    >>> spatial[:, :, 1, 1] = 1
    >>> dyn.ddf_upsample(x, np.ones((1, 2, 2, 1, 3, 3)), spatial)[0, 0].tolist()
    [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
    """
    return DDF_UPSAMPLE(
        (x, channel_filters, spatial_filters), combine=combine, dilation=dilation, border=border
    )


def carafe(
    x: ArrayT,
    masks: ArrayT,
    *,
    kernel_size: Pair,
    groups: SupportsIndex = 1,
    scale: SupportsIndex = 2,
    border: Border = "constant",
) -> ArrayT:
    """Content-aware reassembly: each upsampled pixel is a weighted sum of a window of x.

    ``y[n,c,h,w] = sum_ab masks[n, (g*kh + a)*kw + b, h, w] * x[n,c, h//scale + a - (kh-1)/2, w//scale + b -
    (kw-1)/2]``.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input; it and the other arrays have dtypes as in `local_filter2d`.
    masks : array, (N, G*kh*kw, scale*H, scale*W)
        The reassembly weights of every output pixel, used as they are (CARAFE normalises them by a softmax
        before).
    kernel_size : int or (y, x)
        Odd size of the window.
    groups : int
        G, which divides C.
    scale : int
        Upsampling factor.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the image, in the words of `numpy.pad`: zeros; the image mirrored about its last
        pixel, or behind it; its last pixel; the image again. ``scipy.ndimage`` calls "symmetric" "reflect".

    Returns
    -------
    array, (N, C, scale*H, scale*W)
        The upsampled output.

    Raises
    ------
    TypeError, ValueError
        As `local_filter2d`, and for a `kernel_size` that is not odd.

    Notes
    -----
    Where x has 16 bits, `masks` may be float32, as a softmax under automatic mixed precision gives them: see
    the notes of `local_filter2d`.

    References
    ----------
    Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> masks = np.full((1, 9, 4, 4), 1 / 9)
    >>> float(dyn.carafe(np.ones((1, 1, 2, 2)), masks, kernel_size=3)[0, 0, 0, 0].round(6))
    0.444444
    """
    return CARAFE((x, masks), kernel_size=kernel_size, groups=groups, scale=scale, border=border)


def involution(
    x: ArrayT,
    weight: ArrayT,
    *,
    stride: Pair = 1,
    padding: Pair | None = None,
    dilation: Pair = 1,
    border: Border = "constant",
) -> ArrayT:
    """Involution: a kernel per pixel, shared by the channels of a group.

    ``y[n,c,p] = sum_ab weight[n,g,a,b,p] * x[n,c,q]``: `local_filter2d` without channel weights.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input; it and the other arrays have dtypes as in `local_filter2d`.
    weight : array, (N, G, kh, kw, Ho, Wo)
        One kernel per output pixel and group; G divides C.
    stride : int or (y, x)
        Step between outputs, in pixels of x.
    padding : int or (y, x), optional
        Pixels added on each side; None means "same" and needs odd kernel sizes.
    dilation : int or (y, x)
        Step between taps, in pixels of x.
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
        As `local_filter2d`.

    Notes
    -----
    Where x has 16 bits, `weight` may be float32: see the notes of `local_filter2d`.

    References
    ----------
    Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition", CVPR 2021.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> dyn.involution(np.ones((1, 4, 5, 5)), np.ones((1, 2, 3, 3, 3, 3)), stride=2).shape
    (1, 4, 3, 3)
    """
    return INVOLUTION((x, weight), stride=stride, padding=padding, dilation=dilation, border=border)


def _check_ddf(x: Any, channel_filter: Any, spatial_filter: Any, **params: Any) -> Checked:
    check_shape("ddf", "channel_filter", channel_filter, "N C kh kw", {})
    return check_local_filter(
        "ddf", (x, spatial_filter, channel_filter), ("x", "spatial_filter", "channel_filter"), **params
    )


def _check_ddf_upsample(x: Any, channel_filters: Any, spatial_filters: Any, **params: Any) -> Checked:
    name = "ddf_upsample"
    sizes = check_shape(name, "channel_filters", channel_filters, "N u u C kh kw", {})
    upsample = check_int(name, "channel_filters.shape[1]", sizes["u"], 1)
    names = ("x", "spatial_filters", "channel_filters")
    return check_local_filter(name, (x, spatial_filters, channel_filters), names, upsample=upsample, **params)


def _check_carafe(x: Any, masks: Any, *, kernel_size: Any, groups: Any, scale: Any, border: Any) -> Checked:
    kh, kw = check_pair("carafe", "kernel_size", kernel_size, 1)
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"carafe: kernel_size must be odd, got {kernel_size!r}")
    groups = check_int("carafe", "groups", groups, 1)
    scale = check_int("carafe", "scale", scale, 1)
    sizes = check_shape("carafe", "x", x, "N C H W", {})
    expected = {
        "N": sizes["N"],
        "G*kh*kw": groups * kh * kw,
        "scale*H": scale * sizes["H"],
        "scale*W": scale * sizes["W"],
    }
    check_shape("carafe", "masks", masks, "N G*kh*kw scale*H scale*W", expected)
    weight = masks.reshape(masks.shape[0], groups, kh, kw, *masks.shape[2:])
    return check_local_filter("carafe", (x, weight, None), ("x", "masks", ""), upsample=scale, border=border)


def _check_involution(x: Any, weight: Any, **params: Any) -> Checked:
    return check_local_filter("involution", (x, weight, None), ("x", "weight", ""), **params)


DDF = register_local_filter(
    ddf,
    check=_check_ddf,
    roles=("x", "spatial_filter", "channel_filter"),
    may_be_float32=("channel_filter", "spatial_filter"),
    halo=windowed("spatial_filter", kernel="spatial_filter", per_image="channel_filter"),
)


DDF_UPSAMPLE = register_local_filter(
    ddf_upsample,
    check=_check_ddf_upsample,
    roles=("x", "spatial_filters", "channel_filters"),
    may_be_float32=("channel_filters", "spatial_filters"),
    halo=windowed(
        "spatial_filters", kernel="spatial_filters", scale="channel_filters", per_image="channel_filters"
    ),
)


CARAFE = register_local_filter(
    carafe,
    check=_check_carafe,
    roles=("x", "masks", ""),
    may_be_float32=("masks",),
    halo=windowed("masks", kernel="kernel_size", scale="scale"),
)


INVOLUTION = register_local_filter(
    involution,
    check=_check_involution,
    roles=("x", "weight", ""),
    may_be_float32=("weight",),
    halo=windowed("weight", kernel="weight"),
)


class DdfGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `ddf` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    channel_filter: ArrayT
    spatial_filter: ArrayT


class DdfUpsampleGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `ddf_upsample` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    channel_filters: ArrayT
    spatial_filters: ArrayT


class CarafeGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `carafe` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    masks: ArrayT


class InvolutionGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `involution` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    weight: ArrayT


@backward_of(DDF, DdfGradients)
def ddf_backward(
    grad_output: ArrayT,
    x: ArrayT,
    channel_filter: ArrayT,
    spatial_filter: ArrayT,
    *,
    combine: Combine = "mul",
    stride: Pair = 1,
    dilation: Pair = 1,
    border: Border = "constant",
    needs: Needs = None,
) -> DdfGradients[ArrayT]:
    """Gradients of `ddf`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, spatial_filter = np.ones((1, 2, 3, 3)), np.ones((1, 1, 3, 3, 3, 3))
    >>> grads = dyn.ddf_backward(np.ones_like(x), x, np.ones((1, 2, 3, 3)), spatial_filter)
    >>> grads.channel_filter[0, 0].tolist()  # so many pixels have a neighbour there
    [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """


@backward_of(DDF_UPSAMPLE, DdfUpsampleGradients)
def ddf_upsample_backward(
    grad_output: ArrayT,
    x: ArrayT,
    channel_filters: ArrayT,
    spatial_filters: ArrayT,
    *,
    combine: Combine = "mul",
    dilation: Pair = 1,
    border: Border = "constant",
    needs: Needs = None,
) -> DdfUpsampleGradients[ArrayT]:
    """Gradients of `ddf_upsample`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, spatial = np.array([[[[1.0, 2.0]]]]), np.zeros((1, 1, 3, 3, 2, 4))
    >>> spatial[:, :, 1, 1] = 1
    >>> grads = dyn.ddf_upsample_backward(np.ones((1, 1, 2, 4)), x, np.ones((1, 2, 2, 1, 3, 3)), spatial)
    >>> grads.x.tolist()  # each pixel was copied to four
    [[[[4.0, 4.0]]]]
    """


@backward_of(CARAFE, CarafeGradients)
def carafe_backward(
    grad_output: ArrayT,
    x: ArrayT,
    masks: ArrayT,
    *,
    kernel_size: Pair,
    groups: SupportsIndex = 1,
    scale: SupportsIndex = 2,
    border: Border = "constant",
    needs: Needs = None,
) -> CarafeGradients[ArrayT]:
    """Gradients of `carafe`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> masks = np.full((1, 9, 4, 4), 1 / 9)
    >>> grads = dyn.carafe_backward(np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2)), masks, kernel_size=3)
    >>> grads.x.round(6).tolist()
    [[[[1.777778, 1.777778], [1.777778, 1.777778]]]]
    """


@backward_of(INVOLUTION, InvolutionGradients)
def involution_backward(
    grad_output: ArrayT,
    x: ArrayT,
    weight: ArrayT,
    *,
    stride: Pair = 1,
    padding: Pair | None = None,
    dilation: Pair = 1,
    border: Border = "constant",
    needs: Needs = None,
) -> InvolutionGradients[ArrayT]:
    """Gradients of `involution`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, weight = np.ones((1, 4, 5, 5)), np.ones((1, 2, 3, 3, 5, 5))
    >>> grads = dyn.involution_backward(np.ones_like(x), x, weight, needs=(False, True))
    >>> grads.x, grads.weight[0, 0, :, :, 2, 2].tolist()  # two channels share each filter
    (None, [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0]])
    """
