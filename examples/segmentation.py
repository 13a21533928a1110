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

What a seed gave is kept (``--keep``): a full run that was stopped goes on with the next.

Fu et al., "Dynamic Sampling Network for Semantic Segmentation", AAAI 2020; Dai et al., ICCV 2017, and Zhu et
al., CVPR 2019, for deformable convolution; Jia et al., NeurIPS 2016, for dynamic filters.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _heads import METHODS, STEP, Coarse, cost, network, sampled_points, widths
from _record import picture_in, print_table, record, shown
from _scenes import CLASSES, HEIGHTS, PHOTOGRAPHS, Scenes, make
from _segmentation_pictures import draw_points, draw_segmentations
from _study import Found, add_keeping, flatness, in_parts, keeping, run

from autodiff import Tape, files
from autodiff import functions as F
from autodiff.layers import DeformConv, Module
from autodiff.optim import AdamW, cosine_schedule

SIZES = ((0, 16), (16, 25), (25, 99))  # heights of digits, in pixels: above the first, up to the second
IGNORED = -1  # as a label
SHOWN = 4  # test scenes in the pictures
IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"


class Sizes(NamedTuple):
    """What numbers depend on beside method and seed."""

    size: int  # of scenes to train on; those to judge by are twice as large
    batch: int
    lr: float
    scenes: int  # to train on
    test: int  # scenes to judge by
    pretrain: int  # steps for the backbone
    steps: int  # for each head


class Result(NamedTuple):
    """What one training gave."""

    score: float  # mean IoU
    by_size: list[float]  # fraction of the pixels of digits that are right, by the SIZES of the digits
    reach: Any  # (4, 2) spread and shift of the points, on the background and by SIZES; None if regular
    losses: np.ndarray  # means over parts of the training


class Shown(NamedTuple):
    """What is drawn of it."""

    predictions: np.ndarray  # (SHOWN, H, W)
    points: Any  # (SHOWN, 9, 2, h, w), pixels of the image; None if regular


# ---------------------------------------------------------------------------------------------------------
# Training


