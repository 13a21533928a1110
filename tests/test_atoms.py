"""Identities, hard cases and golden numbers of `atom_conv2d` and `compose_atoms`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _contract import Call, check, check_nonfinite
from conftest import Backend, backend_params
from scipy.ndimage import correlate

import dynarray as dyn

cpu_only = pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)


def run(backend: Backend, function: Callable, *arrays: Any, bias: Any = None, **params: Any) -> Any:
    """A public function on arrays of the backend, its result or results as NumPy arrays."""
    if bias is not None:
        params["bias"] = backend.array(bias)
    result = function(*map(backend.array, arrays), **params)
    return type(result)(*map(backend.numpy, result)) if isinstance(result, tuple) else backend.numpy(result)


def close(actual: np.ndarray, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12 * np.max(np.abs(expected), initial=0))


def conv2d(x: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Ordinary cross-correlation with filters (O, C, kh, kw), zero outside the image."""
    y = np.zeros((len(x), len(filters), *x.shape[2:]))
    for n, o, c in np.ndindex(len(x), *filters.shape[:2]):
        y[n, o] += correlate(x[n, c], filters[o, c], mode="constant")
    return y


# ---- golden numbers, worked out by hand

ROW = np.array([1.0, 2, 3]).reshape(1, 1, 1, 3)
# Two atoms. Taps of the first: pixel 0: 1 2 3, pixel 1: 4 5 6, pixel 2: 7 8 9; of the second: always 0 1 0.
FIRST = np.arange(1.0, 10).reshape(3, 3).T
SECOND = np.repeat([[0.0], [1], [0]], 3, axis=1)
ROW_ATOMS = np.stack([FIRST, SECOND]).reshape(1, 2, 1, 3, 1, 3)
ROW_COEFFICIENTS = np.array([[1.0, 10], [2, -1]]).reshape(2, 1, 2)
ROW_BIAS = np.array([0.5, -1])


def test_golden_row(backend: Backend) -> None:
    y = run(backend, dyn.atom_conv2d, ROW, ROW_ATOMS, ROW_COEFFICIENTS, bias=ROW_BIAS)
    # The first atom gives 2*1 + 3*2, 4*1 + 5*2 + 6*3, 7*2 + 8*3 = 8, 32, 38, the second 1, 2, 3.
    assert y[0, :, 0].tolist() == [[18.5, 52.5, 68.5], [14, 61, 72]]


def test_golden_gradients(backend: Backend) -> None:
    grad = np.array([[1.0, 0, 2], [0, 3, 0]]).reshape(1, 2, 1, 3)
    arrays = ROW, ROW_ATOMS, ROW_COEFFICIENTS
    grads = run(backend, dyn.atom_conv2d_backward, grad, *arrays, bias=ROW_BIAS)
    # Gradient of the first atom's z: 1*1, 2*3, 1*2; of the second's: 10*1, -1*3, 10*2.
    # Of x: 1*2 + 6*4 + 10, 1*3 + 6*5 + 2*7 - 3, 6*6 + 2*8 + 20.
    assert grads.x.ravel().tolist() == [36, 44, 72]
    first = [[0, 1, 2], [6, 12, 18], [4, 6, 0]]  # per pixel, per tap
    second = [[0, 10, 20], [-3, -6, -9], [40, 60, 0]]
    assert grads.atoms[0, :, 0, :, 0].transpose(0, 2, 1).tolist() == [first, second]
    # 1*8 + 2*38, 1*1 + 2*3; 3*32, 3*2
    assert grads.coefficients.reshape(2, 2).tolist() == [[84, 7], [96, 6]]
    assert grads.bias.tolist() == [3, 3]


def test_golden_stride_and_dilation(backend: Backend) -> None:
    x = np.array([1.0, 2, 3, 4, 5, 6]).reshape(1, 1, 1, 6)
    atoms = np.array([[1.0, 100], [10, 1000]]).reshape(1, 1, 1, 2, 1, 2)
    params = {"stride": (1, 3), "dilation": (1, 2), "padding": 0}
    one = np.ones((1, 1, 1))
    # 1*1 + 10*3, 100*4 + 1000*6
    assert run(backend, dyn.atom_conv2d, x, atoms, one, **params).ravel().tolist() == [31, 6400]
    grads = run(backend, dyn.atom_conv2d_backward, np.ones((1, 1, 1, 2)), x, atoms, one, **params)
    assert grads.x.ravel().tolist() == [1, 0, 10, 100, 0, 1000]
    assert grads.bias is None


