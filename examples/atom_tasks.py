"""Filter atoms against convolutions at equal parameters: twice the resolution, and counting a crowd.

`AtomConv` composes, for each pixel, the filters of a convolution of a few atoms, which a small network
chooses by what is there. Its authors find it better than a convolution with as many parameters, in
super-resolution and in the estimation of crowds among others. Here both are asked again, in small: the
network is that of denoising.py, three layers of 5 x 5 filters, and the networks of a task differ in these
layers alone.

- **Resolution.** Photographs are averaged over 2 x 2 pixels; the network gives four pixels for each, which
  are added to bilinear interpolation. It learns on patches of seven photographs and is judged on four others.
- **Crowds.** Figures are drawn on photographs, small ones far above and large ones below, and each adds a
  bump of sum one to a density, so that the sum of the density is their number, exactly. The network predicts
  the density; judged is how far its sum is from the number, on photographs that it has not seen.

    python examples/atom_tasks.py --quick     # does it run?
    python examples/atom_tasks.py             # two seeds
    python examples/atom_tasks.py --full      # five seeds; goes on where it was stopped

Wang et al., "Adaptive Convolutions with Per-pixel Dynamic Filter Atom", ICCV 2021.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from _crowds import crowds
from _motorcycle import shrink
from _photographs import HELD_OUT, TRAINING, photograph
from _record import print_table, record, shown
from _study import Found, Key, add_options, finish_options, flatness, keeping, of, run, train
from denoising import FEATURES, KERNEL, centred, nearest, trunk
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.transform import resize

from autodiff import functions as F
from autodiff.layers import AtomConv, Conv2d, Module, Sequential
from autodiff.networks import summary

NAME = "atom_tasks"
METHODS = "convolutions", "filter atoms"
RATE, SIDE = 5e-3, 40  # of the pieces that are trained on
BATCHES = {"resolution": 8, "crowds": 4}  # a piece of a crowd is four times as large for the network
CROWD_SIDE, DENSITY = 64, 100.0  # of the images, and what densities are multiplied by: they are small
EDGE = 4  # pixels at the edges of a photograph that are not judged


class Finer(Module):
    """(N, 1, H, W) -> (N, 1, 2H, 2W): bilinear interpolation plus what the network finds missing."""

    def __init__(self, layer: Callable[[], Module], rng: np.random.Generator) -> None:
        self.features = Sequential(*trunk(layer, FEATURES, rng))
        self.last = Conv2d(FEATURES, 4, 3, rng=rng)
        self.last.weight.data *= 0.02
        self.last.bias.data *= 0

    def forward(self, low: Any) -> Any:
        """Grey values from 0 to 1."""
        h, w = low.shape[2:]
        return F.resize(low, (2 * h, 2 * w)) + F.pixel_shuffle(self.last(self.features(centred(low))), 2)


class Counter(Module):
    """(N, 1, H, W) -> (N, 1, H, W): DENSITY times the density of figures."""

    def __init__(self, layer: Callable[[], Module], rng: np.random.Generator) -> None:
        self.features = Sequential(*trunk(layer, FEATURES, rng))
        self.last = Conv2d(FEATURES, 1, 3, rng=rng)

    def forward(self, image: Any) -> Any:
        """Grey values from 0 to 1."""
        return self.last(self.features(centred(image)))


NETWORKS: dict[str, type[Finer] | type[Counter]] = {"resolution": Finer, "crowds": Counter}


@cache
def maker(task: str, method: str) -> Callable[[np.random.Generator], Module]:
    """What makes one of the NETWORKS with convolutions, or with atoms and about as many parameters."""
    kind = NETWORKS[task]

    def ordinary(rng: np.random.Generator) -> Module:
        return kind(lambda: Conv2d(FEATURES, FEATURES, KERNEL, rng=rng), rng)

    def with_atoms(rng: np.random.Generator, hidden: int) -> Module:
        return kind(lambda: AtomConv(FEATURES, FEATURES, KERNEL, hidden_channels=hidden, rng=rng), rng)

    if method == "convolutions":
        return ordinary
    return nearest(with_atoms, ordinary(np.random.default_rng(0)).num_parameters)


def even(photo: np.ndarray) -> np.ndarray:
    """Without a last odd row or column."""
    h, w = (length // 2 * 2 for length in photo.shape)
    return photo[:h, :w]


def patches(photos: Sequence[np.ndarray], count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Squares (count, 1, side, side), perhaps mirrored and turned."""
    drawn = []
    for _ in range(count):
        photo = photos[rng.integers(len(photos))]
        top, left = (rng.integers(0, length - side + 1) for length in photo.shape)
        square = photo[top : top + side, left : left + side][:, :: rng.choice((-1, 1))]
        drawn.append(np.rot90(square, rng.integers(4)))
    return np.stack(drawn)[:, None]


