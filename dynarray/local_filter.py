"""Filters that change from pixel to pixel, each shared by the channels of a group.

One operator, `local_filter2d`, and its published faces: `ddf` and `ddf_upsample` (Decoupled Dynamic
Filters), `carafe` and `involution`. A face differs in the order and shape of its arguments only and runs the
same kernels.
"""

from functools import partial
from typing import Any

from ._check import check_choice, check_divides, check_int, check_pair, check_shape
from ._geometry import PLANE, Space, check_window
from ._operator import Checked, Form, backward_of, forms, register

COMBINE = ("mul", "add")


def local_filter2d(
    x: Any,
    weight: Any,
    channel_weight: Any = None,
    *,
    combine: str = "mul",
    stride: Any = 1,
    dilation: Any = 1,
    padding: Any = None,
    upsample: int = 1,
) -> Any:
    """Filter each pixel with its own kernel, shared by the channels of a group.

    ``y[n,c,h,w] = sum_ab (weight[n,g,a,b,h,w] o channel_weight[n,c,a,b]) * x[n,c,q]`` with group ``g = c //
    (C/G)``, ``q = (h*s_y - pad_y + a*d_y, w*s_x - pad_x + b*d_x)``, x zero outside the image, and o the
    operation of `combine`. With ``upsample = u`` tap (a, b) of output (h, w) reads around ``(h // u, w //
    u)`` instead, and each of the u*u sub-pixel phases ``(h % u, w % u)`` has its own channel weights.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input.
    weight : array, (N, G, kh, kw, Ho, Wo)
        One kernel per output pixel and group; G divides C.
    channel_weight : array, (N, C, kh, kw) or, with `upsample` u, (N, u, u, C, kh, kw), optional
        One kernel per channel, combined with the kernel of the pixel.
    combine : {"mul", "add"}
        How the two kernels are combined.
    stride, dilation : int or (y, x)
        Step between outputs and between taps, in input pixels.
    padding : int or (y, x), optional
        Zeros added on each side. None means "same", ``dilation*(kernel - 1)/2``, and needs odd kernel sizes.
    upsample : int
        Outputs per input pixel and axis; above 1 it needs stride 1, odd kernels and ``padding=None``.

    Returns
    -------
    array, (N, C, Ho, Wo)
        ``Ho = floor((H + 2*pad_y - d_y*(kh-1) - 1)/s_y) + 1``, or u*H when upsampling.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library, device or dtype, for shapes that
        do not match, and for parameters out of range. The message names the argument.

    Notes
    -----
    The backward pass needs only the inputs, so nothing else is saved and nothing is recomputed.

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
    )


def ddf(
    x: Any,
    channel_filter: Any,
    spatial_filter: Any,
    *,
    combine: str = "mul",
    stride: Any = 1,
    dilation: Any = 1,
) -> Any:
    """Decoupled dynamic filter: a filter per pixel combined with a filter per channel.

    ``y[n,c,p] = sum_ab (spatial_filter[n,g,a,b,p] o channel_filter[n,c,a,b]) * x[n,c,q]``: see
    `local_filter2d`.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input.
    channel_filter : array, (N, C, kh, kw)
        One filter per channel.
    spatial_filter : array, (N, heads, kh, kw, Ho, Wo)
        One filter per output pixel and head; heads divides C, and kernel sizes are odd.
    combine : {"mul", "add"}
        How the two filters are combined.
    stride, dilation : int or (y, x)
        Step between outputs and between taps. Padding is "same".

    Returns
    -------
    array, (N, C, Ho, Wo)
        ``Ho = ceil(H / stride)``.

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
    return DDF((x, channel_filter, spatial_filter), combine=combine, stride=stride, dilation=dilation)


def ddf_upsample(
    x: Any, channel_filters: Any, spatial_filters: Any, *, combine: str = "mul", dilation: Any = 1
) -> Any:
    """Decoupled dynamic filters that upsample: each sub-pixel phase has filters of its own.

    Output pixel (h, w) filters x around ``(h // u, w // u)``: see `local_filter2d` with ``upsample = u``.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input.
    channel_filters : array, (N, u, u, C, kh, kw)
        One filter per sub-pixel phase and channel; the upsampling factor u is its second extent.
    spatial_filters : array, (N, heads, kh, kw, u*H, u*W)
        One filter per output pixel and head; heads divides C, and kernel sizes are odd.
    combine : {"mul", "add"}
        How the two filters are combined.
    dilation : int or (y, x)
        Step between taps, in pixels of x.

    Returns
    -------
    array, (N, C, u*H, u*W)
        The upsampled output.

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
    return DDF_UPSAMPLE((x, channel_filters, spatial_filters), combine=combine, dilation=dilation)


def carafe(x: Any, masks: Any, *, kernel_size: Any, groups: int = 1, scale: int = 2) -> Any:
    """Content-aware reassembly: each upsampled pixel is a weighted sum of a window of x.

    ``y[n,c,h,w] = sum_ab masks[n, (g*kh + a)*kw + b, h, w] * x[n,c, h//scale + a - (kh-1)/2, w//scale + b -
    (kw-1)/2]``.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input.
    masks : array, (N, G*kh*kw, scale*H, scale*W)
        The reassembly weights of every output pixel, used as they are (CARAFE normalises them by a softmax
        before).
    kernel_size : int or (y, x)
        Odd size of the window.
    groups : int
        G, which divides C.
    scale : int
        Upsampling factor.

    Returns
    -------
    array, (N, C, scale*H, scale*W)
        The upsampled output.

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
    return CARAFE((x, masks), kernel_size=kernel_size, groups=groups, scale=scale)


