"""`deform_conv2d` and `sample_points` on the CPU."""

from .forms import backward as backward
from .forms import forward as forward
from .forms import sample_backward as sample_backward
from .forms import sample_forward as sample_forward
