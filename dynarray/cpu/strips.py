"""Filters applied to several channels at once, along one strip of pixels.

A filter per pixel is as large as several channels of the image, and comes from the L2 cache each time it is
used. Here each of its values, once loaded, serves `CHANNELS` channels, and the sums over all taps stay in
registers: they are written once.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from .compile import jit
from .vectors import MANY_REGISTERS, REGISTER_BYTES, Writer

CHANNELS = 4
# As many sums as fit into the registers with the operands: CHANNELS times this.
STRIP_BYTES = (4 if MANY_REGISTERS else 2) * REGISTER_BYTES


@jit
def apply(
    target: np.ndarray,
    at: int,
    apart: int,
    channels: int,
    run: tuple,
    filters: np.ndarray,
    filter_at: np.ndarray,
    source: np.ndarray,
    source_at: np.ndarray,
    scale: Any,
    scale_at: int,
    totals: np.ndarray,
) -> None:
    """target[at + c*apart + j] = sum over taps of scale[c, t] * filters[t, j] * source[c, t, j].

    For c < `channels`, which are at most CHANNELS, and j in the `run`, which is at least a strip long.
    scale[c, t] is at ``scale_at + c*taps + t``, filters[t, j] at ``filter_at[t] + j``, source[c, t, j] at
    ``source_at[t] + c*apart + j``. `scale` may be None: it then counts as 1. All results are added to
    `totals`, one per lane of a strip, so that what is not finite is noticed.
    """
    lanes, taps, j = STRIP_BYTES // target.itemsize, len(filter_at), run[0]
    while True:
        if channels == CHANNELS:
            _several_channels(
                target, at, apart, filters, filter_at, j, source, source_at, scale, scale_at, totals, taps
            )
        else:
            for c in range(channels):
                to, pixels, factors_at = at + c * apart, source[c * apart :], scale_at + c * taps
                _one_channel(
                    target, to, 0, filters, filter_at, j, pixels, source_at, scale, factors_at, totals, taps
                )
        if j + lanes >= run[1]:
            return
        j = min(j + lanes, run[1] - lanes)  # the last strip may overlap the one before


def _signature(*arguments: Any) -> Any:
    """Numba's signature of the intrinsics below, from the types that they are called with."""
    target, _, _, filters, filter_at, _, source, source_at, scale, _, totals, _ = arguments
    index = types.intp
    return types.void(
        target, index, index, filters, filter_at, index, source, source_at, scale, index, totals, index
    )


@intrinsic
def _several_channels(
    typing: Any,
    target: Any,
    at: Any,
    apart: Any,
    filters: Any,
    filter_at: Any,
    j: Any,
    source: Any,
    source_at: Any,
    scale: Any,
    scale_at: Any,
    totals: Any,
    taps: Any,
) -> Any:
    """`apply` for one strip of pixels, from j on, and CHANNELS channels."""
    given = target, at, apart, filters, filter_at, j, source, source_at, scale, scale_at, totals, taps
    return _signature(*given), lambda *call: _generate(*call, CHANNELS)


@intrinsic
def _one_channel(
    typing: Any,
    target: Any,
    at: Any,
    apart: Any,
    filters: Any,
    filter_at: Any,
    j: Any,
    source: Any,
    source_at: Any,
    scale: Any,
    scale_at: Any,
    totals: Any,
    taps: Any,
) -> Any:
    """The same for one channel."""
    given = target, at, apart, filters, filter_at, j, source, source_at, scale, scale_at, totals, taps
    return _signature(*given), lambda *call: _generate(*call, 1)


def _generate(context: Any, builder: Any, signature: Any, args: Any, channels: int) -> Any:
    writer = Writer(context, builder, signature, args, STRIP_BYTES)
    _, at, apart, _, _, j, _, _, _, scale_at, _, taps = args
    target, _, _, filters, filter_at, _, source, source_at, scale, _, totals, _ = writer.data
    index = taps.type
    planes = [builder.mul(apart, index(c)) for c in range(channels)]
    sources = [builder.gep(source, [builder.add(j, plane)]) for plane in planes]
    filters = builder.gep(filters, [j])

    def step(tap: Any, sums: list) -> list:
        factor = writer.load(filters, writer.element(filter_at, tap))
        start, following = writer.element(source_at, tap), []
        for c in range(channels):
            scaled = factor
            if scale is not None:
                place = builder.add(builder.add(scale_at, builder.mul(taps, index(c))), tap)
                scaled = writer.multiply(factor, writer.broadcast(writer.element(scale, place)))
            following.append(writer.add(sums[c], writer.multiply(scaled, writer.load(sources[c], start))))
        return following

    results = writer.sums(channels, taps, step)
    seen = writer.load(totals, index(0))
    for plane, result in zip(planes, results, strict=True):
        writer.store(result, target, builder.add(builder.add(at, plane), j))
        seen = writer.add(seen, result)
    writer.store(seen, totals, index(0))
    return context.get_dummy_value()
