"""ImageNet by AlexNet whose convolutions are displaced aggregation units.

    python examples/recipes/dau_imagenet.py --data imagenet --size small
    python examples/recipes/dau_imagenet.py --data imagenet --size none      # AlexNet, to compare with

Tabernik et al., "Spatially-Adaptive Filter Units for Deep Neural Networks", CVPR 2018. What is not said there
is as AlexNet is trained with Caffe, in which they worked: 256 pixels on the shorter side, parts of 227, a
rate of 0.01 that falls to a tenth every 100,000 steps of 256 images. Units learn their displacements faster
than their weights (``--displacement-rate``), do not decay, and stay within ``--bound`` pixels.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from _imagenet import HELP, add_devkit, centre, data_sets, evaluate
from _recipe import load, make_trainer, parser, run, shortened, standardized
from _units import add_units, make_alexnet

from autodiff import functions as F
from autodiff.data import augment
from autodiff.layers import parameter_groups
from autodiff.optim import SGD, step_schedule


@dataclass(frozen=True)
class Settings:
    """Those of AlexNet."""

    iterations: int = 360_000
    batch: int = 256
    lr: float = 0.01
    lower_every: int = 100_000
    momentum: float = 0.9
    weight_decay: float = 5e-4
    length: int = 256  # of the shorter side
    side: int = 227


QUICK = replace(Settings(), iterations=4, batch=2, length=240)


def augmented(settings: Settings, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A part of the image, perhaps mirrored."""
    sample = augment.random_crop(shortened(sample, settings.length), rng, (settings.side,) * 2)
    sample = augment.random_mirror(sample, rng)
    return {"image": standardized(sample["image"]), "label": sample["label"]}


def loss_of(network: Any, images: Any, labels: Any) -> Any:
    """Cross entropy."""
    return F.cross_entropy(network(images), labels)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate."""
    commands = parser("dau_imagenet", __doc__ or "", HELP)
    add_devkit(commands)
    add_units(commands)
    options = commands.parse_args(argv)
    settings = QUICK if options.quick else Settings()
    training, held_out = data_sets(options)
    network, decay = make_alexnet(options, len(training.classes)), settings.weight_decay
    trainer = make_trainer(
        options,
        network,
        SGD(parameter_groups(network), settings.lr, momentum=settings.momentum, weight_decay=decay),
        loss_of,
        schedule=step_schedule(settings.lr, settings.lower_every),
    )
    prepared_by = partial(augmented, settings)
    with load(options, training, settings.batch, prepared_by, ("image", "label")) as loader:
        prepare = partial(centre, length=settings.length, side=settings.side)
        judged = partial(evaluate, held_out, prepare, min(settings.batch, 64))
        run(options, trainer, loader, settings.iterations, judged)
    return 0


if __name__ == "__main__":
    sys.exit(main())
