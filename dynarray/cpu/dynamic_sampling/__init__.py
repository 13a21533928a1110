"""`dynamic_sampling_conv2d` and `dynamic_conv2d` on the CPU. A call goes through these, or some of them:

forms       both passes of `dynamic_sampling_conv2d`: how work is divided, and what is kept
records     what the kernels take; the words of all files below
bands       bands of output rows: which lines of x they read, where these lie, and packing them
kernels     the forward pass, of a few output channels of a row of outputs at a time
gradients   the two backward passes
held        both passes where regions have few terms, made with sums in registers; so held_gradients, writing
maximum     gradients where only the largest sample counts, and that one where outputs are not finite
boxes       all of it where a kernel sees one region: one sample, or no attention
attended    sums of one region, with attention or without, and the gradients of its smaller factors
dots        sums with a kernel of its own for each position, and their gradients
conv        both passes of `dynamic_conv2d`
definition  results that are not finite, once more

Sums of products are made by `engine.products`.
"""

from .conv import dynamic_conv2d_backward as conv2d_backward
from .conv import dynamic_conv2d_forward as conv2d_forward
from .forms import dynamic_sampling_conv2d_backward as sampling_backward
from .forms import dynamic_sampling_conv2d_forward as sampling_forward

__all__ = ["conv2d_backward", "conv2d_forward", "sampling_backward", "sampling_forward"]