def loss_of(task: str, made: Module, photos: Sequence[np.ndarray]) -> Callable[[np.random.Generator], Any]:
    """The mean squared error on a batch that is drawn."""

    def finer(rng: np.random.Generator) -> Any:
        sharp = patches(photos, BATCHES[task], SIDE, rng)
        return F.mean(F.square(made(shrink(sharp, 2)) - sharp)) * 1e3

    def counter(rng: np.random.Generator) -> Any:
        images, densities, _ = crowds(photos, BATCHES[task], SIDE, rng)
        return F.mean(F.square(made(images) - DENSITY * densities))

    return {"resolution": finer, "crowds": counter}[task]


def quality(sharp: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """PSNR and similarity, without the edges."""
    inner = (slice(EDGE, -EDGE),) * 2
    pair = sharp[inner], np.clip(found, 0, 1)[inner].astype(np.float32)
    return {
        "PSNR": peak_signal_noise_ratio(*pair, data_range=1),
        "SSIM": structural_similarity(*pair, data_range=1),
    }


def judge(task: str, predict: Callable[[np.ndarray], np.ndarray], judged: int) -> dict[str, float]:
    """Means over the photographs that nothing was trained on, or over `judged` crowds on them."""
    photos = [even(photograph(name)) for name in HELD_OUT]
    if task == "resolution":
        each = [quality(photo, predict(shrink(photo, 2)[None, None])[0, 0]) for photo in photos[:judged]]
        return {name: float(np.mean([found[name] for found in each])) for name in each[0]}
    images, _, counts = crowds(photos, judged, CROWD_SIDE, np.random.default_rng(0))
    found = np.concatenate([predict(image[None]).sum((1, 2, 3)) / DENSITY for image in images])
    errors = found - counts
    return {"error": float(np.abs(errors).mean()), "RMSE": float(np.sqrt(np.square(errors).mean()))}


def job(task: str, method: str, seed: int, steps: int, judged: int) -> dict[str, Any]:
    """One training."""
    made = maker(task, method)(np.random.default_rng(seed))
    photos = [even(photograph(name)) for name in TRAINING]
    losses = train(made, loss_of(task, made, photos), steps, RATE, [seed, 1])
    return {"losses": losses, **judge(task, lambda x: F.stop_gradient(made(x)), judged)}


def baseline(task: str, judged: int) -> tuple[str, dict[str, float]]:
    """What does not learn: bicubic interpolation; the mean number."""
    if task == "resolution":

        def bicubic(low: np.ndarray) -> np.ndarray:
            h, w = low.shape[2:]
            return resize(low[0, 0], (2 * h, 2 * w), order=3, mode="edge", anti_aliasing=False)[None, None]

        return "bicubic", judge(task, bicubic, judged)
    photos = [even(photograph(name)) for name in TRAINING]
    mean = crowds(photos, 50, CROWD_SIDE, np.random.default_rng(1))[2].mean()
    return "always the mean", judge(task, lambda x: np.full((1, 1, 1, 1), DENSITY * mean), judged)


def table(task: str, results: Mapping[Key, Found], judged: int) -> tuple[list[str], list[list[str]]]:
    """What came out, and at what cost."""
    first, second = ("PSNR", "SSIM") if task == "resolution" else ("error", "RMSE")
    names = {"PSNR": "PSNR, dB", "SSIM": "SSIM", "error": "mean error, figures", "RMSE": "RMSE, figures"}
    columns = ["method", "parameters", "multiply-adds a pixel", names[first], "less convolutions"]
    columns += [names[second], "loss still falling, %"]
    name, alone = baseline(task, judged)
    rows = [[name, "", "", f"{alone[first]:.3f}", "", f"{alone[second]:.3f}", ""]]
    base = [float(each[first]) for each in of(results, f"{task}, convolutions")]
    for method in METHODS:
        found = of(results, f"{task}, {method}")
        cost = summary(maker(task, method)(np.random.default_rng(0)), (1, 1, 32, 32))
        values = [float(each[first]) for each in found]
        change = [a - b for a, b in zip(values, base, strict=True)]
        rows.append(
            [
                *(method, f"{cost.parameters:,}", f"{cost.multiply_adds // 32**2:,}", shown(values)),
                "" if method == "convolutions" else shown(change),
                *(shown([float(each[second]) for each in found]), flatness(found)),
            ]
        )
    return columns, rows


TITLES = {
    "resolution": "Twice the resolution: four photographs that were not trained on",
    "crowds": "Figures in a crowd, counted by the sum of the density, on photographs not trained on",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser, NAME, steps=1500)
    options = finish_options(parser.parse_args(argv))
    judged = 3 if options.quick else 200
    jobs = {
        (f"{task}, {method}", seed): (task, method, seed, options.steps, judged)
        for task in TITLES
        for seed in range(options.seeds)
        for method in METHODS
    }
    settings = {"steps": options.steps, "batches": list(BATCHES.values()), "rate": RATE, "judged": judged}
    kept = keeping(options, NAME)
    results = run(job, jobs, settings=settings, workers=options.workers, **kept)
    tables = {title: table(task, results, judged) for task, title in TITLES.items()}
    for title, found in tables.items():
        print_table(title, *found)
    if options.full:
        print(f"written: {record(NAME, tables, seeds=options.seeds, **settings)}")


if __name__ == "__main__":
    main()
