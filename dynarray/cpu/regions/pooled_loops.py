"""Innermost loops of `ps_roi_pool`: some bins side by side, each in its own plane, along vectors of a row.

A bin is a few pixels of each of a few rows, too few for a loop of its own: its sum would wait for each
addition, and the processor guess anew where it ends. Bins in one row of a box have the same rows of pixels,
so that all of them go down together. What a vector has beyond the end of a bin is masked, not multiplied by
0: it may be infinite.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ..engine.vectors import REGISTER_BYTES, GuardedLoop, Loop, Writer, written

BINS = 8  # side by side: a power of 2
LANES = 8  # pixels of a vector, in images that have as many columns; else 1

_INT = ir.IntType(32)
_INTS = ir.VectorType(_INT, BINS)


def _spread(builder: Any, vector: Any, lane: int, number: int) -> Any:
    """A vector of `number` times one element of another."""
    mask = ir.Constant(ir.VectorType(_INT, number), [lane] * number)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _ints(builder: Any, value: Any) -> Any:
    """A vector with the same number for each bin."""
    single = builder.insert_element(ir.Constant(_INTS, ir.Undefined), value, _INT(0))
    return _spread(builder, single, 0, BINS)


def _load_ints(builder: Any, pointer: Any, at: Any) -> Any:
    """A vector with a number for each bin, from any address."""
    place = builder.bitcast(builder.gep(pointer, [at]), _INTS.as_pointer())
    return builder.load(place, align=4)


class _BinsOfBox:
    """The bins of a block in a box; writes loops over their pixels.

    `boxes`, `blocks` and `place` are a PooledBoxes, PooledBlocks and PooledPlace. The writer's variant is how
    many pixels a vector has.
    """

    def __init__(self, writer: Writer, boxes: Any, blocks: Any, place: Any) -> None:
        builder, self.place = writer.builder, place
        self.writer, index = writer, place.block.type
        bins = [builder.add(place.block, index(u)) for u in range(BINS)]
        self.channels = [writer.element(blocks.channel, bin_) for bin_ in bins]
        self._first = _load_ints(builder, boxes.first, place.columns)
        self._across = _load_ints(builder, boxes.number, place.columns)
        self._down = writer.element(boxes.number, place.row)
        row = builder.sext(writer.element(boxes.first, place.row), index)
        line = builder.add(place.image, builder.mul(row, place.width))
        self._lines = [builder.add(line, writer.element(blocks.plane, bin_)) for bin_ in bins]
        some = builder.icmp_signed(">", self._down, _INT(0))
        self._turns = builder.select(some, writer.element(boxes.turns, place.box), _INT(0))

    def pixels(self) -> Any:
        """How many pixels each bin has, 1 for none: a vector, like the images' elements."""
        writer, builder = self.writer, self.writer.builder
        writer.resize(BINS * writer.itemsize)
        down = writer.broadcast(builder.sitofp(self._down, writer.zero.type.element))
        number = builder.fmul(builder.sitofp(self._across, writer.zero.type), down)
        one = ir.Constant(writer.zero.type, [1.0] * BINS)
        return builder.select(builder.fcmp_ordered(">", number, one), number, one)

    def each_vector(self, values: list, prepare: Callable, step: Callable) -> list:
        """``step(prepare(masks), places, values)`` writes how values go on from row to row.

        Masks and places are those of a vector in each bin. Where bins are wider than a vector there are
        several turns, each down all rows; the last vector of a line of the image overlaps the one before.
        """
        writer, builder, width = self.writer, self.writer.builder, self.place.width
        size = writer.variant
        writer.resize(size * writer.itemsize)
        lane = ir.Constant(ir.VectorType(_INT, size), list(range(size)))
        last = _ints(builder, builder.sub(builder.trunc(width, _INT), _INT(size)))
        with GuardedLoop(builder, self._turns, values) as turn:
            done = _ints(builder, builder.mul(turn.k, _INT(size)))
            begin = builder.add(self._first, done)
            column = builder.select(builder.icmp_signed("<", begin, last), begin, last)
            low = builder.sub(begin, column)
            high = builder.add(low, builder.sub(self._across, done))
            places, masks = [], []
            for u, line in enumerate(self._lines):
                inside = builder.icmp_signed(">=", lane, _spread(builder, low, u, size))
                before = builder.icmp_signed("<", lane, _spread(builder, high, u, size))
                masks.append(builder.and_(inside, before))
                own = builder.sext(builder.extract_element(column, _INT(u)), line.type)
                places.append(builder.add(line, own))
            given = prepare(masks)
            with Loop(builder, builder.sext(self._down, width.type), turn.values) as row:
                down = builder.mul(row.k, width)
                row.values = step(given, [builder.add(place, down) for place in places], row.values)
            turn.values = row.values
        return turn.values


def _write_means(writer: Writer, x: Any, y: Any, boxes: Any, blocks: Any, place: Any) -> None:
    """The means of a block's bins in one box."""
    block, builder = _BinsOfBox(writer, boxes, blocks, place), writer.builder

    def step(masks: list, places: list, sums: list) -> list:
        return [
            builder.fadd(total, builder.select(mask, writer.load(x, at), writer.zero))
            for total, mask, at in zip(sums, masks, places, strict=True)
        ]

    writer.resize(writer.variant * writer.itemsize)
    sums = block.each_vector([writer.zero] * BINS, lambda masks: masks, step)
    means = builder.fdiv(writer.totals(sums), block.pixels())
    # What fills up a block has the place of its last bin, which is written behind it.
    for u in reversed(range(BINS)):
        at = builder.add(place.output, block.channels[u])
        builder.store(builder.extract_element(means, _INT(u)), builder.gep(y, [at]))


def _write_shares(writer: Writer, grad_x: Any, grad: Any, boxes: Any, blocks: Any, place: Any) -> None:
    """Add to each pixel its share of the gradients of a block's bins in one box."""
    block, builder = _BinsOfBox(writer, boxes, blocks, place), writer.builder
    number = block.pixels()
    grads = ir.Constant(number.type, ir.Undefined)
    for u, channel in enumerate(block.channels):
        one = writer.element(grad, builder.add(place.output, channel))
        grads = builder.insert_element(grads, one, _INT(u))
    # What fills up a block adds 0 to the plane of its last bin.
    bins = ir.Constant(_INTS, list(range(BINS)))
    own = builder.icmp_signed("<", bins, _ints(builder, builder.trunc(place.own, _INT)))
    means = builder.select(own, builder.fdiv(grads, number), writer.zero)
    shares = [_spread(builder, means, u, writer.variant) for u in range(BINS)]

    def masked(masks: list) -> list:
        pairs = zip(masks, shares, strict=True)
        return [builder.select(mask, share, writer.zero) for mask, share in pairs]

    def step(shares: list, places: list, values: list) -> list:
        for share, at in zip(shares, places, strict=True):
            writer.store(builder.fadd(writer.load(grad_x, at), share), grad_x, at)
        return values

    block.each_vector([], masked, step)


write_means, write_means_narrow = (written(REGISTER_BYTES, size)(_write_means) for size in (LANES, 1))
spread_shares, spread_shares_narrow = (written(REGISTER_BYTES, size)(_write_shares) for size in (LANES, 1))
