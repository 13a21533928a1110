"""Segmentation of PASCAL VOC 2011 by an AlexNet of displaced units, against its dilated twin.

    python examples/recipes/dau_fcn_voc.py --data VOCdevkit/VOC2011 --start FILE     # of dau_imagenet.py
    python examples/recipes/dau_fcn_voc.py --data VOCdevkit/VOC2011 --size none      # kernels, dilated

Tabernik et al., "Spatially-Adaptive Filter Units for Deep Neural Networks", CVPR 2018, over Long et al.,
"Fully Convolutional Networks", CVPR 2015. A network that was trained on ImageNet loses its last two poolings;
units move apart instead (see `autodiff.networks.AlexNetFCN`). What the paper does not say, the decay and the
number of steps, is as in AlexNet's training and in Long et al.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _recipe import Joined, load, load_checkpoint, make_trainer, parser, run
from _units import TINY, add_units, make_alexnet
from _voc import CLASSES, IGNORED, counted, judge, random_part

from autodiff import functions as F
from autodiff.data import SBDSegmentation, VOCSegmentation
from autodiff.layers import parameter_groups
from autodiff.networks import AlexNetFCN
from autodiff.optim import SGD


@dataclass(frozen=True)
class Settings:
    """Those of the paper."""

    iterations: int = 100_000
    batch: int = 20
    lr: float = 0.0002  # from the first step to the last
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop: tuple[int, int] = (500, 500)  # as large as the images, so that they fit into one batch
    classes: int = 1000  # of the network that was trained before


QUICK = replace(Settings(), iterations=4, batch=2, lr=0.02, crop=(40, 40))


def augmented(settings: Settings, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The image in a frame that does not count, perhaps mirrored."""
    return random_part(sample, rng, settings.crop)


def loss_of(network: Any, images: Any, labels: Any) -> Any:
    """Cross entropy of the pixels that count."""
    return F.cross_entropy(network(images), labels, ignore_index=IGNORED)


def evaluate(samples: Sequence[Any], network: Any) -> dict[str, float]:
    """Mean intersection over union of whole images."""
    return judge(samples, lambda seen: network(seen).data)


def make(options: Any, settings: Settings) -> AlexNetFCN:
    """The network that was trained on ImageNet, or one that was not, made fully convolutional."""
    network = make_alexnet(options, settings.classes)
    if options.start:
        load_checkpoint(network, options.start)
    return AlexNetFCN(network, CLASSES, hidden=TINY["hidden"] if options.quick else 4096, rng=options.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate."""
    commands = parser("dau_fcn_voc", __doc__ or "", "the folder VOCdevkit/VOC2011")
    commands.add_argument("--sbd", type=Path, help="the folder benchmark_RELEASE/dataset")
    commands.add_argument("--start", type=Path, metavar="FILE", help="a checkpoint of dau_imagenet.py")
    add_units(commands)
    options = commands.parse_args(argv)
    settings = QUICK if options.quick else Settings()
    network = make(options, settings)
    training: Sequence[Any] = VOCSegmentation(options.data, "train")
    if options.sbd:
        training = Joined(training, SBDSegmentation(options.sbd, "train_noval"))
    decay = settings.weight_decay
    trainer = make_trainer(
        options,
        network,
        SGD(parameter_groups(network), settings.lr, momentum=settings.momentum, weight_decay=decay),
        loss_of,
        weight=counted,
    )
    prepared_by = partial(augmented, settings)
    with load(options, training, settings.batch, prepared_by, ("images", "labels")) as loader:
        judged = partial(evaluate, VOCSegmentation(options.data, "val"))
        run(options, trainer, loader, settings.iterations, judged)
    return 0


if __name__ == "__main__":
    sys.exit(main())
