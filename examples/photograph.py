"""Blur a photograph as a lens does, take the blur off again by gradient descent, and denoise by a guide.

A lens is sharp where it is focused, and blurs the rest, the farther the more: every pixel has a kernel of
its own. Here a photograph of bytes is blurred like that, and a gradient through the filter does two things:

- it finds the width of the blur, as a function of the distance from the focus, from a sharp and a blurred
  photograph: the loss is a function of the kernels, these of the width, and the tape goes all the way;
- it finds the sharp photograph from the blurred one: of all photographs the one that, blurred, comes close to
  it, and has little total variation. Next to it stands what one and the same kernel for all pixels gives.

The last part filters by other rules: a noisy photograph, and one of the same scene with a flash, which has
little noise and other colours. Joint bilateral and guided filtering take edges from the second to clean the
first.

    python examples/photograph.py             # half a minute; see also --help

The photographs come with scikit-image. Each of the denoising filters has the best of a few settings, by the
photograph without noise, which nobody has: what is compared is what they could do.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from _photograph_picture import draw_denoised, draw_restored
from _record import record
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from autodiff import Tape, Variable
from autodiff import functions as F
from autodiff.optim import Adam, cosine_schedule
from dynarray import images, kernels

PICTURES = Path(__file__).parents[1] / "docs" / "images"
SHARPEST, WIDEST = 0.4, 3.0  # standard deviations of the blur in pixels: in the focus, in the farthest corner
WIDTHS = (0.3, 0.6, 0.9, 1.3, 1.8, 2.4, 3.2)  # of the kernels that are mixed
SIZE = 19
SMOOTHNESS = 1e-3  # what total variation counts beside squared differences
NOISE = 30  # standard deviation, of 255 levels

Table = tuple[list[str], list[list[str]]]

# ---------------------------------------------------------------------------------------------------------
# A blur that varies


def distance(shape: tuple[int, int]) -> np.ndarray:
    """From the focus, a third of the way down and across: 1 in the farthest corner."""
    y, x = (np.arange(size) - size / 3 for size in shape)
    far = np.hypot(y[:, None], x)
    return (far / far.max()).astype(np.float32)


def width(far, sharpest, growth):
    """The standard deviation of the blur: it grows with the square of the distance."""
    return sharpest + growth * far**2


def blurred(photo, sigma):
    """The photograph behind the lens; arrays or Variables."""
    return images.filter(photo, *kernels.gaussian_mixture(sigma, WIDTHS, SIZE))


def find_width(sharp: np.ndarray, seen: np.ndarray, steps: int) -> tuple[float, float]:
    """The two numbers of `width`, from a sharp and a blurred photograph of bytes."""
    sharp, seen = sharp.astype(np.float32) / 255, seen.astype(np.float32) / 255
    far = distance(sharp.shape[:2])
    sharpest, growth = Variable(np.float32(1.0)), Variable(np.float32(0.5))
    optimizer = Adam([sharpest, growth])
    schedule = cosine_schedule(0.1, steps)
    for step in range(steps):
        with Tape() as tape:
            loss = F.mean(F.square(blurred(sharp, width(far, sharpest, growth)) - seen))
        optimizer.lr = schedule(step)
        optimizer.step(tape.gradient(loss, optimizer.parameters))
    return sharpest.item(), growth.item()


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Rounded and clipped."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def variation(photo):
    """Mean of the lengths of the steps between neighbours; 0.01 keeps it smooth where there are none."""
    down, right = photo[1:, :-1] - photo[:-1, :-1], photo[:-1, 1:] - photo[:-1, :-1]
    return F.mean(F.sqrt(down * down + right * right + 1e-4))


def restore(seen: np.ndarray, sigma: np.ndarray, steps: int) -> np.ndarray:
    """The photograph of bytes that gives `seen` under a blur of this width, by gradient descent."""
    target = seen.astype(np.float32) / 255
    filters = kernels.gaussian_mixture(sigma, WIDTHS, SIZE)
    photo = Variable(target.copy())
    optimizer, schedule = Adam([photo]), cosine_schedule(0.02, steps)
    for step in range(steps):
        with Tape() as tape:
            misfit = F.mean(F.square(images.filter(photo, *filters) - target))
            loss = misfit + SMOOTHNESS * variation(photo)
        optimizer.lr = schedule(step)
        optimizer.step(tape.gradient(loss, [photo]))
    return as_bytes(255 * photo.data)


def scores(photo: np.ndarray, true: np.ndarray, where: np.ndarray) -> str:
    """PSNR of the pixels of one region."""
    return f"{peak_signal_noise_ratio(true[where], photo[where]):.2f}"


def similarity(photo: np.ndarray, true: np.ndarray) -> float:
    """Structural similarity."""
    return structural_similarity(true, photo, channel_axis=-1)


def deblur(photo: np.ndarray, steps: int) -> tuple[dict[str, np.ndarray], dict[str, Table]]:
    """Blur, find the width, restore: photographs by name, and tables."""
    far = distance(photo.shape[:2])
    true = SHARPEST, WIDEST - SHARPEST
    seen = blurred(photo, width(far, *true))
    found = find_width(photo, seen, max(10, steps // 2))
    sigma = width(far, *found)
    typical = np.full_like(sigma, np.sqrt(np.mean(sigma**2)))
    results = {
        "blurred": seen,
        "one kernel": restore(seen, typical, steps),
        "each its own": restore(seen, sigma, steps),
    }
    thirds = np.quantile(far, (1 / 3, 2 / 3))
    regions = far <= thirds[0], (far > thirds[0]) & (far <= thirds[1]), far > thirds[1]
    rows = [
        [name, *(scores(result, photo, where) for where in regions), f"{similarity(result, photo):.3f}"]
        for name, result in results.items()
    ]
    columns = ["photograph", "PSNR near the focus", "farther", "farthest (dB)", "SSIM"]
    names = "in the focus", "growth"
    numbers = [[name, f"{a:.3f}", f"{b:.3f}"] for name, a, b in zip(names, true, found)]
    return {"sharp": photo, **results}, {
        "Width of the blur (pixels)": (["", "true", "found"], numbers),
        "The blur taken off": (columns, rows),
    }


# ---------------------------------------------------------------------------------------------------------
# A guide


def with_flash(photo: np.ndarray) -> np.ndarray:
    """The scene in the light of a flash: grey, brighter in the middle, contrasts as of another lamp."""
    grey = (photo @ np.array([0.5, 0.4, 0.1])) / 255
    light = 1.1 - 0.5 * distance(photo.shape[:2])
    noise = 2 * np.random.default_rng(1).normal(size=grey.shape)
    return as_bytes(255 * light * grey**0.8 + noise)


def candidates(noisy: np.ndarray, flash: np.ndarray) -> dict[str, list[Callable[[], np.ndarray]]]:
    """What each method does in a few settings."""
    return {
        "Gaussian": [lambda s=s: images.filter(noisy, kernels.gaussian(s)) for s in (0.8, 1.1, 1.5)],
        "bilateral": [
            lambda c=c: images.filter(noisy, kernels.bilateral(noisy, 2.0, c, 9)) for c in (60.0, 90.0, 130.0)
        ],
        "joint bilateral": [
            lambda c=c: images.filter(noisy, kernels.bilateral(flash, 2.0, c, 9)) for c in (8.0, 14.0, 24.0)
        ],
        "guided": [
            lambda e=e: images.filter(noisy, kernels.guided(flash, 3, e)) for e in (20.0, 60.0, 200.0)
        ],
    }


def denoise(photo: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, Table]]:
    """Noisy bytes, filtered by each method in its best setting."""
    rng = np.random.default_rng(0)
    noisy = as_bytes(photo + NOISE * rng.normal(size=photo.shape))
    flash = with_flash(photo)
    results = {"noisy": noisy, "flash": np.repeat(flash[..., None], 3, axis=2)}

    def quality(result: np.ndarray) -> float:
        return float(peak_signal_noise_ratio(photo, result))

    for method, tries in candidates(noisy, flash).items():
        results[method] = max((attempt() for attempt in tries), key=quality)
    rows = [
        [name, f"{quality(result):.2f}", f"{similarity(result, photo):.3f}"]
        for name, result in results.items()
        if name != "flash"
    ]
    return {**results, "true": photo}, {"Denoised by a guide": (["method", "PSNR (dB)", "SSIM"], rows)}


# ---------------------------------------------------------------------------------------------------------


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for the terminal."""
    wide = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]
    print(f"\n{title}")
    for line in [columns, *rows]:
        cells = [line[0].ljust(wide[0]), *(cell.rjust(w) for cell, w in zip(line[1:], wide[1:]))]
        print("  ".join(cells).rstrip())


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=120, help="of gradient descent (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder of the pictures")
    parser.add_argument("--quick", action="store_true", help="a few steps on small pieces: does it run?")
    parser.add_argument("--full", action="store_true", help="more steps, recorded for the documentation")
    options = parser.parse_args(argv)
    options.side = 96 if options.quick else 240
    if options.quick:
        options.steps = 12
    if options.full:
        options.steps, options.output = 400, PICTURES
    if not options.output.is_dir():
        parser.error(f"--output: there is no folder {options.output}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Blur, restore, denoise; print, draw."""
    start = time.perf_counter()
    options = parse(argv)
    cat = data.chelsea()[30 : 30 + options.side, 100 : 100 + options.side]
    restored, tables = deblur(cat, options.steps)
    cup = data.coffee()[80 : 80 + options.side, 200 : 200 + options.side]
    denoised, table = denoise(cup)
    tables |= table
    for title, content in tables.items():
        print_table(title, *content)
    sigma = width(distance(cat.shape[:2]), SHARPEST, WIDEST - SHARPEST)
    draw_restored(options.output / "photograph.png", restored, sigma)
    draw_denoised(options.output / "photograph_guided.png", denoised)
    if options.full:
        record("photograph", tables, steps=options.steps, side=options.side)
    print(f"\n{time.perf_counter() - start:.0f} s; pictures: photograph.png, photograph_guided.png")


if __name__ == "__main__":
    main()
