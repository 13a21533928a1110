"""Regions of feature maps: what detectors pool, and what is left of overlapping boxes.

`roi_align` averages bilinear samples of a region, `ps_roi_pool` averages pixels of score maps that depend on
the position in the region, as R-FCN does. `nms` is a plain function, no operator: it has no gradient.
"""

from math import prod
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, SupportsIndex

from ._check import check_flag, check_int, check_pair, check_real, check_shape
from ._dispatch import check_constant, choose_backend
from ._operator import Checked, backward_of, forms, modules, register
from .typing import ArrayT, Needs, Pair

__all__ = [
    "PsRoiPoolGradients",
    "RoiAlignGradients",
    "nms",
    "ps_roi_pool",
    "ps_roi_pool_backward",
    "roi_align",
    "roi_align_backward",
]


if TYPE_CHECKING:
    from rawkernels import regions as _cuda

    from .composite import regions as _composite
    from .cpu import regions as _cpu
    from .reference import regions as _reference
else:
    _reference, _composite, _cpu, _cuda = modules("regions")

_INTEGERS = tuple(f"{kind}{bits}" for bits in (64, 32, 16, 8) for kind in ("int", "uint"))
MOST_SAMPLES = 4096  # of a bin along an axis that a caller may ask for


def roi_align(
    x: ArrayT,
    boxes: ArrayT,
    batch_index: ArrayT,
    output_size: Pair,
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: SupportsIndex = 0,
    aligned: bool = True,
) -> ArrayT:
    """Average regions of images into a fixed number of bins each, sampled between pixels.

    ``y[r,c,i,j] = 1/(m_y*m_x) * sum_ab x[n,c](y_r + (i + (a + 1/2)/m_y)*h, x_r + (j + (b + 1/2)/m_x)*w)``
    with ``n = batch_index[r]``, where the box begins at ``(y_r, x_r) = (y0, x0)*spatial_scale - 1/2``, a bin
    is ``h = (y1 - y0)*spatial_scale/ph`` high and ``w`` wide, and has m_y times m_x samples.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The images, or their features: float32 or float64, on a GPU float16 and bfloat16 too.
    boxes : array, (R, 4), float32 or float64
        Regions ``(x0, y0, x1, y1)``, in pixels of the image of which x has one in ``1/spatial_scale``.
        No gradient.
    batch_index : array, (R,), integers
        The image of each region. No gradient.
    output_size : int or (y, x)
        Bins along each axis, (ph, pw).
    spatial_scale : float
        Pixels of x for each pixel in which boxes are given, ``1/16`` for features of stride 16.
    sampling_ratio : int
        Samples of a bin along each axis; 0 takes ``ceil(h)`` and ``ceil(w)``, at most one for each pixel.
    aligned : bool
        Whether ``(0.0, 0.0)`` is the corner of the first pixel, and its centre half a pixel further.
        False, which is the default of torchvision, leaves the half pixel out, and boxes are then at least
        one pixel of x wide and high.

    Returns
    -------
    array, (R, C, ph, pw)
        The means.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library or device, for dtypes, shapes and
        parameters out of range, and on the CPU for a `batch_index` that is that of no image. On a GPU, where
        looking at it would wait for all that comes before, regions of no image are NaN, and have no gradient.

    Notes
    -----
    A sample more than a pixel outside of the image (before -1, or beyond H or W) is 0. One that is less far
    outside is that of the nearest point between pixels. Pixels that a sample lies between take part
    whatever their weight, so that an infinity times a weight of 0 is NaN.

    With ``sampling_ratio=0`` an empty box has no samples, nor has one whose end lies before its beginning:
    their means are 0. With a number of samples the first is sampled at one point, the second backwards. Boxes
    with NaN or infinite coordinates are NaN where they would read something, and have no gradient.

    Only x is saved. Bins are placed in float64, whatever the dtypes. The gradient of a pixel is the sum over
    the regions that read it, one after the other: its bits are the same in each run.

    References
    ----------
    He et al., "Mask R-CNN", ICCV 2017.

    Examples
    --------
    The mean of four pixels, of which the box holds two rows and columns:

    >>> import numpy as np, dynarray as dyn
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> box, image = np.array([[1.0, 1.0, 3.0, 3.0]]), np.array([0])
    >>> dyn.roi_align(x, box, image, 1).item(), dyn.roi_align(x, box, image, 2).ravel().tolist()
    (7.5, [5.0, 6.0, 9.0, 10.0])
    """
    return ROI_ALIGN(
        (x,),
        boxes=boxes,
        batch_index=batch_index,
        output_size=output_size,
        spatial_scale=spatial_scale,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )


