"""Sharpen a coarse depth map with a photograph: joint upsampling by decoupled dynamic filters (DDF-Up).

A depth sensor sees few pixels, a camera beside it many. Interpolating the depth map blurs the outlines of
things, although the photograph shows where they are. Here a small network learns to look there: it doubles
the resolution two or three times, each time by filters that it makes anew for every pixel, guided by the
photograph.

The scene is one of the Middlebury stereo data. The network learns on the left two thirds and is judged on the
right third, which is cut off before anything else is done: neither a filter nor an average reaches across.

    python examples/joint_upsampling.py             # 1/4 and 1/8 of the resolution; see also --help

Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021; the data: Scharstein et al., "High-resolution
stereo datasets with subpixel-accurate ground truth", GCPR 2014.
"""

import argparse
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from _joint_picture import draw
from _motorcycle import Scene, load, low_resolution, shrink, shrink_disparity
from _record import picture_in
from skimage.transform import resize
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import dynarray as dyn
from autodiff import Tape
from autodiff import functions as F
from autodiff.layers import Conv2d, DDFUp, Module, ReLU, Sequential
from autodiff.optim import Adam, cosine_schedule

# ---------------------------------------------------------------------------------------------------------
# What there is to beat


def interpolate(low: np.ndarray, shape: tuple[int, int], order: int) -> np.ndarray:
    """Nearest neighbour (order 0), bilinear (1) or bicubic (3) interpolation, without the photograph."""
    return resize(low, shape, order=order, mode="edge", anti_aliasing=False)


def joint_bilateral(
    low: np.ndarray, photo: np.ndarray, scale: int, space: float, colour: float, size: int = 5
) -> np.ndarray:
    """Joint bilateral upsampling (Kopf et al., 2007): average neighbours that are near and of similar colour.

    Each new pixel has a filter of its own, so this is `dyn.carafe` with masks that are designed, not learned.
    """
    h, w = low.shape
    reach = size // 2
    # A neighbour outside the image is infinitely unlike every colour: its weight becomes zero.
    coarse = np.pad(shrink(photo, scale), ((0, 0), (reach, reach), (reach, reach)), constant_values=np.inf)
    fine = photo.reshape(3, h, scale, w, scale)
    place = (np.arange(scale) + 0.5) / scale - 0.5  # of the new pixels, from the centre of the old one
    cost = np.empty((1, size * size, h * scale, w * scale), np.float32)
    for a, b in np.ndindex(size, size):
        neighbour = coarse[:, a : a + h, b : b + w][:, :, None, :, None]
        unlike = np.square(fine - neighbour).sum(0)
        far = (a - reach - place)[:, None, None] ** 2 + (b - reach - place) ** 2
        both = unlike / (2 * colour**2) + far / (2 * space**2)
        cost[0, a * size + b] = both.reshape(h * scale, w * scale)
    masks = F.softmax(-cost, axis=1)
    return dyn.carafe(low[None, None], masks, kernel_size=size, scale=scale)[0, 0]


def tuned_joint_bilateral(training: Scene, scale: int) -> tuple[float, float]:
    """The two widths with the smallest error on the part that the network trains on as well."""
    low = low_resolution(training, scale)

    def rmse(widths: tuple[float, float]) -> float:
        return errors(joint_bilateral(low, training.photo, scale, *widths), training)[0]

    return min(product((0.3, 0.4, 0.5, 0.7, 1.0), (0.04, 0.06, 0.08, 0.1, 0.15)), key=rmse)


def errors(prediction: np.ndarray, scene: Scene) -> tuple[float, float, float]:
    """Root mean square error, mean absolute error, and percentage of errors above one pixel of disparity."""
    size = np.abs(prediction - scene.disparity)[scene.valid].astype(np.float64)
    return float(np.sqrt(np.mean(size**2))), float(np.mean(size)), float(100 * np.mean(size > 1))


# ---------------------------------------------------------------------------------------------------------
# The network


def relief(disparity):
    """Disparity minus its mean over 5 x 5 pixels: an edge is the same edge wherever it lies in depth."""
    box = np.full((1, 1, 5, 5), 1 / 25, np.float32)
    inside = F.conv2d(np.ones(disparity.shape, np.float32), box, padding=2)
    return disparity - F.conv2d(disparity, box, padding=2) / inside


