"""`displaced_conv2d` on the CPU."""

from .forms import backward as backward
from .forms import forward as forward
