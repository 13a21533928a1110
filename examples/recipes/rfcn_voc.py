"""Detection on PASCAL VOC by R-FCN with a dynamic sampling convolution between features and heads.

    python examples/recipes/rfcn_voc.py --data VOCdevkit/VOC2007 --also VOCdevkit/VOC2012 --stage proposals
    python examples/recipes/rfcn_voc.py --data VOCdevkit/VOC2007 --also VOCdevkit/VOC2012 --proposals FILE
    python examples/recipes/rfcn_voc.py --data VOCdevkit/VOC2007 --proposals FILE --evaluate FILE

Wu et al., "Dynamic Filtering with Large Sampling Field for ConvNets", ECCV 2018, over Dai et al.,
"R-FCN", NeurIPS 2016. Region proposals are trained first and are then fixed. Judged is by the rule of
2007 on the test set of that year; ``--rule 2012 --judge val`` with ``--split train`` is for the folder of
2012 alone. Weights of a backbone trained on ImageNet are those of torchvision or timm for ResNet-101
(``--weights``). ``--plain`` leaves the dynamic sampling out.

What the papers say is what `Settings` has. They do not say how many images are in a step (here one, as in
the public implementation), nor for how long proposals are trained (here as long as the detector). As in
that implementation the stem, the first stage and all of batch normalisation in the backbone stay as they
were published.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _recipe import (
    Joined,
    load,
    load_checkpoint,
    make_trainer,
    parser,
    ranks,
    run,
    share,
    shortened,
    standardized,
)
from _voc import CLASSES

from autodiff.data import VOCDetection, augment
from autodiff.layers import BatchNorm2d, Module
from autodiff.metrics import Truth, box_iou, mean_average_precision
from autodiff.networks import RFCN, RPN, DilatedResNet, SmallBackbone, load_published
from autodiff.optim import SGD, step_schedule

FIELDS = "images", "boxes", "box_labels"
KINDS = CLASSES - 1  # without the background


@dataclass(frozen=True)
class Settings:
    """Those of the papers."""

    iterations: int = 110_000
    lr: float = 1e-3
    slower_after: int = 80_000  # steps; from there on a tenth of that
    batch: int = 1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    side: int = 600  # pixels of the shorter side of an image
    longest: int = 1000  # and at most of the longer one
    depths: tuple[int, ...] = (3, 4, 23, 3)
    stride: int = 16
    anchors: tuple[int, ...] = (128, 256, 512)  # pixels, in three shapes each
    width: int = 1024
    bins: int = 7
    regions: int = 300  # of an image
    smallest: int = 16  # pixels of a region
    mined: int = 128  # regions of an image that are learned from
    least: float = 0.05  # probability of what is reported


QUICK = replace(
    Settings(),
    iterations=4,
    lr=0.02,
    side=72,
    depths=(),
    stride=4,
    anchors=(16, 32),
    width=8,
    bins=3,
    regions=200,
    smallest=4,
    mined=16,
    least=0.0,
)
TINY = {"out_channels": 2, "features": 4, "post_channels": 4}  # of dynamic sampling, with --quick


def prepared(settings: Settings, sample: dict[str, Any]) -> dict[str, Any]:
    """The image at the size that networks see, and its boxes there."""
    sample = shortened(sample, settings.side, settings.longest)
    return {**sample, "images": standardized(sample["image"])}


def augmented(settings: Settings, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Perhaps mirrored, and without the objects that are difficult."""
    easy = ~sample["difficult"]
    kept = {name: sample[name][easy] for name in ("boxes", "box_labels")}
    return prepared(settings, augment.random_mirror({"image": sample["image"], **kept}, rng))


def backbone_of(options: Any, settings: Settings, stages: int, rng: np.random.Generator) -> Any:
    """So many stages of the backbone."""
    if options.quick:
        return SmallBackbone((8, 8), rng=rng)
    backbone = DilatedResNet(settings.depths[:stages], rng=rng)
    if options.weights:
        left_out = [f"layer{number + 1}." for number in range(stages, len(settings.depths))]
        load_published(backbone, options.weights, without=["fc.", *left_out])
    return backbone


def make_rpn(options: Any, settings: Settings) -> RPN:
    """Proposals, from what is before the last stage."""
    rng = np.random.default_rng([options.seed, 0])
    return RPN(
        backbone_of(options, settings, 3, rng),
        strides=(settings.stride,),
        sizes=(settings.anchors,),
        width=settings.width // 2,
        frozen_norm=True,
        rng=rng,
    )


def make_rfcn(options: Any, settings: Settings) -> RFCN:
    """The detector."""
    rng = np.random.default_rng([options.seed, 1])
    sampling = None if options.plain else TINY if options.quick else {}
    return RFCN(
        backbone_of(options, settings, 4, rng),
        KINDS,
        strides=(settings.stride,),
        bins=settings.bins,
        width=settings.width,
        sampling=sampling,
        frozen_norm=True,
        rng=rng,
    )


