"""Photographs and kernels on CuPy's arrays: everything stays there, and is what NumPy gives.

On a GPU where there is one, and always with the stand-in, whose arrays refuse to become NumPy's, and whose
kernels are those of the host build.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _pictures import C, H, N, W, drawn, mixed, one_for_each_pixel
from _standin import standing_in
from conftest import Backend, backend_params

import dynarray as dyn
from autodiff import Tape, Variable
from autodiff import functions as F
from dynarray import images, kernels

on_a_gpu = pytest.mark.parametrize("backend", backend_params("cuda"), indirect=True)

RNG = np.random.default_rng(0)
GIVEN = {
    "photo": drawn("HWC", "uint8"),
    "photos": drawn("NHWC", "uint16"),
    "real": RNG.uniform(0, 1, (H, W, C)),
    "weights": one_for_each_pixel(),
    "fixed": mixed()[0],
    "mixture": mixed()[1],
    "sigma": RNG.uniform(0.4, 2, (H, W)),
    "flow": RNG.uniform(-3, 3, (H, W, 2)),
    "flows": RNG.uniform(-3, 3, (N, H, W, 2)),
}


def slopes(call: Callable, *arrays: Any) -> tuple[Any, ...]:
    """Gradients of the mean square of what a call gives."""
    variables = [Variable(array) for array in arrays]
    with Tape() as tape:
        loss = F.mean(F.square(call(*variables)))
    return tuple(tape.gradient(loss, variables))


CASES: dict[str, Callable[..., Any]] = {
    "filter": lambda a: images.filter(a["photo"], a["weights"]),
    "filter several": lambda a: images.filter(a["photos"], a["weights"], border="wrap"),
    "filter mixed": lambda a: images.filter(a["photo"], a["fixed"], a["mixture"], border="constant"),
    "filter with one": lambda a: images.filter(a["real"], a["fixed"][0], border="edge"),
    "sample": lambda a: images.sample(a["photo"], a["flow"]),
    "warp": lambda a: images.warp(a["photo"], a["flow"], border="symmetric"),
    "warp several": lambda a: images.warp(a["photos"], a["flows"]),
    "gaussian": lambda a: kernels.gaussian(a["sigma"]),
    "gaussian_mixture": lambda a: tuple(kernels.gaussian_mixture(a["sigma"], 3)),
    "motion": lambda a: kernels.motion(a["flow"]),
    "bilateral": lambda a: kernels.bilateral(a["photo"], 1.0, a["sigma"]),
    "diffusion": lambda a: kernels.diffusion(a["photo"], 30.0),
    "guided": lambda a: kernels.guided(a["photos"], 1, 20.0),
    "slope of filter": lambda a: slopes(images.filter, a["real"], a["fixed"], a["mixture"]),
    "slope of warp": lambda a: slopes(images.warp, a["real"], a["flow"]),
    "slope of gaussian": lambda a: slopes(
        lambda s: images.filter(a["real"], kernels.gaussian(s, 5)), a["sigma"]
    ),
    "slope of gaussian_mixture": lambda a: slopes(
        lambda s: images.filter(a["real"], *kernels.gaussian_mixture(s, 3)), a["sigma"]
    ),
    "slope of bilateral": lambda a: slopes(lambda s: kernels.bilateral(a["real"], 1.0, s), a["sigma"]),
    "slope of guided": lambda a: slopes(lambda g: kernels.guided(g, 1, 0.1), a["real"]),
}


def check(name: str, move: Callable[[np.ndarray], Any]) -> None:
    """One case there, where the kind of arrays is that of the moved ones, and with NumPy."""
    with dyn.use_backend("cpu"):
        expected = CASES[name](GIVEN)
    there = {key: move(array) for key, array in GIVEN.items()}
    found = CASES[name](there)
    pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    for mine, right in pairs:
        assert type(mine) is type(there["photo"])
        assert (mine.dtype, mine.shape) == (right.dtype, right.shape)
        if right.dtype.kind == "u":
            assert (mine.get() == right).all()
        else:
            np.testing.assert_allclose(mine.get(), right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_arrays_of_the_stand_in_stay_there(name: str) -> None:
    with standing_in() as cupy:
        check(name, cupy.asarray)


@on_a_gpu
@pytest.mark.parametrize("name", CASES)
def test_photographs_stay_on_the_device(name: str, backend: Backend) -> None:
    check(name, backend.array)


def test_two_libraries_in_one_call_are_refused() -> None:
    with standing_in() as cupy:
        there = {key: cupy.asarray(array) for key, array in GIVEN.items()}
        with pytest.raises(TypeError, match="filter: kernels is an array of numpy, but photo one of cupy"):
            images.filter(there["photo"], GIVEN["weights"])
        with pytest.raises(TypeError, match="warp: flow is an array of cupy, but photo one of numpy"):
            images.warp(GIVEN["photo"], there["flow"])


def test_what_integers_cannot_hold_is_noticed_there() -> None:
    with standing_in() as cupy:
        there = {key: cupy.asarray(array) for key, array in GIVEN.items()}
        there["weights"][0, 0, 0, 0] = float("nan")
        with pytest.raises(ValueError, match="filter: the result is NaN somewhere"):
            images.filter(there["photo"], there["weights"])
