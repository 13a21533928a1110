"""Builders of filters for photographs: what `dynarray.images.filter` takes.

Kernels for each pixel have shape (kh, kw, H, W), those for several pictures (N, kh, kw, H, W). Where so many
numbers are too many, a few fixed kernels are mixed at each pixel: `MixedKernels`, a pair that is given as
``filter(photo, *pair)``. All are applied as cross-correlations. Maps and guides may be arrays of NumPy and of
CuPy, and Variables of the tape.
"""

from .diffusion import diffusion as diffusion
from .edges import bilateral as bilateral
from .gaussian import gaussian as gaussian
from .gaussian import gaussian_mixture as gaussian_mixture
from .guided import guided as guided
from .mixed import MixedKernels as MixedKernels
from .motion import motion as motion
from .psf import psf_basis as psf_basis

__all__ = [
    "MixedKernels",
    "bilateral",
    "diffusion",
    "gaussian",
    "gaussian_mixture",
    "guided",
    "motion",
    "psf_basis",
]
