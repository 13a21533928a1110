"""Learn optical flow, with and without a dynamic sampling convolution, and take the layer apart.

Optical flow says where each pixel p of one image is found in the next: at p + f[p]. Here a small FlowNetS
learns it from pairs that are made of photographs. A scene is a stack of layers, each a piece of a photograph
that moves by an affine map A of its own, p -> M p + t. The second image is painted with each layer's inverse
map, so that the flow is known exactly,

    f[p] = A_l p - p            of the front layer l at p,

and p is visible in the second image if the front layer at A_l p is l again. The local contrast of photographs
is evened first, as no network can tell the flow of a sky. Each step of a training has pairs that no other
step has, drawn anew from its number and the seed: pieces, outlines, motions, light and noise. Errors are
those on pairs of other photographs, which are the same for all: end-point errors, means of |f - f_true|.

At the third convolution stands a dynamic sampling convolution. Every output position makes a kernel from the
features around it and applies it in S x S regions, 2 positions apart: with S = 7, to 15 x 15 positions,
60 pixels of the image. S, steps and outputs are the paper's. It says of the layer only that it is "inserted":

    in place    it takes the place of the third convolution
    beside      its output joins that of the third convolution, and that of the transposed convolution at the
                same size on the way up, as in the paper's networks for detection

and regions are added up, as in the paper, averaged, or the largest is taken. The network also has to be
better than one that has a plain wide convolution beside the third one, with as many parameters as the layer.
What is taken apart is the layer that stands beside and adds up:

- without residuals, 1/C in the kernel and 1 in the attention; without attention, which weighs regions and
  taps; and without both. In the paper's Table 4 the last fails to converge, while with attention the
  residuals are worth 10 mAP;
- with fewer regions: S = 3 and S = 1, which is worse in the paper's Table 2.

How large the generated kernels are at first is a choice: a tenth of a convolution's weights. As divergence
could hide behind so gentle a start, residuals and attention are also left out after a harsh one, full
weights, for a sixteenth of the steps. A training has failed if it ends no better than the answer that nothing
moves, and counts as that answer; so does a network whose numbers are no longer finite.

Budgets are equal in pairs, and seeds are paired: step k of seed s has the same batch for every network. In
the end each looks at the Middlebury motorcycle, a real stereo pair, whose flow is minus the disparity.

    python examples/optical_flow.py                 # one seed, few steps; see also --help
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
from _flow_data import SIZE, Pairs, make_pairs, motorcycle, to_judge_on, to_learn_from
from _flow_network import Variant, loss_of, make, predict
from _flow_picture import draw, draw_curves
from _parts import fingerprint
from _record import picture_in, print_table, record, shown
from _study import Key, add_keeping, flatness, in_parts, keeping, run

import dynarray as dyn
from autodiff import Tape, files
from autodiff.networks import FlowNetS, summary
from autodiff.optim import Adam, cosine_schedule

PLAIN, WIDE = "FlowNetS", "wide convolution beside"
PLACED, PLACED_MEAN = "in place, sum", "in place, mean"
SUM, MEAN, MAX = "beside, sum", "beside, mean", "beside, max, no attention"
S3, S1 = "S = 3", "S = 1"
NO_RESIDUAL = {"kernel_residual": False, "attention_residual": False}
NO_ATTENTION = {"attention": False}
LEFT_OUT = {
    "no residual": NO_RESIDUAL,
    "no attention": NO_ATTENTION,
    "neither": {**NO_RESIDUAL, **NO_ATTENTION},
}
VARIANTS = (
    Variant(PLAIN),
    Variant(WIDE, {}, plain=True),
    Variant(PLACED, {}, "in place"),
    Variant(PLACED_MEAN, {"fuse": "mean"}, "in place"),
    Variant(SUM, {}),
    Variant(MEAN, {"fuse": "mean"}),
    Variant(MAX, {"fuse": "max", **NO_ATTENTION}),
    Variant(S3, {"samples": 3}),
    Variant(S1, {"samples": 1}),
    *(Variant(name, left_out) for name, left_out in LEFT_OUT.items()),
)
HARSH = {SUM: {}, **LEFT_OUT}  # the same four after a harsh start
HARSH_VARIANTS = tuple(Variant(f"harsh: {name}", {"gain": 1.0, **given}) for name, given in HARSH.items())
QUESTIONS = (
    ("Does the layer help beside the third convolution?", SUM, PLAIN),
    ("More than as many parameters of a convolution?", SUM, WIDE),
    ("Does it help in place of the third convolution?", PLACED, PLAIN),
    ("Does it help beside, where regions are averaged?", MEAN, PLAIN),
    ("More than as many parameters, where they are averaged?", MEAN, WIDE),
    ("Does it help in place, where regions are averaged?", PLACED_MEAN, PLAIN),
    ("Are sums of regions worse than means?", SUM, MEAN),
    ("Is the largest region worse than the sum, without attention?", MAX, "no attention"),
    ("Is it worse without the residual?", "no residual", SUM),
    ("Is it worse without attention?", "no attention", SUM),
    ("Is it worse without both?", "neither", SUM),
    ("Is S = 1 worse than S = 3?", S1, S3),
    ("Is S = 3 worse than S = 7?", S3, SUM),
)
CURVES = {  # panels of the second picture
    "place and fusion": (PLAIN, WIDE, PLACED, PLACED_MEAN, SUM, MEAN, MAX),
    "regions an axis": (PLAIN, SUM, S3, S1),
    "residual and attention": (PLAIN, SUM, *LEFT_OUT),
}
SHOWN = 3  # held-out pairs in the picture
DRAWN = PLAIN, WIDE, SUM, MEAN  # networks in the picture
POINTS = 16  # of a curve
NETWORKS = Path("optical_flow.parts")  # where they are until they are drawn
STEREO_FACTOR = 7  # 64 x 96 pixels, disparities of up to 8.6: farther than objects move in training
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "optical_flow.png"


class Data(NamedTuple):
    """What pairs are made of in training, and what is judged on: made of other photographs, and real."""

    photos: list[np.ndarray]
    held_out: Pairs
    stereo: Pairs


class Job(NamedTuple):
    """One training."""

    variant: Variant
    seed: int
    steps: int
    batch: int
    rate: float
    tests: int


class Outcome(NamedTuple):
    """What came of it."""

    first: float  # loss
    highest: float  # loss
    losses: np.ndarray  # means of parts of the training, NaN after a loss that is not finite
    errors: np.ndarray  # end-point errors on the held-out pairs, at `marks`
    visible_error: float  # of the pixels that the second image shows
    stereo_error: float
    seconds: float  # of one core

    @property
    def error(self) -> float:
        """In the end."""
        return float(self.errors[-1])


# ---------------------------------------------------------------------------------------------------------
# One training


@cache
def data_of(tests: int) -> Data:
    """Made of photographs; alike in every process."""
    return Data(to_learn_from(), make_pairs(to_judge_on(), tests, seed=1), motorcycle(STEREO_FACTOR))


def mean_error(flow: np.ndarray, truth: np.ndarray, where: Any = True) -> float:
    """End-point error, over the pixels `where`."""
    return float(np.hypot(*(flow - truth).swapaxes(0, 1)).mean(where=where, dtype=np.float64))


def held_out_error(network: FlowNetS, pairs: Pairs) -> float:
    """Over all pixels."""
    return mean_error(predict(network, pairs.images), pairs.flow)


def marks(steps: int) -> list[int]:
    """After how many steps the points of a curve are."""
    return np.linspace(0, steps, min(steps, POINTS) + 1)[1:].round().astype(int).tolist()


def train(job: Job) -> tuple[FlowNetS, np.ndarray, np.ndarray]:
    """A network, the loss of each step, and the held-out error at `marks`."""
    data, network = data_of(job.tests), make(job.variant, job.seed)
    optimizer = Adam(network.parameters())
    schedule = cosine_schedule(job.rate, job.steps, warmup=min(100, 5 + job.steps // 10))
    losses, errors, measured = np.full(job.steps, np.nan), [], marks(job.steps)
    for step in range(job.steps):
        pairs = make_pairs(data.photos, job.batch, seed=(job.seed, step))  # the same for all networks
        with Tape() as tape:
            loss = loss_of(network(pairs.images), pairs.flow)
        losses[step] = float(loss)
        if not np.isfinite(losses[step]):
            break
        optimizer.lr = schedule(step)
        optimizer.step(tape.gradient(loss, optimizer.parameters))
        if step + 1 in measured:
            errors.append(held_out_error(network, data.held_out))
    if missing := len(measured) - len(errors):
        errors += missing * [held_out_error(network, data.held_out)]
    return network, losses, np.array(errors)


def judge(job: Job, folder: Path | None = None) -> dict[str, Any]:
    """Train and measure: an `Outcome`, by names. The network goes into the folder, if its flow is shown."""
    data, start = data_of(job.tests), time.process_time()
    with np.errstate(over="ignore", invalid="ignore"):  # training may diverge: that is what is asked
        network, losses, errors = train(job)
        seconds = time.process_time() - start
        flow, stereo = (predict(network, pairs.images) for pairs in (data.held_out, data.stereo))
        if folder is not None and shown_in_picture(job):
            files.save(network_file(job, folder), network.state_dict())
        return Outcome(
            losses[0],
            np.nanmax(losses),
            in_parts(losses),
            errors,
            mean_error(flow, data.held_out.flow, data.held_out.visible),
            mean_error(stereo, data.stereo.flow, data.stereo.visible),
            seconds,
        )._asdict()


def shown_in_picture(job: Job) -> bool:
    """Whether its network is drawn."""
    return job.variant.name in DRAWN and job.seed == 0


def network_file(job: Job, folder: Path) -> Path:
    """Where a network is for the pictures."""
    return folder / f"{DRAWN.index(job.variant.name)}-{job.steps}-{job.batch}-{job.rate:g}.safetensors"


def network_of(job: Job, folder: Path) -> FlowNetS:
    """As it was trained; it is trained again where only its numbers were kept."""
    path = network_file(job, folder)
    if not path.exists():
        return train(job)[0]
    network = make(job.variant, job.seed)
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
    """What the outcomes say.

    A training that ends no better than the answer that nothing moves has failed, and counts as that answer.
    """

    def __init__(self, outcomes: dict[tuple[str, int], Outcome], data: Data, seeds: int) -> None:
        self.outcomes, self.seeds = outcomes, range(seeds)
        pairs, stereo = data.held_out, data.stereo
        self.still = mean_error(np.zeros_like(pairs.flow), pairs.flow)
        self.still_visible = mean_error(np.zeros_like(pairs.flow), pairs.flow, pairs.visible)
        self.still_stereo = mean_error(np.zeros_like(stereo.flow), stereo.flow, stereo.visible)

    def of(self, name: str) -> list[Outcome]:
        """The outcomes of all seeds."""
        return [self.outcomes[name, seed] for seed in self.seeds]

    def has_failed(self, outcome: Outcome) -> bool:
        """Whether it is no better than to say that nothing moves."""
        return outcome.error >= self.still

    def errors(self, name: str) -> list[tuple[float, float, float]]:
        """Of each seed on the held-out pairs, on what of them is visible, and on the motorcycle."""
        still = self.still, self.still_visible, self.still_stereo
        return [
            still if self.has_failed(each) else (each.error, each.visible_error, each.stereo_error)
            for each in self.of(name)
        ]

    def error(self, name: str) -> str:
        """On the held-out pairs."""
        return shown([error for error, _, _ in self.errors(name)])

    def curves(self, name: str) -> np.ndarray:
        """Errors on the held-out pairs in the course of training, (seeds, points)."""
        return np.minimum([each.errors for each in self.of(name)], self.still)

    def failed(self, name: str) -> str:
        """How many, in percent."""
        return shown([100.0 * self.has_failed(each) for each in self.of(name)], 0)

    def networks(self) -> tuple[list[str], list[list[str]]]:
        """One row for each network."""
        columns = ["network", "parameters", "multiply-adds", "error", "of nothing moves, %"]
        columns += ["visible pixels", "motorcycle", "failed, %", "CPU seconds", "loss still falling, %"]
        still, *others = (f"{value:.3f}" for value in (self.still, self.still_visible, self.still_stereo))
        rows = [["nothing moves", "", "", still, "100.0", *others, "", "", ""]]
        for variant in VARIANTS:
            made = summary(make(variant, 0), (1, 2, *SIZE))
            found, errors = self.of(variant.name), self.errors(variant.name)
            rows.append(
                [
                    variant.name,
                    f"{made.parameters / 1e3:.0f} k",
                    f"{made.multiply_adds / 1e6:.1f} M",
                    self.error(variant.name),
                    f"{100 * np.mean([error for error, _, _ in errors]) / self.still:.1f}",
                    shown([visible for _, visible, _ in errors]),
                    shown([stereo for _, _, stereo in errors]),
                    self.failed(variant.name),
                    f"{np.median([each.seconds for each in found]):.0f}",
                    flatness([{"losses": each.losses} for each in found]),
                ]
            )
        return columns, rows

    def questions(self) -> tuple[list[str], list[list[str]]]:
        """Differences of the error on the held-out pairs, seed by seed."""
        rows = []
        for question, one, other in QUESTIONS:
            change = [a[0] - b[0] for a, b in zip(self.errors(one), self.errors(other))]
            worse = sum(value > 0 for value in change)
            rows.append([question, f"{one} - {other}", shown(change), f"{worse} of {len(change)}"])
        return ["question", "difference of errors", "pixels", "seeds with a larger error"], rows

    def left_out(self) -> tuple[list[str], list[list[str]]]:
        """Residual and attention, each with and without the other."""
        rows = []
        for name, given in HARSH.items():
            has = ("yes" if given.get(part, True) else "no" for part in ("kernel_residual", "attention"))
            harsh = f"harsh: {name}"
            highest = shown([each.highest for each in self.of(harsh)], 1)
            cells = self.error(name), self.failed(name), highest, self.error(harsh), self.failed(harsh)
            rows.append([name, *has, *cells])
        columns = ["network", "residual", "attention", "error", "failed, %"]
        return [*columns, "harsh: highest loss", "harsh: error", "harsh: failed, %"], rows


# ---------------------------------------------------------------------------------------------------------
# The program


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--seeds", type=int, default=1, help="trainings of each network (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=300, help="of each training (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("optical_flow.png"), help="the picture")
    parser.add_argument("--quick", action="store_true", help="a few steps of two seeds: does it run?")
    parser.add_argument("--full", action="store_true", help="five seeds; write tables and pictures into docs")
    add_keeping(parser, "optical_flow")
    options = parser.parse_args(argv)
    options.tests, options.batch, options.workers = 100, 8, dyn.get_num_threads()
    if options.quick:
        options.seeds, options.steps, options.tests, options.batch, options.workers = 2, 5, 8, 2, 1
    if options.full:
        options.seeds, options.steps, options.output = 5, 8000, PICTURE
    options.output = picture_in(options.output, "optical_flow.png", parser)
    return options


def jobs_of(options: argparse.Namespace) -> list[Job]:
    """Every training; where training starts harshly, a sixteenth of the steps show what becomes of it."""
    short = max(2, options.steps // 16)
    plans = [(variant, options.steps) for variant in VARIANTS] + [(each, short) for each in HARSH_VARIANTS]
    return [
        Job(variant, seed, steps, options.batch, options.rate, options.tests)
        for seed in range(options.seeds)
        for variant, steps in plans
    ]


def draw_all(
    options: argparse.Namespace, made: Tables, data: Data, drawn: Mapping[str, FlowNetS]
) -> list[Path]:
    """The flow that some networks see, and the errors of all against the steps of their training."""
    curves_path = options.output.with_name(f"{options.output.stem}_curves.png")
    pairs = Pairs(*(array[:SHOWN] for array in data.held_out))
    flows = {name: predict(drawn[name], pairs.images) for name in DRAWN}
    stereo_flows = {name: predict(drawn[name], data.stereo.images) for name in DRAWN}
    draw(options.output, pairs, flows, data.stereo, stereo_flows)
    curves = {variant.name: made.curves(variant.name) for variant in VARIANTS}
    panels = {title: {name: curves[name] for name in names} for title, names in CURVES.items()}
    draw_curves(curves_path, marks(options.steps), panels, made.still)
    return [options.output, curves_path]


def main(argv: Sequence[str] | None = None) -> None:
    """Train all, print, draw."""
    start = time.perf_counter()
    options = parse(argv)
    data, jobs = data_of(options.tests), jobs_of(options)
    with tempfile.TemporaryDirectory() as spare:
        folder = NETWORKS / fingerprint(judge) if options.full else Path(spare)
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = train_all(jobs, folder, options.workers, **keeping(options, "optical_flow"))
        drawn = {job.variant.name: network_of(job, folder) for job in jobs if shown_in_picture(job)}
    made = Tables(outcomes, data, options.seeds)
    tables = {
        "End-point error in pixels, of held-out photographs and of the motorcycle": made.networks(),
        "Differences, seed by seed": made.questions(),
        "Residual and attention, from a gentle start and from a harsh one": made.left_out(),
    }
    for title, (columns, rows) in tables.items():
        print_table(title, columns, rows)
    pictures = draw_all(options, made, data, drawn)
    if options.full:
        sizes = {"held out": options.tests, "batch": options.batch}
        record("optical_flow", tables, seeds=options.seeds, steps=options.steps, rate=options.rate, **sizes)
    print(f"\n{time.perf_counter() - start:.0f} s; pictures: {', '.join(map(str, pictures))}")


if __name__ == "__main__":
    main()