def arrays(scenes: Scenes, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, H, W) from -1 to 1 and labels (N, H, W)."""
    return scenes.images[rows].astype(np.float32) / 127.5 - 1, scenes.labels[rows].astype(np.int64)


def train(made: Module, groups: list, scenes: Scenes, sizes: Sizes, steps: int, seed: int) -> np.ndarray:
    """So many steps of AdamW, with a cosine schedule, in an order of the scenes that the seed decides.

    Returns the mean losses of the parts of the training.
    """
    losses = []
    rng = np.random.default_rng([seed, 1])
    optimizer = AdamW(groups, weight_decay=0.01)
    schedule = cosine_schedule(sizes.lr, steps, warmup=min(20, steps // 2))
    epochs = -(-steps * sizes.batch // len(scenes.labels))
    order = np.concatenate([rng.permutation(len(scenes.labels)) for _ in range(epochs)])
    made.train()
    for step in range(steps):
        images, labels = arrays(scenes, order[step * sizes.batch :][: sizes.batch])
        # Three of four pixels are background; most are left out, or nothing else would be learned at first.
        labels[(labels == 0) & (rng.random(labels.shape) < 0.7)] = IGNORED
        with Tape() as tape:
            loss = F.cross_entropy(made(images), labels, ignore_index=IGNORED)
        losses.append(float(loss))
        optimizer.lr = schedule(step)
        optimizer.step(tape.gradient(loss, optimizer.parameters))
    made.eval()
    return in_parts(losses)


def pretrain(scenes: Scenes, sizes: Sizes, seed: int) -> Coarse:
    """Backbone and context that tell coarsely what is where."""
    coarse = Coarse(seed)
    train(coarse, coarse.parameters(), scenes, sizes, sizes.pretrain, seed)
    return coarse


def finish(
    method: str, channels: int, coarse: Coarse, scenes: Scenes, sizes: Sizes, seed: int
) -> tuple[Module, np.ndarray]:
    """A network with the head of this method, trained on from a pretrained backbone, and its losses."""
    made = network(method, channels, seed)
    for part in ("backbone", "context"):
        getattr(made, part).load_state_dict(getattr(coarse, part).state_dict())
    # What is trained already moves slowly.
    old = made.backbone.parameters() + made.context.parameters()
    known = set(old)
    new = [parameter for parameter in made.parameters() if parameter not in known]
    groups = [{"parameters": old, "lr_scale": 0.25}, *new]
    return made, train(made, groups, scenes, sizes, sizes.steps, seed)


def job(seed: int, sizes: Sizes, folder: Path | None) -> dict[str, Any]:
    """All methods with one seed, from one backbone: "method: what" of each `Result`, where there is any.

    What is drawn goes into the folder.
    """
    scenes, test = make("train", sizes.scenes, sizes.size, seed), test_scenes(sizes)
    coarse = pretrain(scenes, sizes, seed)
    found: dict[str, Any] = {}
    drawn: dict[str, np.ndarray] = {}
    for method, channels in widths(sizes.size).items():
        made, losses = finish(method, channels, coarse, scenes, sizes, seed)
        result, shown = judge(made, test, losses)
        found |= named(method, result)
        drawn |= named(method, shown) | {f"{method}: score": np.array(result.score)}
    if folder is not None:
        files.save(shown_file(folder, sizes), drawn)
    return found


def named(method: str, values: Result | Shown) -> dict[str, Any]:
    """What there is of them, by "method: what"."""
    return {f"{method}: {name}": value for name, value in values._asdict().items() if value is not None}


def test_scenes(sizes: Sizes) -> Scenes:
    """Of photographs and digits that no network has seen."""
    return make("test", sizes.test, 2 * sizes.size, 0)


def shown_file(folder: Path, sizes: Sizes) -> Path:
    """Where it is until it is drawn."""
    return folder / f"{'-'.join(map(str, sizes))}.safetensors"


# ---------------------------------------------------------------------------------------------------------
# Judging


def judge(made: Any, test: Scenes, losses: np.ndarray) -> tuple[Result, Shown]:
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
    result = Result(mean_iou(confusion), by_size, reach, losses)
    return result, Shown(found[:SHOWN].astype(np.int8), shown)


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


def read(found: Mapping[str, np.ndarray], method: str) -> Result:
    """What `job` gave of a method."""
    return Result(**{name: found.get(f"{method}: {name}") for name in Result._fields})  # type: ignore[arg-type]


def drawn_of(sizes: Sizes, seed: int, folder: Path) -> dict[str, np.ndarray]:
    """What is drawn; it is trained again where only its numbers were kept."""
    path = shown_file(folder, sizes)
    if not path.exists():
        job(seed, sizes, folder)
    return dict(files.load(path)[0])


def tables(results: Sequence[Found], channels: dict[str, int], size: int) -> dict[str, tuple]:
    """What is shown at the end, of the results of each seed: {title: (columns, rows)}."""
    of = {method: [read(found, method) for found in results] for method in METHODS}
    scores = {method: [100 * float(r.score) for r in of[method]] for method in METHODS}
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
        "--pretrain", type=int, help="steps for the backbone (default: 1500, with --full 4000)"
    )
    parser.add_argument("--steps", type=int, help="steps for each head (default: 400, with --full 500)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="a few steps: does it run?")
    how.add_argument("--full", action="store_true", help="five seeds; writes tables and pictures into docs")
    add_keeping(parser, "segmentation")
    options = parser.parse_args(argv)
    options.seeds = [options.seed + i for i in range(5)] if options.full else [options.seed]
    if options.full:
        options.output = IMAGES / "segmentation.png"
    options.output = picture_in(options.output, "segmentation.png", parser)
    options.size, options.batch, options.lr = 48, 8, 5e-3
    # In full: what an hour of a core allows, and for all alike; the table says how flat the curves are.
    sizes = (6000, 4000, 500) if options.full else (64, 24, 10) if options.quick else (2000, 1500, 400)
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
    sizes = Sizes(**{name: getattr(options, name) for name in Sizes._fields})
    with tempfile.TemporaryDirectory() as spare:
        folder = Path("segmentation.parts") if options.full else Path(spare)
        folder.mkdir(exist_ok=True)
        first = options.seeds[0]
        jobs = {("all", seed): (seed, sizes, folder if seed == first else None) for seed in options.seeds}
        results = run(job, jobs, workers=options.jobs, **keeping(options, "segmentation"))
        drawn = drawn_of(sizes, first, folder)
    found = tables(list(results.values()), widths(options.size), options.size)
    for title, (columns, rows) in found.items():
        print_table(title, columns, rows)
    scores = {method: 100 * float(drawn[f"{method}: score"]) for method in METHODS}
    predictions = {method: drawn[f"{method}: predictions"] for method in METHODS}
    points = {m: drawn[f"{m}: points"] for m in METHODS if f"{m}: points" in drawn}
    test = test_scenes(sizes)
    draw_segmentations(options.output, test, predictions, scores)
    second = options.output.with_stem(options.output.stem + "_points")
    draw_points(second, test, points)
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
