"""`local_filter2d` and its faces on the CPU."""

from .forms import backward as backward
from .forms import forward as forward
