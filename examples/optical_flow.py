"""Learn optical flow, with and without a dynamic sampling convolution, and take the layer apart.

Optical flow says where each pixel p of one image is found in the next: at p + f[p]. Here a small FlowNetS
learns it from pairs that are made of photographs. A scene is a stack of layers, each a piece of a photograph
that moves by an affine map A of its own, p -> M p + t. The second image is painted with each layer's inverse
map, so that the flow is known exactly,

    f[p] = A_l p - p            of the front layer l at p,

and p is visible in the second image if the front layer at A_l p is l again. What is minimised, and reported
in pixels, is the end-point error: the mean of |f - f_true|.

The third convolution becomes a dynamic sampling convolution with S = 7 regions per axis, 2 positions apart,
and 24 outputs, followed by a 1 x 1 convolution: the paper's numbers, though it adds regions up, and says of
the layer only that it is "inserted". Every output position makes a kernel from the features around it and
applies it to 15 x 15 positions, 60 pixels of the image. Ablations leave out

- the residuals, 1/C in the kernel and 1 in the attention (the paper's Table 4: without them and without
  attention training fails to converge; with attention it loses 10 mAP);
- the attention, which weighs the regions and the taps: then all 49 regions share one box sum;
- the regions: S = 3, and S = 1, which is a Dynamic Filter Network (the paper's Table 2: S = 1 is worse).

How large the generated kernels are at first, and how the sum of 49 regions is scaled, is a choice. Here they
begin at a tenth of a convolution's weights, and regions are averaged. As divergence could hide behind so
gentle a start, the residual is also left out after a harsh one: full weights, and the plain sum.

A training counts as diverged if its loss became infinite or NaN, or was higher in the last fifth of its steps
than in the first. Budgets are equal in training pairs, and seeds are paired: seed k has the same batches for
every network. At the end each network looks at the Middlebury motorcycle, a real stereo pair, whose flow is
minus the disparity.

    python examples/optical_flow.py                 # one seed; see also --help
    python examples/optical_flow.py --full          # five seeds; goes on where it was stopped

Wu et al., "Dynamic Filtering with Large Sampling Field for ConvNets" (DSCNN), ECCV 2018; Dosovitskiy et al.,
"FlowNet", ICCV 2015; the stereo pair: Scharstein et al., GCPR 2014.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _flow_data import HELD_OUT, SIZE, TRAINING, Pairs, make_pairs, mirrored, motorcycle, photographs
from _flow_network import FlowNet, Variant, loss_of, predict
from _flow_picture import draw
from _record import picture_in, print_table, record, shown
from _study import Key, add_keeping, flatness, in_parts, keeping, run

import dynarray as dyn
from autodiff import Tape, files
from autodiff.networks import summary
from autodiff.optim import Adam, cosine_schedule

PAPER = {"samples": 7, "sample_stride": 2, "fuse": "mean"}
NO_RESIDUAL = {"kernel_residual": False, "attention_residual": False}
HARSH = {**PAPER, "fuse": "sum", "gain": 1.0}
PLAIN, SAMPLED = "FlowNetS", "DSCNN, S = 7"
VARIANTS = (
    Variant(PLAIN),
    Variant(SAMPLED, PAPER),
    Variant("S = 7, no residual", {**PAPER, **NO_RESIDUAL}),
    Variant("S = 7, no attention", {**PAPER, "attention": False}),
    Variant("S = 3", {**PAPER, "samples": 3}),
    Variant("S = 1 (DFN)", {**PAPER, "samples": 1}),
)
HARSH_VARIANTS = (
    Variant("harsh start", HARSH),
    Variant("harsh start, no residual", {**HARSH, **NO_RESIDUAL}),
)
QUESTIONS = (
    ("Does one dynamic sampling layer help?", SAMPLED, PLAIN),
    ("Is it worse without the residual?", "S = 7, no residual", SAMPLED),
    ("Is it worse without attention?", "S = 7, no attention", SAMPLED),
    ("Is S = 1 worse than S = 3?", "S = 1 (DFN)", "S = 3"),
    ("Is S = 3 worse than S = 7?", "S = 3", SAMPLED),
)
SHOWN = 3  # held-out pairs in the picture
DRAWN = PLAIN, SAMPLED, "S = 1 (DFN)"  # networks in the picture
NETWORKS = Path("optical_flow.parts")  # where they are until it is drawn
STEREO_FACTOR = 7  # 64 x 96 pixels, disparities of up to 8.6
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "optical_flow.png"


class Data(NamedTuple):
    """What is learned from, and what is judged on: made of other photographs, and real."""

    training: Pairs
    held_out: Pairs
    stereo: Pairs


class Job(NamedTuple):
    """One training."""

    variant: Variant
    seed: int
    steps: int
    batch: int
    rate: float
    pairs: int  # trained on
    tests: int


class Outcome(NamedTuple):
    """What came of it. Without a finite loss to the end, errors are NaN."""

    first: float  # loss
    highest: float  # loss
    losses: np.ndarray  # means of parts of the training, NaN after a loss that is not finite
    error: float  # end-point error on the held-out pairs
    visible_error: float  # of the pixels that the second image shows
    stereo_error: float
    seconds: float  # of one core

    @property
    def last(self) -> float:
        """Mean loss of the last fifth; NaN if one of them is."""
        return float(np.mean(self.losses[-2:]))

    @property
    def diverged(self) -> bool:
        """Whether the loss became infinite or NaN, or was higher in the last fifth than in the first."""
        return not self.last < np.mean(self.losses[:2])


# ---------------------------------------------------------------------------------------------------------
# One training


@cache
def data_of(pairs: int, tests: int) -> Data:
    """Made of photographs; alike in every process."""
    training = make_pairs(photographs(TRAINING), pairs, seed=0)
    held_out = make_pairs(photographs(HELD_OUT), tests, seed=1)
    return Data(training, held_out, motorcycle(STEREO_FACTOR))


def mean_error(flow: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """End-point error over the pixels `where`."""
    return float(np.hypot(*(flow - truth).swapaxes(0, 1)).astype(np.float64)[where].mean())


def train(job: Job) -> tuple[FlowNet, np.ndarray]:
    """A network, and the loss of each step."""
    training = data_of(job.pairs, job.tests).training
    network = FlowNet(job.variant, np.random.default_rng(job.seed))
    rng = np.random.default_rng([job.seed, 1])  # draws the batches: the same for all networks of a seed
    optimizer = Adam(network.parameters())
    schedule = cosine_schedule(job.rate, job.steps, warmup=min(20, job.steps))
    losses = np.full(job.steps, np.nan)
    for step in range(job.steps):
        chosen = rng.integers(0, len(training.images), job.batch)
        pairs = mirrored(Pairs(*(array[chosen] for array in training)), rng)
        with Tape() as tape:
            loss = loss_of(network(pairs.images), pairs.flow)
        losses[step] = float(loss)
        if not np.isfinite(losses[step]):
            break
        optimizer.lr = schedule(step)
        optimizer.step(tape.gradient(loss, optimizer.parameters))
    return network, losses


def judge(job: Job, folder: Path | None = None) -> dict[str, Any]:
    """Train and measure: an `Outcome`, by names. The network goes into the folder, if its flow is shown."""
    start, data = time.process_time(), data_of(job.pairs, job.tests)
    with np.errstate(over="ignore", invalid="ignore"):  # training may diverge: that is what is asked
        network, losses = train(job)
        seconds = time.process_time() - start
        flow, stereo = (predict(network, pairs.images) for pairs in (data.held_out, data.stereo))
        if folder is not None and shown_in_picture(job):
            files.save(network_file(job, folder), network.state_dict())
        held_out = data.held_out
        return Outcome(
            losses[0],
            np.nanmax(losses),
            in_parts(losses),
            mean_error(flow, held_out.flow, np.ones_like(held_out.visible)),
            mean_error(flow, held_out.flow, held_out.visible),
            mean_error(stereo, data.stereo.flow, data.stereo.visible),
            seconds,
        )._asdict()


def shown_in_picture(job: Job) -> bool:
    """Whether its network is drawn."""
    return job.variant.name in DRAWN and job.seed == 0


def network_file(job: Job, folder: Path) -> Path:
    """Where a network is for the pictures."""
    return folder / f"{DRAWN.index(job.variant.name)}-{job.steps}-{job.pairs}.safetensors"


def network_of(job: Job, folder: Path) -> FlowNet:
    """As it was trained; it is trained again where only its numbers were kept."""
    path = network_file(job, folder)
    if not path.exists():
        return train(job)[0]
    network = FlowNet(job.variant, np.random.default_rng(job.seed))
    network.load_state_dict(files.load(path)[0])
    return network


def train_all(jobs: Sequence[Job], folder: Path, workers: int, **keeping: Any) -> dict[Key, Outcome]:
    """Outcomes by name and seed, so many trainings at a time."""
    given = {(job.variant.name, job.seed): (job, folder) for job in jobs}
    results = run(judge, given, workers=workers, **keeping)
    return {key: outcome_of(each) for key, each in results.items()}


def outcome_of(found: Mapping[str, Any]) -> Outcome:
    """As it was before it was kept."""
    return Outcome(**{name: float(value) if value.ndim == 0 else value for name, value in found.items()})


# ---------------------------------------------------------------------------------------------------------
# Tables


class Tables:
    """What the outcomes say."""

    def __init__(self, outcomes: dict[tuple[str, int], Outcome], data: Data, seeds: int) -> None:
        self.outcomes, self.seeds = outcomes, range(seeds)
        pairs, stereo = data.held_out, data.stereo
        self.still = mean_error(np.zeros_like(pairs.flow), pairs.flow, np.ones_like(pairs.visible))
        self.still_visible = mean_error(np.zeros_like(pairs.flow), pairs.flow, pairs.visible)
        self.still_stereo = mean_error(np.zeros_like(stereo.flow), stereo.flow, stereo.visible)

    def of(self, name: str) -> list[Outcome]:
        """The outcomes of all seeds."""
        return [self.outcomes[name, seed] for seed in self.seeds]

    def diverged(self, name: str) -> str:
        """How many of how many."""
        return f"{sum(each.diverged for each in self.of(name))} of {len(self.seeds)}"

    def networks(self) -> tuple[list[str], list[list[str]]]:
        """One row for each network."""
        columns = ["network", "parameters", "multiply-adds", "error", "visible pixels", "motorcycle"]
        columns += ["diverged", "CPU seconds", "loss still falling, %"]
        still = [f"{value:.3f}" for value in (self.still, self.still_visible, self.still_stereo)]
        rows = [["nothing moves", "", "", *still, "", "", ""]]
        for variant in VARIANTS:
            made = summary(FlowNet(variant, np.random.default_rng(0)), (1, 2, *SIZE))
            found = self.of(variant.name)
            rows.append(
                [
                    variant.name,
                    f"{made.parameters / 1e3:.0f} k",
                    f"{made.multiply_adds / 1e6:.1f} M",
                    shown([each.error for each in found]),
                    shown([each.visible_error for each in found]),
                    shown([each.stereo_error for each in found]),
                    self.diverged(variant.name),
                    f"{np.median([each.seconds for each in found]):.0f}",
                    flatness([{"losses": each.losses} for each in found]),
                ]
            )
        return columns, rows

    def questions(self) -> tuple[list[str], list[list[str]]]:
        """Differences of the error on the held-out pairs, seed by seed."""
        rows = []
        for question, one, other in QUESTIONS:
            change = [a.error - b.error for a, b in zip(self.of(one), self.of(other))]
            worse = sum(value > 0 for value in change)
            rows.append([question, f"{one} - {other}", shown(change), f"{worse} of {len(change)}"])
        return ["question", "difference of errors", "pixels", "seeds with a larger error"], rows

    def harsh(self) -> tuple[list[str], list[list[str]]]:
        """What the residual does where training begins with large kernels."""
        rows = []
        for variant in HARSH_VARIANTS:
            found = self.of(variant.name)
            losses = (
                [each.first for each in found],
                [each.highest for each in found],
                [each.last for each in found],
            )
            error = shown([each.error for each in found])
            rows.append(
                [variant.name, *(shown(each, 1) for each in losses), error, self.diverged(variant.name)]
            )
        return ["network", "first loss", "highest loss", "loss of the last fifth", "error", "diverged"], rows


# ---------------------------------------------------------------------------------------------------------
# The program


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--seeds", type=int, default=1, help="trainings of each network (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=400, help="of each training (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("optical_flow.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps of two seeds: does it run?")
    parser.add_argument("--full", action="store_true", help="five seeds; write tables and picture into docs")
    add_keeping(parser, "optical_flow")
    options = parser.parse_args(argv)
    options.pairs, options.tests, options.batch, options.workers = 600, 100, 4, dyn.get_num_threads()
    if options.quick:
        options.seeds, options.steps, options.pairs, options.tests, options.batch = 2, 5, 16, 8, 2
        options.workers = 1
    if options.full:
        options.seeds, options.output = 5, PICTURE
        options.steps, options.pairs = 4000, 2000
    options.output = picture_in(options.output, "optical_flow.png", parser)
    return options


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """Every training; where training starts harshly, a sixth of the steps show what becomes of it."""
    short = max(1, options.steps // 6)
    plans = [(variant, options.steps) for variant in VARIANTS] + [(each, short) for each in HARSH_VARIANTS]
    return [
        Job(variant, seed, steps, options.batch, options.rate, options.pairs, options.tests)
        for variant, steps in plans
        for seed in range(options.seeds)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Make the pairs, train all, print, draw."""
    start = time.perf_counter()
    options = parse(argv)
    data, jobs = data_of(options.pairs, options.tests), jobs_of(options)
    with tempfile.TemporaryDirectory() as spare:
        folder = NETWORKS if options.full else Path(spare)
        folder.mkdir(exist_ok=True)
        outcomes = train_all(jobs, folder, options.workers, **keeping(options, "optical_flow"))
        drawn = {job.variant.name: network_of(job, folder) for job in jobs if shown_in_picture(job)}
    made = Tables(outcomes, data, options.seeds)
    tables = {
        "End-point error in pixels, of held-out photographs and of the motorcycle": made.networks(),
        "Differences, seed by seed": made.questions(),
        "Harsh start: kernels ten times as large, regions added up, a sixth of the steps": made.harsh(),
    }
    for title, (columns, rows) in tables.items():
        print_table(title, columns, rows)
    shown_pairs = Pairs(*(array[:SHOWN] for array in data.held_out))
    flows = {name: predict(drawn[name], shown_pairs.images) for name in DRAWN}
    stereo_flows = {name: predict(drawn[name], data.stereo.images) for name in DRAWN}
    draw(options.output, shown_pairs, flows, data.stereo, stereo_flows)
    if options.full:
        sizes = {"pairs": options.pairs, "held out": options.tests, "batch": options.batch}
        record("optical_flow", tables, seeds=options.seeds, steps=options.steps, rate=options.rate, **sizes)
    print(f"\n{time.perf_counter() - start:.0f} s; the picture is in {options.output}")


if __name__ == "__main__":
    main()
