"""Polynomials in infinitesimals whose squares vanish, with arrays as coefficients.

Each infinitesimal is named by a tag that can be compared with others, so that nested derivatives do not mix.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

# Derivatives of derivatives of what is shared by many calls have more slopes than memory: above so many
# products of numbers a program is not followed.
MOST_NUMBERS = 10**7


class Dual:
    """`parts[tags]` is the coefficient of a product of tags: an axis for each, then those of the value."""

    __slots__ = ("parts", "shape")

    def __init__(self, parts: dict, shape: tuple) -> None:
        self.parts, self.shape = parts, shape


def constant(value: Any) -> Dual:
    value = np.asarray(value, dtype=float)
    return Dual({(): value}, value.shape)


def _aligned(part: Any, own: tuple, tags: tuple, rank: int) -> Any:
    """The part with an axis for each of `tags`, and `rank` axes behind them."""
    sizes = iter(part.shape)
    leading = [next(sizes) if tag in own else 1 for tag in tags]
    rest = part.shape[len(own) :]
    return part.reshape((*leading, *(1,) * (rank - len(rest)), *rest))


def product(a: Dual, b: Dual, multiply: Callable = np.multiply) -> Dual:
    rank, parts = max(len(a.shape), len(b.shape)), {}
    for left, x in a.parts.items():
        for right, y in b.parts.items():
            if set(left).isdisjoint(right):
                tags = tuple(sorted(left + right))
                operands = _aligned(x, left, tags, rank), _aligned(y, right, tags, rank)
                if operands[0].size * operands[1].size > MOST_NUMBERS:
                    raise OverflowError("more slopes than are followed")
                term = multiply(*operands)
                parts[tags] = parts[tags] + term if tags in parts else term
    shape = multiply(np.zeros(a.shape), np.zeros(b.shape)).shape
    return Dual(parts, shape)


def total(*duals: Dual) -> Dual:
    shape, parts = np.broadcast_shapes(*(d.shape for d in duals)), {}
    for dual in duals:
        for tags, part in dual.parts.items():
            part = _aligned(part, tags, tags, len(shape))
            part = np.broadcast_to(part, (*part.shape[: len(tags)], *shape))
            parts[tags] = parts[tags] + part if tags in parts else part
    return Dual(parts, shape)


def linear(a: Dual, f: Callable) -> Dual:
    """`f(part, k)` of every part, where k axes in front belong to tags."""
    parts = {tags: f(part, len(tags)) for tags, part in a.parts.items()}
    return Dual(parts, f(np.zeros(a.shape), 0).shape)


def scaled(a: Dual, factor: Any) -> Dual:
    return product(a, constant(factor))


def smooth(a: Dual, f: Callable, slope: Callable) -> Dual:
    """An elementwise function, by f(p + e q) = f(p) + e f'(p) q for one tag e after another."""
    tags = {tag for own in a.parts for tag in own}
    if not tags:
        return Dual({(): np.asarray(f(a.parts[()]))}, a.shape)
    last = max(tags)
    inner = Dual({own: part for own, part in a.parts.items() if last not in own}, a.shape)
    outer = Dual({own: part for own, part in a.parts.items() if last in own}, a.shape)
    return total(smooth(inner, f, slope), product(slope(inner), outer))


def sin(a: Dual) -> Dual:
    return smooth(a, np.sin, cos)


def cos(a: Dual) -> Dual:
    return smooth(a, np.cos, lambda p: scaled(sin(p), -1))


def exp(a: Dual) -> Dual:
    return smooth(a, np.exp, exp)


def tanh(a: Dual) -> Dual:
    return smooth(a, np.tanh, lambda p: total(constant(1), scaled(square(tanh(p)), -1)))


def reciprocal(a: Dual) -> Dual:
    return smooth(a, np.reciprocal, lambda p: scaled(square(reciprocal(p)), -1))


def log(a: Dual) -> Dual:
    return smooth(a, np.log, reciprocal)


