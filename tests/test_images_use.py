"""Photographs in use: what is refused and how it is said, the tape, and memory."""

import json
import re
from typing import Any

import numpy as np
import pytest
from _pictures import BORDERS, LAYOUTS, H, N, W, drawn, mixed
from _processes import output_of

from autodiff import Tape, Variable
from autodiff import functions as F
from autodiff.check import check_gradients
from dynarray import images, kernels

# What is refused.

PHOTO = np.zeros((6, 8, 3), np.uint8)
WEIGHTS = np.zeros((3, 3, 6, 8))
REFUSED: list[tuple[Any, type[Exception], str]] = [
    (
        lambda: images.filter([[1, 2]], WEIGHTS),
        TypeError,
        "filter: photo must be a numpy.ndarray or .*got list",
    ),
    (lambda: images.filter(PHOTO > 0, WEIGHTS), TypeError, r"photo has dtype bool.*photo\.astype\(float\)"),
    (lambda: images.filter(PHOTO * 1j, WEIGHTS), TypeError, "photo must hold real numbers .*complex128"),
    (lambda: images.filter(PHOTO.astype(np.longdouble), WEIGHTS), TypeError, "photo must hold real numbers"),
    (
        lambda: images.filter(PHOTO.astype(object), WEIGHTS),
        TypeError,
        "photo must hold real numbers .*object",
    ),
    (lambda: images.filter(np.ma.array(PHOTO), WEIGHTS), TypeError, "photo must be a numpy.ndarray .*Masked"),
    (lambda: images.filter(PHOTO, kernels.psf_basis(WEIGHTS.T)), TypeError, r"got a tuple; .* as \*pair"),
    (lambda: images.filter(PHOTO, "blur"), TypeError, "filter: kernels must be a numpy.ndarray .*got str"),
    (
        lambda: images.filter(PHOTO, WEIGHTS, border="mirror"),
        ValueError,
        "filter: border must be one of .*'mirror'",
    ),
    (
        lambda: images.filter(PHOTO, WEIGHTS, channel_axis=1.0),
        TypeError,
        "channel_axis must be an int or None",
    ),
    (
        lambda: images.filter(PHOTO, WEIGHTS, channel_axis=True),
        TypeError,
        "channel_axis must be an int or None",
    ),
    (
        lambda: images.filter(PHOTO, WEIGHTS, channel_axis=3),
        ValueError,
        "channel_axis must be one of the 3 axes",
    ),
    (lambda: images.filter(PHOTO[..., 0], WEIGHTS, channel_axis=0), ValueError, r"two axes are \(H, W\)"),
    (
        lambda: images.filter(PHOTO[None], WEIGHTS, channel_axis=None),
        ValueError,
        r"channel_axis=-1 for \(N, H, W, C\)",
    ),
    (lambda: images.filter(PHOTO[0, 0], WEIGHTS), ValueError, r"photo must have shape \(H, W\), \(H, W, C\)"),
    # Channels first, and nobody says so.
    (
        lambda: images.filter(np.moveaxis(PHOTO, -1, 0), WEIGHTS),
        ValueError,
        r"kernels must have shape \(kh, kw, 3, 6\), got \(3, 3, 6, 8\); photo of shape \(3, 6, 8\) was read "
        r"as \(H, W, C\) by channel_axis=-1; give channel_axis=0 for \(C, H, W\)",
    ),
    (
        lambda: images.filter(np.moveaxis(PHOTO[None], -1, 1), WEIGHTS),
        ValueError,
        r"was read as \(N, H, W, C\) by channel_axis=-1; give channel_axis=1 for \(N, C, H, W\)",
    ),
    (
        lambda: images.filter(PHOTO, WEIGHTS, channel_axis=None),
        ValueError,
        r"was read as \(N, H, W\) by channel_axis=None; give channel_axis=-1 for \(H, W, C\)",
    ),
    (
        lambda: images.filter(PHOTO, WEIGHTS[:, :, :5]),
        ValueError,
        r"kernels must have shape \(kh, kw, 6, 8\)",
    ),
    (
        lambda: images.filter(PHOTO, WEIGHTS[0]),
        ValueError,
        r"kernels must have shape \(kh, kw\), \(kh, kw, 6, 8\)",
    ),
    (lambda: images.filter(PHOTO, WEIGHTS[:0]), ValueError, "kernels must have sizes of at least 1"),
    (
        lambda: images.filter(PHOTO, WEIGHTS[None, None].repeat(2, 1)),
        ValueError,
        "2 groups .* divide the 3 channels",
    ),
    (
        lambda: images.filter(PHOTO, WEIGHTS[None, None].repeat(2, 0)),
        ValueError,
        r"kernels must have shape \(1, G,",
    ),
    (
        lambda: images.filter(PHOTO, WEIGHTS[..., 0, 0], np.ones((4, 6, 8))),
        ValueError,
        r"filter: kernels must have shape \(B, kh, kw\)",
    ),
    (
        lambda: images.filter(PHOTO, np.ones((2, 3, 3)), np.ones((4, 6, 8))),
        ValueError,
        r"filter: mixture must have shape \(2, 6, 8\), for kernels \(2, 3, 3\)",
    ),
    (
        lambda: images.filter(PHOTO, np.ones((2, 3, 3)), np.ones((2, 8, 6))),
        ValueError,
        r"filter: mixture must have shape \(2, 6, 8\), got \(2, 8, 6\); photo of shape \(6, 8, 3\)",
    ),
    (
        lambda: images.sample(PHOTO, np.ones((4, 3))),
        ValueError,
        r"sample: points must have shape \(P, 2\) or \(Ho",
    ),
    (
        lambda: images.sample(PHOTO[None], np.ones((2, 4, 2))),
        ValueError,
        r"points must have shape \(1, P, 2\)",
    ),
    (lambda: images.sample(PHOTO[:0], np.ones((4, 2))), ValueError, r"photo has no pixels .* is \(0, 8, 3\)"),
    (lambda: images.sample(PHOTO, np.ones((4, 2)) > 0), TypeError, "sample: points has dtype bool"),
    (
        lambda: images.warp(PHOTO, np.ones((2, 6, 8))),
        ValueError,
        r"warp: flow must have shape \(6, 8, 2\), with \(dy, dx\) along the last axis, got \(2, 6, 8\); ",
    ),
    (lambda: images.warp(PHOTO, np.full((6, 8, 2), np.nan)), ValueError, "warp: the result is NaN somewhere"),
    (
        lambda: images.filter(PHOTO, Variable(WEIGHTS)),
        TypeError,
        r"filter: photo has dtype uint8, and what is rounded .* no gradient; give photo\.astype\(float\)",
    ),
    (lambda: images.warp(PHOTO, Variable(np.ones((6, 8, 2)))), TypeError, "warp: photo has dtype uint8"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_wrong_is_said(number: int) -> None:
    call, kind, message = REFUSED[number]
    with pytest.raises(kind, match=message):
        call()


def test_a_message_is_on_one_line() -> None:
    for call, kind, _ in REFUSED:
        with pytest.raises(kind) as caught:
            call()
        assert re.match(r"(filter|sample|warp): [^\n]+$", str(caught.value))


# On the tape.


@pytest.mark.parametrize("border", BORDERS)
def test_gradients_of_filtering(border: str) -> None:
    rng = np.random.default_rng(10)
    photo, weights = rng.normal(size=(4, 5, 2)), rng.normal(size=(3, 2, 4, 5))
    fixed, mixture = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 4, 5))
    check_gradients(lambda x, w: images.filter(x, w, border=border), photo, weights, verbose=False)
    check_gradients(
        lambda x, k, m: images.filter(x, k, m, border=border), photo, fixed, mixture, verbose=False
    )
    check_gradients(lambda x, k: images.filter(x, k, border=border), photo, fixed[0], verbose=False)


