"""AlexNets of displaced units, and of kernels, as two recipes ask for them on the command line."""

import argparse
from typing import Any

from autodiff.networks import AlexNet, alexnet, dau_alexnet

TINY = {"channels": (4, 4, 4, 4, 4), "hidden": 8}


def add_units(commands: argparse.ArgumentParser) -> None:
    """How many units there are, how fast they move, and how far."""
    commands.add_argument("--size", choices=("small", "medium", "large", "none"), default="medium")
    commands.add_argument("--displacement-rate", type=float, default=10.0, help="default: %(default)s")
    commands.add_argument("--bound", type=float, default=8.0, help="default: %(default)s")


def make_alexnet(options: argparse.Namespace, classes: int) -> AlexNet:
    """Of units, or with ``--size none`` of kernels; a tiny one with ``--quick``."""
    given: dict[str, Any] = {"classes": classes, "rng": options.seed, **(TINY if options.quick else {})}
    if options.size == "none":
        return alexnet(**given)
    layer = {"displacement_rate": options.displacement_rate, "bound": options.bound}
    return dau_alexnet(options.size, layer=layer, **given)
