"""`atom_conv2d` and `compose_atoms` on the CPU."""

from .forms import backward as backward
from .forms import compose_backward as compose_backward
from .forms import compose_forward as compose_forward
from .forms import forward as forward