def trained(network: Module) -> list:
    """All parameters but those that stay as they were published."""
    backbone: Any = network.backbone  # type: ignore[attr-defined]
    fixed: list[Module] = [part for _, part in backbone.modules() if isinstance(part, BatchNorm2d)]
    if isinstance(backbone, DilatedResNet):
        fixed += [backbone.stem, backbone.stages[0]]
    staying = {parameter for part in fixed for parameter in part.parameters()}
    return [parameter for parameter in network.parameters() if parameter not in staying]


def proposed(settings: Settings, rpn: RPN, images: Any) -> list:
    """Regions of images."""
    return rpn.propose(images, most=settings.regions, least=settings.smallest)


def recall(settings: Settings, samples: Sequence[Any], network: Any) -> dict[str, float]:
    """The share of objects that a proposal overlaps by half."""
    found = []
    for sample in share(samples):
        seen = prepared(settings, sample)
        regions = proposed(settings, network, seen["images"][None])[0]
        reached = box_iou(regions, seen["boxes"]).max(0) if len(regions) else np.zeros(len(seen["boxes"]))
        found.append(reached >= 0.5)
    return {"recall": float(np.mean(np.concatenate(of_all_ranks(found, len(samples)))))}


def precision(
    settings: Settings, samples: Sequence[Any], rpn: RPN, rule: str, network: Any
) -> dict[str, float]:
    """Mean average precision of PASCAL VOC. Overlaps are the same at whichever size."""
    judged = []
    for sample in share(samples):
        seen = prepared(settings, sample)
        images = seen["images"][None]
        (found,) = network.detect(images, proposed(settings, rpn, images), least=settings.least)
        judged.append((found, Truth(seen["boxes"], seen["box_labels"], seen["difficult"])))
    every, there = zip(*of_all_ranks(judged, len(samples)))
    return {"mean_average_precision": mean_average_precision(every, there, KINDS, rule=rule)}


def of_all_ranks(own: list, count: int) -> list:
    """What was found in all of so many images, in their order, by ranks that looked at a `share` each."""
    every: list = [None] * count
    for rank, part in enumerate(ranks().gather(own)):
        every[rank :: ranks().size] = part
    return every


def stage_of(options: Any, settings: Settings) -> tuple[Any, Callable, Callable]:
    """What is trained, its loss, and how it is judged."""
    judged_by = VOCDetection(options.data, options.judge)
    rpn = make_rpn(options, settings)
    if options.stage == "proposals":
        return (
            rpn,
            lambda net, images, boxes, _: net.loss(images, boxes),
            partial(recall, settings, judged_by),
        )
    load_checkpoint(rpn, options.proposals)

    def loss(net: RFCN, images: Any, boxes: Any, labels: Any) -> Any:
        return net.loss(images, proposed(settings, rpn, images), boxes, labels, mined=settings.mined)

    return make_rfcn(options, settings), loss, partial(precision, settings, judged_by, rpn, options.rule)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate."""
    commands = parser("rfcn_voc", __doc__ or "", "the folder VOCdevkit/VOC2007")
    commands.add_argument("--also", type=Path, action="append", default=[], help="another folder to train on")
    commands.add_argument("--split", default="trainval", help="what is trained on (default: %(default)s)")
    commands.add_argument("--judge", default="test", help="what is judged by (default: %(default)s)")
    commands.add_argument("--rule", choices=("2007", "2012"), default="2007", help="of average precision")
    commands.add_argument("--weights", type=Path, help="of a ResNet-101 that was trained on ImageNet")
    commands.add_argument("--stage", choices=("proposals", "detect"), default="detect")
    commands.add_argument("--proposals", type=Path, metavar="FILE", help="the checkpoint of that stage")
    commands.add_argument("--plain", action="store_true", help="R-FCN without dynamic sampling")
    options = commands.parse_args(argv)
    if (options.stage == "detect") != (options.proposals is not None):
        commands.error("--proposals FILE is for the stage that detects, and needed there")
    if options.output == commands.get_default("output") and options.stage == "proposals":
        options.output = Path("rfcn_voc_proposals")
    settings = QUICK if options.quick else Settings()
    training = Joined(*(VOCDetection(folder, options.split) for folder in (options.data, *options.also)))
    network, loss, evaluate = stage_of(options, settings)
    with load(options, training, settings.batch, partial(augmented, settings), FIELDS) as loader:
        decay, momentum = settings.weight_decay, settings.momentum
        optimizer = SGD(trained(network), settings.lr, momentum=momentum, weight_decay=decay)
        schedule = step_schedule(settings.lr, settings.slower_after)
        trainer = make_trainer(options, network, optimizer, loss, schedule=schedule)
        run(options, trainer, loader, settings.iterations, evaluate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
