"""Learned displacements on trial: networks of displaced aggregation units against ordinary convolutions.

A filter of a convolution has a weight at every place of a grid. A filter of displaced aggregation units has a
few weights, at places that it learns: weight w and displacement d of a unit follow their gradients

    dL/dw = sum_p g[p] * xb(p + d),        dL/dd = w * sum_p g[p] * grad xb(p + d),

where g = dL/dy is what the output should change, xb is the input under a Gaussian of width sigma, and grad xb
the slope of its interpolation (dau_by_hand.py derives it). A unit thus walks to where the image differs in
the way that g asks for, at a speed in proportion to its weight.

The paper answers five questions about such networks: the first two on CIFAR-10, the others on ImageNet and
PASCAL VOC. Here they are asked again of small networks that train in seconds, on real images that
scikit-learn and scikit-image bring along: 8 x 8 digits under noise, and pieces of photographs, 25 x 25,
that show a face or not. Few of them are trained on, most are held out.

    units      How many units does a filter need, and are they better than a kernel?     (its Table 2)
    sigma      Does the width of the units matter?                                       (its Table 1)
    pruning    How many units can go after training, without training again?             (its Table 5)
    rates      Do units converge faster, and at higher learning rates?                   (its Figure 2)
    places     Where do the units end up?                                                (its Figures 4 and 5)

A sixth is ours: is learning the displacements worth it, and by which of the two rules?

    python examples/dau_classification.py --quick     # does it run? in about half a minute
    python examples/dau_classification.py             # two seeds
    python examples/dau_classification.py --full      # five seeds; goes on where it was stopped

Tabernik et al., "Spatially-Adaptive Filter Units for Deep Neural Networks", CVPR 2018, whose numbers these
are; the same units at more length: IJCV 2020.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from _dau_picture import draw_places, draw_rates
from _dau_training import NOISE, THRESHOLDS, TRAINED_ON, Outcome, Setting, train_all, units_of
from _record import HERE, print_table, record, spread
from _study import add_keeping, keeping

from autodiff.networks import alexnet, dau_alexnet

NAME = "dau_classification"
Outcomes = dict[Setting, list[Outcome]]
Table = tuple[Sequence[str], list[list[str]]]

CONVOLUTIONS = [Setting(kernel=3), Setting(kernel=5)]
UNITS = [Setting(units=grid, prune=grid == (2, 2)) for grid in ((1, 1), (2, 1), (2, 2), (3, 2))]
BASE = UNITS[2]
SIGMAS = [replace(BASE, sigma=sigma) if sigma != BASE.sigma else BASE for sigma in (0.3, 0.5, 0.8, 1.2)]
LEARNED = replace(BASE, learn_sigma=True)
RULES = {
    "exact": BASE,
    "smooth": replace(BASE, gradient="smooth"),
    "none: units stay on the grid": replace(BASE, fixed=True),
}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
EARLY = 3  # epochs


def settings_of(quick: bool) -> dict[Setting, Setting]:
    """Everything that the tables ask for, and the training that answers it."""
    wanted = [*CONVOLUTIONS, *UNITS, *SIGMAS, LEARNED, *RULES.values()]
    wanted += [replace(s, data="faces") for s in (*CONVOLUTIONS, *UNITS)]
    wanted += [replace(s, lr=lr) for lr in RATES for s in (CONVOLUTIONS[0], BASE)]
    return {s: replace(s, epochs=2, held_out=100) if quick else s for s in dict.fromkeys(wanted)}


def percent(outcomes: Sequence[Outcome], number: Callable[[Outcome], float]) -> str:
    """Mean and spread over the seeds of a fraction, in percent."""
    return spread([100 * number(outcome) for outcome in outcomes], 1)


def final(outcome: Outcome) -> float:
    """Held-out accuracy after training."""
    return outcome.accuracy


def early(outcome: Outcome) -> float:
    """Accuracy on some held-out images after EARLY epochs."""
    return outcome.curve[min(EARLY, len(outcome.curve)) - 1]


def loss(outcomes: Sequence[Outcome]) -> str:
    """The loss of the last epoch, on the images trained on."""
    return spread([outcome.loss[-1] for outcome in outcomes], 4)


# ---------------------------------------------------------------------------------------------------------
# The tables


def units_table(found: Outcomes) -> Table:
    """Kernels and numbers of units, on both kinds of images."""
    rows = []
    for setting in (*CONVOLUTIONS, *UNITS):
        digits, faces = found[setting], found[replace(setting, data="faces")]
        count = f"{digits[0].parameters:,}"
        rows.append([setting.name, count, percent(digits, final), percent(faces, final)])
    return ("filters", "parameters (digits)", "digits, %", "faces, %"), rows


def sigma_table(found: Outcomes) -> Table:
    """Widths of units, and where a learned one goes."""
    rows = [[f"{s.sigma}", percent(found[s], final), loss(found[s])] for s in SIGMAS]
    ends = [spread([outcome.sigmas[layer] for outcome in found[LEARNED]], 2) for layer in (0, 1)]
    name = f"learned, from {LEARNED.sigma} to {ends[0]} and {ends[1]}"
    rows.append([name, percent(found[LEARNED], final), loss(found[LEARNED])])
    return ("sigma", "digits, %", "loss at the end"), rows


def gradient_table(found: Outcomes) -> Table:
    """The two rules for the gradient of the displacements, and none."""
    rows = [
        [name, percent(found[s], early), percent(found[s], final), loss(found[s])]
        for name, s in RULES.items()
    ]
    return ("gradient", f"digits after {EARLY} epochs, %", "at the end, %", "loss at the end"), rows


def pruning_table(found: Outcomes) -> Table:
    """Units left and accuracy, as more and more of them go."""
    outcomes = found[BASE]
    total = outcomes[0].parameters // 3
    rows = [["none", "100.0", percent(outcomes, final), ""]]
    for place, threshold in enumerate(THRESHOLDS):
        left = percent(outcomes, lambda o, i=place: o.pruned[i][0] / total)
        kept = percent(outcomes, lambda o, i=place: o.pruned[i][1])
        change = percent(outcomes, lambda o, i=place: o.pruned[i][1] - o.accuracy)
        rows.append([f"{threshold}", left, kept, change])
    return ("removed below", "units left, %", "digits, %", "change"), rows


def rates_table(found: Outcomes) -> Table:
    """Accuracy early and at the end, at every learning rate."""
    rows = []
    for lr in RATES:
        row = [f"{lr}"]
        for setting in (CONVOLUTIONS[0], BASE):
            outcomes = found[replace(setting, lr=lr)]
            row += [
                percent(outcomes, lambda o: o.curve[min(EARLY, len(o.curve)) - 1]),
                percent(outcomes, final),
            ]
        rows.append(row)
    columns = [f"{s.name}, {when}" for s in (CONVOLUTIONS[0], BASE) for when in (f"{EARLY} epochs", "end")]
    return ("learning rate", *columns), rows


def places_table(found: Outcomes) -> Table:
    """How far units have gone, and how many have left the 5 x 5 pixels of the start; strong ones apart."""
    rows = []
    for layer in (0, 1):
        for place, name in enumerate(("all", "strongest tenth")):
            first, last, outside = zip(*(outcome.places[layer][place] for outcome in found[BASE]))
            rows.append([f"{layer + 2}", name, f"{np.mean(first):.2f}", spread(last, 2), spread(outside, 1)])
    columns = ("layer", "units", "distance from the centre at the start, px", "at the end", "outside, %")
    return columns, rows


def alexnet_table() -> Table:
    """Parameters of the convolutions of AlexNet, and of units in their place."""
    names = ("small", "medium", "large")
    # The head is the same for all, and not counted; nor are biases, which batch normalisation replaces.
    small_head = {"hidden": 8, "classes": 2, "normalization": "batch", "rng": 0}
    networks = [alexnet(**small_head), *(dau_alexnet(size, **small_head) for size in names)]
    layers = [network.convolutions[1:] for network in networks]
    rows = [
        [str(number), *(f"{layer.num_parameters:,}" for layer in same)]
        for number, same in enumerate(zip(*layers, strict=True), start=2)
    ]
    totals = [sum(layer.num_parameters for layer in column) for column in layers]
    rows.append(["2 to 5", *(f"{total:,}" for total in totals)])
    rows.append(["units", "", *(f"{total // 3:,}" for total in totals[1:])])
    return ("layer", "AlexNet", *(f"DAU-AlexNet {name}" for name in names)), rows


TABLES: dict[str, Callable[[Outcomes], Table]] = {
    "Kernels and units: accuracy on held-out images": units_table,
    "Width of the units (4 units)": sigma_table,
    "Gradient of the displacements (4 units)": gradient_table,
    "Pruning after training (4 units)": pruning_table,
    "Learning rates, digits, %": rates_table,
    "Where units end up (4 units, digits)": places_table,
    "Parameters of AlexNet's convolutions": lambda found: alexnet_table(),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="two seeds, two epochs: does it run?")
    mode.add_argument("--full", action="store_true", help="five seeds; writes what docs/displaced.md shows")
    parser.add_argument("--seeds", type=int, help="how many, at least 2 (default: 2, with --full 5)")
    parser.add_argument("--output", type=Path, default=Path(), help="the folder of the two pictures")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time (default: %(default)s)")
    add_keeping(parser, NAME)
    options = parser.parse_args(argv)
    options.seeds = options.seeds or (5 if options.full else 2)
    if options.seeds < 2:
        parser.error("--seeds: a spread needs at least 2")
    if options.full:
        options.output = HERE.parent / "docs" / "images"
    if not options.output.is_dir():
        parser.error(f"--output: there is no folder {options.output}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Train everything, print the tables, draw the pictures."""
    start = time.perf_counter()
    options = parse(argv)
    asked, shown = settings_of(options.quick), (UNITS[0], BASE, UNITS[3])
    seeds = range(options.seeds)
    with tempfile.TemporaryDirectory() as spare:
        folder = Path(f"{NAME}.parts") if options.full else Path(spare)
        folder.mkdir(exist_ok=True)
        how = {"workers": options.workers, **keeping(options, NAME)}
        trained = train_all(asked.values(), seeds, [asked[each] for each in shown], folder, **how)
        units = [[units_of(asked[each], seed, folder) for seed in seeds] for each in shown]
    found = {setting: trained[answer] for setting, answer in asked.items()}
    tables = {title: table(found) for title, table in TABLES.items()}
    for title, table in tables.items():
        print_table(title, *table)
    draw_places(options.output / "dau_places.png", dict(zip(("1 unit", "4 units", "6 units"), units)))
    curves = {s.name: {lr: found[replace(s, lr=lr)] for lr in RATES} for s in (CONVOLUTIONS[0], BASE)}
    draw_rates(options.output / "dau_rates.png", curves)
    if options.full:
        images = ", ".join(f"{count} {name}" for name, count in TRAINED_ON.items())
        record(
            NAME, tables, seeds=options.seeds, epochs=BASE.epochs, trained_on=images, noise=NOISE["digits"]
        )
    seconds = time.perf_counter() - start
    print(f"\n{seconds:.0f} s; the pictures are dau_places.png and dau_rates.png in {options.output}")


if __name__ == "__main__":
    main()
