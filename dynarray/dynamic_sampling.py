"""Filters that are generated for every pixel, output and channel, over one or several sampled regions.

`dynamic_conv2d` takes the kernel of every pixel whole (Dynamic Filter Networks), `dynamic_conv1d` those of a
line. `dynamic_sampling_conv2d`
takes it in two factors, one over the channels and one over the window, applies it to a grid of regions
around the pixel and fuses what they give (Dynamic Sampling Convolutional Neural Networks).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, SupportsIndex, get_args

from ._border import find_outside
from ._check import check_choice, check_flag, check_int, check_pair, check_shape
from ._geometry import (
    FARTHEST,
    LINE,
    PLANE,
    Space,
    check_kernel,
    check_window,
    output_size,
)
from ._halo import Halo, Reach, windowed
from ._operator import Checked, backward_of, forms, modules, register
from .composite._line import OnALine
from .typing import ArrayT, Border, Needs, Pair

__all__ = [
    "DynamicConv1dGradients",
    "DynamicConv2dGradients",
    "DynamicSamplingConv2dGradients",
    "dynamic_conv1d",
    "dynamic_conv1d_backward",
    "dynamic_conv2d",
    "dynamic_conv2d_backward",
    "dynamic_sampling_conv2d",
    "dynamic_sampling_conv2d_backward",
]


if TYPE_CHECKING:
    from rawkernels import dynamic_sampling as _cuda

    from .composite import dynamic_sampling as _composite
    from .cpu import dynamic_sampling as _cpu
    from .reference import dynamic_sampling as _reference
else:
    _reference, _composite, _cpu, _cuda = modules("dynamic_sampling")

Fuse = Literal["sum", "max", "stack"]


def dynamic_conv2d(
    x: ArrayT,
    weight: ArrayT,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Pair | None = None,
    border: Border = "constant",
) -> ArrayT:
    """Convolve with a kernel of its own at every output pixel.

    ``y[n,o,h,w] = sum_cab weight[n,o,c,a,b,h,w] * x[n,c,q]`` with ``q = (h*s_y - pad_y + a*d_y, w*s_x - pad_x
    + b*d_x)`` and x outside the image as `border` says.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input: float32 or float64, on a GPU float16 and bfloat16 too. The other arrays have its dtype.
    weight : array, (N, O, C, kh, kw, Ho, Wo)
        One kernel per output pixel and output channel.
    stride, dilation : int or (y, x)
        Step between outputs and between taps, in input pixels.
    padding : int or (y, x), optional
        Pixels added on each side. None means "same", ``dilation*(kernel - 1)/2``, and needs odd kernel sizes.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the image, in the words of `numpy.pad`: zeros; the image mirrored about its last
        pixel, or behind it; its last pixel; the image again. ``scipy.ndimage`` calls "symmetric" "reflect".

    Returns
    -------
    array, (N, O, Ho, Wo)
        ``Ho = floor((H + 2*pad_y - d_y*(kh-1) - 1)/s_y) + 1``.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library, device or dtype, for shapes that
        do not match, and for parameters out of range. The message names the argument.

    Notes
    -----
    The backward pass needs only the inputs, so nothing else is saved and nothing is recomputed. Every weight
    is used once, so that reading them is all the time it takes: where they factor, as most do,
    `dynamic_sampling_conv2d` with one sample reads ``C + kh*kw`` numbers instead of ``C*kh*kw``.

    References
    ----------
    De Brabandere et al., "Dynamic Filter Networks", NeurIPS 2016.

    Examples
    --------
    Each pixel of a row looks where its own kernel points:

    >>> import numpy as np, dynarray as dyn
    >>> x = np.array([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3)
    >>> weight = np.zeros((1, 1, 1, 1, 3, 1, 3))
    >>> weight[..., [2, 0, 1], 0, [0, 1, 2]] = 1  # right, left, straight ahead
    >>> dyn.dynamic_conv2d(x, weight).ravel().tolist()
    [2.0, 1.0, 3.0]
    """
    return DYNAMIC_CONV2D((x, weight), stride=stride, dilation=dilation, padding=padding, border=border)


def dynamic_conv1d(
    x: ArrayT,
    weight: ArrayT,
    *,
    stride: SupportsIndex = 1,
    dilation: SupportsIndex = 1,
    padding: SupportsIndex | None = None,
    border: Border = "constant",
) -> ArrayT:
    """Convolve a line with a kernel of its own at every output sample.

    ``y[n,o,l] = sum_ca weight[n,o,c,a,l] * x[n,c, l*stride - padding + a*dilation]``: `dynamic_conv2d` on
    images of one row.

    Parameters
    ----------
    x : array, (N, C, L)
        The input; it and the other arrays have dtypes as in `dynamic_conv2d`.
    weight : array, (N, O, C, k, Lo)
        One kernel per output sample and output channel.
    stride, dilation : int
        Step between outputs and between taps, in input samples.
    padding : int, optional
        Samples added on each side. None means "same", ``dilation*(k - 1)/2``, and needs an odd kernel size.
    border : {"constant", "reflect", "symmetric", "edge", "wrap"}
        What lies outside the line, in the words of `numpy.pad`: zeros; the line mirrored about its last
        sample, or behind it; its last sample; the line again. ``scipy.ndimage`` calls "symmetric" "reflect".

    Returns
    -------
    array, (N, O, Lo)
        ``Lo = floor((L + 2*padding - dilation*(k-1) - 1)/stride) + 1``.

    Raises
    ------
    TypeError, ValueError
        As `dynamic_conv2d`.

    Examples
    --------
    Each sample looks where its own kernel points, right, left and straight ahead:

    >>> import numpy as np, dynarray as dyn
    >>> weight = np.zeros((1, 1, 1, 3, 3))
    >>> weight[..., [2, 0, 1], [0, 1, 2]] = 1
    >>> dyn.dynamic_conv1d(np.array([[[1.0, 2.0, 3.0]]]), weight).tolist()
    [[[2.0, 1.0, 3.0]]]
    """
    return DYNAMIC_CONV1D((x, weight), stride=stride, dilation=dilation, padding=padding, border=border)


def dynamic_sampling_conv2d(
    x: ArrayT,
    channel_kernel: ArrayT,
    spatial_kernel: ArrayT,
    sample_attention: ArrayT | None = None,
    position_attention: ArrayT | None = None,
    *,
    samples: SupportsIndex = 3,
    sample_stride: Pair = 1,
    dilation: Pair = 1,
    stride: Pair = 1,
    kernel_residual: bool = True,
    attention_residual: bool = True,
    fuse: Fuse = "sum",
) -> ArrayT:
    """Dynamic sampling convolution: a kernel per pixel, applied to a grid of regions around it.

    Pixel p of output channel o has the kernel ``K[o,c,a,b,p] = spatial_kernel[o,a,b,p]``, plus
    ``channel_kernel[o,c,p] + kernel_residual/C`` on the centre tap. It is applied around S x S places,
    ``h' = h*s_y + (i - (S-1)//2)*sample_stride_y`` and ``w'`` likewise with j:

    ``z[i,j,o,p] = As[o,i,j,p] * sum_cab x[c, h' + (a-r_y)*d_y, w' + (b-r_x)*d_x] * K[o,c,a,b,p] *
    Ap[o,a,b,h',w']``,

    and the output is the sum, the maximum or the stack of z over i and j. As and Ap are the given attention
    plus `attention_residual`; attention that is not given counts as 1. x and the given attention are zero
    outside the image.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input: float32 or float64, on a GPU float16 and bfloat16 too. The other arrays have its dtype.
    channel_kernel : array, (N, O, C, Ho, Wo)
        The part of the kernels on their centre tap, one number per channel.
    spatial_kernel : array, (N, O, kh, kw, Ho, Wo)
        The part of the kernels that all channels share; kernel sizes are odd.
    sample_attention : array, (N, O, S, S, Ho, Wo), optional
        A factor for every sampled region of every output pixel.
    position_attention : array, (N, O, kh, kw, H, W), optional
        A factor for every tap, at the place of the input on which the region is centred.
    samples : int
        S: regions per axis.
    sample_stride, dilation : int or (y, x)
        Step between regions, and between the taps of a region, in input pixels.
    stride : int or (y, x)
        Step between outputs.
    kernel_residual : bool
        Whether 1/C is added to the channel kernel, so that kernels of zeros average over the channels.
    attention_residual : bool
        Whether 1 is added to given attention.
    fuse : {"sum", "max", "stack"}
        What is made of the regions; the maximum is the first of several, and NaN if there is one.

    Returns
    -------
    array, (N, O, Ho, Wo) or, stacked, (N, S, S, O, Ho, Wo)
        ``Ho = ceil(H / stride_y)``.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library, device or dtype, for shapes that
        do not match, and for parameters out of range. The message names the argument.

    Notes
    -----
    The spatial kernel is the same for all channels, so that it may act on the sum of the channels: a region
    takes C + kh*kw multiply-adds per output instead of C*kh*kw (64 channels, 3 x 3: 73 instead of 576), and
    the gradient of x gets from it one map for all channels. Without attention, the sum over regions is one
    region of the box sum of x: then the number of regions does not matter.

    The backward pass needs the inputs and, for "max", which region was the largest, as (N, O, Ho, Wo)
    integers. The values of the regions, S*S times the output, are recomputed where the gradient of the
    attention needs them.

    References
    ----------
    Wu et al., "Dynamic Filtering with Large Sampling Field for ConvNets" (DSCNN), ECCV 2018. Equations as
    above and not as printed: the paper's equation 6 has the channel kernel off the centre as well.

    Examples
    --------
    Kernels of zeros leave the residual, the mean of the channels, at each of the 3 x 3 places:

    >>> import numpy as np, dynarray as dyn
    >>> x = np.ones((1, 4, 5, 5))
    >>> channel_kernel, spatial_kernel = np.zeros((1, 2, 4, 5, 5)), np.zeros((1, 2, 3, 3, 5, 5))
    >>> dyn.dynamic_sampling_conv2d(x, channel_kernel, spatial_kernel)[0, 0, 2].tolist()
    [6.0, 9.0, 9.0, 9.0, 6.0]
    """
    return DYNAMIC_SAMPLING_CONV2D(
        (x, channel_kernel, spatial_kernel, sample_attention, position_attention),
        samples=samples,
        sample_stride=sample_stride,
        dilation=dilation,
        stride=stride,
        kernel_residual=kernel_residual,
        attention_residual=attention_residual,
        fuse=fuse,
    )


def _check_dynamic_conv(
    name: str, space: Space, x: Any, weight: Any, *, border: Any, **steps: Any
) -> Checked:
    of_weights = space.pattern("N O C kernel outputs")
    sizes = check_shape(name, "x", x, space.pattern("N C image"), {})
    found = check_shape(name, "weight", weight, of_weights, sizes)
    window = check_window(name, "weight", found, space, **steps)
    kernel = {symbol: found[symbol] for symbol in space.kernel}
    check_shape(name, "weight", weight, of_weights, sizes | kernel | window.sizes)
    x, weight = space.in_plane(x, "N C image"), space.in_plane(weight, "N O C kernel outputs")
    outside = find_outside(name, border, window, x.shape, by_output=1)
    shapes = window.output_shapes(found["N"], found["O"])
    return Checked((x, weight), window.shortened(), *shapes, outside=outside)


def _check_dynamic_sampling_conv2d(
    x: Any,
    channel_kernel: Any,
    spatial_kernel: Any,
    sample_attention: Any,
    position_attention: Any,
    **params: Any,
) -> Checked:
    name = "dynamic_sampling_conv2d"
    samples = check_int(name, "samples", params["samples"], 1)
    steps = {key: check_pair(name, key, params[key], 1) for key in ("sample_stride", "dilation", "stride")}
    flags = {key: check_flag(name, key, params[key]) for key in ("kernel_residual", "attention_residual")}
    fuse = check_choice(name, "fuse", params["fuse"], get_args(Fuse))
    sizes = check_shape(name, "x", x, "N C H W", {})
    sizes["Ho"] = output_size(sizes["H"], 1, steps["stride"][0], 1, 0)
    sizes["Wo"] = output_size(sizes["W"], 1, steps["stride"][1], 1, 0)
    sizes = check_shape(name, "channel_kernel", channel_kernel, "N O C Ho Wo", sizes)
    sizes = check_shape(name, "spatial_kernel", spatial_kernel, "N O kh kw Ho Wo", sizes)
    kernel = check_kernel(name, "spatial_kernel", sizes)
    if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
        raise ValueError(f"{name}: spatial_kernel must have odd kernel sizes, got {kernel}")
    sizes["S"] = samples
    if sample_attention is not None:
        check_shape(name, "sample_attention", sample_attention, "N O S S Ho Wo", sizes)
    if position_attention is not None:
        check_shape(name, "position_attention", position_attention, "N O kh kw H W", sizes)
    rows, cols = (
        _shorten(name, sizes["HW"[axis]], kernel[axis], samples, *(steps[key][axis] for key in steps))
        for axis in range(2)
    )
    resolved = dict(zip(steps, zip(rows, cols)))
    shape: tuple[int, ...] = sizes["N"], sizes["O"], sizes["Ho"], sizes["Wo"]
    if fuse == "stack":
        shape = (shape[0], samples, samples, *shape[1:])
    arrays = x, channel_kernel, spatial_kernel, sample_attention, position_attention
    return Checked(arrays, {"samples": samples, **resolved, **flags, "fuse": fuse}, shape)


def _shorten(
    operator: str, size: int, kernel: int, samples: int, sample_stride: int, dilation: int, stride: int
) -> tuple[int, int, int]:
    """Steps no larger than need be: what was outside the image stays outside, the rest where it was."""
    stride = min(stride, max(1, size))
    reach = 2 * max(1, size)  # more than the distance from any output to any pixel
    sample_stride, dilation = (
        min(sample_stride, reach + (kernel - 1) * dilation),
        min(dilation, reach + (samples - 1) * sample_stride),
    )
    if (samples - 1) * sample_stride + (kernel - 1) * dilation > FARTHEST:
        raise ValueError(
            f"{operator}: sample_stride and dilation must not reach farther than {FARTHEST} pixels, "
            f"got {sample_stride} and {dilation}"
        )
    return sample_stride, dilation, stride


class _Sampled(Halo):
    """x is read by windows around each region, and its attention at the centre of each."""

    def into(
        self, name: str, params: Mapping[str, Any], arrays: Mapping[str, Any], origin: Sequence[int]
    ) -> dict[str, tuple[Reach, ...]]:
        samples = check_int(name, "samples", params["samples"], 1)
        steps = (check_pair(name, key, params[key], 1) for key in ("sample_stride", "dilation", "stride"))
        x, attention = list[Reach](), list[Reach]()
        for apart, d, s, k in zip(*steps, arrays["spatial_kernel"].shape[-4:-2]):
            before = (samples - 1) // 2 * apart
            after, window = (samples - 1) * apart - before, d * (k - 1) // 2
            attention.append(Reach(before, after, s))
            x.append(Reach(before + window, after + window, s))
        given = {"x": tuple(x), "position_attention": tuple(attention)}
        return {key: reaches for key, reaches in given.items() if key in arrays}


DYNAMIC_CONV2D = register(
    dynamic_conv2d,
    forward=forms(_reference.conv2d_forward, _cpu.conv2d_forward, _cuda.conv2d_forward),
    backward=forms(_reference.conv2d_backward, _cpu.conv2d_backward, _cuda.conv2d_backward),
    check=partial(_check_dynamic_conv, "dynamic_conv2d", PLANE),
    composite=_composite.conv2d_forward,
    halo=windowed("weight", kernel="weight"),
)
DYNAMIC_CONV1D = register(
    dynamic_conv1d,
    forward=DYNAMIC_CONV2D.forward,
    backward=DYNAMIC_CONV2D.backward,
    check=partial(_check_dynamic_conv, "dynamic_conv1d", LINE),
    composite=OnALine(_composite.conv2d_forward),
    halo=windowed("weight", kernel="weight", space=LINE),
)
DYNAMIC_SAMPLING_CONV2D = register(
    dynamic_sampling_conv2d,
    forward=forms(_reference.sampling_forward, _cpu.sampling_forward, _cuda.sampling_forward),
    backward=forms(_reference.sampling_backward, _cpu.sampling_backward, _cuda.sampling_backward),
    check=_check_dynamic_sampling_conv2d,
    composite=_composite.sampling_forward,
    halo=_Sampled("channel_kernel spatial_kernel sample_attention"),
)


class DynamicConv2dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `dynamic_conv2d` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    weight: ArrayT


class DynamicSamplingConv2dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `dynamic_sampling_conv2d` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    channel_kernel: ArrayT
    spatial_kernel: ArrayT
    sample_attention: ArrayT | None
    position_attention: ArrayT | None


@backward_of(DYNAMIC_CONV2D, DynamicConv2dGradients)
def dynamic_conv2d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    weight: ArrayT,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Pair | None = None,
    border: Border = "constant",
    needs: Needs = None,
) -> DynamicConv2dGradients[ArrayT]:
    """Gradients of `dynamic_conv2d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, weight = np.array([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3), np.full((1, 1, 1, 1, 3, 1, 3), 2.0)
    >>> grads = dyn.dynamic_conv2d_backward(np.ones_like(x), x, weight)
    >>> grads.weight[0, 0, 0, 0, :, 0, 1].tolist()  # what the middle pixel reads
    [1.0, 2.0, 3.0]
    >>> grads.x.ravel().tolist()
    [4.0, 6.0, 4.0]
    """


class DynamicConv1dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `dynamic_conv1d` by its arrays; None where one was not asked for or not given."""

    x: ArrayT
    weight: ArrayT


@backward_of(DYNAMIC_CONV1D, DynamicConv1dGradients)
def dynamic_conv1d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    weight: ArrayT,
    *,
    stride: SupportsIndex = 1,
    dilation: SupportsIndex = 1,
    padding: SupportsIndex | None = None,
    border: Border = "constant",
    needs: Needs = None,
) -> DynamicConv1dGradients[ArrayT]:
    """Gradients of `dynamic_conv1d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, weight = np.array([[[1.0, 2.0, 3.0]]]), np.full((1, 1, 1, 3, 3), 2.0)
    >>> grads = dyn.dynamic_conv1d_backward(np.ones_like(x), x, weight)
    >>> grads.weight[0, 0, 0, :, 1].tolist(), grads.x.ravel().tolist()
    ([1.0, 2.0, 3.0], [4.0, 6.0, 4.0])
    """


@backward_of(DYNAMIC_SAMPLING_CONV2D, DynamicSamplingConv2dGradients)
def dynamic_sampling_conv2d_backward(
    grad_output: ArrayT,
    x: ArrayT,
    channel_kernel: ArrayT,
    spatial_kernel: ArrayT,
    sample_attention: ArrayT | None = None,
    position_attention: ArrayT | None = None,
    *,
    samples: SupportsIndex = 3,
    sample_stride: Pair = 1,
    dilation: Pair = 1,
    stride: Pair = 1,
    kernel_residual: bool = True,
    attention_residual: bool = True,
    fuse: Fuse = "sum",
    needs: Needs = None,
) -> DynamicSamplingConv2dGradients[ArrayT]:
    """Gradients of `dynamic_sampling_conv2d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x = np.ones((1, 4, 5, 5))
    >>> channel_kernel, spatial_kernel = np.zeros((1, 2, 4, 5, 5)), np.zeros((1, 2, 3, 3, 5, 5))
    >>> y = dyn.dynamic_sampling_conv2d(x, channel_kernel, spatial_kernel)
    >>> grads = dyn.dynamic_sampling_conv2d_backward(np.ones_like(y), x, channel_kernel, spatial_kernel)
    >>> grads.spatial_kernel.shape, grads.sample_attention is None
    ((1, 2, 3, 3, 5, 5), True)
    """
