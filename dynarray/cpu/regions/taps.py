"""The pixels that a bin reads along one axis, each with its weight, in rising order."""

from typing import Any, NamedTuple

import numpy as np

from ..engine.compile import borrowing_jit


class BoxAxis(NamedTuple):
    """Where the bins of all boxes lie along an axis: either sampled, or with edges between whole pixels.

    A bin is NaN times the first pixel where `start` is NaN.
    """

    start: np.ndarray  # (R,)
    size: np.ndarray  # (R,), of a bin that is sampled
    count: np.ndarray  # (R,), its samples
    first: np.ndarray  # (R * bins,), its pixels where it is not sampled; else there are none
    stop: np.ndarray
    low: np.ndarray  # (R,), pixels of the image outside of which no bin reads, from and to
    high: np.ndarray
    bins: int
    extent: int  # of the image


class Taps(NamedTuple):
    """Pixels and weights of several bins of a box, one bin after the other."""

    begin: Any  # of each bin, and of one more
    pixel: Any
    weight: Any


def taps_size(bins: int, extent: int) -> Taps:
    """What they need as scratch memory: a bin has at most four pixels more than are in its extent."""
    most = extent + 4 * bins + 8
    return Taps((bins + 1, np.int64), (most, np.int64), most)


@borrowing_jit
def find_taps(taps: Taps, axis: BoxAxis, box: int, first: int, stop: int, adjoint: bool) -> None:
    """The pixels of the bins from `first` to `stop`; none for `adjoint` where they are NaN times a pixel."""
    n = 0
    for bin_ in range(first, stop):
        taps.begin[bin_ - first] = n
        if np.isnan(axis.start[box]):
            if not adjoint:
                taps.pixel[n], taps.weight[n] = axis.low[box], np.nan
                n += 1
        elif axis.first.size:
            low, high = axis.first[box * axis.bins + bin_], axis.stop[box * axis.bins + bin_]
            for pixel in range(low, high):
                taps.pixel[n], taps.weight[n] = pixel, 1.0 / (high - low)
                n += 1
        elif axis.count[box] >= 1.0:
            n = _sample(taps, n, axis, box, bin_)
    taps.begin[stop - first] = n


@borrowing_jit
def _sample(taps: Taps, n: int, axis: BoxAxis, box: int, bin_: int) -> int:
    """The pixels around the samples of a bin; returns how many taps there are with them."""
    count, extent, origin = axis.count[box], axis.extent, n
    step, base, share = axis.size[box] / count, axis.start[box] + bin_ * axis.size[box], 1.0 / count
    first, number = 0.0, count
    if step != 0.0:
        one, other = (-1.0 - base) / step - 0.5, (extent - base) / step - 0.5
        first = min(max(np.floor(min(one, other)) - 1.0, 0.0), count)
        number = min(max(np.ceil(max(one, other)) + 2.0 - first, 0.0), count - first)
        number = min(number, (extent + 1) / abs(step) + 5.0)
    if step < 0.0:  # from the other end, so that pixels rise
        first, step, base = count - first - number, -step, base + axis.size[box]
    for k in range(int(number)):
        position = base + (first + k + 0.5) * step
        if position < -1.0 or position > extent:
            continue
        position = max(position, 0.0)
        before = min(int(position), extent - 1)
        rest = position - before if before < extent - 1 else 0.0
        n = _add(taps, n, origin, before, (1.0 - rest) * share)
        if before < extent - 1:
            n = _add(taps, n, origin, before + 1, rest * share)
    return n


@borrowing_jit
def _add(taps: Taps, n: int, origin: int, pixel: int, weight: float) -> int:
    """Add a weight to that of a pixel, which is one of the last two of its bin if it was there before."""
    for back in range(1, 3):
        if n - back >= origin and taps.pixel[n - back] == pixel:
            taps.weight[n - back] += weight
            return n
    taps.pixel[n], taps.weight[n] = pixel, weight
    return n + 1
