"""Packing of `dynamic_sampling_conv2d` on the CPU: lines of x, of its sum over channels and of attention."""

from math import prod
from typing import Any

import numpy as np

from ..engine import parallel
from ..engine.memory import borrow
from .kernels import Band, Inputs
from .lines import Lines, add_items, pack_items
from .plan import Call, Plan


def prepare(call: Call, plan: Plan, inputs: Inputs, total: np.ndarray) -> Band:
    """A band, with its lines packed."""
    x, image = inputs.x, plan.image
    size = image.step * image.stretch
    central = _central(inputs.position_attention, call.attention_residual, plan.centres)
    taps, of_tap = prod(inputs.spatial_kernel.shape[1:3]), plan.seen_rows * size
    lines = borrow("lines", call.channels * plan.channel + 64, x.dtype)
    packed_totals = borrow("totals", len(plan.totals.rows) * size + image.stretch + 64, total.dtype)
    pack_items(0, 1, packed_totals, 0, total[None], plan.totals)
    parallel.run(pack_items, call.channels, 2.0 * lines.size, lines, plan.channel, x, image)
    return Band(
        lines=lines,
        line=plan.line,
        centre=plan.centre,
        centres=plan.centres.rows,
        central=central,
        ones=np.ones(max(call.columns.outputs, size) + 64, x.dtype),
        block=plan.block,
        seen_rows=plan.seen_rows,
        apart=taps * of_tap if central.size else 0,
        taps=np.arange(taps) * of_tap,
        runs=plan.runs,
        at=plan.at,
        totals=packed_totals,
        total_rows=plan.total_rows,
        total_at=plan.total_at,
        first=plan.rows[0],
        rows=plan.rows[1] - plan.rows[0],
        stretch=image.stretch,
        left=image.left,
        step=image.step,
        channel=plan.channel,
        kernel_residual=call.kernel_residual,
        attention_residual=call.attention_residual,
        steps=tuple(
            step
            for name in ("stride", "sample_stride", "dilation")
            for step in (getattr(call.rows, name), getattr(call.columns, name))
        ),
        size=(call.rows.size, call.columns.size),
    )


def _central(attention: np.ndarray, residual: Any, lines: Lines) -> np.ndarray:
    """The lines of the position attention of the tap on the centre, with its residual; see `Band`."""
    outputs, size = len(attention), len(lines.rows) * lines.step * lines.stretch
    if not attention.size:
        return np.empty(0, attention.dtype)
    central = borrow("central", outputs * size + 64, attention.dtype)
    maps = attention.reshape(outputs, -1, *attention.shape[3:])
    maps = np.ascontiguousarray(maps[:, maps.shape[1] // 2])
    parallel.run(pack_items, outputs, 4.0 * outputs * size, central, size, maps, lines)
    central += residual
    return central


def add_totals(grad_total: np.ndarray, packed: np.ndarray, plan: Plan) -> None:
    """From the gradient of packed lines to that of the sum over channels."""
    add_items(0, 1, grad_total[None], packed, 0, plan.totals)
