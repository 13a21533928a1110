"""Reverse-mode differentiation for NumPy and CuPy arrays: a small explicit tape over `functions` and dynarray's operators."""

from . import functions as functions
from .function import differentiable as differentiable
from .functions import _operators as _operators
from .functions import stop_gradient as stop_gradient
from .tape import Tape as Tape
from .variable import Variable as Variable
