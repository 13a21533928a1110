"""CIFAR-10 by three layers of displaced aggregation units.

    python examples/recipes/dau_cifar10.py --data cifar-10-batches-bin --units 2 2
    python examples/recipes/dau_cifar10.py --data cifar-10-batches-bin --kernel 3     # kernels instead

Tabernik et al., "Spatially-Adaptive Filter Units for Deep Neural Networks", CVPR 2018, whose Tables 1 and 2
ask how wide the units should be (``--sigma``) and how many a filter needs (``--units``). The settings are
those of the authors' example for CIFAR-10: 256 images of 24 x 24 pixels, cut out and mirrored at random, and
Adam at a rate of 0.01; units stay within 6 pixels. It ends after 20,000 batches, and leaves ``--sigma`` at
0.5.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from _imagenet import centre, evaluate
from _recipe import load, make_trainer, parser, run, standardized
from _units import add_moves, moves

from autodiff import functions as F
from autodiff.data import CIFAR10, augment
from autodiff.layers import parameter_groups
from autodiff.networks import dau_cifar10
from autodiff.networks.dau_cifar10 import CHANNELS, SIGMA
from autodiff.optim import Adam


@dataclass(frozen=True)
class Settings:
    """Those of the authors' example."""

    epochs: int = 100
    batch: int = 256
    lr: float = 0.01
    side: int = 24
    channels: tuple[int, ...] = CHANNELS


QUICK = replace(Settings(), epochs=2, batch=4, channels=(4, 4, 4))


def augmented(settings: Settings, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A part of the image, perhaps mirrored."""
    sample = augment.random_mirror(augment.random_crop(sample, rng, (settings.side,) * 2), rng)
    return {"image": standardized(sample["image"]), "label": sample["label"]}


def loss_of(network: Any, images: Any, labels: Any) -> Any:
    """Cross entropy."""
    return F.cross_entropy(network(images), labels)


def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate."""
    commands = parser("dau_cifar10", __doc__ or "", "the folder cifar-10-batches-bin")
    commands.add_argument("--units", type=int, nargs=2, default=(2, 2), help="rows and columns of a filter")
    commands.add_argument("--kernel", type=int, help="size of ordinary kernels instead of units")
    commands.add_argument("--sigma", type=float, default=SIGMA, help="of the units (default: %(default).4f)")
    add_moves(commands, rate=1.0, bound=6.0)
    options = commands.parse_args(argv)
    settings = QUICK if options.quick else Settings()
    network = dau_cifar10(
        tuple(options.units),
        kernel_size=options.kernel,
        channels=settings.channels,
        side=settings.side,
        layer={"sigma": options.sigma, **moves(options)},
        rng=options.seed,
    )
    training, held_out = (CIFAR10(options.data, train=train) for train in (True, False))
    trainer = make_trainer(options, network, Adam(parameter_groups(network), settings.lr), loss_of)
    with load(options, training, settings.batch, partial(augmented, settings), ("image", "label")) as loader:
        prepare = partial(centre, length=32, side=settings.side)
        judged = partial(evaluate, held_out, prepare, 256)
        run(options, trainer, loader, settings.epochs * len(loader), judged)
    return 0


if __name__ == "__main__":
    sys.exit(main())