class Doubling(Module):
    """Disparity (N, 1, H, W) and photograph (N, 3, 2H, 2W) to disparity (N, 1, 2H, 2W)."""

    def __init__(self, guide: int, channels: int, rng: np.random.Generator) -> None:
        # Four photograph pixels fall on each disparity pixel. Stacked as channels they let the guide, which
        # lives on the coarse grid, tell the four new pixels apart.
        self.look = Sequential(
            Conv2d(4 * 3 + 1, guide, 3, rng=rng), ReLU(), Conv2d(guide, guide, 3, rng=rng), ReLU()
        )
        self.describe = Sequential(
            Conv2d(1, channels, 3, rng=rng), ReLU(), Conv2d(channels, channels, 3, rng=rng)
        )
        self.double = DDFUp(channels, 3, 2, joint_channels=guide, rng=rng)
        self.correct = Sequential(
            ReLU(), Conv2d(channels, channels, 3, rng=rng), ReLU(), Conv2d(channels, 1, 3, rng=rng)
        )
        # Begin close to plain interpolation.
        self.correct[-1].weight.data *= 0.1
        self.correct[-1].bias.data *= 0

    def forward(self, disparity, photo):
        """Bilinear interpolation plus what the dynamic filters find missing."""
        h, w = disparity.shape[2:]
        shape = relief(disparity) * 0.5
        guide = self.look(F.concatenate([F.pixel_unshuffle(photo, 2), shape], axis=1))
        features = self.double(self.describe(shape), guide)
        return F.resize(disparity, (2 * h, 2 * w)) + self.correct(features)


class Upsampler(Module):
    """One `Doubling` after the other."""

    def __init__(self, scale: int, rng: np.random.Generator) -> None:
        doublings = scale.bit_length() - 1
        # Coarse steps are cheap: a quarter of the pixels of the next. They can afford more channels.
        widths = [(64, 32)] * (doublings - 1) + [(32, 16)]
        self.doublings = [Doubling(*width, rng) for width in widths]

    def forward(self, low, photo):
        """The disparity after each doubling; the last has the size of the photograph."""
        outputs = []
        for step, doubling in enumerate(self.doublings, start=1):
            factor = 2 ** (len(self.doublings) - step)
            low = doubling(low, shrink(photo, factor))
            outputs.append(low)
        return outputs

    def upsample(self, low: np.ndarray, photo: np.ndarray) -> np.ndarray:
        """The disparity (H, W) at full resolution: the mean over four of the views that training draws."""
        disparity = np.stack([low, -low, low[:, ::-1], -low[:, ::-1]])[:, None]
        photos = np.stack([photo, photo, photo[:, :, ::-1], photo[:, :, ::-1]])
        plain, exchanged, mirrored, both = F.stop_gradient(self(disparity, photos)[-1])[:, 0]
        return (plain - exchanged + mirrored[:, ::-1] - both[:, ::-1]) / 4


# ---------------------------------------------------------------------------------------------------------
# Training


def random_view(scene: Scene, size: int, rng: np.random.Generator) -> Scene:
    """A square of the scene, perhaps mirrored and turned, perhaps near and far exchanged, in another light.

    There is one scene to learn from: what may change without changing the task has to change.
    """
    top, left = (rng.integers(0, side - size + 1) for side in scene.valid.shape)
    photo, disparity, valid = scene.cut(slice(top, top + size), slice(left, left + size))
    mirror = (slice(None, None, rng.choice((-1, 1))), slice(None, None, rng.choice((-1, 1))))
    photo, disparity, valid = photo[:, *mirror], disparity[mirror], valid[mirror]
    if rng.random() < 0.5:
        photo, disparity, valid = photo.swapaxes(1, 2), disparity.T, valid.T
    if rng.random() < 0.5:
        disparity = -disparity
    gain, shift = rng.normal(1, 0.1, (3, 1, 1)), rng.normal(0, 0.05, (3, 1, 1))
    return Scene((photo * gain + shift).astype(np.float32), disparity, valid)


