"""`dynamic_sampling_conv2d` and `dynamic_conv2d` on the CPU."""

from .forms import conv2d_backward as conv2d_backward
from .forms import conv2d_forward as conv2d_forward
from .forms import sampling_backward as sampling_backward
from .forms import sampling_forward as sampling_forward
