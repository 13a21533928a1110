"""`displaced_conv2d` on the CPU as its definition reads, for results that are not finite.

The vector loops subtract pixels from each other, share sums between outputs and multiply zeros in the place
of what lies outside. Where an infinity takes part, each of these gives NaN, also where the definition has an
infinity or a number. And a unit that is not finite is left out of them altogether, its target channel
poisoned by NaN. Either way no result is finite that must not be: those that are not are made again, number by
number. What is NaN stays NaN whatever is added: the common case, NaN everywhere, ends with the first unit.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from ..engine import parallel
from ..engine.compile import borrowing_cached_jit, literal_jit
from .blur import UnitBlur, blur_into
from .kernels import UnitTargets, split_displacement

DEFINITION_BYTES = 4 * 1024 * 1024  # of blurred channels at a time


@literal_jit
def _interpolate(image: np.ndarray, y: int, x: int, fractions: tuple, kind: int) -> float:
    """What lies at (y, x) plus the fractions; of kinds 1 and 2 its derivatives by y and x."""
    total = 0.0
    for i in range(2):
        by_row = fractions[0] if i else 1.0 - fractions[0]
        by_row = 2.0 * i - 1.0 if kind == 1 else by_row
        for j in range(2):
            by_column = fractions[1] if j else 1.0 - fractions[1]
            by_column = 2.0 * j - 1.0 if kind == 2 else by_column
            pixel = 0.0
            if 0 <= y + i < image.shape[0] and 0 <= x + j < image.shape[1]:
                pixel = float(image[y + i, x + j])
            total += by_row * by_column * pixel
    return total


@literal_jit
def _add_at(total: float, blurred: np.ndarray, source: int, targets: UnitTargets, at: tuple) -> float:
    """Add what the units of a target channel read at the pixel ``at = (channel, i, j)``."""
    weight, displacement, size = targets.parameters
    for s in range(len(blurred)):
        o, c = (source + s, at[0]) if targets.transposed else (at[0], source + s)
        for g in range(weight.shape[2]):
            if total != total:
                return total
            dy, dx = displacement[o, c, g, 0], displacement[o, c, g, 1]
            if targets.transposed:
                dy, dx = -dy, -dx
            y, fraction_y, x, fraction_x = split_displacement(dy, dx, size)
            read = _interpolate(blurred[s], at[1] + y, at[2] + x, (fraction_y, fraction_x), 0)
            total += weight[o, c, g] * read
    return total


@borrowing_cached_jit
def displace_again_items(
    start: int,
    stop: int,
    blurred: np.ndarray,
    source: int,
    targets: UnitTargets,
    wrong: np.ndarray,
    target: np.ndarray,
) -> None:
    """Items: target channels of one image. Adds to those pixels what some source channels give."""
    for item in range(start, stop):
        for i in range(wrong.shape[1]):
            for j in range(wrong.shape[2]):
                if wrong[item, i, j]:
                    at = (targets.first + item, i, j)
                    target[item, i, j] = _add_at(float(target[item, i, j]), blurred, source, targets, at)


@literal_jit
def _sum_over(total: float, image: np.ndarray, grad_plane: np.ndarray, place: tuple, kind: int) -> float:
    """Add the gradient times what a unit reads, or the derivative of that."""
    y, fraction_y, x, fraction_x = place
    for i in range(grad_plane.shape[0]):
        for j in range(grad_plane.shape[1]):
            if total != total:
                return total
            total += grad_plane[i, j] * _interpolate(image, i + y, j + x, (fraction_y, fraction_x), kind)
    return total


@borrowing_cached_jit
def correlate_again_items(
    start: int,
    stop: int,
    blurred: np.ndarray,
    source: int,
    grad_output: np.ndarray,
    targets: UnitTargets,
    kind: int,
    totals: np.ndarray,
) -> None:
    """Items: target channels of one image. Adds to totals (T, S, G) where they are not NaN."""
    _, displacement, size = targets.parameters
    for item in range(start, stop):
        o = targets.first + item
        for s in range(len(blurred)):
            for g in range(totals.shape[2]):
                dy, dx = displacement[o, source + s, g, 0], displacement[o, source + s, g, 1]
                place = split_displacement(dy, dx, size)
                total = totals[item, source + s, g]
                totals[item, source + s, g] = _sum_over(total, blurred[s], grad_output[o], place, kind)


def _blurred_channels(blur: UnitBlur, image: int) -> Iterator[tuple[int, np.ndarray]]:
    """The blurred channels of an image, some at a time, and the first of these."""
    together = max(1, DEFINITION_BYTES // max(1, blur.source[0, 0].nbytes))
    for first in range(0, blur.source.shape[1], together):
        some = blur.source[image : image + 1, first : first + together]
        blurred = np.empty_like(some)
        blur_into(blurred, (0, 0), blur._replace(source=some))
        yield first, blurred[0]


def displace_again(blur: UnitBlur, targets: UnitTargets, base: np.ndarray, target: np.ndarray) -> None:
    """Where target (N, T, H, W) is not finite: write `base` and what units read of the blurred source."""
    for image, result in enumerate(target):
        wrong = ~np.isfinite(result)
        if not wrong.any():
            continue
        np.copyto(result, base[:, None, None], where=wrong)
        work = float(wrong.sum()) * targets.parameters.weight.size
        for first, blurred in _blurred_channels(blur, image):
            arguments = (blurred, first, targets, wrong, result)
            parallel.run(displace_again_items, len(result), work, *arguments)


def correlate_again(
    blur: UnitBlur, grad_output: np.ndarray, targets: UnitTargets, sums: np.ndarray, results: list
) -> None:
    """Write the gradients of kinds as in `finish_unit_items` of the units whose sums are not finite."""
    with np.errstate(all="ignore"):
        if np.isfinite(sums.sum()):
            return
    wrong = ~np.isfinite(sums).all(axis=3)
    weight = targets.parameters.weight[targets.first : targets.first + len(sums)]
    for kind, result in results:
        totals = np.where(wrong, 0, np.nan)
        for image in range(len(grad_output)):
            for first, blurred in _blurred_channels(blur, image):
                arguments = (blurred, first, grad_output[image], targets, kind, totals)
                work = 8.0 * float(wrong.sum()) * blur.source[0, 0].size
                parallel.run(correlate_again_items, len(sums), work, *arguments)
        with np.errstate(all="ignore"):
            found = weight * totals if kind else totals
            part = result[targets.first : targets.first + len(sums), ..., 1 if kind in (2, 4) else 0]
            np.copyto(part, found, where=wrong, casting="same_kind")


def product_again(both: Sequence[UnitBlur], grad: np.ndarray, first: tuple[int, int]) -> float:
    """Sum of the gradient times both blurred images together, from the first (image, channel) on."""
    image, channel = first
    part = both[0].source[image : image + len(grad), channel : channel + grad.shape[1]]
    part, total = np.ascontiguousarray(part), np.zeros(grad.shape)
    for blur in both:
        blurred = np.empty_like(part)
        blur_into(blurred, (0, 0), blur._replace(source=part))
        total += blurred
    with np.errstate(all="ignore"):
        return float((total * grad).sum())
