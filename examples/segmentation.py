"""Where to look: segmentation of scenes by sampling at points that are regular, predicted, or guided.

A convolution looks at the same nine neighbours everywhere, whether it stands on a small digit or a large one.
A deformable convolution moves the nine points by offsets that it predicts from the very features that it
reads (v1), and weighs them too (v2). Context guided dynamic sampling (CGDS) predicts the offsets from coarse,
high-level features instead: what knows what is there says where to look. The paper claims that this is
better. Here the question is asked again, at small scale, on scenes whose every pixel has an exact label.

What is sampled is, for output position p and tap t with its place r_t on the regular grid,

    S[o, p] = sum_c sum_t weight[o, c, t] * M[c](p + r_t + offset[t, p]),
    M[c](z) = sum_q k(z_y - q_y) k(z_x - q_x) M[c, q],        k(d) = max(0, 1 - |d|)

Everything in it can be learned, for bilinear interpolation is differentiable by the point z:

    dM[c](z)/dz_y = sum_q k'(z_y - q_y) k(z_x - q_x) M[c, q]

is the difference of the rows below and above, so the gradient by an offset asks: would the loss have been
smaller a little further down? `dyn.deform_conv2d` and its backward pass compute both.

Eight networks differ only in how S is made, or the guide, see `_heads.py`; all concatenate M, S and the
guide. What the paper compares CGDS with is among them: a filter for each image ("image filter", the paper's
DF), v2 on the guide, and a guide that went through non-local attention; the filter for each pixel is ours.
Each may cost as many multiply-adds as the others. For each seed, backbone and context are trained once and
all eight go on from there, with the same scenes in the same order.

    python examples/segmentation.py             # one seed
    python examples/segmentation.py --quick     # does it run?
    python examples/segmentation.py --full      # five seeds: the table and the pictures of the documentation

What was trained is kept (``--keep``): a full run that was stopped goes on where it was.

Fu et al., "Dynamic Sampling Network for Semantic Segmentation", AAAI 2020; Dai et al., ICCV 2017, and Zhu et
al., CVPR 2019, for deformable convolution; Jia et al., NeurIPS 2016, for dynamic filters.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _heads import METHODS, STEP, Coarse, cost, network, sampled_points, widths
from _record import picture_in, print_table, record, shown
from _scenes import CLASSES, HEIGHTS, PHOTOGRAPHS, Scenes, make
from _segmentation_pictures import draw_points, draw_segmentations
from _study import flatness, in_parts, run

from autodiff import Tape
from autodiff import functions as F
from autodiff.layers import DeformConv, Module
from autodiff.optim import AdamW, cosine_schedule

SIZES = ((0, 16), (16, 25), (25, 99))  # heights of digits, in pixels: above the first, up to the second
IGNORED = -1  # as a label
SIZED = ("size", "batch", "lr", "scenes", "test", "pretrain", "steps")  # options that numbers depend on
SHOWN = 4  # test scenes in the pictures
IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"


class Result(NamedTuple):
    """What one training gave."""

    method: str
    seed: int
    confusion: np.ndarray  # (CLASSES, CLASSES): pixels by their class and the class they were given
    by_size: list[float]  # fraction of the pixels of digits that are right, by the SIZES of the digits
    reach: Any  # (4, 2) spread and shift of the points, on the background and by SIZES; None if regular
    predictions: np.ndarray  # (SHOWN, H, W)
    points: Any  # (SHOWN, 9, 2, h, w), pixels of the image; None if regular
    losses: np.ndarray  # means over parts of the training


# ---------------------------------------------------------------------------------------------------------
# Training


def arrays(scenes: Scenes, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, H, W) from -1 to 1 and labels (N, H, W)."""
    return scenes.images[rows].astype(np.float32) / 127.5 - 1, scenes.labels[rows].astype(np.int64)


