"""Samples at few points a pixel: which calls these are, how they are divided, and their passes.

As where an image is warped by an optical flow. Planes are read where they are, and vectors are of positions:
see `flow_rows.py`. Backward, each thread adds to planes of its own, and what the gradients of points need is
read once more: both passes write each number once, whatever the number of threads.
"""

import numpy as np

from ..engine import parallel
from ..engine.memory import run_with_scratch
from ..engine.vectors import REGISTER_BYTES
from .flow_kernels import FlowPart, FlowScratch, flow_points_items, flow_sample_items, flow_spread_items
from .flow_rows import FARTHEST_PIXEL, FLOW_TILE, flow_points_size
from .plan import LEAST_ITEMS, DeformCall

# Points a pixel, up to which it does not pay to put channels side by side first; with enough of these that
# they fill vectors. Backward these are read and written.
MOST_SAMPLED, MOST_SPREAD = 8, 2
FLOW_CHANNELS = 16  # that are worked on before the next positions are
LEAST_PLANES, MOST_PLANES = 3, 8  # for threads to add to; of an item


def samples_in_place(call: DeformCall) -> bool:
    """Whether a call of `sample_points` goes this way."""
    sizes, image = call.sizes, call.sizes.image
    if max(image.height, image.width) >= FARTHEST_PIXEL:
        return False
    if call.backward and call.batch * sizes.channels < LEAST_PLANES:
        return False
    pixels = image.height * image.width
    most = MOST_SPREAD if call.backward else MOST_SAMPLED
    few = sizes.channels * call.itemsize <= REGISTER_BYTES or sizes.taps * sizes.positions <= most * pixels
    return few or (not call.backward and sizes.channels * pixels * call.itemsize > call.packed_budget)


def flow_forward(call: DeformCall, x: np.ndarray, points: np.ndarray, y: np.ndarray) -> None:
    """The samples of flat x and points."""
    sizes = call.sizes
    tiles, blocks = -(-sizes.positions // FLOW_TILE), -(-sizes.channels // FLOW_CHANNELS)
    scratch, part = FlowScratch(flow_points_size(), 0), FlowPart(sizes, FLOW_CHANNELS)
    args = (scratch, x.dtype, x, points, y.reshape(-1), part)
    run_with_scratch(flow_sample_items, call.batch * blocks * tiles, float(y.size), *args)


def flow_backward(call: DeformCall, arrays: list, grads: tuple) -> None:
    """Gradients of x and points, from flat gradients of the output, x and points; written wholly."""
    (grad_output, x, points), (grad_x, grad_points), sizes = arrays, grads, call.sizes
    if grad_points is not None:
        scratch = FlowScratch(flow_points_size(), 4 * FLOW_TILE)
        items, part = call.batch * -(-sizes.positions // FLOW_TILE), FlowPart(sizes, FLOW_CHANNELS)
        args: tuple = (scratch, x.dtype, grad_output, x, points, grad_points.reshape(-1), part)
        run_with_scratch(flow_points_items, items, 3.0 * grad_output.size, *args)
    if grad_x is not None:
        block = _spread_channels(call.batch * sizes.channels)
        scratch, items = FlowScratch(flow_points_size(), 0), call.batch * -(-sizes.channels // block)
        args = (scratch, x.dtype, grad_output, points, grad_x.reshape(-1), FlowPart(sizes, block))
        run_with_scratch(flow_spread_items, items, 6.0 * grad_output.size + grad_x.size, *args)


def _spread_channels(planes: int) -> int:
    """Channels of an item: so many that points are rarely set up again, so few that all threads have work."""
    most = MOST_PLANES if planes >= MOST_PLANES * parallel.ITEMS else MOST_PLANES // 2
    return max(1, min(most, planes // LEAST_ITEMS))
