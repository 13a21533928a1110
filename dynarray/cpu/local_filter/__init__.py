"""`local_filter2d` and its faces on the CPU.

A call enters by `forms`, which chooses the way it goes: `in_place` where outputs lie as the pixels do, or
else `general` (the plan) with `general_kernels`; gradients through `definition`, pixel by pixel, where values
are not finite. `items` is what all of them start from: operands, parameters, and how work is divided. The
innermost loops are those of `engine.strips`.
"""

from .forms import local_filter2d_backward as backward
from .forms import local_filter2d_forward as forward

__all__ = ["backward", "forward"]