def test_golden_composition(backend: Backend) -> None:
    alpha = np.array([[1.0, 2], [3, 4]]).reshape(1, 1, 2, 1, 2)  # basis, pixel
    bases = np.array([[1.0, 0, -1], [10, 20, 30]]).reshape(2, 1, 3)
    atoms = run(backend, dyn.compose_atoms, alpha, bases)
    assert atoms[0, 0, 0, :, 0].T.tolist() == [[31, 60, 89], [42, 80, 118]]
    grad = np.array([[1.0, 2], [0, 1], [0, 0]]).reshape(1, 1, 1, 3, 1, 2)  # tap, pixel
    grads = run(backend, dyn.compose_atoms_backward, grad, alpha, bases)
    # Pixel 0: 1*1 and 1*10; pixel 1: 2*1 + 1*0 and 2*10 + 1*20.
    assert grads.alpha.reshape(2, 2).tolist() == [[1, 2], [10, 40]]
    # Per basis and tap: 1*1 + 2*2, 1*2, 0; 3*1 + 4*2, 1*4, 0.
    assert grads.bases.reshape(2, 3).tolist() == [[5, 2, 0], [11, 4, 0]]


# ---- identities


@pytest.mark.parametrize("stride", [1, (2, 3)], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (5, 1)], ids=str)
def test_the_filter_in_effect_is_a_mixture_of_the_atoms(
    backend: Backend, rng: np.random.Generator, stride: Any, kernel: tuple[int, int]
) -> None:
    x, coefficients = rng.standard_normal((2, 5, 9, 11)), rng.standard_normal((4, 5, 3))
    padding = kernel[0] // 2, kernel[1] // 2
    sy, sx = np.broadcast_to(stride, 2)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding))), kernel, (2, 3)
    )[:, :, ::sy, ::sx]
    atoms = rng.standard_normal((2, 3, *kernel, *windows.shape[2:4]))
    filters = np.einsum("ocm,nmabhw->nocabhw", coefficients, atoms)
    expected = np.einsum("nocabhw,nchwab->nohw", filters, windows)
    mixed = run(backend, dyn.atom_conv2d, x, atoms, coefficients, stride=stride)
    close(mixed, expected)
    close(mixed, run(backend, dyn.dynamic_conv2d, x, filters, stride=stride))


def test_constant_atoms_are_an_ordinary_convolution(backend: Backend, rng: np.random.Generator) -> None:
    x, coefficients = rng.standard_normal((2, 4, 13, 10)), rng.standard_normal((3, 4, 2))
    static, bias = rng.standard_normal((2, 5, 3)), rng.standard_normal(3)
    atoms = np.broadcast_to(static[None, :, :, :, None, None], (2, 2, 5, 3, 13, 10))
    filters = np.einsum("ocm,mab->ocab", coefficients, static)
    expected = conv2d(x, filters) + bias[:, None, None]
    close(run(backend, dyn.atom_conv2d, x, atoms, coefficients, bias=bias), expected)


def test_composed_atoms_weigh_the_responses_to_the_bases(backend: Backend, rng: np.random.Generator) -> None:
    """The same sum in another order: filter with each basis, then weigh by alpha, then mix."""
    x, coefficients = rng.standard_normal((2, 4, 8, 9)), rng.standard_normal((3, 4, 2))
    bases = dyn.multiscale_bases(5, 3)
    alpha = rng.standard_normal((2, 2, len(bases), 8, 9))
    responses = [conv2d(x.reshape(8, 1, 8, 9), basis[None, None]).reshape(x.shape) for basis in bases]
    expected = np.einsum("ocm,nmbhw,bnchw->nohw", coefficients, alpha, np.array(responses))
    atoms = run(backend, dyn.compose_atoms, alpha, bases)
    close(run(backend, dyn.atom_conv2d, x, atoms, coefficients), expected)


