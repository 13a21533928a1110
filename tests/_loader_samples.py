"""Data sets for the tests of the loader, whose workers import this module."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from autodiff.data._reading import Samples
from autodiff.data.augment import random_crop, random_mirror
from autodiff.files import FileError


def numbered(count):
    """Samples that say their number."""
    return Samples([f"name {index}" for index in range(count)], one)


def one(index):
    image = np.full((3, 8, 9), index, np.float32) + np.arange(9, dtype=np.float32) / 16
    return {
        "image": image,
        "labels": np.full((8, 9), index % 21, np.uint8),
        "number": index,
        "name": f"s{index}",
    }


def augmented(sample, rng):
    return {**random_crop(random_mirror(sample, rng), rng, (4, 4)), "drawn": rng.random()}


class Troubled:
    """Eight samples, one of which makes trouble of a kind."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            if self.kind == "file":
                raise FileError("a folder/00005.png: is cut short")
            if self.kind == "strange":
                raise Strange(1, 2)
            if self.kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.kind == "exits":
                os._exit(3)
            return {"image": np.zeros((3, 3)), "number": index}
        return {"image": np.zeros((2, 2)), "number": index}


class Strange(Exception):
    """Cannot be made again from what a pickle keeps of it."""

    def __init__(self, first, second):
        super().__init__(f"strange {first} {second}")


class Watched:
    """Leaves a file for each sample that is read."""

    def __init__(self, folder, count):
        self.folder, self.count = str(folder), count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        Path(self.folder, f"{index}").touch()
        return {"number": index, "process": os.getpid()}


class Homeless:
    """Data that can be sent to a worker, but not be made again there."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"number": index}

    def __reduce__(self):
        return refuse, ()


def refuse():
    raise OSError("no such disk here")


def wait_until(condition, patience=60.0):
    """Whether a condition comes true in time."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