def train(
    made: Module, groups: list, scenes: Scenes, options: argparse.Namespace, steps: int, seed: int
) -> np.ndarray:
    """So many steps of AdamW, with a cosine schedule, in an order of the scenes that the seed decides.

    Returns the mean losses of the parts of the training.
    """
    losses = []
    rng = np.random.default_rng([seed, 1])
    optimizer = AdamW(groups, weight_decay=0.01)
    schedule = cosine_schedule(options.lr, steps, warmup=min(20, steps // 2))
    epochs = -(-steps * options.batch // len(scenes.labels))
    order = np.concatenate([rng.permutation(len(scenes.labels)) for _ in range(epochs)])
    made.train()
    for step in range(steps):
        images, labels = arrays(scenes, order[step * options.batch :][: options.batch])
        # Three of four pixels are background; most are left out, or nothing else would be learned at first.
        labels[(labels == 0) & (rng.random(labels.shape) < 0.7)] = IGNORED
        with Tape() as tape:
            loss = F.cross_entropy(made(images), labels, ignore_index=IGNORED)
        losses.append(float(loss))
        optimizer.lr = schedule(step)
        optimizer.step(tape.gradient(loss, optimizer.parameters))
    made.eval()
    return in_parts(losses)


def pretrain(scenes: Scenes, options: argparse.Namespace, seed: int) -> dict[str, np.ndarray]:
    """Backbone and context that tell coarsely what is where, as a state dict."""
    coarse = Coarse(seed)
    train(coarse, coarse.parameters(), scenes, options, options.pretrain, seed)
    return coarse.state_dict()


def finish(
    method: str,
    channels: int,
    state: dict,
    scenes: Scenes,
    test: Scenes,
    options: argparse.Namespace,
    seed: int,
) -> dict[str, Any]:
    """A network with the head of this method, from a pretrained backbone to its result."""
    made = network(method, channels, seed)
    coarse = Coarse(seed)
    coarse.load_state_dict(state)
    for part in ("backbone", "context"):
        getattr(made, part).load_state_dict(getattr(coarse, part).state_dict())
    # What is trained already moves slowly.
    old = made.backbone.parameters() + made.context.parameters()
    known = set(old)
    new = [parameter for parameter in made.parameters() if parameter not in known]
    groups = [{"parameters": old, "lr_scale": 0.25}, *new]
    losses = train(made, groups, scenes, options, options.steps, seed)
    found = judge(made, method, test, seed, losses)._asdict()
    return {name: found[name] for name in Result._fields[2:] if found[name] is not None}


# ---------------------------------------------------------------------------------------------------------
# Judging


def judge(made: Any, method: str, test: Scenes, seed: int, losses: np.ndarray) -> Result:
    """How well a network does on scenes of photographs and digits it has never seen."""
    predictions, points = [], []
    for row in range(len(test.labels)):
        images, _ = arrays(test, slice(row, row + 1))
        predictions.append(F.stop_gradient(made(images)).argmax(1)[0])
        points.append(sampled_points(made, images))
    found = np.stack(predictions)
    confusion = np.zeros((CLASSES, CLASSES), np.int64)
    np.add.at(confusion, (test.labels.astype(int), found), 1)
    right = found == test.labels
    by_size = [float(right[within(test.heights, size)].mean()) for size in SIZES]
    reach = shown = None
    if isinstance(made.head.sample, DeformConv):
        places = np.concatenate(points)
        reach, shown = reaches(places, test.heights[:, ::STEP, ::STEP]), places[:SHOWN].astype(np.float32)
    return Result(method, seed, confusion, by_size, reach, found[:SHOWN].astype(np.int8), shown, losses)


def within(heights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where a digit of such a height shows."""
    return (heights > size[0]) & (heights <= size[1])


def reaches(places: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """How far the points of a position lie from their centre, and the centre from the position: (4, 2).

    Root mean squares, in pixels of the image, over the background and over digits of the SIZES.
    """
    centre = places.mean(1)
    apart = np.square(places - centre[:, None]).sum(2).mean(1)
    here = STEP * np.mgrid[: places.shape[3], : places.shape[4]]
    moved = np.square(centre - here).sum(1)
    parts = [heights == 0, *(within(heights, size) for size in SIZES)]
    return np.array([[np.sqrt(values[part].mean()) for values in (apart, moved)] for part in parts])


def mean_iou(confusion: np.ndarray) -> float:
    """Intersection over union, the mean over classes, of those that occur in labels or predictions."""
    both = np.diag(confusion)
    either = confusion.sum(0) + confusion.sum(1) - both
    return float(np.mean(both[either > 0] / either[either > 0]))


# ---------------------------------------------------------------------------------------------------------
# All of it


def of_result(key: tuple[str, int], found: dict[str, np.ndarray]) -> Result:
    """What `finish` gave, as it was before it was kept."""
    return Result(*key, **{name: found.get(name) for name in Result._fields[2:]})


def run_all(options: argparse.Namespace) -> tuple[list[Result], Scenes, dict[str, int]]:
    """Every method with every seed; the test scenes; the channels of each method."""
    test = make("test", options.test, 2 * options.size, 0)
    channels = widths(options.size)
    scenes = {seed: make("train", options.scenes, options.size, seed) for seed in options.seeds}
    sizes = {name: getattr(options, name) for name in SIZED}
    shared: dict[str, Any] = {"folder": options.keep, "settings": sizes, "workers": options.jobs}
    begun = {("backbone", seed): (drawn, options, seed) for seed, drawn in scenes.items()}
    states = {seed: state for (_, seed), state in run(pretrain, begun, **shared).items()}
    ended = {
        (method, seed): (method, channels[method], states[seed], scenes[seed], test, options, seed)
        for seed in options.seeds
        for method in METHODS
    }
    results = run(finish, ended, **shared)
    return [of_result(key, found) for key, found in results.items()], test, channels


def tables(results: list[Result], channels: dict[str, int], size: int) -> dict[str, tuple]:
    """What is shown at the end: {title: (columns, rows)}."""
    of = {method: [r for r in results if r.method == method] for method in METHODS}
    scores = {method: [100 * mean_iou(r.confusion) for r in of[method]] for method in METHODS}
    rows, far = [], []
    for method in METHODS:
        parameters, multiply_adds = cost(network(method, channels[method], 0), size)
        ahead = [a - b for a, b in zip(scores[method], scores["plain"])]
        rows.append(
            [method, str(channels[method]), f"{parameters:,}", f"{multiply_adds / 1e6:.2f} M"]
            + [shown(scores[method], 1), "" if method == "plain" else shown(ahead, 1)]
            + [shown([100 * r.by_size[i] for r in of[method]], 1) for i in range(len(SIZES))]
            + [flatness([{"losses": r.losses} for r in of[method]])]
        )
        if of[method][0].reach is not None:
            spreads, shifts = ([r.reach[:, k] for r in of[method]] for k in range(2))
            cells = zip(np.transpose(spreads), np.transpose(shifts))
            far.append([method, *(f"{shown(list(a), 2)}, {shown(list(b), 2)}" for a, b in cells)])
    names = [f"{max(low, HEIGHTS[0])} to {min(high, HEIGHTS[1])} px" for low, high in SIZES]
    columns = ["S is made by", "channels", "parameters", "multiply-adds", "mean IoU, %", "ahead of plain"]
    return {
        "Mean IoU, and the percentage of pixels that are right on digits of some heights": (
            [*columns, *names, "loss still falling, %"],
            rows,
        ),
        "How far the nine points lie from their centre, and the centre from the position, in pixels of the "
        "image": (["points", "background", *names], [["regular grid", *["2.31, 0"] * 4], *far]),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of scenes and weights (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("segmentation.png"), help="the first picture")
    parser.add_argument("--scenes", type=int, help="to train on (default: 2000, with --full 6000)")
    parser.add_argument(
        "--pretrain", type=int, help="steps for the backbone (default: 1500, with --full 6000)"
    )
    parser.add_argument("--steps", type=int, help="steps for each head (default: 400, with --full 3000)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="a few steps: does it run?")
    how.add_argument("--full", action="store_true", help="five seeds; writes tables and pictures into docs")
    parser.add_argument("--keep", type=Path, help="folder of what was trained (full: segmentation.parts)")
    options = parser.parse_args(argv)
    if options.full and options.keep is None:
        options.keep = Path("segmentation.parts")
    options.seeds = [options.seed + i for i in range(5)] if options.full else [options.seed]
    if options.full:
        options.output = IMAGES / "segmentation.png"
    options.output = picture_in(options.output, "segmentation.png", parser)
    options.size, options.batch, options.lr = 48, 8, 5e-3
    # In full: to where the curves are flat, and for all alike.
    sizes = (6000, 6000, 3000) if options.full else (64, 24, 10) if options.quick else (2000, 1500, 400)
    for name, size in zip(("scenes", "pretrain", "steps"), sizes):
        setattr(options, name, getattr(options, name) or size)
    options.test = 60
    if options.quick:
        options.test, options.jobs = 6, 1
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Train, judge, print, draw."""
    start = time.perf_counter()
    options = parse(argv)
    results, test, channels = run_all(options)
    found = tables(results, channels, options.size)
    for title, (columns, rows) in found.items():
        print_table(title, columns, rows)
    first = {result.method: result for result in results if result.seed == options.seeds[0]}
    scores = {method: 100 * mean_iou(result.confusion) for method, result in first.items()}
    draw_segmentations(options.output, test, {m: r.predictions for m, r in first.items()}, scores)
    second = options.output.with_stem(options.output.stem + "_points")
    draw_points(second, test, {m: r.points for m, r in first.items() if r.points is not None})
    if options.full:
        record(
            "segmentation",
            found,
            seeds=len(options.seeds),
            **{"scenes to train on": options.scenes, "scenes to judge by": options.test},
            **{"steps for the backbone": options.pretrain, "steps for each head": options.steps},
            **{"photographs to judge by": " and ".join(PHOTOGRAPHS["test"])},
        )
    print(f"\n{time.perf_counter() - start:.0f} s; the pictures are in {options.output} and {second}")


if __name__ == "__main__":
    main()
