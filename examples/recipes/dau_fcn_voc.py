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
from _recipe import IMAGENET_MEAN, Joined, load_checkpoint, parser, run, standardized

from autodiff import functions as F
from autodiff.data import Loader, SBDSegmentation, VOCSegmentation, augment
from autodiff.layers import parameter_groups, project
from autodiff.metrics import Confusion
from autodiff.networks import AlexNetFCN, alexnet, dau_alexnet
from autodiff.optim import SGD
from autodiff.train import Trainer

CLASSES, IGNORED = 21, 255


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
    """The image in a frame of mean grey that does not count, perhaps mirrored."""
    fill = 255 * np.array(IMAGENET_MEAN)
    sample = augment.random_crop(sample, rng, settings.crop, fill=fill, ignore=IGNORED)
    sample = augment.random_mirror(sample, rng)
    return {"images": standardized(sample["image"]), "labels": sample["labels"].astype(np.int64)}


def loss_of(network: Any, images: Any, labels: Any) -> Any:
    """Cross entropy of the pixels that count; units beyond their bound are brought back first."""
    project(network)
    return F.cross_entropy(network(images), labels, ignore_index=IGNORED)


def evaluate(samples: Sequence[Any], network: Any) -> dict[str, float]:
    """Mean intersection over union of whole images."""
    confusion = Confusion(CLASSES, ignore=IGNORED)
    for sample in samples:
        scores = network(standardized(sample["image"])[None]).data
        confusion.add(scores[0].argmax(0), sample["labels"])
    return {"mean_iou": confusion.mean_iou, "pixel_accuracy": confusion.pixel_accuracy}


def make(options: Any, settings: Settings) -> AlexNetFCN:
    """The network that was trained on ImageNet, or one that was not, made fully convolutional."""
    tiny = {"channels": (4, 4, 4, 4, 4), "hidden": 8} if options.quick else {}
    given = {"classes": settings.classes, "rng": options.seed, **tiny}
    if options.size == "none":
        network = alexnet(**given)
    else:
        layer = {"displacement_rate": options.displacement_rate, "bound": options.bound}
        network = dau_alexnet(options.size, layer=layer, **given)
    if options.start:
        load_checkpoint(network, options.start)
    return AlexNetFCN(network, CLASSES, hidden=tiny.get("hidden", 4096), rng=options.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate."""
    commands = parser(__doc__ or "", "the folder VOCdevkit/VOC2011")
    commands.add_argument("--sbd", type=Path, help="the folder benchmark_RELEASE/dataset")
    commands.add_argument("--start", type=Path, metavar="FILE", help="a checkpoint of dau_imagenet.py")
    commands.add_argument("--size", choices=("small", "medium", "large", "none"), default="medium")
    commands.add_argument("--displacement-rate", type=float, default=10.0, help="default: %(default)s")
    commands.add_argument("--bound", type=float, default=8.0, help="default: %(default)s")
    options = commands.parse_args(argv)
    options.output = options.output or Path("dau_fcn_voc")
    settings = QUICK if options.quick else Settings()
    network = make(options, settings)
    training: Sequence[Any] = VOCSegmentation(options.data, "train")
    if options.sbd:
        training = Joined(training, SBDSegmentation(options.sbd, "train_noval"))
    decay = settings.weight_decay
    trainer = Trainer(
        network,
        SGD(parameter_groups(network), settings.lr, momentum=settings.momentum, weight_decay=decay),
        loss_of,
        seed=options.seed,
    )
    with Loader(
        training,
        settings.batch,
        transform=partial(augmented, settings),
        fields=("images", "labels"),
        drop_last=True,
        workers=options.workers,
    ) as loader:
        judged = partial(evaluate, VOCSegmentation(options.data, "val"))
        found = run(options, trainer, loader, settings.iterations, judged)
    print("  ".join(f"{name} {value:.6g}" for name, value in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
