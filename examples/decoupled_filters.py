"""What do decoupled dynamic filters give? A convolution, a depthwise one, and DDF, in one small network.

A depthwise convolution has a kernel for each channel. A decoupled dynamic filter makes, from its input, one
for each pixel and one for each channel, and combines them:

    y[c, p] = sum_t D(spatial[t, p], channel[c, t]) * x[c, p + t],      D(a, b) = a * b, or a + b

It costs hardly more, and its authors find that it is better than either convolution. They also normalise the
filters that are made ("FilterNorm": over the taps of each, mean 0 and a fixed or learned deviation), and say
that training suffers without. Here the layer stands in the middle of each of three bottlenecks, and six
networks differ in nothing else.

The task has room above: which of eleven photographs is a piece of 24 x 24 grey pixels from? Brightness and
contrast are taken off, noise is added, pieces are mirrored and turned. They come from the left two thirds of
each photograph, without end; the networks are judged by pieces of the right third, which none has seen.

    python examples/decoupled_filters.py --quick     # does it run?
    python examples/decoupled_filters.py             # two seeds
    python examples/decoupled_filters.py --full      # five seeds; goes on where it was stopped

Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from _photographs import HELD_OUT, TRAINING, photograph
from _record import print_table, record, shown
from _study import Found, Key, add_options, finish_options, flatness, keeping, of, run, train

from autodiff import functions as F
from autodiff.layers import (
    DDF,
    BatchNorm2d,
    Bottleneck,
    Conv2d,
    Flatten,
    GlobalAvgPool,
    Linear,
    Module,
    ReLU,
    Sequential,
)
from autodiff.networks import summary

NAME = "decoupled_filters"
PHOTOGRAPHS = (*TRAINING, *HELD_OUT)
LAYERS = (
    "convolution",
    "depthwise",
    "DDF mul",
    "DDF add",
    "DDF mul, no FilterNorm",
    "DDF add, no FilterNorm",
)
SIDE, BATCH, RATE, JUDGED = 24, 16, 5e-3, 1100
NOISE = 0.1  # of a piece whose standard deviation is about one


class Unnormalised(Module):
    """Filters as they are made, in the place of `FilterNorm`."""

    def __init__(self, kernel_size: tuple[int, int]) -> None:
        self.kernel_size = kernel_size

    def forward(self, filters: Any) -> Any:
        """(N, F*kh*kw, ...) -> (N, F, kh, kw, ...)."""
        n, channels, *rest = filters.shape
        kh, kw = self.kernel_size
        return filters.reshape((n, channels // (kh * kw), kh, kw, *rest))


def middle(layer: str, channels: int, stride: int, rng: np.random.Generator) -> Module:
    """One of the LAYERS."""
    if not layer.startswith("DDF"):
        groups = channels if layer == "depthwise" else 1
        return Conv2d(channels, channels, 3, stride=stride, groups=groups, bias=False, rng=rng)
    made = DDF(channels, 3, stride=stride, combine=layer[4:7], rng=rng)
    if layer.endswith("no FilterNorm"):
        made.spatial_norm = made.channel_norm = Unnormalised((3, 3))
    return made


def network(layer: str, seed: int) -> Sequential:
    """(N, 1, SIDE, SIDE) -> (N, number of photographs)."""
    rng = np.random.default_rng(seed)
    blocks, before = [], 16
    for channels, after, stride in ((16, 32, 2), (16, 48, 2), (24, 64, 1)):
        own = middle(layer, channels, stride, rng)
        blocks.append(Bottleneck(before, channels, after, stride=stride, middle=own, rng=rng))
        before = after
    return Sequential(
        Conv2d(1, 16, 3, bias=False, rng=rng),
        BatchNorm2d(16),
        ReLU(),
        *blocks,
        GlobalAvgPool(),
        Flatten(),
        Linear(before, len(PHOTOGRAPHS), rng=rng),
    )


def parts(held_out: bool) -> list[np.ndarray]:
    """The left two thirds of each photograph, or the right third."""
    photos = [photograph(name) for name in PHOTOGRAPHS]
    return [photo[:, slice(-(photo.shape[1] // 3), None) if held_out else slice(2 * photo.shape[1] // 3)]
            for photo in photos]  # fmt: skip


def pieces(
    photos: Sequence[np.ndarray], count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pieces (count, 1, SIDE, SIDE), and which photograph each is from."""
    labels, found = rng.integers(0, len(photos), count), np.empty((count, 1, SIDE, SIDE), np.float32)
    for piece, label in zip(found, labels):
        photo = photos[label]
        top, left = (rng.integers(0, length - SIDE + 1) for length in photo.shape)
        square = photo[top : top + SIDE, left : left + SIDE]
        square = np.rot90(square[:, :: rng.choice((-1, 1))], rng.integers(4))
        piece[0] = (square - square.mean()) / (square.std() + 0.01)
    return found + NOISE * rng.standard_normal(found.shape, np.float32), labels


def job(layer: str, seed: int, steps: int, judged: int) -> dict[str, Any]:
    """One training."""
    made, photos = network(layer, seed), parts(held_out=False)

    def loss(rng: np.random.Generator) -> Any:
        images, labels = pieces(photos, BATCH, rng)
        return F.cross_entropy(made(images), labels)

    losses = train(made, loss, steps, RATE, [seed, 1])
    images, labels = pieces(parts(held_out=True), judged, np.random.default_rng(0))
    found = np.concatenate([made(images[row : row + 100]).data for row in range(0, judged, 100)])
    return {"losses": losses, "accuracy": 100 * (found.argmax(1) == labels).mean()}


def table(results: Mapping[Key, Found]) -> tuple[list[str], list[list[str]]]:
    """What came out, and at what cost."""
    columns = ["middle of a block", "parameters", "multiply-adds", "accuracy, %", "ahead of depthwise"]
    columns += ["last loss", "loss still falling, %"]
    base, rows = [float(each["accuracy"]) for each in of(results, "depthwise")], []
    for layer in LAYERS:
        cost, found = summary(network(layer, 0), (1, 1, SIDE, SIDE)), of(results, layer)
        accuracy = [float(each["accuracy"]) for each in found]
        ahead = [a - b for a, b in zip(accuracy, base, strict=True)]
        rows.append(
            [
                *(layer, f"{cost.parameters:,}", f"{cost.multiply_adds / 1e6:.2f} M", shown(accuracy, 1)),
                "" if layer == "depthwise" else shown(ahead, 1),
                *(shown([float(each["losses"][-1]) for each in found]), flatness(found)),
            ]
        )
    return columns, rows


def main(argv: Sequence[str] | None = None) -> None:
    """Train, or go on, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser, NAME, steps=1500)
    options = finish_options(parser.parse_args(argv))
    judged = 110 if options.quick else JUDGED
    jobs = {
        (layer, seed): (layer, seed, options.steps, judged)
        for seed in range(options.seeds)
        for layer in LAYERS
    }
    settings = {"steps": options.steps, "batch": BATCH, "rate": RATE, "judged": judged}
    kept = keeping(options, NAME)
    results = run(job, jobs, settings=settings, workers=options.workers, **kept)
    title = "Which of eleven photographs is a piece from: pieces of parts that were not trained on"
    print_table(title, *table(results))
    if options.full:
        print(f"written: {record(NAME, {title: table(results)}, seeds=options.seeds, **settings)}")


if __name__ == "__main__":
    main()
