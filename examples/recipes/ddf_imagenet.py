"""ImageNet by DDF-ResNet: decoupled dynamic filters in the place of 3 x 3 convolutions.

    python examples/recipes/ddf_imagenet.py --data imagenet
    python examples/recipes/ddf_imagenet.py --data imagenet --evaluate FILE

Zhou et al., "Decoupled Dynamic Filter Networks", CVPR 2021. The settings are those of the command that they
published, and where it says nothing the defaults of their train.py and of timm 0.4.5, which it imports. Of
these, RandAugment, random erasing and ten more epochs at the lowest rate are left out.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from _imagenet import HELP, add_devkit, centre, data_sets, evaluate
from _recipe import load, make_trainer, parser, run, standardized

from autodiff import functions as F
from autodiff.data import augment
from autodiff.layers import DDFBottleneck
from autodiff.networks import ResNet, ddf_resnet50, ddf_resnet101
from autodiff.optim import SGD, cosine_schedule

NETWORKS = {"ddf_resnet50": ddf_resnet50, "ddf_resnet101": ddf_resnet101}


@dataclass(frozen=True)
class Settings:
    """Theirs."""

    epochs: int = 120
    warmup: int = 5  # epochs
    batch: int = 1024  # 128 on each of 8 GPUs
    lr: float = 0.4
    momentum: float = 0.9
    weight_decay: float = 1e-4
    smoothing: float = 0.1  # of labels
    side: int = 224
    share: float = 0.875  # of the shorter side, that is judged


QUICK = replace(Settings(), epochs=2, warmup=1, batch=2, lr=0.05, side=32)


def augmented(settings: Settings, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A random part in one size, perhaps mirrored."""
    sample = augment.random_resized_crop(sample, rng, (settings.side, settings.side))
    sample = augment.random_mirror(sample, rng)
    return {"image": standardized(sample["image"]), "label": sample["label"]}


def loss_of(smoothing: float, network: Any, images: Any, labels: Any) -> Any:
    """Cross entropy with a label that is shared among all classes to a small part."""
    scores = network(images)
    others = F.mean(F.log_softmax(scores, 1))
    return (1 - smoothing) * F.cross_entropy(scores, labels) - smoothing * others


def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate."""
    commands = parser("ddf_imagenet", __doc__ or "", HELP)
    add_devkit(commands)
    commands.add_argument("--network", choices=NETWORKS, default="ddf_resnet50")
    commands.add_argument("--combine", choices=("mul", "add"), default="mul", help="of the two filters")
    options = commands.parse_args(argv)
    settings = QUICK if options.quick else Settings()
    training, held_out = data_sets(options)
    given = {"classes": len(training.classes), "rng": options.seed}
    if options.quick:
        network = ResNet((1, 1), partial(DDFBottleneck, combine=options.combine), **given)
    else:
        network = NETWORKS[options.network](combine=options.combine, **given)
    prepared_by = partial(augmented, settings)
    with load(options, training, settings.batch, prepared_by, ("image", "label")) as loader:
        steps = len(loader)
        decay = settings.weight_decay
        trainer = make_trainer(
            options,
            network,
            SGD(network.parameters(), settings.lr, momentum=settings.momentum, weight_decay=decay),
            partial(loss_of, settings.smoothing),
            schedule=cosine_schedule(settings.lr, settings.epochs * steps, warmup=settings.warmup * steps),
        )
        length = round(settings.side / settings.share)
        prepare = partial(centre, length=length, side=settings.side)
        judged = partial(evaluate, held_out, prepare, min(settings.batch, 64))
        run(options, trainer, loader, settings.epochs * steps, judged)
    return 0


if __name__ == "__main__":
    sys.exit(main())
