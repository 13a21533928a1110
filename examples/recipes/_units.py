"""Networks of displaced units, and of kernels, as recipes ask for them on the command line."""

import argparse
from typing import Any

from autodiff.networks import AlexNet, alexnet, dau_alexnet

TINY = {"channels": (4, 4, 4, 4, 4), "hidden": 8}


def add_units(commands: argparse.ArgumentParser) -> None:
    """How many units there are, how fast they move, and how far."""
    commands.add_argument("--size", choices=("small", "medium", "large", "none"), default="medium")
    add_moves(commands)


def add_moves(commands: argparse.ArgumentParser, rate: float = 10.0, bound: float = 8.0) -> None:
    """How fast units move, and how far."""
    commands.add_argument("--displacement-rate", type=float, default=rate, help="default: %(default)s")
    commands.add_argument("--bound", type=float, default=bound, help="default: %(default)s")


def make_alexnet(options: argparse.Namespace, classes: int) -> AlexNet:
    """Of units, or with ``--size none`` of kernels; a tiny one with ``--quick``."""
    given: dict[str, Any] = {"classes": classes, "rng": options.seed, **(TINY if options.quick else {})}
    if options.size == "none":
        return alexnet(**given)
    return dau_alexnet(options.size, layer=moves(options), **given)


def moves(options: argparse.Namespace) -> dict[str, Any]:
    """Options of the layers, of those that `add_moves` asks for."""
    return {"displacement_rate": options.displacement_rate, "bound": options.bound}
