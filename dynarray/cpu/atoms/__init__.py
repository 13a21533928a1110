"""`atom_conv2d` and `compose_atoms` on the CPU.

In the order in which a call flows:

- `forms`: the forward and backward pass of `atom_conv2d` on arrays.
- `plan`: how outputs are cut into tiles, and how what a tile reads is packed; the records of that.
- `kernels`: packing, filtered channels, and outputs.
- `gradients`: the gradients of x, atoms, coefficients and bias.
- `filter_first`, `mix_first`, `at_once`: the ways that calls of different sizes go.
- `composition`: all of `compose_atoms`.
"""

from .composition import compose_atoms_backward as compose_backward
from .composition import compose_atoms_forward as compose_forward
from .forms import atom_conv2d_backward as backward
from .forms import atom_conv2d_forward as forward

__all__ = ["backward", "compose_backward", "compose_forward", "forward"]
