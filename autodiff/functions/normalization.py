"""Normalisation."""

from typing import Any

from .arithmetic import sqrt
from .reductions import mean, var


def batch_norm(x: Any, mean: Any, variance: Any, weight: Any = None, bias: Any = None, epsilon: float = 1e-5) -> Any:
    """``(x - mean)/sqrt(variance + epsilon) * weight + bias`` with one statistic per channel of x (N, C, H, W)."""
    scale = 1 / sqrt(variance + epsilon)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return x * _per_channel(scale) + _per_channel(shift)


def channel_statistics(x: Any) -> tuple[Any, Any]:
    """Mean and (biased) variance of each channel of x (N, C, H, W)."""
    return mean(x, (0, 2, 3)), var(x, (0, 2, 3))


def _per_channel(values: Any) -> Any:
    return values.reshape((1, -1, 1, 1))
