"""Reverse-mode differentiation for NumPy and CuPy arrays: an explicit tape, `functions`, operators."""

from . import _dynarray as _dynarray
from . import functions as functions
from ._random import recomputing as recomputing
from .check import check_gradients as check_gradients
from .checkpoint import checkpoint as checkpoint
from .derivatives import grad as grad
from .derivatives import hessian as hessian
from .derivatives import hvp as hvp
from .derivatives import jacobian as jacobian
from .derivatives import jvp as jvp
from .derivatives import value_and_grad as value_and_grad
from .derivatives import vjp as vjp
from .function import differentiable as differentiable
from .functions import _numpy as _numpy
from .functions import _operators as _operators
from .halos import halo as halo
from .lift import SecondOrderError as SecondOrderError
from .lift import lift as lift
from .tape import Tape as Tape
from .variable import Variable as Variable
from .variable import stop_gradient as stop_gradient