def involution(x: Any, weight: Any, *, stride: Any = 1, padding: Any = None, dilation: Any = 1) -> Any:
    """Involution: a kernel per pixel, shared by the channels of a group.

    ``y[n,c,p] = sum_ab weight[n,g,a,b,p] * x[n,c,q]``: `local_filter2d` without channel weights.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input.
    weight : array, (N, G, kh, kw, Ho, Wo)
        One kernel per output pixel and group; G divides C.
    stride, dilation : int or (y, x)
        Step between outputs and between taps.
    padding : int or (y, x), optional
        Zeros added on each side; None means "same" and needs odd kernel sizes.

    Returns
    -------
    array, (N, C, Ho, Wo)
        ``Ho = floor((H + 2*pad_y - d_y*(kh-1) - 1)/s_y) + 1``.

    References
    ----------
    Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition", CVPR 2021.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> dyn.involution(np.ones((1, 4, 5, 5)), np.ones((1, 2, 3, 3, 3, 3)), stride=2).shape
    (1, 4, 3, 3)
    """
    return INVOLUTION((x, weight), stride=stride, padding=padding, dilation=dilation)


def _check(
    operator: str,
    arrays: tuple[Any, Any, Any],
    names: tuple[str, str, str],
    *,
    combine: Any = "mul",
    upsample: int = 1,
    space: Space = PLANE,
    **steps: Any,
) -> Checked:
    """The check that all faces share; `names` are the face's own names for x, weight and channel_weight."""
    x, weight, channel_weight = arrays
    check_choice(operator, "combine", combine, COMBINE)
    of_images, of_weights = space.pattern("N C image"), space.pattern("N G kernel outputs")
    sizes = check_shape(operator, names[0], x, of_images, {})
    sizes = check_shape(operator, names[1], weight, of_weights, sizes)
    window = check_window(operator, names[1], sizes, space, **steps, upsample=upsample)
    sizes |= window.sizes
    check_shape(operator, names[1], weight, of_weights, {k: v for k, v in sizes.items() if k != "G"})
    if sizes["C"]:
        check_divides(operator, names[1], "G", "C", sizes)
    x, weight = space.in_plane(x, "N C image"), space.in_plane(weight, "N G kernel outputs")
    if channel_weight is not None:
        # Forms always get one set of channel weights per phase.
        phases = "u u " if upsample > 1 or channel_weight.ndim == 6 else ""
        pattern = space.pattern(f"N {phases}C kernel")
        check_shape(operator, names[2], channel_weight, pattern, {**sizes, "u": upsample})
        shape = (sizes["N"], upsample, upsample, sizes["C"], *weight.shape[2:4])
        channel_weight = channel_weight.reshape(shape)
    params = {"combine": combine, **window.shortened(), "upsample": upsample}
    return Checked((x, weight, channel_weight), params, *window.output_shapes(sizes["N"], sizes["C"]))


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
    return _check(
        name, (x, weight, channel_weight), ("x", "weight", "channel_weight"), upsample=upsample, **params
    )


def _check_ddf(x: Any, channel_filter: Any, spatial_filter: Any, **params: Any) -> Checked:
    check_shape("ddf", "channel_filter", channel_filter, "N C kh kw", {})
    return _check(
        "ddf", (x, spatial_filter, channel_filter), ("x", "spatial_filter", "channel_filter"), **params
    )


def _check_ddf_upsample(x: Any, channel_filters: Any, spatial_filters: Any, **params: Any) -> Checked:
    name = "ddf_upsample"
    sizes = check_shape(name, "channel_filters", channel_filters, "N u u C kh kw", {})
    upsample = check_int(name, "channel_filters.shape[1]", sizes["u"], 1)
    names = ("x", "spatial_filters", "channel_filters")
    return _check(name, (x, spatial_filters, channel_filters), names, upsample=upsample, **params)


def _check_carafe(x: Any, masks: Any, *, kernel_size: Any, groups: Any, scale: Any) -> Checked:
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
    return _check("carafe", (x, weight, None), ("x", "masks", ""), upsample=scale)


def _check_involution(x: Any, weight: Any, **params: Any) -> Checked:
    return _check("involution", (x, weight, None), ("x", "weight", ""), **params)


_register = partial(
    register,
    forward=forms("local_filter", "forward"),
    backward=forms("local_filter", "backward"),
    composite=Form("dynarray.composite.local_filter", "forward"),
)

LOCAL_FILTER2D = _register(
    local_filter2d,
    check=_check_local_filter2d,
)
DDF = _register(
    ddf,
    check=_check_ddf,
    roles=("x", "spatial_filter", "channel_filter"),
)
DDF_UPSAMPLE = _register(
    ddf_upsample,
    check=_check_ddf_upsample,
    roles=("x", "spatial_filters", "channel_filters"),
)
CARAFE = _register(
    carafe,
    check=_check_carafe,
    roles=("x", "masks", ""),
)
INVOLUTION = _register(
    involution,
    check=_check_involution,
    roles=("x", "weight", ""),
)

local_filter2d_backward = backward_of(LOCAL_FILTER2D)
ddf_backward = backward_of(DDF)
ddf_upsample_backward = backward_of(DDF_UPSAMPLE)
carafe_backward = backward_of(CARAFE)
involution_backward = backward_of(INVOLUTION)
