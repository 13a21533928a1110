"""Filters applied to several channels at once, along one strip of pixels.

A filter per pixel is as large as several channels of the image, and comes from the L2 cache each time it is
used. Here each of its values, once loaded, serves `CHANNELS` channels, and the sums over all taps stay in
registers: they are written once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from .compile import jit
from .vectors import MANY_REGISTERS, REGISTER_BYTES, Writer

CHANNELS = 4
# As many sums as fit into the registers with the operands: CHANNELS times this.
STRIP_BYTES = (4 if MANY_REGISTERS else 2) * REGISTER_BYTES


class Target(NamedTuple):
    """Where results go: that of channel c at pixel j to ``values[at + c*apart + j]``."""

    values: np.ndarray
    at: int
    apart: int


class Filters(NamedTuple):
    """The filter of tap t at pixel j is ``values[at[t] + j]``."""

    values: np.ndarray
    at: np.ndarray


class Source(NamedTuple):
    """What tap t reads of channel c at pixel j is ``values[at[t] + c*apart + j]``."""

    values: np.ndarray
    at: np.ndarray
    apart: int


class Scale(NamedTuple):
    """The scale of channel c and tap t is ``values[at + c*apart + t]``; if `values` is None there is none."""

    values: Any
    at: int
    apart: int


@jit
def lanes(like: np.ndarray) -> int:
    """Pixels of a strip."""
    return STRIP_BYTES // like.itemsize


@jit
def apply(
    target: Target,
    channels: int,
    run: tuple,
    filters: Filters,
    source: Source,
    scale: Scale,
    totals: np.ndarray,
    add: Any,
) -> None:
    """Target = sum over taps of (scale o filter) * source, for `channels` and the pixels of the `run`.

    o is + if `add` is given, else *. At most CHANNELS channels; a run is at least a strip long. All results
    are added to `totals`, one per lane of a strip, so that what is not finite is noticed.
    """
    size, taps, j = lanes(target.values), len(filters.at), run[0]
    while True:
        if channels == CHANNELS:
            _several_channels(
                *(target.values, target.at, target.apart, j, filters.values, filters.at),
                *(source.values, source.at, source.apart, scale.values, scale.at, scale.apart),
                *(totals, taps, add),
            )
        else:
            for c in range(channels):
                _one_channel(
                    *(target.values, target.at + c * target.apart, 0, j, filters.values, filters.at),
                    *(source.values[c * source.apart :], source.at, 0),
                    *(scale.values, scale.at + c * scale.apart, 0, totals, taps, add),
                )
        if j + size >= run[1]:
            return
        j = min(j + size, run[1] - size)  # the last strip may overlap the one before


def _strip(channels: int) -> Callable:
    """An intrinsic: `apply` for the strip of pixels from j on."""

    @intrinsic
    def strip(
        typing: Any,
        target: Any,
        at: Any,
        apart: Any,
        j: Any,
        filters: Any,
        filter_at: Any,
        source: Any,
        source_at: Any,
        source_apart: Any,
        scale: Any,
        scale_at: Any,
        scale_apart: Any,
        totals: Any,
        taps: Any,
        add: Any,
    ) -> Any:
        i = types.intp
        sources, scales = (source, source_at, i), (scale, i, i)
        signature = types.void(target, i, i, i, filters, filter_at, *sources, *scales, totals, i, add)
        return signature, partial(_generate, channels=channels)

    return strip


_several_channels, _one_channel = _strip(CHANNELS), _strip(1)


def _generate(context: Any, builder: Any, signature: Any, args: Any, channels: int) -> Any:
    writer = Writer(context, builder, signature, args, STRIP_BYTES)
    target, _, _, _, filters, filter_at, source, source_at, _, scale, _, _, totals, *_ = writer.data
    _, at, apart, j, _, _, _, _, source_apart, _, scale_at, scale_apart, _, taps, _ = args
    combine = writer.multiply if isinstance(signature.args[-1], types.NoneType) else writer.add
    index = taps.type
    filters = builder.gep(filters, [j])
    sources = [
        builder.gep(source, [builder.add(j, builder.mul(source_apart, index(c)))]) for c in range(channels)
    ]
    scales = [builder.add(scale_at, builder.mul(scale_apart, index(c))) for c in range(channels)]

    def step(tap: Any, sums: list) -> list:
        factor, following = writer.load(filters, writer.element(filter_at, tap)), []
        start = writer.element(source_at, tap)
        for total, pixels, place in zip(sums, sources, scales, strict=True):
            combined = factor
            if scale is not None:
                own = writer.element(scale, builder.add(place, tap))
                combined = combine(factor, writer.broadcast(own))
            following.append(writer.add(total, writer.multiply(combined, writer.load(pixels, start))))
        return following

    results = writer.sums(channels, taps, step)
    seen = writer.load(totals, index(0))
    for c, result in enumerate(results):
        writer.store(result, target, builder.add(builder.add(at, j), builder.mul(apart, index(c))))
        seen = writer.add(seen, result)
    writer.store(seen, totals, index(0))
    return context.get_dummy_value()
