"""Segmentation of PASCAL VOC 2012 by DSNet: context guided dynamic sampling over a ResNet.

    python examples/recipes/dsnet_voc.py --data VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset
    python examples/recipes/dsnet_voc.py --data VOCdevkit/VOC2012 --evaluate FILE

Fu et al., "Context Guided Dynamic Sampling", AAAI 2020. It trains on VOC and, with ``--sbd``, on the images
that Hariharan et al. (ICCV 2011) added; then, as a second stage, with ``--stage fine-tune --start FILE`` on
VOC alone. Weights of a backbone trained on ImageNet are those of torchvision or timm (``--weights``).

What the paper says is what `Settings` has. Its learning rates are odd: 0.01 for the backbone, which is
trained already, and a tenth of that for "the remaining parts", which are not. It may have meant the reverse:
``--rest 10 --lr 0.001`` is that. It does not say how much the auxiliary classifier weighs; 0.4 is what Zhao
et al. (CVPR 2017) have.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _recipe import Joined, load, load_checkpoint, make_trainer, parser, run
from _voc import CLASSES, IGNORED, counted, judge, random_part

from autodiff import functions as F
from autodiff.data import SBDSegmentation, VOCSegmentation, augment
from autodiff.layers import Module
from autodiff.networks import (
    DilatedResNet,
    DSNet,
    SmallBackbone,
    averaged_probabilities,
    dsnet_variant,
    load_published,
)
from autodiff.networks.dsnet_variants import SAMPLINGS
from autodiff.optim import SGD, poly_schedule


@dataclass(frozen=True)
class Settings:
    """Those of the paper."""

    epochs: int = 80
    batch: int = 32
    lr: float = 0.01  # of the backbone
    rest: float = 0.1  # of all other parts, relative to that
    power: float = 0.9
    momentum: float = 0.9
    weight_decay: float = 1e-4
    auxiliary_weight: float = 0.4
    crop: tuple[int, int] = (512, 512)
    scale: tuple[float, float] = (0.5, 2.0)
    scales: tuple[float, ...] = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)  # of the images that are judged


QUICK = replace(Settings(), epochs=2, batch=2, crop=(32, 32), scales=(1.0, 1.5))


def augmented(settings: Settings, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A part of the image, larger or smaller than it was, perhaps mirrored."""
    return random_part(augment.random_scale(sample, rng, *settings.scale), rng, settings.crop)


def loss_of(settings: Settings, network: Any, images: Any, labels: Any) -> Any:
    """Cross entropy of the classes, and of those of the auxiliary classifier."""
    main, auxiliary = (
        F.cross_entropy(scores, labels, ignore_index=IGNORED) for scores in network.scores(images)
    )
    return main + settings.auxiliary_weight * auxiliary


def evaluate(settings: Settings, samples: Sequence[Any], network: Any) -> dict[str, float]:
    """Mean intersection over union of whole images, over sizes and mirror images."""
    return judge(samples, partial(averaged_probabilities, network, scales=settings.scales))


def make(options: Any) -> tuple[DSNet, list[dict[str, Any]]]:
    """The network, and its parameters in two groups."""
    rng = np.random.default_rng(options.seed)
    if options.quick:
        backbone: Module = SmallBackbone((8, 8, 8), rng=rng)
        size: dict[str, Any] = {"width": 8, "dilations": (1, 2)}
    else:
        backbone, size = DilatedResNet(rng=rng), {}
        if options.weights:
            load_published(backbone, options.weights, without=["fc."])
    levels = {"low_stage": options.low, "guide_stage": options.guide}
    network = dsnet_variant(options.sampling, backbone, CLASSES, auxiliary=True, rng=rng, **levels, **size)
    inside = set(backbone.parameters())
    rest = [parameter for parameter in network.parameters() if parameter not in inside]
    groups = [{"parameters": backbone.parameters()}, {"parameters": rest, "lr_scale": options.rest}]
    return network, groups


def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate."""
    commands = parser("dsnet_voc", __doc__ or "", "the folder VOCdevkit/VOC2012")
    commands.add_argument("--sbd", type=Path, help="the folder benchmark_RELEASE/dataset")
    commands.add_argument("--sbd-split", default="train_noval", help="a list there (default: %(default)s)")
    commands.add_argument("--weights", type=Path, help="of a ResNet-50 that was trained on ImageNet")
    commands.add_argument("--stage", choices=("train", "fine-tune"), default="train")
    commands.add_argument("--start", type=Path, metavar="FILE", help="the checkpoint to fine-tune")
    commands.add_argument("--sampling", choices=SAMPLINGS, default="CGDS", help="what DSNet is compared with")
    levels = "maps of the backbone, 0 to 3 (in the paper X(2) to X(5))"
    commands.add_argument("--low", type=int, default=1, help=f"{levels}, that are sampled")
    commands.add_argument("--guide", type=int, help=f"{levels}, that guide instead of ASPP")
    commands.add_argument("--lr", type=float, default=Settings.lr, help="default: %(default)s")
    commands.add_argument("--rest", type=float, default=Settings.rest, help="default: %(default)s")
    options = commands.parse_args(argv)
    if (options.stage == "fine-tune") != (options.start is not None):
        commands.error("--stage fine-tune and --start FILE go together")
    settings = QUICK if options.quick else Settings()
    network, groups = make(options)
    if options.start:
        load_checkpoint(network, options.start)
    training: Sequence[Any] = VOCSegmentation(options.data, "train")
    if options.sbd and options.stage == "train":
        training = Joined(training, SBDSegmentation(options.sbd, options.sbd_split))
    prepared_by = partial(augmented, settings)
    with load(options, training, settings.batch, prepared_by, ("images", "labels")) as loader:
        iterations = settings.epochs * len(loader)
        trainer = make_trainer(
            options,
            network,
            SGD(groups, options.lr, momentum=settings.momentum, weight_decay=settings.weight_decay),
            partial(loss_of, settings),
            schedule=poly_schedule(options.lr, iterations, settings.power),
            weight=counted,
        )
        judged = partial(evaluate, settings, VOCSegmentation(options.data, "val"))
        run(options, trainer, loader, iterations, judged)
    return 0


if __name__ == "__main__":
    sys.exit(main())
