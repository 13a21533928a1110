"""`deform_conv2d` against that of torchvision, on the CPU in float64: values and all gradients."""

from typing import Any

import numpy as np
import pytest
from _contract import Call, compare, evaluate
from conftest import Backend, backend_params
from test_deform import OPERATOR, call_of

REASON = "{} is not installed (pip install torch torchvision brings it)"
torch = pytest.importorskip("torch", reason=REASON.format("PyTorch"))
ops = pytest.importorskip("torchvision.ops", reason=REASON.format("torchvision"))


def drawn(seed: int) -> Call:
    """A call with an output: of batches of 0, 1, 33, 2 and 1 images in turn."""
    rng = np.random.default_rng(seed)

    def pick(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    groups, offset_groups = pick(1, 2, 3), pick(1, 2, 4)
    c, o = groups * offset_groups * pick(1, 2, 3), groups * pick(1, 2, 5)
    kernel = pick((3, 3), (1, 1), (2, 3), (5, 1), (1, 4), (3, 2))
    params = {
        "stride": pick(1, 2, (1, 3), (2, 1)),
        "padding": pick(0, 1, (2, 0), (1, 3)),
        "dilation": pick(1, 2, (1, 3)),
    }
    sizes = {"groups": groups, "offset_groups": offset_groups, "reach": pick(0.7, 3.0, 12.0)}
    image = int(rng.integers(9, 14)), int(rng.integers(10, 15))
    full = pick(True, False)
    return call_of(rng, (0, 1, 33, 2, 1)[seed % 5], c, o, image, kernel, full=full, **sizes, **params)


def theirs(call: Call) -> list[np.ndarray]:
    """The output, and the gradients of the arrays that are given."""
    named = {
        name: torch.from_numpy(array.copy()).requires_grad_()
        for name, array in zip(OPERATOR.arrays, call.arrays, strict=True)
        if array is not None
    }
    maps = {name: named[name].flatten(1, -3) if name in named else None for name in ("offset", "mask")}
    steps = {key: tuple(np.broadcast_to(value, 2).tolist()) for key, value in call.params.items()}
    y = ops.deform_conv2d(
        named["x"], maps["offset"], named["weight"], named.get("bias"), mask=maps["mask"], **steps
    )
    gradients = torch.autograd.grad(y, list(named.values()), torch.from_numpy(call.grad_output))
    return [value.detach().numpy() for value in (y, *gradients)]


@pytest.mark.parametrize("backend", backend_params("reference", "cpu"), indirect=True)
@pytest.mark.parametrize("seed", range(50))
def test_values_and_gradients(backend: Backend, seed: int) -> None:
    call = drawn(seed)
    result = evaluate(call, backend)
    ours = [result.output, *(gradient for gradient in result.gradients if gradient is not None)]
    assert len(ours) == (6 if call.arrays[3] is not None else 4)
    for index, (mine, right) in enumerate(zip(ours, theirs(call), strict=True)):
        compare(call, f"result {index}", mine, right, 1e-10)


def test_a_difference_is_found() -> None:
    call = drawn(3)
    with pytest.raises(AssertionError, match="is off"):
        compare(call, "output", 1.001 * theirs(call)[0], evaluate(call, Backend("cpu")).output, 1e-10)