def ps_roi_pool(
    x: ArrayT, boxes: ArrayT, batch_index: ArrayT, output_size: Pair, *, spatial_scale: float = 1.0
) -> ArrayT:
    """Average regions of score maps that depend on the position in the region.

    ``y[r,o,i,j]`` is the mean of channel ``(o*ph + i)*pw + j`` of image ``batch_index[r]`` over the pixels of
    bin (i, j): rows from ``floor(y_r + i*h)`` to before ``ceil(y_r + (i + 1)*h)`` as far as they are in the
    image, and columns alike; 0 if there are none. The box begins at ``y_r = round(y0)*spatial_scale`` and
    ends at ``(round(y1) + 1)*spatial_scale``, it is at least 0.1 high and wide, and ph bins are h high each.

    Parameters
    ----------
    x : array, (N, O*ph*pw, H, W)
        The score maps: for each output a map for each bin. Dtypes are as in `roi_align`.
    boxes : array, (R, 4), float32 or float64
        Regions ``(x0, y0, x1, y1)``, first and last pixel. No gradient.
    batch_index : array, (R,), integers
        The image of each region. No gradient.
    output_size : int or (y, x)
        Bins along each axis, (ph, pw).
    spatial_scale : float
        Pixels of x for each pixel in which boxes are given.

    Returns
    -------
    array, (R, O, ph, pw)
        The means.

    Raises
    ------
    TypeError, ValueError
        As `roi_align`.

    Notes
    -----
    Halves are rounded away from zero. The box is that of R-FCN, whose last pixel belongs to it; torchvision
    takes ``round(x1*spatial_scale)`` for its end, and leaves out the last row and column of the image.

    Boxes with NaN or infinite coordinates are NaN and have no gradient. Only x is saved, and the gradient has
    the same bits in each run.

    References
    ----------
    Dai et al., "R-FCN: Object Detection via Region-based Fully Convolutional Networks", NeurIPS 2016.

    Examples
    --------
    Four maps, each constant, for 2 x 2 bins: each bin reads its own.

    >>> import numpy as np, dynarray as dyn
    >>> x = np.arange(4.0).reshape(1, 4, 1, 1) + np.zeros((6, 6))
    >>> dyn.ps_roi_pool(x, np.array([[1.0, 1.0, 4.0, 4.0]]), np.array([0]), 2).tolist()
    [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    return PS_ROI_POOL(
        (x,), boxes=boxes, batch_index=batch_index, output_size=output_size, spatial_scale=spatial_scale
    )


def nms(boxes: ArrayT, scores: ArrayT, iou_threshold: float) -> ArrayT:
    """Non-maximum suppression: of boxes that overlap, keep those of the highest scores.

    Boxes are taken by falling score. Each that is still there is kept, and those after it go whose
    intersection over union with it is greater than `iou_threshold`.

    Parameters
    ----------
    boxes : array, (R, 4)
        Boxes ``(x0, y0, x1, y1)``: float32 or float64, on a GPU float16 and bfloat16 too.
    scores : array, (R,)
        Their scores, of the dtype of `boxes`.
    iou_threshold : float
        Boxes that overlap by more are taken for one, from 0 to 1.

    Returns
    -------
    array of int64
        Indices of the boxes that are kept, by falling score; of equal scores the lower index comes first.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library, device, dtype or R.

    Notes
    -----
    Boxes whose coordinates are NaN overlap with none and are kept, as are those of no area. NaN is the
    highest of scores. There is no gradient. Beside the arrays it takes memory for a few numbers a box. How
    many boxes are kept decides the shape of the result: on a GPU it waits for that.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> boxes = np.array([[0.0, 0.0, 4.0, 4.0], [0.0, 1.0, 4.0, 5.0], [6.0, 0.0, 9.0, 3.0]])
    >>> dyn.nms(boxes, np.array([0.5, 0.9, 0.7]), 0.5).tolist()
    [1, 2]
    """
    backend = choose_backend("nms", {"boxes": boxes, "scores": scores})
    sizes = check_shape("nms", "boxes", boxes, "R 4", {"4": 4})
    check_shape("nms", "scores", scores, "R", sizes)
    threshold = check_real("nms", "iou_threshold", iou_threshold)
    kept: ArrayT = _NMS[backend](boxes, scores, threshold)
    return kept


_NMS = forms(_reference.nms, _cpu.nms, _cuda.nms)


def _check_regions(
    name: str, x: Any, boxes: Any, batch_index: Any, *, output_size: Any, spatial_scale: Any
) -> tuple[dict[str, int], dict[str, Any]]:
    """Sizes, and the parameters that both operators have."""
    bins = check_pair(name, "output_size", output_size, 1)
    scale = check_real(name, "spatial_scale", spatial_scale)
    if scale <= 0:
        raise ValueError(f"{name}: spatial_scale must be above 0, got {spatial_scale!r}")
    sizes = check_shape(name, "x", x, "N C H W", {"4": 4})
    check_constant(name, "boxes", boxes, x, ("float32", "float64"))
    check_constant(name, "batch_index", batch_index, x, _INTEGERS)
    sizes = check_shape(name, "boxes", boxes, "R 4", sizes)
    check_shape(name, "batch_index", batch_index, "R", sizes)
    params = {"boxes": boxes, "batch_index": batch_index, "output_size": bins, "spatial_scale": scale}
    return sizes, params


def _check_roi_align(
    x: Any, *, boxes: Any, batch_index: Any, sampling_ratio: Any, aligned: Any, **params: Any
) -> Checked:
    name = "roi_align"
    aligned = check_flag(name, "aligned", aligned)
    ratio = check_int(name, "sampling_ratio", sampling_ratio, 0)
    if ratio > MOST_SAMPLES:
        raise ValueError(f"{name}: sampling_ratio must be at most {MOST_SAMPLES}, got {sampling_ratio!r}")
    sizes, params = _check_regions(name, x, boxes, batch_index, **params)
    params |= {"sampling_ratio": ratio, "aligned": aligned}
    return Checked((x,), params, (sizes["R"], sizes["C"], *params["output_size"]))


def _check_ps_roi_pool(x: Any, *, boxes: Any, batch_index: Any, **params: Any) -> Checked:
    name = "ps_roi_pool"
    sizes, params = _check_regions(name, x, boxes, batch_index, **params)
    bins = params["output_size"]
    if sizes["C"] % prod(bins):
        raise ValueError(
            f"{name}: x must have O*ph*pw channels with output_size = {bins}, got C = {sizes['C']}"
        )
    return Checked((x,), params, (sizes["R"], sizes["C"] // prod(bins), *bins))


_CONSTANTS = "boxes", "batch_index", "output_size"
# They have no halo: which pixels a region reads depends on the boxes, and any may read all of an image.
ROI_ALIGN = register(
    roi_align,
    forward=forms(_reference.roi_align_forward, _cpu.roi_align_forward, _cuda.roi_align_forward),
    backward=forms(_reference.roi_align_backward, _cpu.roi_align_backward, _cuda.roi_align_backward),
    check=_check_roi_align,
    constants=_CONSTANTS,
    composite=_composite.roi_align_forward,
)
PS_ROI_POOL = register(
    ps_roi_pool,
    forward=forms(_reference.ps_roi_pool_forward, _cpu.ps_roi_pool_forward, _cuda.ps_roi_pool_forward),
    backward=forms(_reference.ps_roi_pool_backward, _cpu.ps_roi_pool_backward, _cuda.ps_roi_pool_backward),
    check=_check_ps_roi_pool,
    constants=_CONSTANTS,
    composite=_composite.ps_roi_pool_forward,
)


class RoiAlignGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `roi_align` by its arrays; None where one was not asked for."""

    x: ArrayT


