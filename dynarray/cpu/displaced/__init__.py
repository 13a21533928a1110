"""`displaced_conv2d` on the CPU: channels are blurred, and units read them at fractional displacements.

In the order in which a call flows:

- `forms`: the forward and backward pass on arrays; which blocks are packed when.
- `plan`: how the pixels that units read are laid out in planes, and in which blocks; the records of that.
- `blur`: kernels that blur images, and pack them into the planes.
- `kernels`: kernels that make units of weights and displacements, and outputs of units and planes.
- `gradients`: kernels that make the gradients of weights and displacements.
- `lines`, `line_kernels`, `line_tiles`: images of one row, of which units are a few taps: products.
- `tiles`: the innermost loops of both, in vector instructions.
- `definition`: kernels that make results which are not finite once more, number by number.
"""

from .forms import displaced_conv2d_backward as backward
from .forms import displaced_conv2d_forward as forward

__all__ = ["backward", "forward"]
