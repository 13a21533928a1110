"""The gradient of a displacement, derived twice: from the interpolation, and from the Gaussian.

A displaced aggregation unit reads an image beside each pixel, a learned distance away, through a small
Gaussian. This script derives how what it reads changes with the distance, first for the sum that a computer
evaluates, then for the continuous theory behind it, follows both with numbers, and draws them along a line
through whole displacements beside finite differences: that is where the two part.

    python examples/dau_by_hand.py

What a unit reads
-----------------
Along one axis (the other is treated in the same way and is a factor), with x zero outside the image:

    k[i]  = exp(-i**2 / (2*sigma**2)) / Z,    i = -R..R,   R = ceil(5*sigma),   Z such that sum_i k[i] = 1
    xb[q] = sum_i k[i] * x[q + i]                                      the blurred image               (1)
    r(d)  = (1 - f) * xb[p + n] + f * xb[p + n + 1],    n = floor(d),  f = d - n                           (2)

First derivation: the interpolation
-----------------------------------
(2) is what is computed, so its derivative is the gradient of what is computed. Between two whole numbers n
does not change, and df/dd = 1:

    dr/dd = xb[p + n + 1] - xb[p + n]                                                                 (3)

r is a chain of straight lines from pixel to pixel; (3) is a staircase. At whole d the line on the left has
one slope and the line on the right another. floor makes (3) the slope on the right.

Second derivation: the Gaussian
-------------------------------
In the theory nothing is interpolated. The unit's Gaussian is centred where the unit lies:

    s(d)  = sum_j k(j - p - d) * x[j],    k(t) = exp(-t**2 / (2*sigma**2)) / Z

The image does not depend on d, the Gaussian does, and dk(t)/dt = -t/sigma**2 * k(t), so that

    ds/dd = sum_j (j - p - d)/sigma**2 * k(j - p - d) * x[j]                                          (4)

At whole d, j - p - d is a whole number i, and (4) is the image correlated with a second kernel,
k'[i] = i/sigma**2 * k[i]. The paper makes that map once, on the grid of pixels, and interpolates it like xb:

    xd[q] = sum_i k'[i] * x[q + i],     "dr/dd" = (1 - f) * xd[p + n] + f * xd[p + n + 1]             (5)

(5) has no kinks and is right for s at whole d. But it is the slope of s, not of r, and between pixels not
quite that: a straight line between two values of a derivative. And at the border of the image r falls to zero
within a pixel, because xb is zero outside; (5) knows nothing of that.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from skimage.data import camera

import dynarray as dyn
from autodiff import Tape, Variable
from autodiff import functions as F

SIGMA = 0.5
ROW = 0.3  # the unit's displacement along y, which stays
LINE = np.arange(-50, 51) / 20  # along x, whole numbers among them
STEP = 1e-6
WHOLE = np.equal(LINE, np.round(LINE))


def crop() -> np.ndarray:
    """A piece of a photograph with an edge in it, (21, 21), from 0 to 1."""
    return camera()[100:121, 235:256].astype(np.float64) / 255


# ---------------------------------------------------------------------------------------------------------
# By hand


def kernels(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """k of (1) and k' of (5)."""
    reach = int(np.ceil(5 * sigma))
    i = np.arange(-reach, reach + 1)
    k = np.exp(-(i**2) / (2 * sigma**2))
    k /= k.sum()
    return k, i / sigma**2 * k


def correlated(x: np.ndarray, along_y: np.ndarray, along_x: np.ndarray) -> np.ndarray:
    """x correlated with one kernel along each axis, zero outside."""
    columns = np.stack([np.convolve(column, along_y[::-1], "full") for column in x.T], axis=1)
    both = np.stack([np.convolve(row, along_x[::-1], "full") for row in columns])
    y, x_reach = len(along_y) // 2, len(along_x) // 2
    return both[y : y + x.shape[0], x_reach : x_reach + x.shape[1]]


def shifted(image: np.ndarray, n: int, m: int) -> np.ndarray:
    """The image read at p + (n, m), zero outside."""
    h, w = image.shape
    padded = np.pad(image, 8)
    return padded[8 + n : 8 + n + h, 8 + m : 8 + m + w]


