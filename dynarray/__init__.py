"""Dynamic filters for NumPy and CuPy arrays, with exact gradients. See `OPERATORS` for what there is."""

from ._dispatch import use_backend as use_backend
from ._operator import OPERATORS as OPERATORS
from ._operator import Operator as Operator
from .atom_bases import fourier_bessel_bases as fourier_bessel_bases
from .atom_bases import multiscale_bases as multiscale_bases
from .atoms import atom_conv2d as atom_conv2d
from .atoms import atom_conv2d_backward as atom_conv2d_backward
from .atoms import compose_atoms as compose_atoms
from .atoms import compose_atoms_backward as compose_atoms_backward
from .cpu.parallel import get_num_threads as get_num_threads
from .cpu.parallel import set_num_threads as set_num_threads
from .deform import deform_conv2d as deform_conv2d
from .deform import deform_conv2d_backward as deform_conv2d_backward
from .deform import sample_points as sample_points
from .deform import sample_points_backward as sample_points_backward
from .local_filter import carafe as carafe
from .local_filter import carafe_backward as carafe_backward
from .local_filter import ddf as ddf
from .local_filter import ddf_backward as ddf_backward
from .local_filter import ddf_upsample as ddf_upsample
from .local_filter import ddf_upsample_backward as ddf_upsample_backward
from .local_filter import involution as involution
from .local_filter import involution_backward as involution_backward
from .local_filter import local_filter2d as local_filter2d
from .local_filter import local_filter2d_backward as local_filter2d_backward
