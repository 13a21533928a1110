"""Infinities in `dynamic_sampling_conv2d`, and what is made again around them."""

import numpy as np
import pytest
from conftest import Backend
from test_dynamic_sampling import SAMPLING, run, sampling_call
from test_special_values import check_special

import dynarray as dyn


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_an_infinite_pixel_is_infinite_in_the_gradient_of_its_kernels(backend: Backend, samples: int) -> None:
    """Nothing that is not there may take part with a zero, which would make it NaN."""
    call = sampling_call(4, 3, (6, 16), (3, 3), "sp", samples=samples)
    call.arrays[0][0, 1, 3, 5] = np.inf
    arrays = (call.grad_output, *call.arrays)
    needs = (False, True, False, False, False)
    grad = run(backend, dyn.dynamic_sampling_conv2d_backward, *arrays, needs=needs, **call.params)[1]
    assert np.isinf(grad).sum() == 3 * samples**2  # of each output channel, all pixels that see it
    assert not np.isnan(grad).any()


FAR_APART = {
    "a pixel": {"x": (0, 1, 9, 14)},
    "a corner": {"x": (0, 0, 0, 0)},
    "an output": {"channel_kernel": (0, 2, 1, -1, 3)},
    "a tap": {"spatial_kernel": (0, 0, 2, 1, 4, 6)},
    "a place": {"position_attention": (0, 1, 1, 1, 17, 2)},
    "two of them": {"x": (0, 3, 12, 22), "sample_attention": (0, 1, 0, 1, 7, 5)},
}


@pytest.mark.parametrize("where", FAR_APART)
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"samples": 2, "stride": (2, 1), "dilation": (1, 2), "fuse": "stack"},
        {"samples": 1, "stride": 2},
        {"sample_stride": 2, "stride": (1, 2), "fuse": "max", "attention_residual": True},
    ],
    ids=str,
)
def test_what_an_infinity_reaches_is_as_defined(
    backend: Backend, where: str, params: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an image that is much larger than that, so that only a piece of it is made again."""
    if backend.name == "cpu":
        from dynarray.cpu.dynamic_sampling import definition

        monkeypatch.setattr(definition, "KERNEL_BYTES", 20_000)  # several channels together, but not all
    call = sampling_call(4, 3, (19, 23), (3, 3), "sp", **params)
    arrays = dict(zip(SAMPLING.arrays, call.arrays, strict=True))
    for name, place in FAR_APART[where].items():
        place = tuple(min(i, size - 1) for i, size in zip(place, arrays[name].shape, strict=True))
        arrays[name][place] = np.inf
    check_special(call, backend)


def test_numpy_says_nothing_of_infinities(rng: np.random.Generator) -> None:
    """As if there were nothing but kernels, which never do."""
    size = (9, 11)
    shapes = (1, 4, *size), (1, 4, 4, *size), (1, 4, 3, 3, *size), (1, 4, 3, 3, *size), (1, 4, 3, 3, *size)
    arrays = tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
    for array in arrays:
        array[..., 1, 1] = np.inf
    arrays[0][0, :2, 4, 5] = np.inf, -np.inf
    weight = np.full((1, 2, 4, 1, 1, *size), np.inf)
    with np.errstate(all="raise"), dyn.use_backend("cpu"):
        for samples, count in ((3, 5), (3, 3), (1, 3)):
            y = dyn.dynamic_sampling_conv2d(*arrays[:count], samples=samples)
            dyn.dynamic_sampling_conv2d_backward(y, *arrays[:count], samples=samples)
        y = dyn.dynamic_conv2d(arrays[0].astype(float), weight)
        dyn.dynamic_conv2d_backward(y, arrays[0].astype(float), weight)
