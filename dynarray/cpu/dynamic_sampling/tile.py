"""Widths of scratch of `dynamic_sampling_conv2d` on the CPU."""

import numpy as np

from ..engine.compile import borrowing_jit
from ..engine.vectors import REGISTER_BYTES


@borrowing_jit
def lanes(like: np.ndarray) -> int:
    """Pixels of a strip: one register."""
    return REGISTER_BYTES // like.itemsize


@borrowing_jit
def padded_width(wide: int, like: np.ndarray) -> int:
    """A row of pixels in whole strips."""
    return -(-wide // lanes(like)) * lanes(like)
