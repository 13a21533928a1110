"""What recipes on ImageNet share: its folders, and how a network is judged."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _recipe import ranks, shortened, standardized

from autodiff import distributed
from autodiff.data import ImageFolder, ImageNetValidation, augment
from autodiff.metrics import top_k_accuracy
from autodiff.variable import plain

HELP = "the folder with train/n01440764/..., ... and val"


def add_devkit(commands: argparse.ArgumentParser) -> None:
    """Where the labels of validation images are, if these lie in one folder."""
    commands.add_argument("--devkit", type=Path, help="ILSVRC2012_devkit_t12, if val has no folders")


def data_sets(options: argparse.Namespace) -> tuple[ImageFolder, Sequence[Any]]:
    """To train on, and to judge by."""
    held_out = options.data / "val"
    if options.devkit:
        return ImageFolder(options.data / "train"), ImageNetValidation(held_out, options.devkit)
    return ImageFolder(options.data / "train"), ImageFolder(held_out)


def centre(sample: dict[str, Any], length: int, side: int) -> np.ndarray:
    """The middle of an image whose shorter side has `length` pixels."""
    sample = shortened(sample, length)
    high, wide = augment.size_of(sample)
    return standardized(augment.crop(sample, ((high - side) // 2, (wide - side) // 2), (side, side))["image"])


def evaluate(
    samples: Sequence[Any], prepare: Callable[[dict[str, Any]], np.ndarray], batch: int, network: Any
) -> dict[str, float]:
    """Shares of images whose class is the highest score, or one of the five highest."""
    right, own = np.zeros(2, np.int64), range(len(samples))[distributed.shard(len(samples), ranks())]
    for start in range(0, len(own), batch):
        rows = own[start : start + batch]
        found = plain(network(np.stack([prepare(samples[row]) for row in rows])))
        labels = np.asarray(samples.labels)[list(rows)]
        shares = [top_k_accuracy(found, labels, min(k, found.shape[1])) for k in (1, 5)]
        right += np.rint(np.multiply(shares, len(rows))).astype(np.int64)
    return dict(zip(("top_1", "top_5"), (ranks().sum(right) / len(samples)).tolist()))
