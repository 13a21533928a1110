"""Sums of products of runs that may be shorter than a register: small images, and the ends of others.

A run of a few positions is one vector, of which a mask leaves out what there is not. Terms pass by while its
sums stay in registers. Of long runs one group of terms after the other is read, as the memory is read
fastest. Both add up in the same order, so that a run has the same bits whatever it is a part of.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from .compile import borrowing_jit
from .vectors import (
    LINE_BYTES,
    REGISTER_BYTES,
    GuardedLoop,
    Writer,
    each_vector,
    load_part,
    load_where,
    store_part,
    written,
)

_SHORT_BYTES = 2 * REGISTER_BYTES  # runs of no more stay in the first cache
_LONG_BYTES = 2 * REGISTER_BYTES  # of what is loaded at once of others
# Of a run: the processor foresees what follows within a page, from some reads on, so that runs of few pages
# take less time if what is read after them is fetched meanwhile.
_FORESEEN_BYTES = 16384
TERMS_TOGETHER = 4  # terms that are added up before they join a sum


class RunRows(NamedTuple):
    """Runs in memory."""

    values: np.ndarray  # 1-d, contiguous
    at: int
    stride: Any  # from the first to the next and so on, or an array of where each begins


@register_jitable(error_model="numpy")
def _is_short(count: int, itemsize: int) -> bool:
    return count * itemsize <= _SHORT_BYTES


def _pointer_to(writer: Writer, matrix: Any) -> Any:
    """A pointer to the first element of a matrix."""
    return writer.builder.gep(matrix.values, [matrix.at])


def fetch_vector(writer: Writer, pointer: Any, at: Any) -> None:
    """Fetch the cache lines of a vector."""
    for first in range(0, writer.lanes * writer.itemsize, LINE_BYTES):
        writer.prefetch(pointer, writer.builder.add(at, at.type(first // writer.itemsize)))


def _in_groups(builder: Any, terms: Any, work: Callable[[Any, int, list], list], values: list) -> list:
    """``work(first term, number, values)`` on groups of four terms, then of two and of one that are left."""
    done, number = terms.type(0), TERMS_TOGETHER
    while number:
        together = terms.type(number)
        groups = builder.udiv(builder.sub(terms, done), together)
        with GuardedLoop(builder, groups, values) as loop:
            k = builder.add(done, builder.mul(loop.k, together))
            loop.values = work(k, number, loop.values)
        values, done = loop.values, builder.add(done, builder.mul(groups, together))
        number //= 2
    return values


def _write_sum_terms(
    writer: Writer, target: Any, kernels: Any, seen: Any, terms: Any, count: Any, add: Any
) -> None:
    builder, short = writer.builder, writer.variant
    to, left, right = (_pointer_to(writer, each) for each in (target, kernels, seen))
    fetched = builder.icmp_signed("<=", count, count.type(_FORESEEN_BYTES // writer.itemsize))

    def products(first: Any, number: int, shift: Any, mask: Any) -> Any:
        """The sum of the products of some terms, pairs of pairs."""
        sums: list[Any] = []
        for n in range(number):
            k = builder.add(first, terms.type(n))
            places = (builder.add(writer.place(each.stride, k), shift) for each in (kernels, seen))
            pair = [load_part(writer, each, at, mask) for each, at in zip((left, right), places, strict=True)]
            if n % 2:
                sums[-1] = writer.multiply_add(sums[-1], *pair)
            else:
                sums.append(writer.multiply(*pair))
        return sums[0] if len(sums) == 1 else writer.add(*sums)

    def before(k: Any, shift: Any, mask: Any) -> Any:
        """What term k is added to: nothing, of the first one, unless the sum goes on."""
        goes_on = builder.or_(add, builder.icmp_unsigned(">", k, terms.type(0)))
        return load_where(writer, goes_on, to, shift, mask)

    def by_position(shift: Any, mask: Any) -> None:
        def work(k: Any, number: int, sums: list) -> list:
            return [writer.add(sums[0], products(k, number, shift, mask))]

        first = before(terms.type(0), shift, mask)
        store_part(writer, _in_groups(builder, terms, work, [first])[0], to, shift, mask)

    def by_term(k: Any, number: int, values: list) -> list:
        def work(shift: Any, mask: Any) -> None:
            with builder.if_then(fetched):
                for n in range(number):
                    ahead = builder.add(k, terms.type(TERMS_TOGETHER + n))
                    fetch_vector(writer, left, builder.add(writer.place(kernels.stride, ahead), shift))
            total = writer.add(before(k, shift, mask), products(k, number, shift, mask))
            store_part(writer, total, to, shift, mask)

        each_vector(writer, count, work)
        return values

    if short:
        each_vector(writer, count, by_position)
    else:
        _in_groups(builder, terms, by_term, [])


_sum_terms_short = written(REGISTER_BYTES, True)(_write_sum_terms)
_sum_terms_long = written(_LONG_BYTES, False)(_write_sum_terms)


@borrowing_jit
def sum_terms(target: RunRows, kernels: RunRows, seen: RunRows, terms: int, count: int, add: bool) -> None:
    """target[w] = sum over k < terms of kernels[k, w] * seen[k, w], for w < count; with `add` added to it.

    There is at least one term.
    """
    if _is_short(count, kernels.values.itemsize):
        _sum_terms_short(target, kernels, seen, terms, count, add)
    else:
        _sum_terms_long(target, kernels, seen, terms, count, add)


@written(_LONG_BYTES)
def _add_attended(
    writer: Writer, target: Any, kernels: Any, factors: Any, seen: Any, residual: Any, size: Any
) -> None:
    builder, added = writer.builder, writer.broadcast(residual)
    terms, count = (builder.extract_value(size, k) for k in range(2))
    to, *given = (_pointer_to(writer, each) for each in (target, kernels, factors, seen))
    with GuardedLoop(builder, terms, []) as loop:

        def add(shift: Any, mask: Any) -> None:
            for pointer, matrix in zip(given[:2], (kernels, factors), strict=True):
                ahead = writer.place(matrix.stride, builder.add(loop.k, terms.type(TERMS_TOGETHER)))
                fetch_vector(writer, pointer, builder.add(ahead, shift))
            places = [
                builder.add(writer.place(each.stride, loop.k), shift) for each in (kernels, factors, seen)
            ]
            kernel, factor, value = (
                load_part(writer, pointer, at, mask) for pointer, at in zip(given, places, strict=True)
            )
            product = writer.multiply(kernel, writer.add(factor, added))
            total = writer.multiply_add(load_part(writer, to, shift, mask), product, value)
            store_part(writer, total, to, shift, mask)

        each_vector(writer, count, add)


@borrowing_jit
def add_attended_terms(
    target: RunRows, kernels: RunRows, factors: RunRows, seen: RunRows, residual: Any, size: tuple
) -> None:
    """As `sum_terms` with `add`, of kernels * (factors + residual); `size` is (terms, count)."""
    _add_attended(target, kernels, factors, seen, residual, size)


class RunGradients(NamedTuple):
    """Gradients of kernels and planes; flags say which of them are wanted."""

    kernels: RunRows
    planes: RunRows
    of_kernels: bool
    of_planes: bool


def _write_gradients(
    writer: Writer, grads: Any, weights: Any, kernels: Any, seen: Any, terms: Any, count: Any
) -> None:
    builder, (short, together) = writer.builder, writer.variant
    g, left, right = (_pointer_to(writer, each) for each in (weights, kernels, seen))
    to_kernels, to_planes = (_pointer_to(writer, each) for each in (grads.kernels, grads.planes))
    numbers = [terms.type(n) for n in range(together)]
    own, other = ([builder.mul(each.stride, n) for n in numbers] for each in (weights, grads.kernels))

    def loaded(shift: Any, mask: Any) -> list:
        """The weights of each output."""
        return [load_part(writer, g, builder.add(place, shift), mask) for place in own]

    def term(k: Any, shift: Any, mask: Any, factors: list) -> None:
        a, b = (builder.add(writer.place(each.stride, k), shift) for each in (kernels, seen))
        places = [builder.add(place, a) for place in other]
        with builder.if_then(grads.of_kernels):
            value = load_part(writer, right, b, mask)
            for place, factor in zip(places, factors, strict=True):
                store_part(writer, writer.multiply(factor, value), to_kernels, place, mask)
        with builder.if_then(grads.of_planes):
            values = [load_part(writer, left, place, mask) for place in places]
            total = writer.multiply(factors[0], values[0])
            for pair in zip(factors[1:], values[1:], strict=True):
                total = writer.multiply_add(total, *pair)
            store_part(writer, writer.add(load_part(writer, to_planes, b, mask), total), to_planes, b, mask)

    def by_position(shift: Any, mask: Any) -> None:
        factors = loaded(shift, mask)
        with GuardedLoop(builder, terms, []) as loop:
            term(loop.k, shift, mask, factors)

    if short:
        each_vector(writer, count, by_position)
        return
    with GuardedLoop(builder, terms, []) as loop:
        each_vector(writer, count, lambda shift, mask: term(loop.k, shift, mask, loaded(shift, mask)))


_short_of_two, _short_of_one = (
    written(REGISTER_BYTES, (True, together))(_write_gradients) for together in (2, 1)
)
_long_of_two, _long_of_one = (
    written(_LONG_BYTES, (False, together))(_write_gradients) for together in (2, 1)
)


@borrowing_jit
def add_gradients(
    grads: RunGradients, weights: RunRows, kernels: RunRows, seen: RunRows, outputs: int, size: tuple
) -> None:
    """The gradients of `sum_terms`, of (terms, count) `size`, for one or two outputs that see the same.

    ``grads.kernels[o, k, w] = weights[o, w] * seen[k, w]``, and to those of the planes, which lie as `seen`
    does, is added the sum over outputs of weights * kernels. `weights.stride` and `grads.kernels.stride` lead
    from output to output, `kernels.stride` from term to term.
    """
    terms, count = size
    if _is_short(count, kernels.values.itemsize):
        if outputs == 2:
            _short_of_two(grads, weights, kernels, seen, terms, count)
        else:
            _short_of_one(grads, weights, kernels, seen, terms, count)
    elif outputs == 2:
        _long_of_two(grads, weights, kernels, seen, terms, count)
    else:
        _long_of_one(grads, weights, kernels, seen, terms, count)