def test_bases_of_single_taps_leave_alpha(backend: Backend, rng: np.random.Generator) -> None:
    alpha, bases = rng.standard_normal((2, 3, 6, 4, 5)), np.eye(6).reshape(6, 2, 3)
    atoms = run(backend, dyn.compose_atoms, alpha, bases)
    np.testing.assert_array_equal(atoms, alpha.reshape(2, 3, 2, 3, 4, 5))


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 1), (3, 7)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, (3, 1)], ids=str)
@pytest.mark.parametrize("dilation", [1, (2, 9)], ids=str)
def test_centre_deltas_and_unit_coefficients_are_the_identity(
    backend: Backend, rng: np.random.Generator, kernel: tuple[int, int], stride: Any, dilation: Any
) -> None:
    x = rng.standard_normal((2, 3, 10, 7))
    sy, sx = np.broadcast_to(stride, 2)
    expected = x[:, :, ::sy, ::sx]
    atoms = np.zeros((2, 1, *kernel, *expected.shape[2:]))
    atoms[:, :, kernel[0] // 2, kernel[1] // 2] = 1
    y = run(backend, dyn.atom_conv2d, x, atoms, np.eye(3)[..., None], stride=stride, dilation=dilation)
    np.testing.assert_array_equal(y, expected)


def test_images_do_not_mix(backend: Backend, rng: np.random.Generator) -> None:
    x, atoms = rng.standard_normal((5, 4, 6, 7)), rng.standard_normal((5, 2, 3, 3, 6, 7))
    coefficients, order = rng.standard_normal((3, 4, 2)), [3, 0, 4, 1, 2]
    y = run(backend, dyn.atom_conv2d, x, atoms, coefficients)
    close(run(backend, dyn.atom_conv2d, x[order], atoms[order], coefficients), y[order])


# ---- hard cases


def hard_call(
    channels: tuple[int, int],
    m: int,
    image: tuple[int, int],
    kernel: tuple[int, int],
    batch: int = 1,
    bias: bool = True,
    **params: Any,
) -> Call:
    """A call of atom_conv2d; the size of its output is worked out here, not taken from it."""
    rng = np.random.default_rng([*channels, m, *image, *kernel])
    stride, dilation = (np.broadcast_to(params.get(name, 1), 2) for name in ("stride", "dilation"))
    pads = (
        np.broadcast_to(params["padding"], 2)
        if "padding" in params
        else [d * (k - 1) // 2 for d, k in zip(dilation, kernel)]
    )
    reach = [max(0, image[i] + 2 * pads[i] - dilation[i] * (kernel[i] - 1) - 1 + stride[i]) for i in range(2)]
    outputs = tuple(int(reach[i] // stride[i]) for i in range(2))
    arrays = (
        rng.standard_normal((batch, channels[0], *image)),
        rng.standard_normal((batch, m, *kernel, *outputs)),
        rng.standard_normal((channels[1], channels[0], m)),
        rng.standard_normal(channels[1]) if bias else None,
    )
    grad_output = rng.standard_normal((batch, channels[1], *outputs))
    return Call(dyn.OPERATORS["atom_conv2d"], arrays, params, grad_output)


# Of so many channels the CPU makes mixtures first, and filters these.
FEW_OUTPUTS = {
    "few outputs": hard_call((67, 3), 4, (13, 17), (3, 3), batch=2),
    "few outputs, strided": hard_call((41, 2), 3, (11, 9), (2, 5), padding=(3, 0), stride=(2, 3)),
    "few outputs, dilated": hard_call((40, 2), 1, (12, 9), (5, 3), dilation=(2, 4), bias=False),
}
# Of so many coefficients the CPU multiplies the positions of all images at once.
MANY_COEFFICIENTS = {
    "many coefficients": hard_call((150, 150), 6, (3, 3), (3, 3), batch=3),
    "many coefficients, strided": hard_call((110, 301), 4, (5, 9), (1, 3), batch=5, stride=2, bias=False),
    "many coefficients of a line": hard_call((131, 129), 9, (1, 71), (1, 9)),
}
HARD = {
    "many channels": hard_call((67, 37), 6, (13, 17), (3, 3)),
    "many channels of one line": hard_call((103, 20), 3, (1, 40), (1, 3)),
    "many channels, one output": hard_call((131, 1), 5, (9, 9), (3, 3), bias=False),
    "many atoms and outputs": hard_call((9, 70), 13, (11, 8), (3, 3)),
    "many images": hard_call((5, 3), 2, (3, 4), (3, 3), batch=37),
    "one channel in and out": hard_call((1, 1), 1, (40, 50), (3, 3)),
    "k 15": hard_call((2, 3), 2, (23, 37), (15, 15)),
    "k 31 on a smaller image": hard_call((2, 2), 1, (9, 17), (31, 31)),
    "k 63 on one pixel": hard_call((1, 2), 2, (1, 1), (63, 63)),
    "k 5": hard_call((9, 8), 3, (21, 19), (5, 5)),
    "k 7": hard_call((9, 8), 3, (21, 19), (7, 7)),
    "long row": hard_call((3, 2), 2, (11, 40), (1, 31)),
    "long column": hard_call((3, 2), 2, (40, 11), (31, 1)),
    "rows wider than a tile": hard_call((9, 5), 2, (5, 701), (5, 3)),
    "rows wider than a tile, strided": hard_call((9, 5), 2, (7, 1501), (3, 3), stride=2),
    "even": hard_call((4, 3), 2, (9, 8), (4, 2), padding=(1, 2)),
    "even, odd and strided": hard_call((4, 3), 2, (11, 9), (2, 5), padding=(3, 0), stride=(2, 3)),
    "strided": hard_call((9, 7), 3, (57, 61), (3, 3), stride=2),
    "image not divisible by the stride": hard_call((2, 2), 2, (10, 11), (3, 3), stride=(3, 4)),
    "stride beyond the kernel": hard_call((2, 2), 2, (29, 31), (3, 3), stride=7),
    "stride beyond the image": hard_call((2, 2), 2, (5, 6), (3, 3), stride=100),
    "dilation 8": hard_call((2, 2), 2, (33, 29), (3, 3), dilation=8),
    "dilation 8 strided": hard_call((2, 2), 2, (33, 29), (3, 5), dilation=(8, 9), stride=(2, 3)),
    "dilation as large as the image": hard_call((2, 2), 2, (12, 9), (3, 3), dilation=(12, 9)),
    "dilation beyond the image": hard_call((2, 2), 2, (12, 9), (5, 3), dilation=(13, 500)),
    "padding beyond the kernel": hard_call((2, 2), 2, (5, 6), (3, 3), padding=(9, 12)),
    "padding beyond the image, strided": hard_call((2, 2), 2, (5, 6), (2, 3), padding=(9, 12), stride=(4, 5)),
    "kernel beyond the image": hard_call((2, 2), 2, (2, 9), (3, 3), padding=0),
    "tall": hard_call((9, 4), 2, (301, 7), (7, 3), batch=2),
    **FEW_OUTPUTS,
    **MANY_COEFFICIENTS,
    "no channels": hard_call((0, 3), 2, (5, 9), (3, 3)),
    "no channels, no bias": hard_call((0, 3), 2, (5, 9), (3, 3), bias=False),
    "no atoms": hard_call((2, 3), 0, (5, 9), (3, 3)),
    "no outputs": hard_call((2, 0), 2, (5, 9), (3, 3)),
    "no pixels, padded": hard_call((2, 3), 2, (0, 4), (3, 3), padding=2),
}


@pytest.mark.parametrize("case", HARD)
def test_hard_cases(backend: Backend, case: str) -> None:
    check(HARD[case], backend)


@pytest.mark.parametrize("case", [*FEW_OUTPUTS, *MANY_COEFFICIENTS])
def test_ways_of_their_own_with_nan_and_infinity(backend: Backend, case: str) -> None:
    """And zero, which makes NaN of infinity in one order of the sums and not in another."""
    call = HARD[case]
    for seed, value in enumerate((np.nan, np.inf, -np.inf)):
        rng = np.random.default_rng(seed)
        for which, array in enumerate(call.everything):
            if array is None:
                continue
            everything = [None if each is None else each.copy() for each in call.everything]
            for each in everything:
                if each is not None:
                    each.flat[rng.integers(each.size, size=each.size // 3)] = 0
            everything[which].flat[rng.integers(array.size, size=2)] = value
            check_nonfinite(call.with_everything(tuple(everything)), backend)


@pytest.mark.parametrize("bytes_of_a_tile", [1, 1000, 20_000, 100_000])
@pytest.mark.parametrize("case", ["many channels", "many images", "strided", "k 7", "even, odd and strided"])
@pytest.mark.parametrize("backend", backend_params("host", "ptx", "cuda"), indirect=True)
def test_gpu_tiles_of_any_size(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, case: str, bytes_of_a_tile: int
) -> None:
    """Down to one position, and to one channel of one image."""
    monkeypatch.setattr("rawkernels.atoms.TILE_BYTES", bytes_of_a_tile)
    check(HARD[case], backend)


@pytest.mark.parametrize("far", [10_001, 10**6, 2**31 - 1, 2**31 + 1, 2**33, 2**61 + 1, 2**200])
@pytest.mark.parametrize("parameter", ["dilation", "stride"])
def test_steps_far_beyond_the_image(
    backend: Backend, rng: np.random.Generator, parameter: str, far: int
) -> None:
    """All taps but the centre are outside (dilation), or there is one output (stride); nothing overflows."""
    x = rng.standard_normal((1, 2, 4, 5))
    read = x if parameter == "dilation" else x[:, :, :1, :1]
    atoms = rng.standard_normal((1, 1, 3, 3, *read.shape[2:]))
    if parameter == "stride":
        atoms[:, :, [0, 2]], atoms[..., [0, 2], :, :] = 0, 0
    expected = read * atoms[:, :, 1, 1]
    one = np.eye(2)[..., None]
    np.testing.assert_array_equal(run(backend, dyn.atom_conv2d, x, atoms, one, **{parameter: far}), expected)
    grads = run(backend, dyn.atom_conv2d_backward, expected, x, atoms, one, **{parameter: far})
    by_x = np.zeros_like(x)
    by_x[:, :, : expected.shape[2], : expected.shape[3]] = expected * atoms[:, :, 1, 1]
    close(grads.x, by_x)


@pytest.mark.parametrize(
    ("shapes", "params", "message"),
    [
        (
            [(1, 4, 5), (1, 2, 3, 3, 4, 5), (3, 4, 2)],
            {},
            r"x must have shape \(N, C, H, W\), got",
        ),
        ([(1, 4, 5, 6), (2, 2, 3, 3, 5, 6), (3, 4, 2)], {}, r"atoms must have shape .* = \(1, .*got \(2, 2"),
        ([(1, 4, 5, 6), (1, 2, 0, 3, 5, 6), (3, 4, 2)], {}, r"atoms must have kernel sizes of at least 1"),
        (
            [(1, 4, 5, 6), (1, 2, 3, 3, 5, 5), (3, 4, 2)],
            {},
            r"atoms must have .* 5, 6\), got \(1, 2",
        ),
        (
            [(1, 4, 5, 6), (1, 2, 3, 3, 5, 6), (3, 4, 2)],
            {"stride": 2},
            r"atoms must have .* 3, 3\), got",
        ),
        ([(1, 4, 5, 6), (1, 2, 3, 3, 5, 6), (3, 4, 3)], {}, r"coefficients .* \(O, 4, 2\), got \(3, 4, 3\)"),
        ([(1, 4, 5, 6), (1, 2, 3, 3, 5, 6), (3, 5, 2)], {}, r"coefficients must have shape \(O, C, M\) = "),
        ([(1, 4, 5, 6), (1, 2, 2, 3, 5, 6), (3, 4, 2)], {}, r"padding=None .*odd.*give padding"),
        (
            [(1, 4, 5, 6), (1, 2, 3, 3, 5, 6), (3, 4, 2)],
            {"bias": np.ones(4)},
            r"bias must have shape \(O\) = \(3\), got \(4,\)",
        ),
    ],
)
def test_messages(shapes: list, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^atom_conv2d: {message}"):
        dyn.atom_conv2d(*map(np.ones, shapes), **params)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 2, 6, 5), (6, 3, 3)], r"alpha must have shape \(N, M, B, Ho, Wo\), got"),
        (
            [(1, 2, 6, 5, 5), (5, 3, 3)],
            r"bases must .* \(6, kh, kw\), got \(5, 3, 3\)",
        ),
        ([(1, 2, 6, 5, 5), (6, 3, 0)], r"bases must have kernel sizes of at least 1, got \(3, 0\)"),
    ],
)
def test_messages_of_compositions(shapes: list, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^compose_atoms: {message}"):
        dyn.compose_atoms(*map(np.ones, shapes))


# ---- large images


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params("cpu", "cuda"), indirect=True)
def test_a_large_image(backend: Backend, rng: np.random.Generator) -> None:
    """Float32 against sums written out in float64 at random pixels, corners and where tiles may meet."""
    size, k, c, m = 512, 5, 24, 6
    x = rng.standard_normal((1, c, size, size), np.float32)
    atoms = rng.standard_normal((1, m, k, k, size, size), np.float32)
    coefficients = rng.standard_normal((16, c, m), np.float32)
    y = run(backend, dyn.atom_conv2d, x, atoms, coefficients)
    ringed = np.pad(x[0].astype(np.float64), ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    places = {(0, 0), (0, size - 1), (size - 1, 0), (size - 1, size - 1)}
    places |= {tuple(place) for place in rng.integers(0, size, (50, 2)).tolist()}
    places |= {(row, column) for row in (255, 256, 257) for column in (255, 256, 319, 320)}
    for row, column in places:
        window = ringed[:, row : row + k, column : column + k]
        z = np.einsum("mab,cab->cm", atoms[0, :, :, :, row, column].astype(np.float64), window)
        expected = np.einsum("ocm,cm->o", coefficients.astype(np.float64), z)
        np.testing.assert_allclose(y[0, :, row, column], expected, rtol=0, atol=2e-5 * np.abs(expected).max())


# ---- what the CPU kernels are made of


@cpu_only
def test_many_coefficients_in_parts_and_threads(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, however many images are multiplied at once; not of sums over images."""
    from dynarray.cpu.atoms import at_once

    taken, call = [], MANY_COEFFICIENTS["many coefficients"]
    for name in ("multiplied_at_once", "gradients_at_once"):
        whole = getattr(at_once, name)
        monkeypatch.setattr(
            f"dynarray.cpu.atoms.forms.{name}", lambda *a, way=whole: taken.append(way) or way(*a)
        )

    def results() -> list[np.ndarray]:
        x, atoms, coefficients, bias = call.arrays
        y = dyn.atom_conv2d(x, atoms, coefficients, bias=bias)
        return [y, *dyn.atom_conv2d_backward(call.grad_output, x, atoms, coefficients, bias=bias)]

    expected, before = results(), dyn.get_num_threads()
    for threads in (1, 2, 7):
        dyn.set_num_threads(threads)
        try:
            assert [each.tobytes() for each in results()] == [each.tobytes() for each in expected]
        finally:
            dyn.set_num_threads(before)
    monkeypatch.setattr(at_once, "MATRIX_BYTES", 9 * 900 * 8)
    found = results()
    assert [each.tobytes() for each in found[:3]] == [each.tobytes() for each in expected[:3]]
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    assert len(taken) == 10


@cpu_only
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (7, 16), (16, 31), (64, 9), (0, 8)])
def test_transposes(backend: Backend, rng: np.random.Generator, dtype: str, shape: tuple[int, int]) -> None:
    import numba

    from dynarray.cpu.engine.gemm import Matrix
    from dynarray.cpu.engine.pixels import transpose

    call = numba.njit(lambda *args: transpose(*args))
    rows, columns = shape
    for before, after in ((3, 1), (0, 70)):  # beyond the rows of one and the other
        source = rng.standard_normal((rows, columns + before)).astype(dtype)
        target = np.full((columns, rows + after), np.nan, dtype)
        matrices = Matrix(target.ravel(), 0, rows + after), Matrix(source.ravel(), 0, columns + before)
        call(*matrices, rows, columns)
        np.testing.assert_array_equal(target[:, :rows], source[:, :columns].T)
        assert np.isnan(target[:, rows:]).all()
