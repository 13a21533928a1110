"""What the papers claim, beside what the examples measured, and what follows by one rule for all."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .table import markdown

# Student's t: 95 % of means of so many values lie within so many of their standard errors of the truth.
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262, 20: 2.093}
NOT_RUN = "not yet run"


class Cell(NamedTuple):
    """A cell of a table of an example: the title and the row by what they begin with."""

    title: str
    row: str
    column: str


class Claim(NamedTuple):
    """One claim, and where it is asked again."""

    claim: str  # with the paper's number and setting
    example: str
    ours: Cell
    against: Cell | float | None  # None: the cell is a difference already
    sign: int  # of the difference, if the claim holds; 0 if there should be none
    differs: str


FLOW, FLOW_TABLE_4 = "Differences, seed by seed", "Residual and attention"
FLOW_SCENES = "made scenes of 64 x 96 pixels, a small FlowNetS"
FLOW_LAYER = f"{FLOW_SCENES} with the layer beside, where the paper has a detector"
DETECTORS = "R-FCN with dynamic sampling"
FIELDS = "Effective receptive field"
UNITS, PHOTOGRAPHS = "Kernels and units", "Which of eleven photographs"
SEGMENTED, DENOISED = "Mean IoU", "Four held-out photographs"
FINER, CROWDS, SHARPENED = "Twice the resolution", "Figures in a crowd", "A quarter of the resolution"
DIGITS = "8 x 8 digits, three small layers"
SCENES = "scenes of digits; a small network from nothing"
PIECES = "three bottlenecks on 24 x 24 pieces of photographs"


def question(row: str) -> Cell:
    """A difference of two errors of the flow study."""
    return Cell(FLOW, row, "pixels")


def difference(row: str) -> Cell:
    """Of two detectors."""
    return Cell(DETECTORS, row, "AP at 0.5, difference")


CLAIMS: dict[str, tuple[Claim, ...]] = {
    "Zhou et al., Decoupled Dynamic Filter Networks, CVPR 2021": (
        Claim(
            "ResNet-50 and ResNet-101 gain 1.9 and 1.3 % of accuracy on ImageNet by DDF in place of "
            "convolution, at nearly half the cost",
            "decoupled_filters",
            Cell(PHOTOGRAPHS, "DDF mul", "accuracy, %"),
            Cell(PHOTOGRAPHS, "convolution", "accuracy, %"),
            1,
            PIECES,
        ),
        Claim(
            "DDF is better than depthwise convolution",
            "decoupled_filters",
            Cell(PHOTOGRAPHS, "DDF mul", "ahead of depthwise"),
            None,
            1,
            PIECES,
        ),
        Claim(
            "Training suffers where filters are not normalised (FilterNorm)",
            "decoupled_filters",
            Cell(PHOTOGRAPHS, "DDF mul", "accuracy, %"),
            Cell(PHOTOGRAPHS, "DDF mul, no FilterNorm", "accuracy, %"),
            1,
            PIECES,
        ),
        Claim(
            "DDF-Up sharpens depth by an image better than convolution and other layers",
            "joint_scenes",
            Cell(SHARPENED, "DDF-Up", "made depth"),
            Cell(SHARPENED, "joint bilateral", "made depth"),
            -1,
            "against the best of three designed filters; made scenes, x 4, errors in units of depth",
        ),
        Claim(
            "The same, of a real scene (NYU depth in the paper)",
            "joint_scenes",
            Cell(SHARPENED, "DDF-Up", "motorcycle, depth"),
            Cell(SHARPENED, "joint bilateral", "motorcycle, depth"),
            -1,
            "one scene of Middlebury, in grey; both were fitted to made scenes",
        ),
    ),
    "Wu et al., Dynamic Filtering with Large Sampling Field for ConvNets, ECCV 2018": (
        Claim(
            "R-FCN with dynamic sampling has 79.2 and 81.2 % mAP on VOC 2012 and 2007: more than without",
            "detection",
            difference("S = 3"),
            None,
            1,
            "scenes of digits and shapes, a small backbone trained from nothing",
        ),
        Claim(
            "In FlowNet on FlyingChairs the layer makes flow better",
            "optical_flow",
            question("Does the layer help beside the third convolution?"),
            None,
            -1,
            f"{FLOW_SCENES}; regions added up",
        ),
        Claim(
            'The same, in place of the third convolution, the other reading of "inserted"',
            "optical_flow",
            question("Does it help in place of the third convolution?"),
            None,
            -1,
            f"{FLOW_SCENES}; regions added up",
        ),
        Claim(
            "The same, against a convolution with as many parameters",
            "optical_flow",
            question("More than as many parameters of a convolution?"),
            None,
            -1,
            f"{FLOW_SCENES}; the paper compares with FlowNet alone",
        ),
        Claim(
            "Without residual learning the detector loses 10 mAP (Table 4)",
            "optical_flow",
            question("Is it worse without the residual?"),
            None,
            1,
            FLOW_LAYER,
        ),
        Claim(
            "Without residual learning and without attention it does not converge (Table 4): trainings that "
            "end no better than without an answer, %",
            "optical_flow",
            Cell(FLOW_TABLE_4, "neither", "failed, %"),
            0.0,
            1,
            FLOW_LAYER,
        ),
        Claim(
            "Attention helps (Table 4)",
            "optical_flow",
            question("Is it worse without attention?"),
            None,
            1,
            FLOW_LAYER,
        ),
        Claim(
            "One region an axis, a Dynamic Filter Network, is worse than three (Table 2)",
            "optical_flow",
            question("Is S = 1 worse than S = 3?"),
            None,
            1,
            f"{FLOW_LAYER}; S = 1 with attention too",
        ),
        Claim(
            "Sampling widens the effective receptive field: area, S = 9, as a multiple of a convolution's",
            "effective_receptive_field",
            Cell(FIELDS, "S = 9, stride 2", "ratio"),
            1.0,
            1,
            "networks that are not trained; by all paths",
        ),
        Claim(
            "The same, by what is sampled alone",
            "effective_receptive_field",
            Cell(FIELDS, "S = 9, stride 2", "fixed kernels: ratio"),
            1.0,
            1,
            "kernels held fixed",
        ),
    ),
    "Tabernik et al., Spatially-Adaptive Filter Units for Deep Neural Networks, CVPR 2018": (
        Claim(
            "Networks of units are as good as those of convolutions (CIFAR-10, ImageNet): on ImageNet 56.4, "
            "56.9 and 57.3 % top-1 with 0.3, 0.7 and 1.5 million units, as the authors' code lists them ("
            "Caffe's AlexNet: 57.1 %)",
            "dau_classification",
            Cell(UNITS, "4 units", "digits, %"),
            Cell(UNITS, "convolution 3x3", "digits, %"),
            0,
            DIGITS,
        ),
        Claim(
            "A filter needs few units (Table 2, CIFAR-10): two are as good as six",
            "dau_classification",
            Cell(UNITS, "6 units", "digits, %"),
            Cell(UNITS, "2 units", "digits, %"),
            0,
            DIGITS,
        ),
        Claim(
            "The width of units hardly matters (Table 1, CIFAR-10): 0.3 or 0.8",
            "dau_classification",
            Cell("Width of the units", "0.3", "digits, %"),
            Cell("Width of the units", "0.8", "digits, %"),
            0,
            DIGITS,
        ),
        Claim(
            "Many units can go after training, without training again (Table 5, ImageNet)",
            "dau_classification",
            Cell("Pruning after training", "0.1", "change"),
            None,
            0,
            "digits; those whose weight is below 0.1",
        ),
        Claim(
            "Units converge faster at high learning rates (Figure 2): after three epochs",
            "dau_classification",
            Cell("Learning rates", "0.03", "4 units, 3 epochs"),
            Cell("Learning rates", "0.03", "convolution 3x3, 3 epochs"),
            1,
            "digits; the highest of four rates",
        ),
        Claim(
            "The same, at a low rate",
            "dau_classification",
            Cell("Learning rates", "0.001", "4 units, 3 epochs"),
            Cell("Learning rates", "0.001", "convolution 3x3, 3 epochs"),
            1,
            "digits; the lowest of four rates",
        ),
    ),
    "Fu et al., Dynamic Sampling Network for Semantic Segmentation, AAAI 2020": (
        Claim(
            "Sampling guided by context makes segmentation better: 85.2 % mean IoU on the test set of VOC "
            "2012; its own comparisons have 74.6 to 79.0 %",
            "segmentation",
            Cell(SEGMENTED, "CGDS", "ahead of plain"),
            None,
            1,
            SCENES,
        ),
        Claim(
            "Better than points from their own features (deformable convolution)",
            "segmentation",
            Cell(SEGMENTED, "CGDS", "mean IoU, %"),
            Cell(SEGMENTED, "deformable v2", "mean IoU, %"),
            1,
            SCENES,
        ),
        Claim(
            "Better than dynamic filters (DF), one for each image",
            "segmentation",
            Cell(SEGMENTED, "CGDS", "mean IoU, %"),
            Cell(SEGMENTED, "image filter", "mean IoU, %"),
            1,
            SCENES,
        ),
    ),
    "Wang et al., Adaptive Convolutions with Per-pixel Dynamic Filter Atom, ICCV 2021": (
        Claim(
            "Atoms are as good as convolutions, or better, in many tasks: denoising, gain in dB",
            "denoising",
            Cell(DENOISED, "filter atoms", "gain (dB)"),
            None,
            1,
            "equally many parameters, noise that varies over the image, small networks",
        ),
        Claim(
            "The same: super-resolution, gain in dB",
            "atom_tasks",
            Cell(FINER, "filter atoms", "less convolutions"),
            None,
            1,
            "x 2, equally many parameters, small photographs",
        ),
        Claim(
            "The same: crowds, difference of errors",
            "atom_tasks",
            Cell(CROWDS, "filter atoms", "less convolutions"),
            None,
            -1,
            "figures drawn on photographs, which are counted exactly",
        ),
    ),
}


def find(result: dict[str, Any], cell: Cell) -> str:
    """What stands there."""
    for table in result["tables"]:
        if table["title"].startswith(cell.title):
            place = table["columns"].index(cell.column)
            # "DDF mul" is a row of its own beside "DDF mul, no FilterNorm".
            return next(row[place] for row in table["rows"] if row[0] == cell.row)
    raise LookupError(f"{result['example']}: there is no table {cell.title!r}")


def number(text: str) -> tuple[float, float]:
    """Mean and standard deviation of "1.2 ± 0.3"; of a number that was measured once, itself and zero."""
    found = re.fullmatch(r"(-?[\d.]+)(?: ± ([\d.]+))?", text)
    if found is None:
        raise ValueError(f"{text!r} is no number, and no mean with its spread")
    return float(found[1]), float(found[2] or 0)


def verdict(mean: float, error: float, sign: int) -> str:
    """What 95 % of such means would say, by t times the standard error."""
    if sign == 0 and abs(mean) > error:
        return f"there is a difference: {'larger' if mean > 0 else 'smaller'}"
    if sign == 0:
        return "no difference seen"
    if abs(mean) <= error:
        return "not told apart"
    return "as claimed" if mean * sign > 0 else "the reverse"


def row_of(claim: Claim, results: Path) -> list[str]:
    """The cells of a claim."""
    path = results / f"{claim.example}.json"
    if not path.exists():
        return [claim.claim, NOT_RUN, NOT_RUN, claim.differs, f"`{claim.example}.py`"]
    result = json.loads(path.read_text(encoding="utf-8"))
    texts = [find(result, claim.ours)]
    if isinstance(claim.against, Cell):
        texts.append(find(result, claim.against))
    values = [number(text) for text in texts]
    if isinstance(claim.against, float):
        values.append((claim.against, 0.0))
    # Two that are compared count as if seeds had nothing in common.
    mean = values[0][0] - sum(value for value, _ in values[1:])
    seeds = result["settings"]["seeds"]
    error = T95[seeds] * (sum(spread**2 for _, spread in values) / seeds) ** 0.5
    shown = f"{' against '.join(texts)}; {seeds} seeds"
    return [claim.claim, shown, verdict(mean, error, claim.sign), claim.differs, f"`{claim.example}.py`"]


def section(results: Path, claims: dict[str, tuple[Claim, ...]] | None = None) -> str:
    """A table for each paper."""
    columns: Sequence[str] = ("the paper's claim", "here", "verdict", "what differs", "example")
    return "\n\n".join(
        f"**{paper}**\n\n{markdown(columns, [row_of(claim, results) for claim in own])}"
        for paper, own in (claims or CLAIMS).items()
    )
