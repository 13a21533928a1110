"""`roi_align`, `ps_roi_pool` and `nms` on the CPU.

A bin of a box is a weighted sum of pixels, whose weights are those of rows times those of columns. Channels
lie side by side, pixel after pixel, so that each pixel of a bin is one weight for a whole run of them:

`forms.py`     the forward and backward passes, as functions of arrays;
`plan.py`      which channels are packed together, and which bins they are read by;
`taps.py`      the pixels of a bin along an axis, and their weights;
`kernels.py`   packing, sums over pixels, and their adjoint, a band of rows after the other;
`nms.py`       what is left of overlapping boxes.
"""

from .forms import ps_roi_pool_backward, ps_roi_pool_forward, roi_align_backward, roi_align_forward
from .nms import nms

__all__ = ["nms", "ps_roi_pool_backward", "ps_roi_pool_forward", "roi_align_backward", "roi_align_forward"]
