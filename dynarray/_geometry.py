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


def on_ring(positions: np.ndarray, size: int) -> np.ndarray:
    """Positions in an image with a ring of zeros around it, onto which fall all that are outside."""
    # np.clip takes three times as long on small arrays.
    return np.minimum(np.maximum(positions, -1), size) + 1


def shorten_steps(
    size: int, kernel: int, outputs: int, stride: int, dilation: int, padding: int
) -> tuple[int, int, int]:
    """Stride, dilation and padding no larger than need be: every tap reads what it read, inside the image.

    However far apart the positions of a call are, kernels then neither overflow nor plan for empty space.
    """
    if not size or not outputs:
        return 1, 1, 0
    dilation, padding = _shorten(size, kernel, dilation, (outputs - 1) * stride, padding)
    stride, padding = _shorten(size, outputs, stride, (kernel - 1) * dilation, padding)
    return stride, dilation, padding


def _shorten(size: int, count: int, step: int, span: int, padding: int) -> tuple[int, int]:
    """Step and padding for the intervals ``[i*step - padding, i*step - padding + span]`` with i < count."""
    reach = size + span
    if step <= reach:
        return step, padding
    # Steps are longer than the image and an interval together, so that at most one interval meets the image.
    i = max(0, -(-(padding - span) // step))
    if i < count and i * step - padding < size:
        return reach, padding - i * (step - reach)
    return reach, (count - 1) * reach + span + 1  # all before the image


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
