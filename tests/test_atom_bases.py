"""Golden numbers, symmetries and refusals of the fixed bases of filter atoms."""

from typing import Any

import numpy as np
import pytest
from scipy.special import jn_zeros

import dynarray as dyn

SIZES = {3: (6, 6), 5: (14, 14), 7: (38, 35), 9: (71, 68)}  # how many, and their rank


@pytest.mark.parametrize("size", SIZES)
def test_counts_and_ranks(size: int) -> None:
    bases = dyn.fourier_bessel_bases(size)
    count, rank = SIZES[size]
    assert bases.shape == (count, size, size) and bases.dtype == np.float64
    assert np.linalg.matrix_rank(bases.reshape(count, -1)) == rank


def test_published_numbers_at_size_3() -> None:
    bases = dyn.fourier_bessel_bases(3)
    norms = np.sqrt((bases**2).sum(axis=(1, 2)))
    assert norms.round(3).tolist() == [0.914, 0.853, 0.853, 1.360, 0.295, 1.332]
    corner, edge, centre = 0.049333, 0.305299, 0.673105
    expected = [[corner, edge, corner], [edge, centre, edge], [corner, edge, corner]]
    assert bases[0].round(6).tolist() == expected


@pytest.mark.parametrize("size", [3, 5, 7, 9, 11, 15, 31])
def test_norms_are_one_in_the_mean_square(size: int) -> None:
    bases = dyn.fourier_bessel_bases(size)
    assert abs((bases**2).sum(axis=(1, 2)).mean() - 1) < 1e-12


@pytest.mark.parametrize("size", [3, 5, 7, 15])
def test_symmetries(size: int) -> None:
    """First the round one, then a pair that a quarter turn and a mirror turn into each other."""
    bases = dyn.fourier_bessel_bases(size)
    for turned in (np.rot90(bases[0]), bases[0].T, bases[0][::-1]):
        np.testing.assert_allclose(turned, bases[0], rtol=0, atol=1e-14)
    cosine, sine = bases[1:3]  # theta = atan2(x, y): cos(theta) is odd in y, sin(theta) odd in x
    np.testing.assert_allclose(cosine[::-1], -cosine, rtol=0, atol=1e-14)
    np.testing.assert_allclose(sine, cosine.T, rtol=0, atol=1e-14)
    assert cosine[-1, size // 2] > 0.01


def test_frequencies_rise() -> None:
    """The functions of order 0 cross zero once more each time, in the order of the roots of J_0."""
    bases = dyn.fourier_bessel_bases(15)
    roots = {(q, p): root for q in range(6) for p, root in enumerate(jn_zeros(q, 6))}
    rising = sorted(roots, key=lambda key: roots[key])
    start, size = 0, 15
    for q, p in rising[:8]:
        if q == 0:
            line = bases[start, size // 2, size // 2 :]
            assert np.count_nonzero(np.diff(np.sign(line))) == p
        start += 1 if q == 0 else 2


def test_fewer_bases_are_the_first_of_all() -> None:
    np.testing.assert_array_equal(dyn.fourier_bessel_bases(5, 4), dyn.fourier_bessel_bases(5)[:4])


@pytest.mark.parametrize("size", [3, 5, 7, 11])
@pytest.mark.parametrize("count", [1, 4, 6])
def test_scales_lie_centred_inside_zeros(size: int, count: int) -> None:
    bases = dyn.multiscale_bases(size, count)
    assert bases.shape == (count * (size // 2), size, size)
    for scale in range(3, size + 1, 2):
        first, margin = count * (scale // 2 - 1), (size - scale) // 2
        part = bases[first : first + count]
        inner = part[:, margin : size - margin, margin : size - margin]
        np.testing.assert_array_equal(inner, dyn.fourier_bessel_bases(scale)[:count])
        assert np.count_nonzero(part) == np.count_nonzero(inner)


@pytest.mark.parametrize("function", [dyn.fourier_bessel_bases, dyn.multiscale_bases])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4,), r"kernel_size must be odd, got 4"),
        ((1,), r"kernel_size must be at least 3, got 1"),
        ((-3,), r"kernel_size must be at least 3, got -3"),
        ((3.0,), r"kernel_size must be an int, got 3\.0"),
        (((3, 3),), r"kernel_size must be an int, got \(3, 3\)"),
        ((3, 0), r"num_bases must be at least 1, got 0"),
        ((3, 2.5), r"num_bases must be an int, got 2\.5"),
        ((3, True), r"num_bases must be an int, got True"),
        ((3, 7), r"num_bases must be at most 6, .*size 3 offers, got 7"),
    ],
)
def test_refusals(function: Any, arguments: tuple, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{function.__name__}: {message}"):
        function(*arguments)


def test_a_large_scale_does_not_help_a_small_one() -> None:
    assert len(dyn.fourier_bessel_bases(9, 7)) == 7
    with pytest.raises(ValueError, match=r"^multiscale_bases: num_bases must be at most 6, .*got 7"):
        dyn.multiscale_bases(9, 7)
