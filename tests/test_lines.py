"""Operators on lines against their formulas, sample by sample: nothing here knows of images of one row."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _contract import evaluate, make_call, seeded_case
from conftest import Backend, backend_params

from dynarray import OPERATORS

SEEDS = range(12)
FARTHEST = 40  # samples from the line to what is read


def read(x: np.ndarray, place: int) -> Any:
    """x[..., place], zero outside."""
    return x[..., place] if 0 <= place < x.shape[-1] else np.zeros(x.shape[:-1])


def between(line: np.ndarray, place: float) -> float:
    """Linear interpolation, zero outside."""
    whole = int(np.floor(place))
    part = place - whole
    return float((1 - part) * read(line, whole) + part * read(line, whole + 1))


def places(
    weight: np.ndarray, taps: int, stride: int = 1, dilation: int = 1, padding: Any = None, margin: int = 0
) -> Any:
    """(output, tap, input) for all outputs of the last axis of `weight` and its taps.

    `margin` is how many samples stand before those of the line.
    """
    start = (dilation * (taps - 1) // 2 if padding is None else padding) - margin
    for out in range(weight.shape[-1]):
        for tap in range(taps):
            yield out, tap, out * stride - start + tap * dilation


def local_filter(x: Any, weight: Any, channel_weight: Any, *, combine: str = "mul", **steps: Any) -> Any:
    n, c, _ = x.shape
    y = np.zeros((n, c, weight.shape[-1]))
    for out, tap, place in places(weight, weight.shape[2], **steps):
        for channel in range(c):
            factor = weight[:, channel * weight.shape[1] // c, tap, out]
            if channel_weight is not None:
                other = channel_weight[:, channel, tap]
                factor = factor * other if combine == "mul" else factor + other
            y[:, channel, out] += factor * read(x, place)[:, channel]
    return y


def mixed_filter(x: Any, kernels: Any, mixture: Any, **steps: Any) -> Any:
    (n, c, _), groups = x.shape, mixture.shape[1]
    y = np.zeros((n, c, mixture.shape[-1]))
    for out, tap, place in places(mixture, kernels.shape[-1], **steps):
        for channel in range(c):
            own = kernels[:, tap] if kernels.ndim == 2 else kernels[:, channel, tap]
            y[:, channel, out] += mixture[:, channel * groups // c, :, out] @ own * read(x, place)[:, channel]
    return y


def dynamic_conv(x: Any, weight: Any, **steps: Any) -> Any:
    y = np.zeros((*weight.shape[:2], weight.shape[-1]))
    for out, tap, place in places(weight, weight.shape[3], **steps):
        y[:, :, out] += np.einsum("noc,nc->no", weight[..., tap, out], read(x, place))
    return y


def atom_conv(x: Any, atoms: Any, coefficients: Any, bias: Any, **steps: Any) -> Any:
    y = np.zeros((len(x), len(coefficients), atoms.shape[-1]))
    for out, tap, place in places(atoms, atoms.shape[2], **steps):
        y[..., out] += np.einsum("nm,nc,ocm->no", atoms[:, :, tap, out], read(x, place), coefficients)
    return y if bias is None else y + bias[:, None]


def deform_conv(x: Any, offset: Any, weight: Any, mask: Any, bias: Any, **steps: Any) -> Any:
    (n, c, _), (o, per, taps) = x.shape, weight.shape
    steps = {"padding": 0, **steps}
    offset = offset.reshape(n, offset.size // max(1, n * taps * offset.shape[-1]), taps, offset.shape[-1])
    mask = np.ones_like(offset) if mask is None else mask.reshape(offset.shape)
    y = np.zeros((n, o, offset.shape[-1]))
    for out, tap, place in places(offset, taps, **steps):
        for image, output, one in np.ndindex(n, o, per):
            channel = output // (o // (c // per)) * per + one
            d = channel // (c // offset.shape[1])
            value = between(x[image, channel], place + offset[image, d, tap, out])
            y[image, output, out] += weight[output, one, tap] * mask[image, d, tap, out] * value
    return y if bias is None else y + bias[:, None]


def displaced_conv(x: Any, weight: Any, displacement: Any, sigma: Any, bias: Any) -> Any:
    (n, _, length), scale = x.shape, 0.5 if sigma is None else float(sigma)
    reach = int(np.ceil(5 * scale))
    bell = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * scale**2))
    taps = bell / bell.sum()
    blurred = np.zeros_like(x)
    for place in range(length):
        for tap in range(2 * reach + 1):
            blurred[..., place] += taps[tap] * read(x, place + tap - reach)
    y = np.zeros((n, len(weight), length))
    for image, output, channel, unit, place in np.ndindex(n, *weight.shape, length):
        value = between(blurred[image, channel], place + displacement[output, channel, unit])
        y[image, output, place] += weight[output, channel, unit] * value
    return y if bias is None else y + bias[:, None]


FORMULAS: dict[str, Callable] = {
    "local_filter1d": local_filter,
    "mixed_filter1d": mixed_filter,
    "dynamic_conv1d": dynamic_conv,
    "deform_conv1d": deform_conv,
    "atom_conv1d": atom_conv,
    "displaced_conv1d": displaced_conv,
}


def test_every_operator_on_lines_has_its_formula_here() -> None:
    assert set(FORMULAS) == {name for name in OPERATORS if name.endswith("1d")}


@pytest.mark.parametrize("backend", backend_params("reference", "cpu"), indirect=True)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FORMULAS)
def test_a_line_is_what_its_formula_says(name: str, seed: int, backend: Backend) -> None:
    operator = OPERATORS[name]
    call = make_call(operator, seeded_case(operator, seed, N=2, H=1, W=4 + seed), seed)
    result = evaluate(call, backend)
    (x, *others), params = call.arrays, dict(call.params)
    border = params.pop("border", "constant")
    if border != "constant":
        x, params["margin"] = np.pad(x, ((0, 0), (0, 0), (FARTHEST, FARTHEST)), border), FARTHEST
    expected = FORMULAS[name](x, *others, **params)
    assert result.output.shape == expected.shape
    np.testing.assert_allclose(result.output, expected, rtol=1e-11, atol=1e-11)
    # Gradients have the shapes of their arrays; that they are right, the contract says.
    for array, gradient in zip(call.arrays, result.gradients, strict=True):
        assert array is None or gradient.shape == array.shape
