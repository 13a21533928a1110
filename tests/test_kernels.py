"""Builders of filters: each against its definition in a naive loop, and against SciPy or scikit-image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi
from skimage import data
from skimage.restoration import denoise_bilateral

from autodiff import Variable, grad
from autodiff import functions as F
from autodiff.check import check_gradients
from dynarray import images, kernels

H, W = 6, 7
BORDERS = ("constant", "reflect", "symmetric", "edge", "wrap")


def photo(*channels: int, seed: int = 0) -> np.ndarray:
    """A small picture in the range of bytes."""
    return np.random.default_rng(seed).uniform(0, 255, (H, W, *channels))


def around(guide: np.ndarray, reach: int, border: str) -> np.ndarray:
    """(H + 2*reach, W + 2*reach, C)."""
    guide = guide.reshape((*guide.shape[:2], -1)).astype(np.float64)
    return np.pad(guide, ((reach, reach), (reach, reach), (0, 0)), mode=border)


# Gaussian blur.


@pytest.mark.parametrize("size", [None, 1, 7])
def test_gaussian_is_its_definition_at_each_pixel(size: int | None) -> None:
    sigma = np.random.default_rng(1).uniform(0.2, 1.4, (H, W))
    sigma[0, 0] = 0
    found = kernels.gaussian(sigma, size)
    k = size or 2 * int(4 * sigma.max() + 0.5) + 1
    assert found.shape == (k, k, H, W)
    steps = np.arange(k) - k // 2
    for h, w in np.ndindex(H, W):
        if sigma[h, w]:
            expected = np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * sigma[h, w] ** 2))
        else:
            expected = ((steps[:, None] == 0) & (steps == 0)).astype(float)
        np.testing.assert_allclose(found[..., h, w], expected / expected.sum(), rtol=1e-13, atol=1e-300)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.7])
def test_gaussian_of_one_width_is_scipys(sigma: float) -> None:
    picture = photo(3)
    expected = ndi.gaussian_filter(picture, (sigma, sigma, 0), mode="mirror")
    for given in (sigma, np.full((H, W), sigma)):
        np.testing.assert_allclose(images.filter(picture, kernels.gaussian(given)), expected, rtol=1e-12)


def test_gaussians_so_narrow_are_that_of_width_zero() -> None:
    """The least width that is told apart is beyond what any dtype tells apart."""
    for dtype in (np.float32, np.float64):
        found = kernels.gaussian(np.array([[0.0, 1e-300, 0.005, 0.01, 0.02]], dtype), 5)
        expected = np.zeros((5, 5))
        expected[2, 2] = 1
        assert found.dtype == dtype
        assert (found[..., 0, :] == expected[..., None]).all()


def test_gaussians_of_several_pictures() -> None:
    sigma = np.random.default_rng(2).uniform(0.3, 2, (2, H, W)).astype(np.float32)
    found = kernels.gaussian(sigma, 5)
    assert (found.shape, found.dtype) == ((2, 5, 5, H, W), np.float32)
    assert (found[1] == kernels.gaussian(sigma[1], 5)).all()
    mixed, mixture = kernels.gaussian_mixture(sigma, (0.3, 1, 2), 5)
    assert (mixed.shape, mixture.shape, mixture.dtype) == ((3, 5, 5), (2, 3, H, W), np.float32)
    pictures = np.stack([photo(3), photo(3, seed=3)])
    assert (images.filter(pictures, found)[1] == images.filter(pictures[1], found[1])).all()
    assert (images.filter(pictures, mixed, mixture)[1] == images.filter(pictures[1], mixed, mixture[1])).all()


@pytest.mark.parametrize("widths", [1, 2, 6, (0.5, 1.0, 2.5)])
def test_gaussian_mixture_is_its_definition(widths: Any) -> None:
    sigma = np.random.default_rng(4).uniform(0.4, 2.6, (H, W))
    fixed, mixture = kernels.gaussian_mixture(sigma, widths, 9)
    known = widths if isinstance(widths, tuple) else np.linspace(sigma.min(), sigma.max(), widths)
    if widths == 1:
        known = [sigma.max()]
    assert fixed.shape == (len(known), 9, 9)
    steps = np.arange(9) - 4
    for width, kernel in zip(known, fixed):
        expected = np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * width**2))
        np.testing.assert_allclose(kernel, expected / expected.sum(), rtol=1e-12)
    for h, w in np.ndindex(H, W):
        inside = min(max(sigma[h, w], known[0]), known[-1])
        place = min(int(np.searchsorted(known, inside, "right")), len(known) - 1)
        expected = np.zeros(len(known))
        if len(known) > 1:
            s, t = known[place - 1], known[place]
            m = (inside**2 - s**2) / (t**2 - s**2)
            expected[place - 1], expected[place] = 1 - m, m
        else:
            expected[0] = 1
        np.testing.assert_allclose(mixture[:, h, w], expected, rtol=1e-9, atol=1e-12)


def test_a_mixture_of_gaussians_has_the_variance_that_is_asked_for() -> None:
    sigma = np.linspace(1, 3, 21)[None]
    fixed, mixture = kernels.gaussian_mixture(sigma, 5, 41)
    each = np.einsum("bij,bhw->ijhw", fixed, mixture)
    steps = np.arange(41) - 20
    variance = np.einsum("ijhw,i->hw", each, steps**2)
    np.testing.assert_allclose(each.sum(axis=(0, 1)), 1, rtol=1e-12)
    np.testing.assert_allclose(variance, sigma**2, rtol=1e-6)  # sampled at whole pixels, they are off by less


def test_the_widths_follow_a_sigma_that_does_not_vary() -> None:
    """All of it moves: the gradient is that of the one width."""
    picture, at, step = photo(), np.full((H, W), 1.5), 1e-5

    def loss(sigma: Any) -> Any:
        return F.sum(F.square(images.filter(picture, *kernels.gaussian_mixture(sigma, size=9))))

    central = (float(loss(at + step)) - float(loss(at - step))) / (2 * step)
    assert abs(central) > 1e-3
    np.testing.assert_allclose(grad(loss)(at).sum(), central, rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_widths_that_cannot_be_told_apart_are_one(dtype: type) -> None:
    sigma = np.full((H, W), 1.5, dtype)
    sigma[0, 0] = np.nextafter(sigma[0, 0], dtype(2))
    fixed, mixture = kernels.gaussian_mixture(sigma, 6, 9)
    assert fixed.shape == (1, 9, 9) and (mixture == 1).all()


def test_a_sigma_that_does_not_vary_needs_one_kernel() -> None:
    fixed, mixture = kernels.gaussian_mixture(np.full((H, W), 1.5), 6)
    assert fixed.shape[0] == 1
    assert (mixture == 1).all()
    np.testing.assert_allclose(
        images.filter(photo(), fixed, mixture), ndi.gaussian_filter(photo(), 1.5, mode="mirror")
    )


# Motion.


@pytest.mark.parametrize("samples", [None, 1, 4])
def test_motion_is_the_mean_of_the_picture_along_a_line(samples: int | None) -> None:
    """What is filtered is what SciPy interpolates at the points of the line."""
    picture, velocity = photo(), np.random.default_rng(5).uniform(-3, 3, (H, W, 2))
    found = kernels.motion(velocity, samples=samples)
    size = 2 * int(np.ceil(abs(velocity).max() / 2)) + 1
    assert found.shape == (size, size, H, W)
    np.testing.assert_allclose(found.sum(axis=(0, 1)), 1, rtol=1e-12)
    count = samples or size
    total = np.zeros((H, W))
    for i in range(count):
        time = (i + 0.5) / count - 0.5
        places = np.indices((H, W)) + time * np.moveaxis(velocity, -1, 0)
        total += ndi.map_coordinates(picture, places, order=1, mode="mirror")
    np.testing.assert_allclose(images.filter(picture, found), total / count, rtol=1e-12)


def test_no_motion_changes_nothing_and_whole_pixels_are_a_box() -> None:
    still = kernels.motion(np.zeros((H, W, 2)), 3)
    assert (still[1, 1] == 1).all()
    assert still.sum() == H * W
    # At three points, one of which is the pixel: one pixel apart on a line of three.
    box = kernels.motion(np.broadcast_to([0.0, 3.0], (H, W, 2)), samples=3, size=5)[:, :, 0, 0]
    np.testing.assert_allclose(box[2], [0, 1 / 3, 1 / 3, 1 / 3, 0], atol=1e-12)


# Where a guide says.


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize("border", BORDERS)
def test_bilateral_is_its_definition_at_each_pixel(channels: tuple[int, ...], border: str) -> None:
    guide, color = photo(*channels), np.random.default_rng(6).uniform(20, 90, (H, W))
    found = kernels.bilateral(guide, 1.3, color, 5, border=border)
    padded = around(guide, 2, border)
    for h, w in np.ndindex(H, W):
        expected = np.zeros((5, 5))
        for a, b in np.ndindex(5, 5):
            apart = ((padded[h + a, w + b] - padded[h + 2, w + 2]) ** 2).sum()
            near = (a - 2) ** 2 + (b - 2) ** 2
            expected[a, b] = np.exp(-near / (2 * 1.3**2)) * np.exp(-apart / (2 * color[h, w] ** 2))
        np.testing.assert_allclose(found[..., h, w], expected / expected.sum(), rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_bilateral_filtering_is_scikit_images(channels: tuple[int, ...]) -> None:
    """In what depends on colours: its table of distances is one pixel wider than the window, and so shifted.

    Of C channels it takes the Euclidean distance divided by C, and it rounds that to one of `bins` values:
    the more, the nearer to ours.
    """
    picture = data.astronaut()[100:140, 200:240] / 255
    picture = picture if channels else picture[..., 0]
    weights = kernels.bilateral(
        picture, 1e6, 0.2 * (picture.shape[2] if channels else 1), 7, border="symmetric"
    )
    ours = images.filter(picture, weights, border="symmetric")
    differences = []
    for bins in (1_000, 100_000):
        theirs = denoise_bilateral(
            picture,
            win_size=7,
            sigma_color=0.2,
            sigma_spatial=1e6,
            bins=bins,
            mode="symmetric",
            channel_axis=-1 if channels else None,
        )
        differences.append(abs(ours - theirs).max())
    assert differences[1] < 1e-4
    assert differences[1] < differences[0] / 5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_never_alike_stays_as_it_is(dtype: Any) -> None:
    guide, least = photo().astype(dtype), float(np.finfo(dtype).tiny)
    centre = np.zeros((3, 3))
    centre[1, 1] = 1
    assert (kernels.bilateral(guide, 1.0, least, 3) == centre[..., None, None]).all()
    assert (kernels.bilateral(guide, least, 1e9, 3) == centre[..., None, None]).all()
    assert (kernels.diffusion(guide, least) == centre[..., None, None]).all()


def test_joint_bilateral_filtering_keeps_edges_of_the_guide_alone() -> None:
    guide = np.zeros((8, 12), np.uint8)
    guide[:, 6:] = 200
    picture = np.random.default_rng(7).uniform(0, 1, (8, 12))
    left = images.filter(picture, kernels.bilateral(guide, 5.0, 1.0, 9, border="edge"), border="edge")
    # Behind the edge nothing counts: the same, had the guide ended there.
    weights = kernels.gaussian(5.0, 9)
    padded = np.pad(picture, 4, mode="edge")
    for h, w in np.ndindex(8, 12):
        window, seen = padded[h : h + 9, w : w + 9], np.pad(guide, 4, mode="edge")[h : h + 9, w : w + 9]
        alike = weights * (seen == guide[h, w])
        assert left[h, w] == pytest.approx((alike * window).sum() / alike.sum(), rel=1e-12)


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("conductance", ["exponential", "rational"])
def test_diffusion_is_a_step_of_perona_and_malik(channels: tuple[int, ...], conductance: str) -> None:
    guide, picture = photo(*channels), photo(2, seed=8)
    found = kernels.diffusion(guide, 40.0, 0.2, conductance=conductance)
    vectors, expected = guide.reshape((H, W, -1)), picture.copy()
    for h, w in np.ndindex(H, W):
        for y, x in ((h - 1, w), (h + 1, w), (h, w - 1), (h, w + 1)):
            if 0 <= y < H and 0 <= x < W:
                u = np.linalg.norm(vectors[y, x] - vectors[h, w]) / 40
                g = np.exp(-(u**2)) if conductance == "exponential" else 1 / (1 + u**2)
                expected[h, w] += 0.2 * g * (picture[y, x] - picture[h, w])
    for border in BORDERS:
        np.testing.assert_allclose(images.filter(picture, found, border=border), expected, rtol=1e-12)
    np.testing.assert_allclose(
        images.filter(picture, found).sum(), picture.sum(), rtol=1e-12
    )  # nothing is lost


@pytest.mark.parametrize(
    ("border", "mode"), [("reflect", "mirror"), ("symmetric", "reflect"), ("wrap", "grid-wrap")]
)
@pytest.mark.parametrize("radius", [0, 1, 2])
def test_guided_filtering_is_that_of_he_sun_and_tang(border: str, mode: str, radius: int) -> None:
    """As they compute it, by box filters; at these borders a picture goes on for ever, and so do boxes."""
    guide, picture, epsilon = photo(), photo(seed=9), 300.0

    def mean(values: np.ndarray) -> np.ndarray:
        return ndi.uniform_filter(values, 2 * radius + 1, mode=mode)

    a = (mean(guide * picture) - mean(guide) * mean(picture)) / (mean(guide**2) - mean(guide) ** 2 + epsilon)
    b = mean(picture) - a * mean(guide)
    found = kernels.guided(guide, radius, epsilon, border=border)
    assert found.shape[:2] == (4 * radius + 1, 4 * radius + 1)
    np.testing.assert_allclose(
        images.filter(picture, found, border=border), mean(a) * guide + mean(b), rtol=1e-10
    )


@pytest.mark.parametrize("border", BORDERS)
def test_guided_kernels_are_their_definition_at_each_pixel(border: str) -> None:
    guide, r, epsilon = photo(3), 1, 200.0
    found = kernels.guided(guide, r, epsilon, border=border)
    padded = around(guide, 2 * r, border)
    n = (2 * r + 1) ** 2
    for h, w in np.ndindex(H, W):
        expected = np.zeros((5, 5))
        for ky, kx in np.ndindex(2 * r + 1, 2 * r + 1):  # the corner of a window, from that of the kernel
            window = padded[h + ky : h + ky + 2 * r + 1, w + kx : w + kx + 2 * r + 1].reshape(n, 3)
            m, s = window.mean(axis=0), np.cov(window.T, bias=True) + epsilon * np.eye(3)
            for a, b in np.ndindex(2 * r + 1, 2 * r + 1):
                q = padded[h + ky + a, w + kx + b]
                p = padded[h + 2 * r, w + 2 * r]
                expected[ky + a, kx + b] += (1 + (p - m) @ np.linalg.solve(s, q - m)) / n**2
        np.testing.assert_allclose(found[..., h, w], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "build",
    [
        lambda g, **axis: kernels.bilateral(g, 1.0, 30.0, 3, **axis),
        lambda g, **axis: kernels.diffusion(g, 30.0, **axis),
        lambda g, **axis: kernels.guided(g, 1, 30.0, **axis),
    ],
)
def test_guides_of_any_layout_and_dtype(build: Callable) -> None:
    guide = np.rint(photo(3)).astype(np.uint8)
    expected = build(guide)
    assert expected.dtype == np.float64
    assert (build(np.moveaxis(guide, -1, 0), channel_axis=0) == expected).all()
    assert (build(np.stack([guide, guide[::-1]]))[0] == expected).all()
    assert (build(np.asfortranarray(guide)) == expected).all()
    assert (build(guide[..., 0]) == build(guide[..., :1])).all()
    assert build(guide[..., 0], channel_axis=None).shape == expected.shape
    for dtype in (np.float32, np.float16):
        found = build(guide.astype(dtype))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


# Point-spread functions.


def test_a_basis_of_all_kernels_gives_the_psfs_back() -> None:
    psfs = np.random.default_rng(10).normal(size=(12, 5, 3))
    fixed, mixture = kernels.psf_basis(psfs)
    assert (fixed.shape, mixture.shape) == ((12, 5, 3), (12, 12))
    np.testing.assert_allclose(np.einsum("bij,bp->pij", fixed, mixture), psfs, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(np.einsum("aij,bij->ab", fixed, fixed), np.eye(12), atol=1e-12)
    few = np.einsum("pa,aij->pij", np.random.default_rng(11).normal(size=(12, 2)), psfs[:2])
    assert len(kernels.psf_basis(few).kernels) == 2


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_kernels_leave_what_the_singular_values_say(count: int) -> None:
    psfs = np.random.default_rng(12).normal(size=(3, 4, 3, 3)).astype(np.float32)
    fixed, mixture = kernels.psf_basis(psfs, count)
    assert (fixed.dtype, mixture.dtype, mixture.shape) == (np.float32, np.float32, (count, 3, 4))
    left = np.linalg.svd(psfs.astype(np.float64).reshape(12, 9), compute_uv=False)[count:]
    error = psfs - np.einsum("bij,byx->yxij", fixed, mixture)
    assert np.linalg.norm(error) == pytest.approx(np.linalg.norm(left), rel=1e-5)
    largest = fixed.reshape(count, -1)
    assert (largest.max(axis=1) >= -largest.min(axis=1)).all()


def test_psfs_on_a_grid_are_interpolated_from_corner_to_corner() -> None:
    psfs = np.random.default_rng(13).normal(size=(2, 3, 3, 3))
    fixed, mixture = kernels.psf_basis(psfs, shape=(5, 9))
    each = np.einsum("bij,bhw->hwij", fixed, mixture)
    for h, w in np.ndindex(5, 9):
        y, x = h / 4, w / 4
        expected = ndi.map_coordinates(
            psfs.reshape(2, 3, 9), np.stack([np.full(9, y), np.full(9, x), np.arange(9)]), order=1
        ).reshape(3, 3)
        np.testing.assert_allclose(each[h, w], expected, atol=1e-12)
    assert kernels.psf_basis(psfs[:1, :1], shape=(4, 4)).mixture.shape == (1, 4, 4)


def test_a_point_of_light_becomes_its_psf_where_that_is_turned_round() -> None:
    psf = np.arange(9.0).reshape(3, 3)
    point = np.zeros((7, 7))
    point[3, 3] = 1
    fixed, mixture = kernels.psf_basis(psf[None, None, ::-1, ::-1], shape=(7, 7))
    np.testing.assert_allclose(images.filter(point, fixed, mixture)[2:5, 2:5], psf, atol=1e-12)


# Gradients.


def test_gradients_by_width_and_velocity() -> None:
    rng = np.random.default_rng(14)
    picture, sigma = photo(2) / 255, rng.uniform(0.4, 2, (H, W))
    target = rng.uniform(0, 1, (H, W, 2))

    def loss(build: Callable) -> Callable:
        def of(*maps: Any) -> Any:
            made = build(*maps)
            pair = made if isinstance(made, tuple) else (made,)
            return F.sum(F.square(images.filter(picture, *pair) - target))

        return of

    check_gradients(loss(lambda s: kernels.gaussian(s, 5)), sigma, verbose=False)
    check_gradients(loss(lambda s: kernels.gaussian(s, 5)), np.array(1.2), verbose=False)
    for widths in ((0.3, 0.9, 2.1), 1, 2, 5):  # given, or following the least and the largest sigma
        check_gradients(
            loss(lambda s, widths=widths: kernels.gaussian_mixture(s, widths, 5)),
            sigma,
            method="central",
            rtol=1e-7,
            verbose=False,
        )
    velocity = rng.uniform(0.3, 1.7, (H, W, 2))
    check_gradients(
        loss(lambda v: kernels.motion(v, 5, samples=2)), velocity, method="central", rtol=1e-7, verbose=False
    )


def test_gradients_by_guide_and_its_parameters() -> None:
    picture, guide = photo() / 255, photo(2, seed=15) / 255
    for build in (
        lambda g, c: kernels.bilateral(g, 1.0, c, 3),
        lambda g, c: kernels.diffusion(g, c),
        lambda g, c: kernels.guided(g, 1, c),
    ):
        check_gradients(
            lambda g, c, build=build: images.filter(picture, build(g, c)),
            guide,
            np.array(0.4),
            method="central",
            rtol=1e-7,
            verbose=False,
        )


def test_the_width_of_a_pixel_that_is_not_blurred_has_slope_zero() -> None:
    sigma = Variable(np.array([[0.0, 1.0]]))
    assert isinstance(kernels.gaussian(sigma, 3), Variable)
    check_gradients(
        lambda s: kernels.gaussian(s, 3), np.array([[0.001, 1.0]]), method="central", rtol=1e-7, verbose=False
    )


# What is refused.

SIGMA = np.ones((H, W))
REFUSED: list[tuple[Any, type[Exception], str]] = [
    (lambda: kernels.gaussian(-SIGMA), ValueError, "gaussian: sigma must not be negative"),
    (lambda: kernels.gaussian("wide"), TypeError, "gaussian: sigma must be a numpy.ndarray or .*got str"),
    (
        lambda: kernels.gaussian(SIGMA[0]),
        ValueError,
        r"gaussian: sigma must have shape \(H, W\) or .*got \(7,\)",
    ),
    (lambda: kernels.gaussian(SIGMA, 4), ValueError, "gaussian: size must be odd, got 4"),
    (lambda: kernels.gaussian(SIGMA, 2.5), TypeError, "gaussian: size must be an int, got 2.5"),
    (lambda: kernels.gaussian(SIGMA, truncate=0), ValueError, "gaussian: truncate must be positive"),
    (lambda: kernels.gaussian(SIGMA * np.inf), ValueError, "gaussian: sigma must be finite where no size"),
    (lambda: kernels.gaussian_mixture(SIGMA, (2, 1)), ValueError, "gaussian_mixture: widths must rise"),
    (lambda: kernels.gaussian_mixture(SIGMA, 0), ValueError, "gaussian_mixture: widths must be at least 1"),
    (
        lambda: kernels.gaussian_mixture(SIGMA, "ab"),
        TypeError,
        "gaussian_mixture: widths must be an int or numbers",
    ),
    (lambda: kernels.motion(SIGMA), ValueError, r"motion: velocity must have shape \(H, W, 2\)"),
    (lambda: kernels.motion(np.ones((H, W, 2)) * 5, 3), ValueError, r"motion: size must be at least 5 \+ 1"),
    (lambda: kernels.bilateral(photo(), 1, 0), ValueError, "bilateral: sigma_color must be positive"),
    (lambda: kernels.bilateral(photo(), -1, 1), ValueError, "bilateral: sigma_space must be positive"),
    (
        lambda: kernels.bilateral(photo(), 1, SIGMA[:3]),
        ValueError,
        r"bilateral: sigma_color must be a number or",
    ),
    (lambda: kernels.bilateral([[1]], 1, 1), TypeError, "bilateral: guide must be a numpy.ndarray"),
    (
        lambda: kernels.bilateral(photo(), 1, 1, border="mirror"),
        ValueError,
        "bilateral: border must be one of",
    ),
    (
        lambda: kernels.diffusion(photo(), 1, conductance="linear"),
        ValueError,
        "diffusion: conductance must be one of",
    ),
    (lambda: kernels.diffusion(photo(), 0), ValueError, "diffusion: kappa must be positive"),
    (lambda: kernels.guided(photo(), -1, 1), ValueError, "guided: radius must be at least 0"),
    (lambda: kernels.guided(photo(), 1, 0), ValueError, "guided: epsilon must be positive"),
    (lambda: kernels.psf_basis(SIGMA), ValueError, r"psf_basis: psfs must have shape \(P, kh, kw\)"),
    (
        lambda: kernels.psf_basis(Variable(np.ones((2, 3, 3)))),
        TypeError,
        "psf_basis: psfs must not be a Variable",
    ),
    (
        lambda: kernels.psf_basis(np.ones((2, 3, 3)), 5),
        ValueError,
        "psf_basis: num_kernels must be at most 2",
    ),
    (
        lambda: kernels.psf_basis(np.ones((2, 3, 3)), shape=(4, 4)),
        ValueError,
        "psf_basis: shape goes with psfs on a",
    ),
    (lambda: kernels.psf_basis(np.full((2, 3, 3), np.nan)), ValueError, "psf_basis: psfs must be finite"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_wrong_is_said(number: int) -> None:
    call, kind, message = REFUSED[number]
    with pytest.raises(kind, match=message):
        call()