@backward_of(ROI_ALIGN, RoiAlignGradients)
def roi_align_backward(
    grad_output: ArrayT,
    x: ArrayT,
    boxes: ArrayT,
    batch_index: ArrayT,
    output_size: Pair,
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: SupportsIndex = 0,
    aligned: bool = True,
    needs: Needs = None,
) -> RoiAlignGradients[ArrayT]:
    """Gradients of `roi_align`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    A box of two rows and columns, of which the mean is taken: each of its pixels has a quarter.

    >>> import numpy as np, dynarray as dyn
    >>> x, box, image = np.zeros((1, 1, 3, 3)), np.array([[1.0, 1.0, 3.0, 3.0]]), np.array([0])
    >>> grads = dyn.roi_align_backward(np.ones((1, 1, 1, 1)), x, box, image, 1)
    >>> grads.x[0, 0].tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.25, 0.25], [0.0, 0.25, 0.25]]
    """


class PsRoiPoolGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `ps_roi_pool` by its arrays; None where one was not asked for."""

    x: ArrayT


@backward_of(PS_ROI_POOL, PsRoiPoolGradients)
def ps_roi_pool_backward(
    grad_output: ArrayT,
    x: ArrayT,
    boxes: ArrayT,
    batch_index: ArrayT,
    output_size: Pair,
    *,
    spatial_scale: float = 1.0,
    needs: Needs = None,
) -> PsRoiPoolGradients[ArrayT]:
    """Gradients of `ps_roi_pool`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    Each map has the gradient of its own bin, shared by the four pixels of that:

    >>> import numpy as np, dynarray as dyn
    >>> x, box, image = np.zeros((1, 4, 4, 4)), np.array([[0.0, 0.0, 3.0, 3.0]]), np.array([0])
    >>> grads = dyn.ps_roi_pool_backward(np.ones((1, 1, 2, 2)), x, box, image, 2)
    >>> grads.x[0, 1].tolist()
    [[0.0, 0.0, 0.25, 0.25], [0.0, 0.0, 0.25, 0.25], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