@pytest.mark.parametrize("symbols", LAYOUTS)
def test_variables_give_what_arrays_give(symbols: str) -> None:
    photo, axis = drawn(symbols, "float32"), LAYOUTS[symbols]
    fixed, mixture, weights = mixed()
    several = "N" in symbols
    flow = np.random.default_rng(11).normal(size=(*(N,) * several, H, W, 2))
    for make in (
        lambda f: images.filter(f(photo), f(weights), channel_axis=axis),
        lambda f: images.filter(photo, f(weights), channel_axis=axis),
        lambda f: images.filter(f(photo), weights, channel_axis=axis),
        lambda f: images.filter(photo, fixed, f(mixture), channel_axis=axis),
        lambda f: images.filter(f(photo), f(fixed[0]), channel_axis=axis),
        lambda f: images.warp(f(photo), f(flow), channel_axis=axis),
        lambda f: images.warp(photo, f(flow), channel_axis=axis),
        lambda f: images.sample(f(photo), flow + 3, channel_axis=axis),
    ):
        plain, followed = make(np.asarray), make(Variable)
        assert isinstance(followed, Variable)
        assert (followed.shape, followed.dtype) == (plain.shape, plain.dtype)
        np.testing.assert_allclose(followed.data, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("border", BORDERS)
def test_gradients_of_warping(border: str) -> None:
    rng = np.random.default_rng(12)
    photo = rng.normal(size=(5, 6, 2))
    flow = rng.integers(-4, 5, (5, 6, 2)) + rng.uniform(0.2, 0.8, (5, 6, 2))  # not where slopes change
    check_gradients(
        lambda x, f: images.warp(x, f, border=border), photo, flow, method="central", rtol=1e-7, verbose=False
    )


def test_gradients_keep_the_dtypes() -> None:
    photo, sigma = Variable(drawn("HWC", "float32")), Variable(np.full((H, W), 1.0, np.float64))
    with Tape() as tape:
        loss = F.sum(F.square(images.filter(photo, kernels.gaussian(sigma, 5))))
    gradients = tape.gradient(loss, [photo, sigma])
    assert [g.dtype for g in gradients] == [np.float32, np.float64]
    assert [g.shape for g in gradients] == [photo.shape, sigma.shape]


# Much of it.


@pytest.mark.slow
def test_a_photograph_of_12_million_pixels_takes_less_than_its_copy_in_floating_point() -> None:
    found = json.loads(output_of("import _large_photograph; _large_photograph.main()"))
    assert found["wrong"] == 0
    assert found["peak"] < 2e9
    copy = 8 * 3 * 3000 * 4000
    assert found["filter"] < copy
    assert found["warp"] < copy
