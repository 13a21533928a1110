"""Hard calls of `local_filter2d`: large kernels, far steps, odd sizes, many channels, upsampling."""

from typing import Any

import numpy as np
import pytest
from _contract import Call, check
from conftest import Backend

import dynarray as dyn


def hard_call(
    c: int, g: int, image: tuple[int, int], kernel: tuple[int, int], channel: bool, **params: Any
) -> Call:
    """A call of local_filter2d; the size of its output is worked out here, not taken from it."""
    rng = np.random.default_rng(hash((c, g, *image, *kernel)) % 2**32)
    stride, dilation = (np.broadcast_to(params.get(name, 1), 2) for name in ("stride", "dilation"))
    padding, u = params.get("padding"), params.get("upsample", 1)
    pads = (
        [d * (k - 1) // 2 for d, k in zip(dilation, kernel)]
        if padding is None
        else np.broadcast_to(padding, 2)
    )
    reach = [max(0, image[i] + 2 * pads[i] - dilation[i] * (kernel[i] - 1) - 1 + stride[i]) for i in range(2)]
    outputs = tuple(int(reach[i] // stride[i] * u) for i in range(2))
    arrays = (
        rng.standard_normal((1, c, *image)),
        rng.standard_normal((1, g, *kernel, *outputs)),
        rng.standard_normal((1, u, u, c, *kernel)) if channel else None,
    )
    return Call(dyn.OPERATORS["local_filter2d"], arrays, params, rng.standard_normal((1, c, *outputs)))


HARD = {
    "k 15": hard_call(2, 1, (23, 37), (15, 15), True),
    "k 15 add": hard_call(2, 1, (23, 37), (15, 15), True, combine="add"),
    "k 31 on a smaller image": hard_call(2, 2, (9, 17), (31, 31), False),
    "k 63 on one pixel": hard_call(1, 1, (1, 1), (63, 63), True),
    "long row": hard_call(3, 1, (11, 40), (1, 31), True),
    "long column": hard_call(3, 3, (40, 11), (31, 1), True),
    "even": hard_call(4, 2, (9, 8), (4, 2), True, padding=(1, 2)),
    "even, odd and strided": hard_call(4, 2, (11, 9), (2, 5), True, padding=(3, 0), stride=(2, 3)),
    "image not divisible by the stride": hard_call(2, 1, (10, 11), (3, 3), True, stride=(3, 4)),
    "stride beyond the kernel": hard_call(2, 1, (29, 31), (3, 3), True, stride=7),
    "stride beyond the image": hard_call(2, 1, (5, 6), (3, 3), True, stride=100),
    "stride beside a large dilation": hard_call(6, 3, (9, 37), (3, 5), True, dilation=(3, 1), stride=2),
    "one tap, a filter a pixel": hard_call(6, 6, (9, 13), (1, 1), False),
    "one tap, added": hard_call(9, 1, (9, 13), (1, 1), True, combine="add"),
    "dilation 8": hard_call(2, 1, (33, 29), (3, 3), True, dilation=8),
    "dilation 8 strided": hard_call(2, 1, (33, 29), (3, 5), True, dilation=(8, 9), stride=(2, 3)),
    "dilation as large as the image": hard_call(2, 1, (12, 9), (3, 3), True, dilation=(12, 9)),
    "dilation beyond the image": hard_call(2, 1, (12, 9), (5, 3), True, dilation=(13, 500)),
    "padding far beyond, strided": hard_call(2, 1, (5, 6), (2, 3), True, padding=(9, 12), stride=(4, 5)),
    "kernel beyond the image": hard_call(2, 1, (2, 9), (3, 3), True, padding=0),
    "a group per channel": hard_call(37, 37, (5, 9), (3, 3), False),
    "many channels in one group": hard_call(67, 1, (5, 9), (3, 3), True),
    "no channels": hard_call(0, 1, (5, 9), (3, 3), True),
    "upsample 7": hard_call(2, 1, (3, 4), (3, 3), True, upsample=7),
    "upsample 4, dilated": hard_call(2, 2, (13, 11), (3, 5), True, upsample=4, dilation=9, combine="add"),
    "upsample 3, many channels": hard_call(22, 2, (13, 11), (5, 3), False, upsample=3, dilation=(2, 3)),
    "upsample 5, dilated beyond": hard_call(19, 1, (9, 7), (3, 3), False, upsample=5, dilation=(9, 40)),
    "upsample 20": hard_call(3, 1, (3, 4), (3, 3), True, upsample=20),
    "upsample 3, k 15": hard_call(1, 1, (4, 5), (15, 15), True, upsample=3),
}


@pytest.mark.parametrize("case", HARD)
def test_hard_cases(backend: Backend, case: str) -> None:
    check(HARD[case], backend)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("image", "kernel", "padding"), [((40, 23), (2, 2), 0), ((24, 31), (3, 4), (0, 2)), ((1, 400), (1, 4), 0)]
)
def test_outputs_that_are_fewer_than_pixels(
    image: Any, kernel: Any, padding: Any, scaled: bool, special: bool
) -> None:
    """Many channels, whose outputs do not lie as the pixels do: the same for any number of threads."""
    rng = np.random.default_rng(3)
    pad = padding if isinstance(padding, tuple) else (padding, padding)
    outputs = [size + 2 * p - k + 1 for size, p, k in zip(image, pad, kernel, strict=True)]
    x, weight = rng.standard_normal((2, 12, *image)), rng.standard_normal((2, 2, *kernel, *outputs))
    grad_output = rng.standard_normal((2, 12, *outputs))
    for array in (x, weight, grad_output) if special else ():
        array.flat[rng.integers(0, array.size)] = np.inf
    given = (x, weight, rng.standard_normal((2, 12, *kernel))) if scaled else (x, weight)
    threads = dyn.get_num_threads()

    def results(backend: Any) -> list[Any]:
        with dyn.use_backend(backend), np.errstate(all="ignore"):
            y = dyn.local_filter2d(*given, padding=padding)
            return [y, *dyn.local_filter2d_backward(grad_output, *given, padding=padding)]

    try:
        ours = []
        for number in (1, 2, 7):
            dyn.set_num_threads(number)
            ours.append(results("cpu"))
    finally:
        dyn.set_num_threads(threads)
    for *same, expected in zip(*ours, results("reference"), strict=True):
        if expected is not None:
            np.testing.assert_allclose(same[0], expected, rtol=1e-12, atol=1e-11)
            for other in same[1:]:
                np.testing.assert_array_equal(other, same[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [2, (3, 5), 7])
def test_outputs_have_the_same_bits_whether_filters_are_applied_in_place_or_not(
    size: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tile may be too small for the way that the whole goes."""
    from dynarray.cpu.local_filter import forms

    rng = np.random.default_rng(5)
    kh, kw = np.broadcast_to(size, 2).tolist()
    calls = []
    for dilation, padding, upsample, scaled in (
        ((1, 1), (0, 0), 1, True),
        ((2, 1), (2, 1), 1, False),
        ((1, 1), (kh // 2, kw // 2), 1, True),
        ((1, 1), None, 2, False),
    ):
        if upsample > 1 and not kh % 2:
            continue
        padded = (27, 24) if padding is None else (27 + 2 * padding[0], 24 + 2 * padding[1])
        outputs = [n - d * (k - 1) for n, d, k in zip(padded, dilation, (kh, kw), strict=True)]
        outputs = outputs if padding is not None else [27 * upsample, 24 * upsample]
        x = rng.standard_normal((1, 10, 27, 24)).astype(dtype)
        weight = rng.standard_normal((1, 2, kh, kw, *outputs)).astype(dtype)
        scales = rng.standard_normal((1, 10, kh, kw)).astype(dtype) if scaled else None
        calls.append(((x, weight, scales), {"dilation": dilation, "padding": padding, "upsample": upsample}))
    in_place = [dyn.local_filter2d(*arrays, **params) for arrays, params in calls]
    monkeypatch.setattr(forms, "in_place_applies", lambda *_: False)
    for there, (arrays, params) in zip(in_place, calls, strict=True):
        assert there.tobytes() == dyn.local_filter2d(*arrays, **params).tobytes(), params
