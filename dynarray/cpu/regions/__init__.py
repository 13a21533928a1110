"""`roi_align`, `ps_roi_pool` and `nms` on the CPU.

A bin of a box is a weighted sum of pixels, whose weights are those of rows times those of columns. All
channels of `roi_align` have the same weights: many lie side by side, pixel after pixel, so that each
pixel of a bin is one weight for a whole run of them; few are read where they are. Each channel of
`ps_roi_pool` is read by one bin alone: it stays as it is, and is gone through once, for all boxes.

`forms.py`     the forward and backward passes, as functions of arrays;
`plan.py`      where boxes lie, which parts of images they touch, and what is packed at once;
`taps.py`      the pixels of a bin of `roi_align` along an axis, and their weights;
`in_planes.py` its passes where channels or samples are few: nothing is packed;
`sampled.py`   its packing, sums over pixels, and their adjoint, a band of rows after the other;
`bins.py`      what it adds up: channels that lie side by side, in registers;
`pooled.py`    `ps_roi_pool`;
`nms.py`       what is left of overlapping boxes.
"""

from .forms import ps_roi_pool_backward, ps_roi_pool_forward, roi_align_backward, roi_align_forward
from .nms import nms

__all__ = ["nms", "ps_roi_pool_backward", "ps_roi_pool_forward", "roi_align_backward", "roi_align_forward"]
