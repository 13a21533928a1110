"""Take the filters of every pixel apart: into a few atoms, and the atoms into fixed bases.

Steered filters follow the edges of an image: at each pixel p, they are turned and stretched along the edge.
Here are twelve of them per pixel, averages, slopes and curvatures across the edge in four sizes, W[o,p] in
R^49 for 7 x 7 taps. That is 588 numbers a pixel. How few would do?

*Atoms.* `atom_conv2d` has M atoms per pixel and coefficients that all pixels share:

    W[o,p] = sum_m c[o,m] a[m,p].

Read W as a matrix, a row for each o, a column for each (tap, pixel). With M terms the singular value
decomposition has the smallest squared error: the columns of c are the M eigenvectors of W W^T with the
largest eigenvalues, orthonormal, and a = c^T W. What is missing is the sum of the other eigenvalues.

*Bases.* `compose_atoms` has B bases that are known beforehand, and B numbers per atom and pixel:

    a[m,p] = sum_i alpha[m,i,p] b[i],        best:  alpha = a b^+   (b^+ the pseudo-inverse).

The two errors stand at right angles: c^T (W - c a) = 0 and c^T c = 1, so that

    |W - c alpha b|^2 = |W - c a|^2 + |a - alpha b|^2.

The script checks this sum, and that atoms filter the image as the filters did. It prints how much is missing
for several numbers of atoms and sets of bases, among them the best ones for this very image, and draws.

    python examples/filters_as_atoms.py

Wang et al., "Adaptive Convolutions with Per-pixel Dynamic Filter Atom", ICCV 2021; Freeman and Adelson, "The
design and use of steerable filters", PAMI 1991.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _atoms_picture import draw_bases, draw_filters
from _photographs import photograph
from _record import record
from scipy.ndimage import gaussian_filter

import dynarray as dyn

KERNEL = 7
SIZES = (0.6, 0.8, 1.1, 1.5)  # standard deviations, in pixels, where there is no edge
KINDS = ("average", "slope", "curvature")
ATOMS = (1, 2, 3, 4, 6, 8, 12)
CHOSEN = 6  # atoms of the pictures
PICTURES = Path(__file__).parents[1] / "docs" / "images"


class Edges(NamedTuple):
    """The structure of an image at every pixel, (H, W) each."""

    angle: np.ndarray  # of the gradient, from the x axis to the y axis
    coherence: np.ndarray  # 0: no direction, 1: all gradients around are parallel
    energy: np.ndarray  # mean squared gradient around


def edges(image: np.ndarray) -> Edges:
    """From the structure tensor, the outer product of the gradient averaged over the surroundings."""
    gy, gx = np.gradient(gaussian_filter(image, 0.7))
    xx, xy, yy = (gaussian_filter(product, 1.5) for product in (gx * gx, gx * gy, gy * gy))
    difference = np.hypot(xx - yy, 2 * xy)  # of the two eigenvalues
    return Edges(0.5 * np.arctan2(2 * xy, xx - yy), difference / (xx + yy + 1e-6), xx + yy)


def steered_filters(found: Edges) -> np.ndarray:
    """Filters (outputs, k, k, H, W) of norm 1, turned and stretched along the edges."""
    step = np.arange(KERNEL) - KERNEL // 2
    y, x = (grid[..., None, None] for grid in np.meshgrid(step, step, indexing="ij"))
    across = x * np.cos(found.angle) + y * np.sin(found.angle)
    along = y * np.cos(found.angle) - x * np.sin(found.angle)
    filters = []
    for size in SIZES:
        narrow, wide = size * (1 - 0.3 * found.coherence), size * (1 + found.coherence)
        bell = np.exp(-0.5 * ((across / narrow) ** 2 + (along / wide) ** 2))
        filters += [bell, across * bell, ((across / narrow) ** 2 - 1) * bell]
    stacked = np.stack(filters)
    return stacked / np.sqrt(np.square(stacked).sum(axis=(1, 2), keepdims=True))


class Parts(NamedTuple):
    """Filters as coefficients (outputs, M) times atoms (M, k, k, H, W)."""

    coefficients: np.ndarray
    atoms: np.ndarray


def into_atoms(filters: np.ndarray, count: int) -> Parts:
    """The best parts with so many atoms."""
    rows = filters.reshape(len(filters), -1)
    _, directions = np.linalg.eigh(rows @ rows.T)
    coefficients = directions[:, ::-1][:, :count]
    return Parts(coefficients, np.tensordot(coefficients.T, filters, axes=1))


def onto_bases(atoms: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """The best alpha (1, M, B, H, W) for these atoms."""
    inverse = np.linalg.pinv(bases.reshape(len(bases), -1))
    m, _, _, h, w = atoms.shape
    return np.einsum("mthw,ti->mihw", atoms.reshape(m, -1, h, w), inverse)[None]


def best_bases(filters: np.ndarray, count: int) -> np.ndarray:
    """The bases with the smallest error for these filters: principal components of their taps."""
    taps = np.moveaxis(filters, (1, 2), (0, 1)).reshape(KERNEL**2, -1)
    _, directions = np.linalg.eigh(taps @ taps.T)
    return directions[:, ::-1][:, :count].T.reshape(count, KERNEL, KERNEL)


def filtered(image: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """The image (H, W) by each filter (outputs, k, k, H, W): (outputs, H, W), pixel for pixel as written."""
    images = np.broadcast_to(image, (len(filters), 1, *image.shape))
    return dyn.local_filter2d(images, filters[:, None])[:, 0]


def by_atoms(image: np.ndarray, coefficients: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """The same from their parts: atoms (1, M, k, k, H, W) filter, coefficients mix."""
    return dyn.atom_conv2d(image[None, None], atoms, coefficients[:, None])[0]


def relative(found: np.ndarray, true: np.ndarray) -> float:
    """Norm of the difference, relative to that of what is true."""
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def check_parts(image: np.ndarray, filters: np.ndarray) -> None:
    """What the docstring derives, in numbers."""
    direct = filtered(image, filters)
    whole = into_atoms(filters, len(filters))
    exact = relative(by_atoms(image, whole.coefficients, whole.atoms[None]), direct)
    print(f"image filtered by all {len(filters)} atoms against direct filtering: {exact:.1e}")
    coefficients, atoms = into_atoms(filters, CHOSEN)
    bases = dyn.multiscale_bases(KERNEL)
    rebuilt = dyn.compose_atoms(onto_bases(atoms, bases), bases)[0]
    total = np.square(filters - np.tensordot(coefficients, rebuilt, axes=1)).sum()
    first = np.square(filters - np.tensordot(coefficients, atoms, axes=1)).sum()
    second = np.square(atoms - rebuilt).sum()
    print(f"squared error {total:.4f} = {first:.4f} (few atoms) + {second:.4f} (few bases)")


def sets_of_bases(filters: np.ndarray) -> dict[str, np.ndarray]:
    """The bases that are compared."""
    multi = dyn.multiscale_bases(KERNEL)
    return {
        "multi-scale": multi,
        "one scale, as many": dyn.fourier_bessel_bases(KERNEL, len(multi)),
        "one scale, all": dyn.fourier_bessel_bases(KERNEL),
        "best for this image": best_bases(filters, len(multi)),
    }


Errors = dict[str, tuple[int, list[float]]]


def missing(image: np.ndarray, filters: np.ndarray) -> tuple[Errors, Errors]:
    """Per set of bases its size and, for each number of atoms, relative errors: of filters, of the image."""
    direct = filtered(image, filters)
    in_filters: Errors = {}
    in_image: Errors = {}
    for name, bases in {**sets_of_bases(filters), "none: atoms as they are": None}.items():
        size = KERNEL**2 if bases is None else len(bases)
        in_filters[name], in_image[name] = (size, []), (size, [])
        for count in ATOMS:
            coefficients, atoms = into_atoms(filters, count)
            if bases is not None:
                atoms = dyn.compose_atoms(onto_bases(atoms, bases), bases)[0]
            in_filters[name][1].append(relative(np.tensordot(coefficients, atoms, axes=1), filters))
            in_image[name][1].append(relative(by_atoms(image, coefficients, atoms[None]), direct))
    return in_filters, in_image


def as_table(errors: Errors) -> tuple[list[str], list[list[str]]]:
    """Percentages: a row for each set of bases, a column for each number of atoms."""
    rows = [
        [name, str(size), *(f"{100 * error:.1f}" for error in row)] for name, (size, row) in errors.items()
    ]
    return ["bases", "B", *(f"M = {count}" for count in ATOMS)], rows


def places(found: Edges) -> list[tuple[int, int]]:
    """Four pixels: strong edges of three directions, and the one with the least structure."""
    inside = np.zeros(found.energy.shape, bool)
    inside[KERNEL:-KERNEL, KERNEL:-KERNEL] = True
    strength = np.where(inside, found.energy * found.coherence, 0)
    towards = [np.abs(np.sin(found.angle - target)) < 0.2 for target in (0, np.pi / 4, np.pi / 2)]
    chosen = [np.argmax(strength * mask) for mask in towards]
    chosen.append(np.argmin(np.where(inside, found.energy, np.inf)))
    return [tuple(map(int, np.unravel_index(index, inside.shape))) for index in chosen]


def main(argv: Sequence[str] | None = None) -> None:
    """Take apart, check, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("."), help="folder of the pictures")
    parser.add_argument("--quick", action="store_true", help="a small part of the photograph")
    parser.add_argument("--full", action="store_true", help="recorded for the documentation")
    options = parser.parse_args(argv)
    folder = PICTURES if options.full else options.output
    side = 48 if options.quick else 96
    image = photograph("camera")[20 : 20 + side, 90 : 90 + side].astype(np.float64)

    found = edges(image)
    filters = steered_filters(found)
    check_parts(image, filters)
    in_filters, in_image = missing(image, filters)
    tables = {
        "Missing of the filters, in percent of their norm": as_table(in_filters),
        "Missing of the filtered image, in percent of its norm": as_table(in_image),
    }
    for title, (columns, rows) in tables.items():
        print(f"\n{title}\n{columns[0]:<24} {columns[1]:>3}" + "".join(f"{c:>8}" for c in columns[2:]))
        for name, size, *errors in rows:
            print(f"{name:<24} {size:>3}" + "".join(f"{error:>8}" for error in errors))

    coefficients, atoms = into_atoms(filters, CHOSEN)
    bases = dyn.multiscale_bases(KERNEL)
    composed = dyn.compose_atoms(onto_bases(atoms, bases), bases)[0]
    rebuilt = np.tensordot(coefficients, composed, axes=1)
    draw_filters(folder / "filters_as_atoms.png", image, places(found), filters, composed, rebuilt)
    draw_bases(folder / "atom_bases.png", bases, ATOMS, in_filters)
    if options.full:
        settings = {"photograph": "camera", "pixels": image.size, "outputs": len(filters), "kernel": KERNEL}
        record("filters_as_atoms", tables, **settings)
    print("\npictures: filters_as_atoms.png, atom_bases.png")


if __name__ == "__main__":
    main()
