"""Plain convolutions on the CPU: for the layers around the operators, and where an operator takes one.

A call passes through

`forms.py`     the convolution and its two gradients, as functions of arrays;
`plan.py`      how it is divided into blocks and packed, from shapes alone, kept from call to call;
`kernels.py`   blocks of pixels packed into planes, and the products with them.
"""

from .forms import conv_correlate as correlate
from .forms import conv_correlate_input as correlate_input
from .forms import conv_correlate_weight as correlate_weight
from .forms import conv_suits as suits
from .plan import ConvSteps as Steps

__all__ = ["Steps", "correlate", "correlate_input", "correlate_weight", "suits"]