def loss_of(outputs, disparity: np.ndarray, valid: np.ndarray):
    """Mean of sqrt(error**2 + 1/4) over known pixels: at the end and, with half the weight, on the way."""
    total = 0
    for doubling, output in enumerate(reversed(outputs)):
        truth, known = shrink_disparity(disparity, valid, 2**doubling)
        error = F.sqrt(F.square(output - truth) + 0.25)
        total += F.sum(error * known) * ((0.5 if doubling else 1) / known.sum())
    return total


def train(scene: Scene, scale: int, options: argparse.Namespace, stop: threading.Event) -> Upsampler:
    """An upsampler for one scale."""
    rng = np.random.default_rng([options.seed, scale])
    network = Upsampler(scale, rng)
    optimizer = Adam(network.parameters())
    schedule = cosine_schedule(5e-3, options.steps, warmup=10)
    line = options.scale.index(scale)
    for step in tqdm(range(options.steps), f"1/{scale} resolution", position=line, unit="step"):
        if stop.is_set():
            break
        views = [random_view(scene, options.size, rng) for _ in range(options.batch)]
        low = np.stack([low_resolution(view, scale) for view in views])[:, None]
        photo, disparity, valid = (np.stack(arrays) for arrays in zip(*views))
        with Tape() as tape:
            loss = loss_of(network(low, photo), disparity[:, None], valid[:, None])
        optimizer.lr = schedule(step)
        optimizer.step(tape.gradient(loss, optimizer.parameters))
    return network


def train_all(scene: Scene, options: argparse.Namespace) -> list[Upsampler]:
    """An upsampler for each scale, trained at the same time: each thread has a tape of its own."""
    stop = threading.Event()
    # One thread of BLAS each: results then do not depend on the number of cores.
    with threadpool_limits(1), ThreadPoolExecutor(len(options.scale)) as pool:
        futures = [pool.submit(train, scene, scale, options, stop) for scale in options.scale]
        try:
            return [future.result() for future in futures]
        except BaseException:
            stop.set()  # or the pool would train on to the end before Ctrl-C takes effect
            raise


# ---------------------------------------------------------------------------------------------------------
# The comparison


def compare(network: Upsampler, scale: int, training: Scene, held_out: Scene) -> dict[str, np.ndarray]:
    """What each method makes of the held-out part, by its name."""
    low, shape = low_resolution(held_out, scale), held_out.valid.shape
    widths = tuned_joint_bilateral(training, scale)
    return {
        "nearest": interpolate(low, shape, 0),
        "bilinear": interpolate(low, shape, 1),
        "bicubic": interpolate(low, shape, 3),
        "joint bilateral": joint_bilateral(low, held_out.photo, scale, *widths),
        "DDF-Up": network.upsample(low, held_out.photo),
    }


def print_table(scale: int, results: dict[str, np.ndarray], held_out: Scene) -> None:
    """Errors in pixels of disparity, over the pixels whose disparity is known."""
    print(f"\n1/{scale} resolution, held-out third, {held_out.valid.sum():,} pixels")
    print(f"{'method':<16} {'RMSE':>8} {'mean':>8} {'> 1 px':>8}")
    for method, result in results.items():
        rmse, mean, bad = errors(result, held_out)
        print(f"{method:<16} {rmse:>8.3f} {mean:>8.3f} {bad:>7.1f}%")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", type=int, nargs="+", choices=(2, 4, 8), default=[4, 8])
    parser.add_argument("--steps", type=int, default=320, help="training steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("joint_upsampling.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps on small crops: does it run?")
    options = parser.parse_args(argv)
    options.output = picture_in(options.output, "joint_upsampling.png", parser)
    options.scale = sorted(set(options.scale))
    options.batch, options.size = 4, 128
    if options.quick:
        options.steps, options.batch, options.size = 5, 1, 64
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Train, compare, print, draw."""
    start = time.perf_counter()
    options = parse(argv)
    training, held_out, photo = load()
    networks = train_all(training, options)
    comparisons = {}
    for scale, network in zip(options.scale, networks):
        comparisons[scale] = compare(network, scale, training, held_out)
        print_table(scale, comparisons[scale], held_out)
    scores = {scale: {m: errors(r, held_out)[0] for m, r in c.items()} for scale, c in comparisons.items()}
    draw(options.output, photo, held_out, comparisons, scores)
    print(f"\n{time.perf_counter() - start:.0f} s; the picture is in {options.output}")


if __name__ == "__main__":
    main()
