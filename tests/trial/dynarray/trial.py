"""An operator that nobody needs: each pixel times a number of its own."""

from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from ._check import check_flag, check_shape
from ._halo import pointwise
from ._operator import Checked, backward_of, forms, modules, register
from .typing import ArrayT, Needs

if TYPE_CHECKING:
    from rawkernels import trial as _cuda

    from .composite import trial as _composite
    from .cpu import trial as _cpu
    from .reference import trial as _reference
else:
    _reference, _composite, _cpu, _cuda = modules("trial")

__all__ = ["TrialGate2dGradients", "trial_gate2d", "trial_gate2d_backward"]


def trial_gate2d(x: ArrayT, gate: ArrayT, *, negate: bool = False) -> ArrayT:
    """Multiply the channels of each pixel by a number: ``y[n,c,p] = gate[n,p] * x[n,c,p]``.

    Parameters
    ----------
    x : array, (N, C, H, W)
        The input: float32 or float64, on a GPU float16 and bfloat16 too.
    gate : array, (N, H, W)
        The numbers, of the dtype of `x`.
    negate : bool
        Whether the output is the negative of that.

    Returns
    -------
    array, (N, C, H, W)
        The products.

    Raises
    ------
    TypeError, ValueError
        For arrays that are no NumPy or CuPy arrays, or differ in library, device or dtype, and for shapes
        that do not match. The message names the argument.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> dyn.trial_gate2d(np.full((1, 2, 1, 1), 3.0), np.full((1, 1, 1), 2.0)).ravel().tolist()
    [6.0, 6.0]
    """
    return TRIAL_GATE2D((x, gate), negate=negate)


def _check(x: Any, gate: Any, *, negate: Any) -> Checked:
    name = "trial_gate2d"
    negate = check_flag(name, "negate", negate)
    sizes = check_shape(name, "x", x, "N C H W", {})
    check_shape(name, "gate", gate, "N H W", sizes)
    return Checked((x, gate), {"negate": negate}, tuple(x.shape))


TRIAL_GATE2D = register(
    trial_gate2d,
    forward=forms(_reference.forward, _cpu.forward, _cuda.forward),
    backward=forms(_reference.backward, _cpu.backward, _cuda.backward),
    check=_check,
    composite=_composite.forward,
    halo=pointwise("x", "gate"),
)


class TrialGate2dGradients(NamedTuple, Generic[ArrayT]):
    """Gradients of `trial_gate2d` by its arrays; None where one was not asked for."""

    x: ArrayT
    gate: ArrayT


@backward_of(TRIAL_GATE2D, TrialGate2dGradients)
def trial_gate2d_backward(
    grad_output: ArrayT, x: ArrayT, gate: ArrayT, *, negate: bool = False, needs: Needs = None
) -> TrialGate2dGradients[ArrayT]:
    """Gradients of `trial_gate2d`: vector-Jacobian products of `grad_output`.

    Examples
    --------
    >>> import numpy as np, dynarray as dyn
    >>> x, gate = np.full((1, 2, 1, 1), 3.0), np.ones((1, 1, 1))
    >>> grads = dyn.trial_gate2d_backward(np.ones_like(x), x, gate)
    >>> grads.x.ravel().tolist(), grads.gate.ravel().tolist()
    ([1.0, 1.0], [6.0])
    """