def interpolated(image: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """(2) along both axes, for every p."""
    n, m = int(np.floor(dy)), int(np.floor(dx))
    e, f = dy - n, dx - m
    upper = (1 - f) * shifted(image, n, m) + f * shifted(image, n, m + 1)
    lower = (1 - f) * shifted(image, n + 1, m) + f * shifted(image, n + 1, m + 1)
    return (1 - e) * upper + e * lower


def read(x: np.ndarray, d: float, sigma: float) -> np.ndarray:
    """What the unit reads at every pixel, displaced by (ROW, d)."""
    k, _ = kernels(sigma)
    return interpolated(correlated(x, k, k), ROW, d)


def exact(x: np.ndarray, d: float, sigma: float) -> np.ndarray:
    """(3): of the two neighbours along x, the right one minus the left one, interpolated along y."""
    k, _ = kernels(sigma)
    xb = correlated(x, k, k)
    m = int(np.floor(d))
    return interpolated(xb, ROW, m + 1) - interpolated(xb, ROW, m)


def smooth(x: np.ndarray, d: float, sigma: float) -> np.ndarray:
    """(5): the derivative of the Gaussian along x, the Gaussian along y, and the result interpolated."""
    k, slope = kernels(sigma)
    return interpolated(correlated(x, k, slope), ROW, d)


def forward_difference(x: np.ndarray, d: float, sigma: float) -> np.ndarray:
    """What r does over a short step to the right."""
    return (read(x, d + STEP, sigma) - read(x, d, sigma)) / STEP


def central_difference(x: np.ndarray, d: float, sigma: float) -> np.ndarray:
    """What r does over a short step to both sides; at a kink, the mean of the two slopes."""
    return (read(x, d + STEP, sigma) - read(x, d - STEP, sigma)) / (2 * STEP)


# ---------------------------------------------------------------------------------------------------------
# By the operator's own backward pass and by the tape


def as_unit(x: np.ndarray, d: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, weight and displacement as the operator takes them: one channel, one unit of weight 1."""
    return x[None, None], np.ones((1, 1, 1)), np.array([ROW, d]).reshape(1, 1, 1, 2)


def by_operator(x: np.ndarray, g: np.ndarray, d: float, sigma: float, rule: str) -> float:
    """The gradient of sum_p g[p] * r_p(d)."""
    arrays = as_unit(x, d)
    grads = dyn.displaced_conv2d_backward(g[None, None], *arrays, sigma=sigma, displacement_gradient=rule)
    return float(grads.displacement[0, 0, 0, 1])


def by_tape(x: np.ndarray, g: np.ndarray, d: float, sigma: float, rule: str) -> float:
    """The same, recorded."""
    image, weight, place = as_unit(x, d)
    displacement = Variable(place)
    with Tape() as tape:
        y = F.displaced_conv2d(image, weight, displacement, sigma=sigma, displacement_gradient=rule)
        total = F.sum(g * y)
    return float(tape.gradient(total, displacement)[0, 0, 0, 1])


# ---------------------------------------------------------------------------------------------------------
# The comparison

METHODS = {
    "exact (3)": exact,
    "smooth (5)": smooth,
    "difference to the right": forward_difference,
    "central difference": central_difference,
}


def along_the_line(x: np.ndarray, g: np.ndarray, sigma: float) -> dict[str, np.ndarray]:
    """d(sum_p g[p] * r_p)/dd at every point of LINE, by every method."""
    return {name: np.array([(g * f(x, d, sigma)).sum() for d in LINE]) for name, f in METHODS.items()}


def follow(x: np.ndarray, d: float) -> None:
    """(3) and (5) with the numbers of the pixel in the middle."""
    k, slope = kernels(SIGMA)
    p, m = 10, int(np.floor(d))
    f = d - m
    xb, xd = correlated(x, k, k)[p], correlated(x, k, slope)[p]
    print(f"Row {p}, pixel p = {p}, d = {d}: n = {m}, f = {f:.2f} (and no displacement along y)\n")
    print(f"  blurred image   xb[p + n] = {xb[p + m]:+.6f}   xb[p + n + 1] = {xb[p + m + 1]:+.6f}")
    print(f"  (3)             right minus left:  {xb[p + m + 1] - xb[p + m]:+.6f}")
    print(f"  k' image        xd[p + n] = {xd[p + m]:+.6f}   xd[p + n + 1] = {xd[p + m + 1]:+.6f}")
    mixed = (1 - f) * xd[p + m] + f * xd[p + m + 1]
    print(f"  (5)             {1 - f:.2f} of the left, {f:.2f} of the right:  {mixed:+.6f}\n")


def print_errors(found: dict[str, np.ndarray], x: np.ndarray, g: np.ndarray) -> None:
    """Largest differences along the line, relative to the largest gradient, at whole numbers and between."""
    truth = found["difference to the right"]
    scale = np.abs(truth).max()
    rows = {name: found[name] for name in ("exact (3)", "central difference", "smooth (5)")}
    print(f"{'largest difference from the one to the right':<46} {'whole d':>9} {'between':>9}")
    for name, values in rows.items():
        error = np.abs(values - truth) / scale
        print(f"{name:<46} {error[WHOLE].max():>9.1e} {error[~WHOLE].max():>9.1e}")
    print(f"\n{'largest difference from the formulas above':<46} {'exact':>9} {'smooth':>9}")
    for name, method in (("operator", by_operator), ("tape", by_tape)):
        errors = [
            np.abs([method(x, g, d, SIGMA, rule) for d in LINE] - found[formula]).max() / scale
            for rule, formula in (("exact", "exact (3)"), ("smooth", "smooth (5)"))
        ]
        print(f"{name:<46} {errors[0]:>9.1e} {errors[1]:>9.1e}")


def inside(g: np.ndarray) -> np.ndarray:
    """g without the pixels from which the unit, anywhere on the line, would read beyond the border."""
    margin = int(np.ceil(np.abs(LINE).max())) + 1
    kept = np.zeros_like(g)
    kept[margin:-margin, margin:-margin] = g[margin:-margin, margin:-margin]
    return kept


def print_sigmas(x: np.ndarray, g: np.ndarray) -> None:
    """How far the two rules are apart for narrow and wide units, and whether they point the same way."""
    print("\nThe two rules along the line: root mean square of smooth - exact, relative to exact; same sign")
    print(f"{'sigma':>8} {'inside':>16} {'same sign':>10} {'whole image':>16} {'same sign':>10}")
    for sigma in (0.3, 0.5, 0.8, 1.2, 2.0):
        row = f"{sigma:>8.1f}"
        for weights in (inside(g), g):
            found = along_the_line(x, weights, sigma)
            a, b = found["exact (3)"], found["smooth (5)"]
            apart = np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2))
            row += f" {100 * apart:>14.1f} % {100 * np.mean(a * b > 0):>8.1f} %"
        print(row)


def draw(path: Path, x: np.ndarray, g: np.ndarray) -> None:
    """What one unit reads, its slope by all methods, and the slope of a loss for two widths."""
    one = np.zeros_like(x)
    one[10, 10] = 1
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    reading = [(one * read(x, d, SIGMA)).sum() for d in LINE]
    axes[0, 0].plot(LINE, reading, color="0.2")
    axes[0, 0].set(
        title=f"what the unit reads at one pixel, sigma {SIGMA}", ylabel="r(d), image values 0 to 1"
    )
    panels = (
        (axes[1, 0], along_the_line(x, one, SIGMA), f"the slope of that, sigma {SIGMA}"),
        (axes[0, 1], along_the_line(x, g, SIGMA), f"slope of a loss over many pixels, sigma {SIGMA}"),
        (axes[1, 1], along_the_line(x, g, 1.2), "slope of a loss over many pixels, sigma 1.2"),
    )
    for axis, found, title in panels:
        # A staircase is drawn as one: each value holds up to the next whole number.
        axis.plot(
            LINE,
            found["exact (3)"],
            drawstyle="steps-post",
            color="C0",
            label="exact: slope of the lines that are computed, (3)",
        )
        axis.plot(LINE, found["smooth (5)"], color="C1", label="smooth: slope of the Gaussian theory, (5)")
        axis.plot(LINE, found["difference to the right"], "k.", markersize=3, label="difference to the right")
        central = found["central difference"][WHOLE]
        axis.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axis.plot(LINE[WHOLE], central, "rx", markersize=6, label="central difference at whole d")
        axis.set(title=title)
    for axis in axes.flat:
        for whole in LINE[WHOLE]:
            axis.axvline(whole, color="0.9", linewidth=0.8, zorder=0)
    for axis in axes[1]:
        axis.set_xlabel("displacement d along x, in pixels")
    for axis in (axes[1, 0], axes[0, 1], axes[1, 1]):
        axis.set_ylabel("slope, per pixel of d")
    handles, names = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Derive, compare, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("dau_by_hand.png"), help="the picture")
    options = parser.parse_args(argv)
    x = crop()
    follow(x, 1.25)
    # As if L = 1/2 * sum_p (r - target)**2 had been evaluated: g is dL/dr.
    g = read(x, 0.0, SIGMA) - read(x, 0.6, SIGMA)
    print_errors(along_the_line(x, g, SIGMA), x, g)
    print_sigmas(x, g)
    draw(options.output, x, inside(g))
    print(f"\nthe picture is in {options.output}")


if __name__ == "__main__":
    main()
