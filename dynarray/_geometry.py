"""Sizes and positions of sliding windows: the one definition that checks, references and kernels share.

Along one axis, tap `a` of the window at output position `h` reads input position
``(h // upsample) * stride - padding + a * dilation``.
"""

from typing import Any

import numpy as np

from ._check import check_pair


def output_size(size: int, kernel: int, stride: int, dilation: int, padding: int, upsample: int = 1) -> int:
    """Number of output positions along one axis."""
    return max(0, (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1) * upsample


def input_positions(
    outputs: int, tap: int, stride: int, dilation: int, padding: int, upsample: int = 1
) -> np.ndarray:
    """The input position that one tap reads, for each output position along one axis."""
    return (np.arange(outputs) // upsample) * stride - padding + tap * dilation


def resolve_padding(
    operator: str, padding: Any, kernel_size: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """`padding` as a (y, x) pair; ``None`` means "same", ``dilation * (kernel - 1) / 2``, for odd kernels."""
    if padding is not None:
        return check_pair(operator, "padding", padding, 0)
    if any(size % 2 == 0 for size in kernel_size):
        raise ValueError(
            f"{operator}: padding=None means 'same' and needs odd kernel sizes, got {kernel_size}; "
            "give padding explicitly"
        )
    return dilation[0] * (kernel_size[0] - 1) // 2, dilation[1] * (kernel_size[1] - 1) // 2
