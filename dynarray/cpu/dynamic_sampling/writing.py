"""What the intrinsics of `held` and `held_gradients` have in common."""

from collections.abc import Callable
from typing import Any

from ..engine.vectors import GuardedLoop, Writer, load_part


def runs_at(writer: Writer, rows: Any, places: list) -> list:
    """Pointers to runs at these places."""
    return [writer.builder.gep(rows.values, [writer.builder.add(rows.at, place)]) for place in places]


def runs_of(writer: Writer, rows: Any, numbers: list) -> list:
    """Pointers to runs of these numbers."""
    return runs_at(writer, rows, [writer.builder.mul(number, rows.stride) for number in numbers])


def times_where(writer: Writer, values: list, wanted: Any, factors: list, added: Any, part: tuple) -> list:
    """Vectors times what lies behind pointers, plus what is `added` to that, if wanted; else as they are.

    A `part` are the place of a vector, and its mask.
    """
    builder, before = writer.builder, writer.builder.block
    with builder.if_then(wanted):
        others = [load_part(writer, each, *part) for each in factors]
        if added is not None:
            others = [writer.add(other, added) for other in others]
        products = [writer.multiply(*pair) for pair in zip(values, others, strict=True)]
        inside = builder.block
    made = []
    for value, product in zip(values, products, strict=True):
        made.append(builder.phi(value.type))
        made[-1].add_incoming(value, before)
        made[-1].add_incoming(product, inside)
    return made


def watch_each_vector(writer: Writer, count: Any, watch: Any, work: Callable[[tuple, Any], Any]) -> None:
    """`each_vector` of work that is given what it has watched, and returns it; it is added to `watch`."""
    builder, lanes, start = writer.builder, count.type(writer.lanes), count.type(0)

    def note(watched: Any) -> None:
        writer.store(writer.add(writer.load(watch, start), watched), watch, start)

    whole = builder.udiv(count, lanes)
    with GuardedLoop(builder, whole, [writer.zero]) as loop:
        loop.values = [work((builder.mul(loop.k, lanes), None), loop.values[0])]
    note(loop.values[0])
    done = builder.mul(whole, lanes)
    with builder.if_then(builder.icmp_signed("<", done, count)):
        note(work((done, writer.within(done, count)), writer.zero))
