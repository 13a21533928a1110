"""Differentiable functions under their NumPy names; arrays give arrays, Variables give Variables.

What a function cannot take is a TypeError, or a ValueError if only its value, shape or axis does not fit,
with the names of function and argument; "Raises" says what is more than that.
"""

import builtins
from typing import TYPE_CHECKING, Any

import dynarray

from ..variable import stop_gradient as stop_gradient
from .activations import erf as erf
from .activations import gelu as gelu
from .activations import leaky_relu as leaky_relu
from .activations import log_softmax as log_softmax
from .activations import relu as relu
from .activations import sigmoid as sigmoid
from .activations import silu as silu
from .activations import softmax as softmax
from .activations import softplus as softplus
from .arithmetic import abs as abs
from .arithmetic import add as add
from .arithmetic import arctan2 as arctan2
from .arithmetic import cos as cos
from .arithmetic import divide as divide
from .arithmetic import exp as exp
from .arithmetic import hypot as hypot
from .arithmetic import log as log
from .arithmetic import log1p as log1p
from .arithmetic import multiply as multiply
from .arithmetic import negative as negative
from .arithmetic import power as power
from .arithmetic import sin as sin
from .arithmetic import sqrt as sqrt
from .arithmetic import square as square
from .arithmetic import subtract as subtract
from .arithmetic import tanh as tanh
from .borders import pad as pad
from .convolution import conv2d as conv2d
from .convolution import conv_transpose2d as conv_transpose2d
from .dropout import dropout as dropout
from .einsum import einsum as einsum
from .indexing import getitem as getitem
from .indexing import sort as sort
from .indexing import take as take
from .indexing import take_along_axis as take_along_axis
from .indexing import tril as tril
from .indexing import triu as triu
from .joining import array as array
from .joining import concatenate as concatenate
from .joining import repeat as repeat
from .joining import stack as stack
from .joining import tile as tile
from .linalg import inv as inv
from .linalg import norm as norm
from .linalg import solve as solve
from .linear_algebra import linear as linear
from .linear_algebra import matmul as matmul
from .linear_algebra import outer as outer
from .linear_algebra import tensordot as tensordot
from .losses import cross_entropy as cross_entropy
from .losses import end_point_error as end_point_error
from .losses import l1 as l1
from .losses import mse as mse
from .losses import smooth_l1 as smooth_l1
from .normalization import affine as affine
from .normalization import batch_norm as batch_norm
from .normalization import channel_statistics as channel_statistics
from .normalization import group_norm as group_norm
from .normalization import local_response_norm as local_response_norm
from .normalization import normalize as normalize
from .pooling import adaptive_avg_pool2d as adaptive_avg_pool2d
from .pooling import avg_pool2d as avg_pool2d
from .pooling import global_avg_pool as global_avg_pool
from .pooling import max_pool2d as max_pool2d
from .reductions import cumsum as cumsum
from .reductions import logsumexp as logsumexp
from .reductions import max as max
from .reductions import mean as mean
from .reductions import min as min
from .reductions import prod as prod
from .reductions import std as std
from .reductions import var as var
from .resize import pixel_shuffle as pixel_shuffle
from .resize import pixel_unshuffle as pixel_unshuffle
from .resize import resize as resize
from .resize import upsample_nearest as upsample_nearest
from .selection import clip as clip
from .selection import maximum as maximum
from .selection import minimum as minimum
from .selection import where as where
from .shapes import astype as astype
from .shapes import broadcast_to as broadcast_to
from .shapes import expand_dims as expand_dims
from .shapes import flatten as flatten
from .shapes import flip as flip
from .shapes import moveaxis as moveaxis
from .shapes import reshape as reshape
from .shapes import roll as roll
from .shapes import squeeze as squeeze
from .shapes import sum as sum
from .shapes import swapaxes as swapaxes
from .shapes import transpose as transpose

# ``from autodiff.functions import *`` leaves abs, max, min and sum to Python, as NumPy does.
__all__ = sorted(
    {"linalg", "stop_gradient", *dynarray.OPERATORS}
    | {
        name
        for name, value in globals().items()
        if getattr(value, "__module__", "").startswith(__name__) and not hasattr(builtins, name)
    }
)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The operators of dynarray, which `autodiff.lift` adds here."""
