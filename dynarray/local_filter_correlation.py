"""`correlation2d`, what FlowNetC compares: the gradient of `local_filter2d` by its filters."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, SupportsIndex

from ._check import check_int, check_shape
from ._geometry import FARTHEST, check_window
from ._halo import Halo, Reach
from ._operator import Checked, backward_of, forms, modules, register
from .typing import ArrayT, Needs

__all__ = ["Correlation2dGradients", "correlation2d", "correlation2d_backward"]


if TYPE_CHECKING:
    from rawkernels import local_filter as _cuda

    from .composite import local_filter as _composite
    from .cpu import local_filter as _cpu
    from .reference import local_filter as _reference
else:
    _reference, _composite, _cpu, _cuda = modules("local_filter")


def correlation2d(
    x1: ArrayT, x2: ArrayT, *, max_displacement: SupportsIndex, step: SupportsIndex = 1
) -> ArrayT:
    """Compare each pixel of one image with those around its place in another.

    ``y[n, i*(2r+1) + j, p] = 1/C * sum_c x1[n,c,p] * x2[n,c, p + step*(i - r, j - r)]`` with ``r =
    max_displacement // step`` and i and j in 0 ... 2r: one map for each displacement, row by row; x2 is zero
    outside the image.

    Parameters
    ----------
    x1 : array, (N, C, H, W)
        Features of the first image: float32 or float64, on a GPU float16 and bfloat16 too.
    x2 : array, (N, C, H, W)
        Features of the second, of the dtype of `x1`.
    max_displacement : int
        The largest displacement that is compared along each axis, in pixels, at least 0. Where it is no
        multiple of `step`, the largest is the multiple below.
    step : int
        Step between displacements, in pixels.

    Returns
    -------
    array, (N, (2r+1)**2, H, W)
        Mean products; 441 maps for ``max_displacement=20, step=2``.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library, device, dtype or shape, and for
        parameters out of range. The message names the argument.

    Notes
    -----
    Times C it is the gradient of `local_filter2d` by its filters, for a gradient `x1` of the output and
    ``dilation=step``; its own gradients are a filter of `x2` and the gradient of one. It runs their kernels.
    Without channels the maps are zero.

    References
    ----------
    Dosovitskiy et al., "FlowNet: Learning Optical Flow with Convolutional Networks", ICCV 2015.

    Examples
    --------
    The second image is the first, moved by one pixel to the right: the map of that displacement is the
    largest where there is something to see.

    >>> import numpy as np, dynarray as dyn
    >>> first = np.array([[[[0.0, 3.0, 1.0, 0.0]]]])
    >>> maps = dyn.correlation2d(first, np.roll(first, 1, axis=3), max_displacement=1)
    >>> maps.shape, maps[0, 3:6, 0, 1].tolist()
    ((1, 9, 1, 4), [0.0, 0.0, 9.0])
    """
    return CORRELATION2D((x1, x2), max_displacement=max_displacement, step=step)


def _check_correlation2d(x1: Any, x2: Any, *, max_displacement: Any, step: Any) -> Checked:
    name = "correlation2d"
    step = check_int(name, "step", step, 1)
    radius = check_int(name, "max_displacement", max_displacement, 0) // step
    if radius * step > FARTHEST:
        raise ValueError(
            f"{name}: max_displacement must be at most {FARTHEST} pixels, got {max_displacement!r}"
        )
    sizes = check_shape(name, "x1", x1, "N C H W", {})
    check_shape(name, "x2", x2, "N C H W", sizes)
    side = 2 * radius + 1
    window = check_window(name, "x2", {**sizes, "kh": side, "kw": side}, dilation=step)
    batch, image = sizes["N"], window.outputs
    params = {"displacements": (side, side), **window.shortened()}
    return Checked((x1, x2), params, (batch, side * side, *image), (batch, 1, side, side, *image))


class _Compared(Halo):
    """x2 is read at all displacements."""

    def into(
        self, name: str, params: Mapping[str, Any], arrays: Mapping[str, Any], origin: Sequence[int]
    ) -> dict[str, tuple[Reach, ...]]:
        step = check_int(name, "step", params["step"], 1)
        far = check_int(name, "max_displacement", params["max_displacement"], 0) // step * step
        return {"x2": (Reach(far, far),) * 2}


CORRELATION2D = register(
    correlation2d,
    forward=forms(_reference.correlation_forward, _cpu.correlation_forward, _cuda.correlation_forward),
    backward=forms(_reference.correlation_backward, _cpu.correlation_backward, _cuda.correlation_backward),
    check=_check_correlation2d,
    composite=_composite.correlation_forward,
    halo=_Compared("x1"),
)


class Correlation2dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `correlation2d` by its arrays; None where one was not asked for."""

    x1: ArrayT
    x2: ArrayT


@backward_of(CORRELATION2D, Correlation2dGradients)
def correlation2d_backward(
    grad_output: ArrayT,
    x1: ArrayT,
    x2: ArrayT,
    *,
    max_displacement: SupportsIndex,
    step: SupportsIndex = 1,
    needs: Needs = None,
) -> Correlation2dGradients[ArrayT]:
    """Gradients of `correlation2d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x1, x2 = np.array([[[[0.0, 3.0, 1.0]]]]), np.array([[[[2.0, 5.0, 4.0]]]])
    >>> grads = dyn.correlation2d_backward(np.ones((1, 9, 1, 3)), x1, x2, max_displacement=1)
    >>> grads.x1.ravel().tolist(), grads.x2.ravel().tolist()  # sums of neighbours of the other
    ([7.0, 11.0, 9.0], [3.0, 4.0, 4.0])
    """
