"""The pixels that a bin reads along one axis, each with its weight."""

from typing import Any, NamedTuple

import numpy as np

from ..engine.compile import exact_jit
from .plan import RegionBoxes, RegionSizes


class RegionTaps(NamedTuple):
    """Pixels and weights of all bins of a box, one bin after the other."""

    begin: Any  # of each bin, and of one more
    pixel: Any
    weight: Any


def _taps_size(bins: int, extent: int) -> RegionTaps:
    """What they need as scratch memory: a bin has at most four pixels more than are in its extent, twice."""
    most = 2 * (extent + 4 * bins + 8)
    return RegionTaps((bins + 1, np.int64), (most, np.int64), most)


def taps_of_axes(sizes: RegionSizes) -> tuple[RegionTaps, RegionTaps]:
    """The same for rows and columns."""
    rows, columns = (_taps_size(*each) for each in zip(sizes.bins, sizes.extent, strict=True))
    return rows, columns


@exact_jit
def find_pixels(
    taps: RegionTaps, boxes: RegionBoxes, box: int, axis: int, sizes: RegionSizes, adjoint: bool
) -> None:
    """The pixels of all bins; those of a box that lies nowhere are NaN times a pixel, and none `adjoint`."""
    n, span = 0, boxes.spans[box]
    start, size, count = span[3 * axis], span[3 * axis + 1], span[3 * axis + 2]
    for bin_ in range(sizes.bins[axis]):
        taps.begin[bin_] = n
        if np.isnan(start):
            if not adjoint:
                taps.pixel[n], taps.weight[n] = boxes.windows[box, 2 * axis], np.nan
                n += 1
        elif count >= 1.0:
            n = _sample(taps, n, (start + bin_ * size, size / count, count), sizes.extent[axis])
    taps.begin[sizes.bins[axis]] = n


@exact_jit
def _sample(taps: RegionTaps, n: int, samples: tuple, extent: int) -> int:
    """The pixels around the samples of a bin; returns how many taps there are with them."""
    base, step, count = samples
    first, number, origin, share = 0.0, count, n, 1.0 / count
    if step != 0.0:
        one, other = (-1.0 - base) / step - 0.5, (extent - base) / step - 0.5
        first = min(max(np.floor(min(one, other)) - 1.0, 0.0), count)
        number = min(max(np.ceil(max(one, other)) + 2.0 - first, 0.0), count - first)
        number = min(number, (extent + 1) / abs(step) + 5.0)
    for k in range(int(number)):
        position = base + (first + k + 0.5) * step
        if position < -1.0 or position > extent:
            continue
        position = max(position, 0.0)
        before = min(int(position), extent - 1)
        rest = position - before if before < extent - 1 else 0.0
        n = _add(taps, n, origin, before, (1.0 - rest) * share)
        n = _add(taps, n, origin, min(before + 1, extent - 1), rest * share)
    return n


@exact_jit
def _add(taps: RegionTaps, n: int, origin: int, pixel: int, weight: float) -> int:
    """Add a weight to that of a pixel, which is among the last ones of its bin if it was there before.

    A weight of 0 has a tap of its own: times infinity it is NaN.
    """
    for back in range(1, 5):
        if n - back >= origin and taps.pixel[n - back] == pixel:
            if (taps.weight[n - back] == 0.0) == (weight == 0.0):
                taps.weight[n - back] += weight
                return n
    taps.pixel[n], taps.weight[n] = pixel, weight
    return n + 1
