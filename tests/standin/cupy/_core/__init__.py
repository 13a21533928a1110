"""`cupy._core`, of which this project asks what products of float32 are computed in."""

from . import _routines_linalg as _routines_linalg
from ._routines_linalg import product as product
