"""`deform_conv2d` and `sample_points` on the CPU.

A call passes through

`forms.py`       the forward and backward passes, as functions of arrays;
`plan.py`        how a call is divided into chunks of channels, tiles of positions, and parts;
`points.py`      points between pixels: set up, the image there, and its adjoint;
`kernels.py`     images and weights packed, and the forward passes;
`gradients.py`   the backward passes.
`small_maps.py` how small maps with many weights go instead: all positions are multiplied at once.

Where a group or an offset group has few channels, which fill no vector, lanes are positions instead:

`few.py`         which calls these are, how they are divided, and their passes;
`few_outputs.py` the same for few outputs of many channels, which are mixed first;
`rows.py`        a row of points in one plane of the image: samples, their adjoint, derivatives;
`planes.py`      planes packed, and the forward passes;
`bands.py`       the backward passes.

Samples at few points a pixel are read in the image itself:

`flow.py`        which calls these are, how they are divided, and their passes;
`flow_rows.py`   a row of points in several planes: set up, samples, their adjoint, derivatives;
`flow_kernels.py` the passes.
"""

from .forms import deform_conv2d_backward as backward
from .forms import deform_conv2d_forward as forward
from .forms import sample_points_backward as sample_backward
from .forms import sample_points_forward as sample_forward

__all__ = ["backward", "forward", "sample_backward", "sample_forward"]
