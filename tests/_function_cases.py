"""Every differentiable function with arguments to try it on, and what it must equal."""

from typing import NamedTuple

import numpy as np
import pytest
from scipy import special

from autodiff import Tape, Variable
from autodiff import functions as F


class Case(NamedTuple):
    """A function of arrays, their shapes and range, and its NumPy form where it is not analytic."""

    call: object
    shapes: tuple
    low: float = -2.0
    high: float = 2.0
    reference: object = None
    # Piecewise functions: their NumPy form takes complex numbers only by the reference given.
    method: str = "complex"
    # Values instead of shapes, where numbers that are drawn would not do.
    given: tuple = ()


def _cross_entropy_ignoring(x):
    scores = [
        -np.log(_softmax(x[n, :, i, j], 0)[LABEL_MAP[n, i, j]])
        for n, i, j in np.ndindex(2, 2, 2)
        if LABEL_MAP[n, i, j] != 9
    ]
    return np.sum(scores) / len(scores)


def _softmax(x, axis):
    powers = np.exp(x)
    return powers / powers.sum(axis, keepdims=True)


def _conv(x, w, b, stride, padding, dilation, groups):
    """Convolution by its definition."""
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    n, _, h, wide = x.shape
    o, per, kh, kw = w.shape
    ho = (h - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wo = (wide - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    y = np.zeros((n, o, ho, wo), np.result_type(x, w, b))
    for out in range(o):
        first = out // (o // groups) * per
        for i in range(ho):
            for j in range(wo):
                top, left = i * stride[0], j * stride[1]
                rows = slice(top, top + dilation[0] * (kh - 1) + 1, dilation[0])
                columns = slice(left, left + dilation[1] * (kw - 1) + 1, dilation[1])
                y[:, out, i, j] = (x[:, first : first + per, rows, columns] * w[out]).sum((1, 2, 3)) + b[out]
    return y


def conv_case(xs, ws, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Case(
        lambda x, w, b: F.conv2d(x, w, b, **options),
        (xs, ws, ws[:1]),
        reference=lambda x, w, b: _conv(x, w, b, **options),
    )


def _conv_transpose(x, w, b, stride, padding, output_padding, dilation, groups):
    """Every input pixel adds a scaled kernel."""
    n, c, h, wide = x.shape
    _, per, kh, kw = w.shape
    reach = [(size - 1) * s + d * (k - 1) + 1 for size, s, d, k in zip((h, wide), stride, dilation, (kh, kw))]
    full = np.zeros(
        (n, per * groups, *(r + e for r, e in zip(reach, output_padding))), np.result_type(x, w, b)
    )
    for channel in range(c):
        first = channel // (c // groups) * per
        for i in range(h):
            for j in range(wide):
                top, left = i * stride[0], j * stride[1]
                rows = slice(top, top + dilation[0] * (kh - 1) + 1, dilation[0])
                columns = slice(left, left + dilation[1] * (kw - 1) + 1, dilation[1])
                full[:, first : first + per, rows, columns] += (
                    x[:, channel, i, j][:, None, None, None] * w[channel]
                )
    inside = (slice(p, size - p) for p, size in zip(padding, full.shape[2:]))
    return full[:, :, *inside] + b[:, None, None]


def transpose_case(xs, ws, stride=(1, 1), padding=(0, 0), output_padding=(0, 0), dilation=(1, 1), groups=1):
    options = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "dilation": dilation,
        "groups": groups,
    }
    return Case(
        lambda x, w, b: F.conv_transpose2d(x, w, b, **options),
        (xs, ws, (ws[1] * groups,)),
        reference=lambda x, w, b: _conv_transpose(x, w, b, **options),
    )


def _standard(x, axes):
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(axes, keepdims=True) + 1e-5)


def _group_norm(x, w, b):
    grouped = x.reshape(x.shape[0], 2, -1, *x.shape[2:])
    return _standard(grouped, (2, 3, 4)).reshape(x.shape) * w[:, None, None] + b[:, None, None]


def _end_point_error(flow, target, valid=1.0):
    return (np.sqrt(((flow - target) ** 2).sum(1)) * valid).sum() / np.broadcast_to(valid, (2, 3, 2)).sum()


def einsum_case(subscripts, *shapes):
    return Case(
        lambda *operands: F.einsum(subscripts, *operands),
        shapes,
        reference=lambda *operands: np.einsum(subscripts, *operands),
    )


def _radius(x, y):
    return np.sqrt(x * x + y * y)


def _abs(x):
    return np.where(x.real < 0, -x, x)


def _clip(x, low, high):
    x = np.where(x.real < low.real, low, x)
    return np.where(x.real > high.real, high, x)


def _dropout(x):
    """The mask comes from the generator; the scale must be 1/(1 - rate)."""
    return x * (np.random.default_rng(5).random(x.shape, np.float32) >= 0.3) / 0.7


def _batch_norm(x, w, b):
    return _standard(x, (0, 2, 3)) * w[:, None, None] + b[:, None, None]


def _local_response(x, before, after, share, beta, k):
    """By its definition, channel by channel."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        near = x[:, max(c - before, 0) : c + after + 1]
        y[:, c] = x[:, c] / (k + share * (near**2).sum(axis=1)) ** beta
    return y


def _pick(x, index, axis):
    return np.take_along_axis(x, np.expand_dims(index, axis), axis).squeeze(axis)


INDEX = np.array([[0, 2], [2, 1]])
MASK = np.array([[True, False, True], [False, False, True]])
LABELS = np.array([0, 2, 1, 2])
LABEL_MAP = np.array([[[0, 9], [2, 1]], [[9, 9], [1, 2]]])
VALID = np.array([[[1, 0], [0, 1], [1, 1]], [[0, 0], [1, 1], [1, 0]]])
MEAN, VARIANCE = np.array([0.5, -1.0]), np.array([2.0, 0.3])

CASES = {
    "abs": Case(F.abs, ((3, 4),), reference=lambda x: np.where(x.real < 0, -x, x)),
    "adaptive_avg_pool2d": Case(lambda x: F.adaptive_avg_pool2d(x, (2, 3)), ((2, 2, 5, 4),)),
    "adaptive_avg_pool2d even": Case(lambda x: F.adaptive_avg_pool2d(x, (2, 2)), ((2, 2, 4, 6),)),
    "add": Case(F.add, ((3, 1, 2), (4, 1))),
    "affine": Case(lambda x, w, b: F.affine(x, MEAN, VARIANCE, w, b), ((2, 2, 3, 2), (2,), (2,))),
    "arctan2": Case(F.arctan2, ((3, 1), (4,)), 0.2, reference=lambda x, y: np.arctan(x / y)),
    "array": Case(
        lambda x, y: F.array([[x, [1, 2]], [[3, 4], (F.sum(y), 5.0)]]),
        ((2,), (3,)),
        reference=lambda x, y: np.concatenate([x, [1, 2, 3, 4, y.sum(), 5]]).reshape(2, 2, 2),
    ),
    "array as it is": Case(lambda x: F.array(x, float if x.dtype == float else None), ((2, 3),)),
    "astype": Case(lambda x: F.astype(x, np.result_type(x)), ((3,),)),
    "avg_pool2d": Case(lambda x: F.avg_pool2d(x, 3, 2, 1), ((2, 2, 6, 5),)),
    "avg_pool2d plain": Case(lambda x: F.avg_pool2d(x, (2, 1)), ((1, 2, 5, 3),)),
    "batch_norm": Case(F.batch_norm, ((3, 2, 2, 3), (2,), (2,)), reference=_batch_norm),
    "broadcast_to": Case(lambda x: F.broadcast_to(x, (2, 3, 4)), ((3, 1),)),
    "channel_statistics": Case(lambda x: F.concatenate(F.channel_statistics(x)), ((2, 2, 2, 3),)),
    "clip": Case(
        lambda x: F.clip(x, -1, 1),
        ((20,),),
        reference=lambda x: np.where(abs(x.real) < 1, x, np.sign(x.real)),
    ),
    "clip one side": Case(
        lambda x: F.clip(x, max=0.5), ((20,),), reference=lambda x: np.where(x.real < 0.5, x, 0.5)
    ),
    "clip between arrays": Case(
        lambda x, low, high: F.clip(x, low, high),
        ((6, 5), (5,), (6, 1)),
        reference=lambda x, low, high: _clip(x, low, high),
    ),
    "concatenate flat": Case(
        lambda x, y: F.concatenate([x, y], None),
        ((2, 3), (2,)),
        reference=lambda x, y: np.concatenate([x.ravel(), y]),
    ),
    "concatenate": Case(lambda x, y: F.concatenate([x, y], axis=-1), ((2, 3), (2, 4))),
    "conv2d": conv_case((2, 3, 6, 5), (4, 3, 3, 3), padding=(1, 1)),
    "conv2d strided": conv_case((2, 3, 7, 6), (2, 3, 3, 2), (2, 3), (2, 1), (1, 2)),
    "conv2d grouped": conv_case((1, 4, 5, 4), (6, 2, 2, 3), (1, 2), (0, 1), groups=2),
    "conv2d grouped, stride 1": conv_case((2, 4, 5, 4), (6, 2, 3, 2), padding=(1, 0), groups=2),
    "conv2d many outputs": conv_case((1, 2, 4, 5), (5, 2, 3, 3), padding=(1, 2), dilation=(1, 2)),
    "conv2d depthwise": conv_case((2, 3, 5, 6), (3, 1, 3, 3), (2, 1), (1, 2), (2, 2), groups=3),
    "conv2d 1x1": conv_case((2, 4, 3, 2), (3, 4, 1, 1)),
    "conv2d 1x1 strided": conv_case((2, 4, 4, 5), (6, 2, 1, 1), (2, 2), groups=2),
    "conv2d padding beyond kernel": conv_case((1, 2, 3, 3), (2, 2, 2, 2), padding=(4, 3)),
    "conv_transpose2d": transpose_case((2, 3, 4, 3), (3, 4, 3, 3), padding=(1, 1)),
    "conv_transpose2d strided": transpose_case((1, 4, 3, 2), (4, 3, 3, 2), (2, 3), (1, 0), (1, 2), (1, 2), 2),
    "conv_transpose2d depthwise": transpose_case((2, 3, 3, 4), (3, 1, 2, 4), (2, 2), (0, 1), groups=3),
    "cos": Case(F.cos, ((5,),)),
    "cross_entropy": Case(
        lambda x: F.cross_entropy(x, LABELS),
        ((4, 3),),
        reference=lambda x: -np.log(_softmax(x, 1))[np.arange(4), LABELS].mean(),
    ),
    "cross_entropy ignoring": Case(
        lambda x: F.cross_entropy(x, LABEL_MAP, ignore_index=9),
        ((2, 3, 2, 2),),
        reference=lambda x: _cross_entropy_ignoring(x),
    ),
    "cumsum": Case(lambda x: F.cumsum(x, 1), ((2, 4, 2),), reference=lambda x: np.cumsum(x, 1)),
    "cumsum of all": Case(F.cumsum, ((2, 3),), reference=np.cumsum),
    "divide": Case(F.divide, ((3, 1), (2,)), 0.5),
    "dropout": Case(lambda x: F.dropout(x, 0.3, rng=np.random.default_rng(5)), ((4, 5),), reference=_dropout),
    "einsum": einsum_case("nij,njk->nki", (2, 3, 4), (2, 4, 2)),
    "einsum implicit": einsum_case("ba,cb", (3, 4), (2, 3)),
    "einsum of three": einsum_case("...i,ij,j->...", (2, 3, 4), (4, 5), (5,)),
    "einsum diagonal": einsum_case("iji,kk->jk", (3, 2, 3), (4, 4)),
    "einsum broadcast": einsum_case("...ab,...bc->...ac", (2, 1, 3, 4), (5, 4, 2)),
    "einsum alone": einsum_case("ij,k->i", (3, 4), (2,)),
    "einsum outer": einsum_case("i,j->ji", (3,), (2,)),
    "end_point_error": Case(F.end_point_error, ((2, 2, 3, 2), (2, 2, 3, 2)), reference=_end_point_error),
    "end_point_error valid": Case(
        lambda x, y: F.end_point_error(x, y, VALID),
        ((2, 2, 3, 2), (2, 2, 3, 2)),
        reference=lambda x, y: _end_point_error(x, y, VALID),
    ),
    "erf": Case(F.erf, ((7,),), reference=special.erf),
    "exp": Case(F.exp, ((5,),)),
    "expand_dims": Case(lambda x: F.expand_dims(x, -2), ((3, 2),)),
    "flatten": Case(F.flatten, ((2, 3, 2),)),
    "flip": Case(lambda x: F.flip(x, (0, 2)), ((2, 3, 2),)),
    "gelu": Case(F.gelu, ((7,),), -4, 4, reference=lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2)))),
    "getitem": Case(lambda x: F.getitem(x, (slice(None, None, -2), 1, None)), ((4, 3),)),
    "getitem integers": Case(lambda x: F.getitem(x, INDEX), ((3, 2),)),
    "getitem mixed": Case(lambda x: F.getitem(x, (slice(1, None), INDEX)), ((3, 4),)),
    "getitem mask": Case(lambda x: F.getitem(x, MASK), ((2, 3, 2),)),
    "global_avg_pool": Case(F.global_avg_pool, ((2, 3, 2, 4),)),
    "group_norm": Case(
        lambda x, w, b: F.group_norm(x, 2, w, b), ((2, 4, 3, 2), (4,), (4,)), reference=_group_norm
    ),
    "hypot": Case(F.hypot, ((3, 1), (4,)), reference=lambda x, y: _radius(x, y)),
    "inv": Case(F.inv, ((2, 3, 3),), 0.1, reference=np.linalg.inv),
    "l1": Case(
        F.l1, ((3, 4), (3, 4)), reference=lambda x, y: (np.where((x - y).real < 0, y - x, x - y)).mean()
    ),
    "leaky_relu": Case(
        lambda x: F.leaky_relu(x, 0.2), ((20,),), reference=lambda x: np.where(x.real > 0, x, 0.2 * x)
    ),
    "linear": Case(F.linear, ((2, 3, 4), (5, 4), (5,))),
    "log": Case(F.log, ((5,),), 0.5),
    "log1p": Case(F.log1p, ((5,),), -0.5, reference=lambda x: np.log(1 + x)),
    "local_response_norm": Case(
        lambda x: F.local_response_norm(x, 3, alpha=0.6, beta=0.7, k=1.5),
        ((2, 5, 3),),
        reference=lambda x: _local_response(x, 1, 1, 0.2, 0.7, 1.5),
    ),
    "local_response_norm of an even size": Case(
        lambda x: F.local_response_norm(x, 4, alpha=0.8, beta=2, k=1),
        ((1, 3, 2, 2),),
        reference=lambda x: _local_response(x, 2, 1, 0.2, 2, 1),
    ),
    "log_softmax": Case(
        lambda x: F.log_softmax(x, 1), ((2, 4, 3),), reference=lambda x: np.log(_softmax(x, 1))
    ),
    "logsumexp": Case(
        lambda x: F.logsumexp(x, 1, keepdims=True),
        ((2, 4, 3),),
        reference=lambda x: np.log(np.exp(x).sum(1, keepdims=True)),
    ),
    "logsumexp of two axes": Case(
        lambda x: F.logsumexp(x, (0, -1)), ((2, 4, 3),), reference=lambda x: np.log(np.exp(x).sum((0, 2)))
    ),
    "matmul": Case(F.matmul, ((2, 1, 3, 4), (5, 4, 2))),
    "matmul row": Case(F.matmul, ((4,), (3, 4, 2))),
    "matmul column": Case(F.matmul, ((3, 2, 4), (4,))),
    "matmul dot": Case(F.matmul, ((4,), (4,))),
    "max": Case(lambda x: F.max(x, 1), ((3, 4, 2),), reference=lambda x: _pick(x, x.real.argmax(1), 1)),
    "max of all": Case(F.max, ((3, 4),), reference=lambda x: x.ravel()[x.real.argmax()]),
    "max_pool2d": Case(lambda x: F.max_pool2d(x, 3, 2, 1), ((2, 2, 5, 6),), method="central"),
    "maximum": Case(F.maximum, ((3, 4), (4,)), reference=lambda x, y: np.where(x.real > y.real, x, y)),
    "mean": Case(lambda x: F.mean(x, (0, -1), keepdims=True), ((3, 4, 2),)),
    "min": Case(
        lambda x: F.min(x, 0, keepdims=True),
        ((3, 4),),
        reference=lambda x: _pick(x, x.real.argmin(0), 0)[None],
    ),
    "minimum": Case(F.minimum, ((3, 4), (4,)), reference=lambda x, y: np.where(x.real < y.real, x, y)),
    "moveaxis": Case(lambda x: F.moveaxis(x, 0, -1), ((2, 3, 4),)),
    "mse": Case(F.mse, ((3, 4), (3, 4))),
    "multiply": Case(F.multiply, ((3, 1, 2), (4, 1))),
    "negative": Case(F.negative, ((5,),)),
    "norm": Case(F.norm, ((3, 4),), reference=lambda x: np.sqrt((x * x).sum())),
    "norm of lines": Case(
        lambda x: F.norm(x, axis=1, keepdims=True),
        ((3, 4),),
        reference=lambda x: np.sqrt((x * x).sum(1, keepdims=True)),
    ),
    "norm of order 3": Case(
        lambda x: F.norm(x, 3, 0), ((3, 4),), reference=lambda x: (_abs(x) ** 3).sum(0) ** (1 / 3)
    ),
    "norm of order 1": Case(lambda x: F.norm(x, 1), ((5,),), reference=lambda x: _abs(x).sum()),
    "norm of order inf": Case(
        lambda x: F.norm(x, np.inf), ((5,),), reference=lambda x: _abs(x)[abs(x.real).argmax()]
    ),
    "norm of matrices": Case(
        lambda x: F.norm(x, 1, (0, 2)),
        ((3, 2, 4),),
        reference=lambda x: _pick(_abs(x).sum(0), abs(x.real).sum(0).argmax(1), 1),
    ),
    "normalize": Case(
        lambda x, w, b: F.normalize(x, w, b, axes=(1,)),
        ((3, 4), (4,), (1,)),
        reference=lambda x, w, b: _standard(x, (1,)) * w + b,
    ),
    "outer": Case(F.outer, ((2, 2), (3,)), reference=lambda x, y: x.ravel()[:, None] * y),
    **{
        f"pad {mode}": Case(
            lambda x, mode=mode: F.pad(x, ((1, 0), (5, 3), (0, 0)), mode),
            ((2, 3, 2),),
            reference=lambda x, mode=mode: np.pad(x, ((1, 0), (5, 3), (0, 0)), mode),
        )
        for mode in ("reflect", "symmetric", "edge", "wrap")
    },
    "pad": Case(lambda x: F.pad(x, ((1, 0), (2, 3)), "constant", 7.0), ((2, 3),)),
    "pixel_shuffle": Case(lambda x: F.pixel_shuffle(x, 2), ((2, 8, 3, 2),)),
    "pixel_unshuffle": Case(lambda x: F.pixel_unshuffle(x, 2), ((2, 2, 4, 6),)),
    "power": Case(F.power, ((3, 1), (4,)), 0.5),
    "power of constant": Case(lambda x: F.power(x, 3), ((3, 4),)),
    "prod": Case(lambda x: F.prod(x, 1), ((2, 5, 3),), reference=lambda x: np.prod(x, 1)),
    "prod of all": Case(
        lambda x: F.prod(x, keepdims=True), ((2, 3),), reference=lambda x: np.prod(x, keepdims=True)
    ),
    "prod of zeros": Case(
        lambda x: F.prod(x, -1),
        (),
        reference=lambda x: np.prod(x, -1),
        given=([[2, 0, 3, 4], [0, 5, 0, 7], [0, 0, 0, 2], [1, 2, 3, 4]],),
    ),
    "relu": Case(F.relu, ((20,),), reference=lambda x: np.where(x.real > 0, x, 0)),
    "repeat": Case(lambda x: F.repeat(x, 3, -1), ((2, 3),)),
    "reshape": Case(lambda x: F.reshape(x, (4, -1)), ((2, 3, 2),)),
    "resize": Case(lambda x: F.resize(x, (7, 3)), ((2, 2, 4, 5),)),
    "resize aligned": Case(lambda x: F.resize(x, (7, 3), align_corners=True), ((2, 2, 4, 5),)),
    "roll": Case(
        lambda x: F.roll(x, (1, -2), (0, 1)), ((2, 3),), reference=lambda x: np.roll(x, (1, -2), (0, 1))
    ),
    "roll of all": Case(lambda x: F.roll(x, 2), ((2, 3),), reference=lambda x: np.roll(x, 2)),
    "sigmoid": Case(F.sigmoid, ((5,),), -8, 8, reference=lambda x: 1 / (1 + np.exp(-x))),
    "silu": Case(F.silu, ((5,),), reference=lambda x: x / (1 + np.exp(-x))),
    "sin": Case(F.sin, ((5,),)),
    "smooth_l1": Case(lambda x, y: F.smooth_l1(x, y, 0.7), ((3, 4), (3, 4)), method="central"),
    "sort": Case(
        lambda x: F.sort(x, 1),
        ((2, 5, 3),),
        reference=lambda x: np.take_along_axis(x, np.argsort(x.real, 1), 1),
    ),
    "sort of all": Case(
        lambda x: F.sort(x, None), ((2, 3),), reference=lambda x: x.ravel()[np.argsort(x.real.ravel())]
    ),
    "solve": Case(F.solve, ((2, 3, 3), (2, 3, 2)), 0.1, reference=np.linalg.solve),
    "solve of one vector": Case(F.solve, ((2, 3, 3), (3,)), 0.1, reference=np.linalg.solve),
    "softmax": Case(lambda x: F.softmax(x, 1), ((2, 4, 3),), reference=lambda x: _softmax(x, 1)),
    "softplus": Case(F.softplus, ((5,),), -8, 8, reference=lambda x: np.log(1 + np.exp(x))),
    "sqrt": Case(F.sqrt, ((5,),), 0.5),
    "square": Case(F.square, ((5,),)),
    "squeeze": Case(F.squeeze, ((1, 3, 1),)),
    "stack": Case(lambda x, y: F.stack([x, y], 1), ((2, 3), (2, 3))),
    "std": Case(
        lambda x: F.std(x, (0, 2), ddof=1),
        ((3, 4, 2),),
        reference=lambda x: np.sqrt(((x - x.mean((0, 2), keepdims=True)) ** 2).sum((0, 2)) / 5),
    ),
    "subtract": Case(F.subtract, ((3, 1, 2), (4, 1))),
    "sum": Case(lambda x: F.sum(x, (0, -1)), ((3, 4, 2),)),
    "sum of all": Case(F.sum, ((3, 4),)),
    "swapaxes": Case(lambda x: F.swapaxes(x, 0, -1), ((2, 3, 4),)),
    "take": Case(lambda x: F.take(x, INDEX, 1), ((2, 3, 2),), reference=lambda x: np.take(x, INDEX, 1)),
    "take of all": Case(lambda x: F.take(x, [5, 0, 5]), ((2, 3),), reference=lambda x: x.ravel()[[5, 0, 5]]),
    "take_along_axis": Case(
        lambda x: F.take_along_axis(x, INDEX[:, :, None], 1),
        ((2, 3, 4),),
        reference=lambda x: np.take_along_axis(x, INDEX[:, :, None], 1),
    ),
    "tensordot": Case(
        lambda x, y: F.tensordot(x, y, ([2, 0], [0, 1])),
        ((2, 3, 4), (4, 2, 3)),
        reference=lambda x, y: np.tensordot(x, y, ([2, 0], [0, 1])),
    ),
    "tensordot of two axes": Case(F.tensordot, ((2, 3, 4), (3, 4, 2)), reference=np.tensordot),
    "tile": Case(lambda x: F.tile(x, (2, 1, 3)), ((3, 2),), reference=lambda x: np.tile(x, (2, 1, 3))),
    "tanh": Case(F.tanh, ((5,),)),
    "transpose": Case(lambda x: F.transpose(x, (2, 0, 1)), ((2, 3, 4),)),
    "transpose reversed": Case(F.transpose, ((2, 3, 4),)),
    "tril": Case(lambda x: F.tril(x, 1), ((2, 3, 4),), reference=lambda x: np.tril(x, 1)),
    "triu": Case(lambda x: F.triu(x, -1), ((3, 4),), reference=lambda x: np.triu(x, -1)),
    "upsample_nearest": Case(lambda x: F.upsample_nearest(x, 2), ((1, 2, 3, 2),)),
    "var of all": Case(F.var, ((3, 4),), reference=lambda x: ((x - x.mean()) ** 2).mean()),
    "var": Case(lambda x: F.var(x, 1, ddof=1), ((3, 4, 2),)),
    "where": Case(lambda x, y: F.where(MASK, x, y), ((2, 3), (3,))),
}


def draw(case, seed=0):
    if case.given:
        return [np.array(values, float) for values in case.given]
    rng = np.random.default_rng(seed)
    return [rng.uniform(case.low, case.high, shape) for shape in case.shapes]


def pull(f, *given, seed=None):
    """Gradients of the sum of the values of f, or of their product with `seed`."""
    with Tape() as tape:
        inputs = [Variable(a) for a in given]
        y = f(*inputs)
    return tape.gradient(y, inputs, grad=np.ones(y.shape, y.dtype) if seed is None else seed)


every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def public_functions():
    """The names of all functions that were written for arrays; `stop_gradient` is for what holds them."""
    return {
        name
        for name, value in vars(F).items()
        if callable(value) and getattr(value, "__module__", "").startswith("autodiff.functions.")
    } - {"stop_gradient"}
