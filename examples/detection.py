"""Detection by regions: R-FCN with and without dynamic sampling, and feature pyramids by three upsamplers.

Scenes are photographs with digits and shapes on them, 8 classes, each in a box that is exactly known. A
region proposal network (RPN) says where something may be; it is trained first and then fixed, as in the
paper. R-FCN makes maps of scores, for each class one for each of k x k places in a region, and of a
region every bin (i, j) reads its own map:

    score[c] = mean over i, j of (mean over the bin (i, j) of the map (c, i, j)),      `dyn.ps_roi_pool`

so that moving a region by a part of an object changes the score: convolutions alone do not know of
places. The question of the paper, asked again at small scale: does it help if dynamic sampling looks at
the features first,

    features beside relu(conv1x1(mean over S x S regions of what the kernel of the position sees there))

and do the number of regions and the attention to each of them matter? The same detector then reads from a
feature pyramid, in which coarse maps are brought to the size of finer ones by repeating pixels, by
CARAFE, or by DDF-Up. All detectors of a seed begin with the same backbone, and get the same proposals and
the same scenes in the same order. None sees a scene twice; those that are judged have photographs and
digits of their own.

    python examples/detection.py            # one seed, all detectors
    python examples/detection.py --quick    # two detectors
    python examples/detection.py --full     # five seeds; goes on after it was stopped

Dai et al., "R-FCN", NeurIPS 2016; Wu et al., "Dynamic Filtering with Large Sampling Field for ConvNets",
ECCV 2018; Lin et al., "Feature Pyramid Networks", CVPR 2017; Wang et al., "CARAFE", ICCV 2019; Zhou et
al., "Decoupled Dynamic Filter Networks", CVPR 2021.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from _detection_picture import draw
from _detection_scenes import held_out
from _detection_training import Plan, Variant, detect, train_all, train_detector
from _record import picture_in, print_table, record, shown
from _study import Found, Key, add_keeping, keeping

import dynarray as dyn

NAME = "detection"
QUICK_COMMAND = "python examples/detection.py --quick --record"
STEPS, QUICK_STEPS = 3000, 600
PLAIN, SAMPLED, NEAREST = "R-FCN", "S = 3", "nearest"
SAMPLING = (
    Variant(PLAIN),
    Variant("S = 1 (DFN)", {"samples": 1}),
    Variant(SAMPLED, {"samples": 3}),
    Variant("S = 5", {"samples": 5}),
    Variant("S = 3, no attention", {"samples": 3, "attention": False}),
    Variant("S = 3, maximum", {"samples": 3, "attention": False, "fuse": "max"}),
)
PYRAMIDS = (
    Variant(NEAREST, pyramid="nearest"),
    Variant("CARAFE", pyramid="carafe"),
    Variant("DDF-Up", pyramid="ddf"),
)
SHOWN = 8  # scenes in the picture
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "detection.png"
Outcomes = Mapping[Key, Found]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def percent(values: Sequence[float]) -> str:
    """Mean and standard deviation, or the one value there is, in percent."""
    return shown([100 * value for value in values], 1)


def detectors(found: Outcomes, variants: Sequence[Variant], seeds: Sequence[int]) -> Table:
    """A row for each; differences are to the first of them, seed by seed."""
    precisions = {"AP at 0.5": "ap_50", "AP at 0.75": "ap_75"}
    columns = ["detector", "parameters"]
    columns += [title for name in precisions for title in (f"{name}, %", f"{name}, difference")]
    rows = []
    for variant in variants:
        own = [found[variant.name, seed] for seed in seeds]
        first = [found[variants[0].name, seed] for seed in seeds]
        cells = [variant.name, f"{own[0]['parameters'] / 1e3:.0f} k"]
        for key in precisions.values():
            changes = [a[key] - b[key] for a, b in zip(own, first, strict=True)]
            cells += [
                percent([each[key] for each in own]),
                percent(changes) if variant is not variants[0] else "",
            ]
        rows.append(cells)
    return columns, rows


def proposals(found: Outcomes, seeds: Sequence[int]) -> Table:
    """What the detectors had to choose from."""
    own = [found["proposals", seed] for seed in seeds]
    row = [f"{own[0]['parameters'] / 1e3:.0f} k", percent([each["recall"] for each in own])]
    return ["parameters", "objects that a proposal overlaps by 0.5, %"], [row]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="of each detector (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="of a detector; of proposals a third as many")
    parser.add_argument(
        "--tests", type=int, default=200, help="scenes that are judged (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("detection.png"), help="the picture")
    where = "where networks are kept, and what they are trained on (with --full: outputs/detection)"
    parser.add_argument("--work", type=Path, help=where)
    parser.add_argument("--workers", type=int, help="trainings at a time (default: one a core)")
    parser.add_argument("--record", action="store_true", help="with --quick: write its tables for the docs")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="two detectors, a few minutes, one seed")
    mode.add_argument("--full", action="store_true", help="five seeds; write tables and picture into docs")
    add_keeping(parser, NAME)
    options = parser.parse_args(argv)
    options.steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    options.workers = options.workers or dyn.get_num_threads()
    if options.full:
        options.seeds, options.output = 5, PICTURE
        options.work = options.work or Path("outputs", "detection")
    options.output = picture_in(options.output, "detection.png", parser)
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Train all, print, draw."""
    start = time.perf_counter()
    options = parse(argv)
    plan = Plan(max(1, options.steps // 3), options.steps, options.tests)
    seeds = range(options.seeds)
    sampling, pyramids = (SAMPLING[:3:2], ()) if options.quick else (SAMPLING, PYRAMIDS)
    with tempfile.TemporaryDirectory() as spare:
        # Trainings of another length are others, and not gone on from.
        folder = (options.work or Path(spare)) / f"{plan.proposals}+{plan.steps}"
        folder.mkdir(parents=True, exist_ok=True)
        kept = keeping(options, NAME)
        found = train_all([*sampling, *pyramids], seeds, plan, folder, workers=options.workers, **kept)
        scenes, drawn = held_out(plan.tests)[:SHOWN], {}
        for variant in (SAMPLING[0], SAMPLING[2], *pyramids[-1:]):
            network, rpn = train_detector(variant, 0, plan, folder)  # which reads what was trained
            drawn[variant.name] = [detect(network, rpn, scene["images"]) for scene in scenes]
    draw(options.output, scenes, drawn)
    tables = {
        "Proposals": proposals(found, seeds),
        "R-FCN with dynamic sampling between features and heads": detectors(found, sampling, seeds),
    }
    if pyramids:
        tables["R-FCN on a feature pyramid"] = detectors(found, pyramids, seeds)
    for title, (columns, rows) in tables.items():
        print_table(title, columns, rows)
    if options.quick:
        print("\nThis was quick: one seed, and too short to say which is better.")
    seconds = {"wall": time.perf_counter() - start, "processor": sum(os.times()[:4])}
    sizes = {"steps": plan.steps, "steps_of_proposals": plan.proposals, "held_out": plan.tests}
    if options.full:
        record(NAME, tables, seeds=options.seeds, **sizes)
    elif options.quick and options.record:
        row = [f"{value:.0f}" for value in seconds.values()]
        tables["Time, s"] = ["from begin to end", "of all cores together"], [row]
        record(f"{NAME}_quick", tables, command=QUICK_COMMAND, seeds=options.seeds, **sizes)
    times = "{wall:.0f} s, {processor:.0f} s of a core".format(**seconds)
    print(f"\n{times}; the picture is in {options.output}")


if __name__ == "__main__":
    main()
