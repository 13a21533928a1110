"""Values and gradients against PyTorch on the CPU, in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from autodiff import Tape, Variable
from autodiff import functions as F

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra bench brings it)")
T = torch.nn.functional

RTOL = 1e-10
LABELS = np.random.default_rng(1).integers(0, 5, 6)
LABEL_MAP = np.random.default_rng(2).integers(0, 5, (2, 4, 3))
LABEL_MAP[LABEL_MAP == 3] = 255


class Case(NamedTuple):
    """One function in both libraries, and the shapes of its arrays."""

    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]


def conv(xs: tuple, ws: tuple, **options: Any) -> Case:
    return Case(
        lambda x, w, b: F.conv2d(x, w, b, **options),
        lambda x, w, b: T.conv2d(x, w, b, **options),
        (xs, ws, ws[:1]),
    )


def transposed(xs: tuple, ws: tuple, **options: Any) -> Case:
    return Case(
        lambda x, w, b: F.conv_transpose2d(x, w, b, **options),
        lambda x, w, b: T.conv_transpose2d(x, w, b, **options),
        (xs, ws, (ws[1] * options.get("groups", 1),)),
    )


def resized(size: tuple[int, int], align_corners: bool) -> Case:
    return Case(
        lambda x: F.resize(x, size, align_corners=align_corners),
        lambda x: T.interpolate(x, size, mode="bilinear", align_corners=align_corners),
        ((2, 3, 5, 4),),
    )


def image(ours: Callable, theirs: Callable, shape: tuple = (2, 3, 9, 8)) -> Case:
    return Case(ours, theirs, (shape,))


CASES = {
    "conv2d": conv((2, 3, 9, 8), (4, 3, 3, 3), padding=1),
    "conv2d stride, dilation, rectangle": conv(
        (2, 4, 11, 9), (6, 4, 3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 3)
    ),
    "conv2d groups": conv((2, 4, 7, 7), (6, 2, 3, 3), groups=2, stride=2, padding=1),
    "conv2d depthwise": conv((2, 4, 7, 6), (4, 1, 5, 3), groups=4, padding=(2, 1)),
    "conv2d multiplier": conv((2, 3, 7, 6), (6, 1, 3, 3), groups=3, padding=1),
    "conv2d 1x1": conv((2, 5, 4, 4), (3, 5, 1, 1)),
    "conv2d 1x1 stride": conv((2, 5, 7, 4), (3, 5, 1, 1), stride=2),
    "conv_transpose2d": transposed((2, 4, 5, 4), (4, 3, 3, 3)),
    "conv_transpose2d stride": transposed((2, 4, 5, 4), (4, 3, 4, 4), stride=2, padding=1),
    "conv_transpose2d output padding, dilation, groups": transposed(
        (2, 4, 5, 4),
        (4, 3, 3, 2),
        stride=(3, 2),
        padding=(1, 0),
        output_padding=(2, 1),
        dilation=(1, 2),
        groups=2,
    ),
    "batch_norm": Case(
        lambda x, w, b: F.batch_norm(x, w, b, epsilon=1e-3),
        lambda x, w, b: T.batch_norm(x, None, None, w, b, training=True, eps=1e-3),
        ((4, 3, 5, 2), (3,), (3,)),
    ),
    "group_norm": Case(
        lambda x, w, b: F.group_norm(x, 2, w, b),
        lambda x, w, b: T.group_norm(x, 2, w, b),
        ((3, 4, 5, 2), (4,), (4,)),
    ),
    "local_response_norm": image(
        lambda x: F.local_response_norm(x, 5, alpha=0.3, k=2.0),
        lambda x: T.local_response_norm(x, 5, alpha=0.3, k=2.0),
    ),
    "local_response_norm of an even size": image(
        lambda x: F.local_response_norm(x, 2, alpha=0.3, beta=0.5),
        lambda x: T.local_response_norm(x, 2, alpha=0.3, beta=0.5),
    ),
    "max_pool2d": image(lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: T.max_pool2d(x, 3, 2, 1)),
    "max_pool2d rectangle": image(lambda x: F.max_pool2d(x, (2, 3)), lambda x: T.max_pool2d(x, (2, 3))),
    "avg_pool2d": image(lambda x: F.avg_pool2d(x, 3, 2, 1), lambda x: T.avg_pool2d(x, 3, 2, 1)),
    "avg_pool2d rectangle": image(
        lambda x: F.avg_pool2d(x, (2, 3), (1, 2)), lambda x: T.avg_pool2d(x, (2, 3), (1, 2))
    ),
    "adaptive_avg_pool2d": image(
        lambda x: F.adaptive_avg_pool2d(x, (4, 3)), lambda x: T.adaptive_avg_pool2d(x, (4, 3))
    ),
    "adaptive_avg_pool2d even": image(
        lambda x: F.adaptive_avg_pool2d(x, (3, 2)), lambda x: T.adaptive_avg_pool2d(x, (3, 2))
    ),
    "resize larger": resized((11, 7), False),
    "resize larger, corners aligned": resized((11, 7), True),
    "resize smaller": resized((3, 2), False),
    "resize smaller, corners aligned": resized((3, 2), True),
    "resize to one pixel, corners aligned": resized((1, 6), True),
    "resize by 2": resized((10, 8), False),
    "pixel_shuffle": image(lambda x: F.pixel_shuffle(x, 2), lambda x: T.pixel_shuffle(x, 2), (2, 12, 3, 4)),
    "pixel_unshuffle": image(
        lambda x: F.pixel_unshuffle(x, 2), lambda x: T.pixel_unshuffle(x, 2), (2, 3, 4, 6)
    ),
    "cross_entropy": Case(
        lambda x: F.cross_entropy(x, LABELS),
        lambda x: T.cross_entropy(x, torch.from_numpy(LABELS)),
        ((6, 5),),
    ),
    "cross_entropy of images, ignoring": Case(
        lambda x: F.cross_entropy(x, LABEL_MAP, ignore_index=255),
        lambda x: T.cross_entropy(x, torch.from_numpy(LABEL_MAP), ignore_index=255),
        ((2, 5, 4, 3),),
    ),
    "smooth_l1": Case(
        lambda x, y: F.smooth_l1(x, y, 0.7), lambda x, y: T.smooth_l1_loss(x, y, beta=0.7), ((4, 5), (4, 5))
    ),
    "gelu": image(F.gelu, T.gelu),
    "softplus": image(F.softplus, T.softplus),
    "silu": image(F.silu, T.silu),
    "leaky_relu": image(lambda x: F.leaky_relu(x, 0.1), lambda x: T.leaky_relu(x, 0.1)),
    "log_softmax": image(lambda x: F.log_softmax(x, 1), lambda x: T.log_softmax(x, 1)),
    "einsum": Case(
        lambda x, y: F.einsum("...ij,...kj->...ik", x, y),
        lambda x, y: torch.einsum("...ij,...kj->...ik", x, y),
        ((2, 1, 3, 4), (5, 6, 4)),
    ),
}


def close(actual: Any, expected: Any) -> None:
    expected = expected.detach().numpy()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= RTOL * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_values_and_gradients(case: Case, rng: np.random.Generator) -> None:
    arrays = [rng.standard_normal(shape) for shape in case.shapes]
    with Tape() as tape:
        inputs = [Variable(a) for a in arrays]
        y = case.ours(*inputs)
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    z = case.theirs(*tensors)
    close(y.data, z)
    weights = rng.standard_normal(y.shape)
    expected = torch.autograd.grad(z, tensors, torch.from_numpy(weights))
    for mine, right in zip(tape.gradient(y, inputs, grad=weights), expected, strict=True):
        close(mine, right)


def test_a_difference_is_found(rng: np.random.Generator) -> None:
    x = rng.standard_normal((2, 3, 4))
    close(F.gelu(x), T.gelu(torch.from_numpy(x)))
    with pytest.raises(AssertionError):
        close(F.gelu(x), T.gelu(torch.from_numpy(x), approximate="tanh"))