def square(a: Dual) -> Dual:
    return product(a, a)


def power(a: Dual, exponent: float) -> Dual:
    return smooth(a, lambda p: p**exponent, lambda p: scaled(power(p, exponent - 1), exponent))


def sigmoid(a: Dual) -> Dual:
    return scaled(total(constant(1), tanh(scaled(a, 0.5))), 0.5)


def chosen(mask: Any, a: Dual, b: Dual) -> Dual:
    """A mixture of two with fixed weights, 0 and 1 but for ties."""
    mask = np.asarray(mask, dtype=float)
    return total(scaled(a, mask), scaled(b, 1 - mask))


def larger(a: Dual, b: Dual) -> Dual:
    x, y = a.parts[()], b.parts[()]
    return chosen((x > y) + 0.5 * (x == y), a, b)


def summed(a: Dual, axis: Any = None) -> Dual:
    axes = range(len(a.shape)) if axis is None else [axis % len(a.shape)]
    return linear(a, lambda part, k: part.sum(axis=tuple(k + i for i in axes)))


def reshaped(a: Dual, shape: Any) -> Dual:
    shape = np.zeros(a.shape).reshape(shape).shape
    return linear(a, lambda part, k: part.reshape(part.shape[:k] + shape))


def picked(a: Dual, index: Any) -> Dual:
    index = index if isinstance(index, tuple) else (index,)
    return linear(a, lambda part, k: part[(slice(None),) * k + index])


def transposed(a: Dual) -> Dual:
    rank = len(a.shape)
    return linear(a, lambda part, k: part.transpose((*range(k), *range(k + rank - 1, k - 1, -1))))


def joined(*duals: Dual) -> Dual:
    """Along the first axis."""
    ends = list(itertools.accumulate(d.shape[0] for d in duals))
    rows = np.split(np.eye(ends[-1]), ends[:-1], axis=1)
    return total(
        *(
            linear(d, lambda part, k, r=r: np.moveaxis(np.tensordot(part, r, (k, 1)), -1, k))
            for r, d in zip(rows, duals)
        )
    )


def stacked(*duals: Dual) -> Dual:
    """Along a new first axis."""
    units = [unit.reshape(-1, *(1,) * len(d.shape)) for unit, d in zip(np.eye(len(duals)), duals)]
    return total(*(scaled(d, unit) for unit, d in zip(units, duals)))


def matmul(a: Dual, b: Dual) -> Dual:
    shape = (np.zeros(a.shape) @ np.zeros(b.shape)).shape
    a = reshaped(a, (1, -1)) if len(a.shape) == 1 else a
    b = reshaped(b, (-1, 1)) if len(b.shape) == 1 else b
    return reshaped(product(a, b, np.matmul), shape)


def astype(a: Dual, dtype: Any) -> Dual:
    if np.dtype(dtype).kind == "f":
        return a
    return total(scaled(a, 0), Dual({(): a.parts[()].astype(dtype)}, a.shape))


def clip(a: Dual, low: float, high: float) -> Dual:
    value = a.parts[()]
    return chosen((value >= low) & (value <= high), a, constant(np.clip(value, low, high)))


def largest(a: Dual) -> Dual:
    best = a.parts[()] == a.parts[()].max()
    return summed(scaled(a, best / best.sum()))


def absolute(a: Dual) -> Dual:
    value = a.parts[()]
    return chosen((value > 0) + 0.5 * (value == 0), a, negative(a))


def subtract(a: Dual, b: Dual) -> Dual:
    return total(a, negative(b))


def divide(a: Dual, b: Dual) -> Dual:
    return product(a, reciprocal(b))


def smaller(a: Dual, b: Dual) -> Dual:
    return negative(larger(negative(a), negative(b)))


def mean(a: Dual) -> Dual:
    return scaled(summed(a), 1 / a.parts[()].size)


def negative(a: Dual) -> Dual:
    return scaled(a, -1)


def root(a: Dual) -> Dual:
    return power(a, 0.5)
