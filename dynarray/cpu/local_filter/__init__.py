"""`local_filter2d`, its faces, `correlation2d` and `mixed_filter2d` on the CPU.

A call enters by `forms`, which chooses the way it goes: `single_tap` where filters are of one tap on its own
pixel, `single_upsampled` if that counts several times; `direct` where they are those of few channels; with
more channels, `in_place` where outputs lie as the pixels do, or nearly, or else `general`; gradients through
`definition`, pixel by pixel, where values are not finite. With upsampling, `direct` and `in_place` repeat
pixels, see `repeated`; `spread` is for outputs that are fewer. `items` is what all of them start from:
operands, parameters, and how work is divided. The innermost loops are those of `engine.strips` and
`engine.patches`; those of `direct`, whose plan and kernels are files of their own, are in `direct_loops` and
`direct_planes`. `correlation` is `correlation2d`: its kernels, for few channels or images that are not too
large, are in `correlation_few`, `correlation_maps` and `correlation_images`, and else it calls these forms.

`mixed_filter2d` enters by `mixed`. `mixed_plan` cuts it into tiles, of which `mixed_kernels` make the filters
and apply them, with the loops of `engine.products`; `mixed_definition` is for what is not finite. Outputs are
made where they lie in `mixed_rows`, and where filters serve few channels, without filters, in `mixed_bases`.
"""

from .correlation import correlation2d_backward as correlation_backward
from .correlation import correlation2d_forward as correlation_forward
from .forms import local_filter2d_backward as backward
from .forms import local_filter2d_forward as forward
from .mixed import mixed_filter2d_backward as mixed_backward
from .mixed import mixed_filter2d_forward as mixed_forward

__all__ = [
    "backward",
    "correlation_backward",
    "correlation_forward",
    "forward",
    "mixed_backward",
    "mixed_forward",
]
