"""`roi_align`, `ps_roi_pool` and `nms` against those of torchvision, on the CPU: values and gradients."""

from typing import Any

import numpy as np
import pytest

import dynarray as dyn

REASON = "{} is not installed (pip install torch torchvision brings it)"
torch = pytest.importorskip("torch", reason=REASON.format("PyTorch"))
ops = pytest.importorskip("torchvision.ops", reason=REASON.format("torchvision"))


def regions(rng: np.random.Generator, number: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that may be outside or inverted, and their images."""
    return rng.uniform(-6.0, 30.0, (number, 4)), rng.integers(0, images, number)


def theirs(function: Any, x: np.ndarray, boxes: Any, images: Any, *args: Any, **params: Any) -> tuple:
    """The output of torchvision's function, and a function of its gradient that gives that of x."""
    own = torch.from_numpy(x).requires_grad_()
    rows = torch.from_numpy(np.concatenate([images[:, None].astype(x.dtype), boxes], axis=1))
    y = function(own, rows, *args, **params)
    return y.detach().numpy(), lambda grad: torch.autograd.grad(y, own, torch.from_numpy(grad))[0].numpy()


def agree(name: str, x: Any, given: tuple, params: dict, right: tuple, rng: np.random.Generator) -> None:
    """Require ours to be torchvision's."""
    y, pull = right
    grad = rng.standard_normal(y.shape)
    np.testing.assert_allclose(getattr(dyn, name)(x, *given, **params), y, rtol=1e-10, atol=1e-12)
    mine = getattr(dyn, f"{name}_backward")(grad, x, *given, **params).x
    np.testing.assert_allclose(mine, pull(grad), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_roi_align(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = int(rng.integers(1, 4))
    x = rng.standard_normal((images, int(rng.integers(1, 20)), *rng.integers(3, 20, 2)))
    boxes, image = regions(rng, int(rng.integers(0, 9)), images)
    bins = tuple(rng.integers(1, 8, 2).tolist())
    ratio = int(rng.integers(0, 4))
    if not ratio:  # of inverted boxes theirs makes a table of a negative size
        boxes[:, 2:] = boxes[:, :2] + abs(boxes[:, 2:] - boxes[:, :2])
    params = {
        "spatial_scale": float(rng.choice([1.0, 0.5, 0.31])),
        "sampling_ratio": ratio,
        "aligned": bool(rng.integers(2)),
    }
    right = theirs(ops.roi_align, x, boxes, image, bins, **params)
    agree("roi_align", x, (boxes, image, bins), params, right, rng)


@pytest.mark.parametrize("seed", range(20))
def test_ps_roi_pool(seed: int) -> None:
    """Where the definitions agree: whole pixels, of which theirs ends before the last, away from the end."""
    rng = np.random.default_rng(seed)
    bins = int(rng.choice([1, 2, 4, 8]))  # theirs rounds edges of others across pixels
    x = rng.standard_normal((2, int(rng.integers(1, 4)) * bins**2, 16, 18))
    corners = rng.integers(0, [12, 10], (6, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 5, (6, 2))], axis=1).astype(float)
    image = rng.integers(0, 2, 6)
    right = theirs(ops.ps_roi_pool, x, boxes + np.array([0, 0, 1, 1]), image, bins, 1.0)
    agree("ps_roi_pool", x, (boxes, image, bins), {}, right, rng)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(10))
def test_nms(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 60, (500, 4)).astype(dtype)
    boxes[:, 2:] = boxes[:, :2] + rng.integers(-1, 30, (500, 2))
    scores = rng.integers(0, 99, 500).astype(dtype)
    boxes[seed, seed % 4] = scores[seed + 20] = np.nan
    right = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.1 * seed).numpy()
    np.testing.assert_array_equal(dyn.nms(boxes, scores, 0.1 * seed), right)
