"""What a newcomer writes after reading the README: a photograph of bytes is blurred, more to the right.

Then the other way round: how would the loss change with the width of the blur, at each pixel?
"""

import numpy as np
from skimage import data

import dynarray as dyn
from autodiff import functions as F
from autodiff import value_and_grad

photo = data.astronaut()[::2, ::2]
height, width, _ = photo.shape
sigma = np.tile(np.linspace(0, 4, width), (height, 1))
widths = [0, 1, 2, 3, 4]

blurred = dyn.images.filter(photo, *dyn.kernels.gaussian_mixture(sigma, widths))
grey = dyn.images.filter(photo[..., 0], *dyn.kernels.gaussian_mixture(sigma, widths))
print("blurred:", blurred.shape, blurred.dtype, blurred.min(), blurred.max())


def loss(sigma):
    """How far the photograph is from the blurred one, blurred by another width."""
    guess = dyn.images.filter(photo / 255, *dyn.kernels.gaussian_mixture(sigma, widths))
    return F.mean(F.square(guess - blurred / 255))


value, slope = value_and_grad(loss)(0.9 * sigma)
print("loss:", float(value), "slope:", slope.shape, slope.dtype)
