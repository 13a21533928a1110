"""`local_filter2d` on the CPU: which way a call goes.

A single tap makes products of pixels, which may count several times. Filters of few channels are applied
directly. With more, outputs as large as the image, or nearly, are made in place. Where that does not apply,
or zeros that stand for nothing may have met NaN or infinity, the general form follows, and for gradients
where that may have happened to it as well, the definition.
"""

from typing import Any

from ..engine.compile import flag
from ..engine.memory import zeros_where
from .definition import definition_backward
from .direct import direct_applies, direct_backward, direct_forward
from .general import general_backward, general_forward
from .in_place import in_place_applies, in_place_backward, in_place_forward
from .items import FilterArrays, FilterWindow
from .single_tap import single_applies, single_backward, single_forward
from .single_upsampled import upsampled_applies, upsampled_backward, upsampled_forward


def local_filter2d_forward(
    x: Any, weight: Any, channel_weight: Any, *, combine: str, **params: Any
) -> tuple[Any, tuple]:
    """Output of `local_filter2d`; keeps the inputs for the backward pass."""
    add = flag(combine == "add" and channel_weight is not None)
    inputs, window = FilterArrays(x, weight, channel_weight), FilterWindow(**params, add=add)
    if single_applies(inputs, window):
        return single_forward(inputs, window), tuple(inputs)
    if upsampled_applies(inputs, window):
        return upsampled_forward(inputs, window), tuple(inputs)
    if direct_applies(inputs, window):
        return direct_forward(inputs, window), tuple(inputs)
    y = in_place_forward(inputs, window) if in_place_applies(inputs, window) else None
    return general_forward(inputs, window) if y is None else y, tuple(inputs)


def local_filter2d_backward(
    grad_output: Any, kept: tuple, needs: tuple[bool, bool, bool], *, combine: str, **params: Any
) -> tuple[Any, Any, Any]:
    """Gradients of `local_filter2d` with respect to x, weight and channel_weight."""
    inputs, add = FilterArrays(*kept), flag(combine == "add" and kept[2] is not None)
    if not grad_output.size:
        return tuple(zeros_where(inputs, needs))
    grads, args = None, (grad_output, inputs, needs, FilterWindow(**params, add=add))
    if single_applies(inputs, args[3]):
        return tuple(single_backward(*args))
    if upsampled_applies(inputs, args[3]):
        return tuple(upsampled_backward(*args))
    direct = direct_applies(inputs, args[3])
    if direct:
        grads = direct_backward(*args)
    elif in_place_applies(inputs, args[3]):
        grads = in_place_backward(*args)
    if grads is None and inputs.x.size and not direct:  # without pixels there are still zeros around them
        grads = general_backward(*args)
    if grads is None:
        grads = definition_backward(*args)
    return tuple(grads)
