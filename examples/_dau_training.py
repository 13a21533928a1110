"""What dau_classification.py trains: small networks of convolutions or of units, on small real images."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from _study import run
from skimage.data import lfw_subset
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from autodiff import files
from autodiff import functions as F
from autodiff.layers import (
    BatchNorm2d,
    Conv2d,
    DisplacedConv,
    Flatten,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
    parameter_groups,
    project,
)
from autodiff.layers.displaced import Units
from autodiff.optim import AdamW, cosine_schedule
from autodiff.train import Trainer, minibatches

TRAINED_ON = {"digits": 300, "faces": 20}  # images; the others are held out
WIDTHS = {"digits": (12, 20, 20), "faces": (12, 16, 24)}
NOISE = {"digits": 0.8, "faces": 0.0}  # of images whose deviation is one: digits alone leave no room above
BATCH = {"digits": 25, "faces": 10}
WATCHED = 300  # held-out images that are looked at after each epoch; in the end it is all of them
SHOWN = "displacement", "weight"  # of units, in pictures
THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Setting:
    """What one training depends on, besides its seed."""

    data: str = "digits"
    kernel: int = 0  # of ordinary convolutions; 0 for units
    units: tuple[int, int] = (2, 2)
    sigma: float = 0.5
    learn_sigma: bool = False
    gradient: str = "exact"
    fixed: bool = False  # whether units stay on the grid
    lr: float = 1e-2
    epochs: int = 20
    prune: bool = False  # whether to remove units after training
    held_out: int | None = None  # how many images to judge by, instead of all that are not trained on

    @property
    def name(self) -> str:
        """The kind of network, for tables."""
        if self.kernel:
            return f"convolution {self.kernel}x{self.kernel}"
        count = self.units[0] * self.units[1]
        return f"{count} unit{'s' if count > 1 else ''}"


@dataclass(frozen=True)
class Outcome:
    """What one training led to. Numbers are kept; units too where a picture shows them."""

    accuracy: float  # on held-out images, in the end
    curve: Any  # on some of them, after each epoch
    loss: Any  # mean over each epoch
    parameters: int  # of the layers that are compared
    sigmas: Any  # of the layers of units, after training
    pruned: Any  # by threshold: units left, held-out accuracy
    places: (
        Any  # of each layer of units, of all and the strongest: distance at the start and now, share outside
    )


@cache
def load(data: str, seed: int) -> list[np.ndarray]:
    """Images (N, 1, H, W) of standard deviation 1 and labels (N,): to train on, and held out."""
    if data == "digits":
        digits = load_digits()
        images, labels = digits.images, digits.target
    else:
        images = lfw_subset()  # the first hundred are faces, the others are not
        labels = np.repeat((1, 0), 100)
    images = ((images - images.mean()) / images.std())[:, None].astype(np.float32)
    images = images + NOISE[data] * np.random.default_rng(seed).standard_normal(images.shape, np.float32)
    parts = train_test_split(images, labels, train_size=TRAINED_ON[data], stratify=labels, random_state=seed)
    train_images, test_images, train_labels, test_labels = parts
    return [train_images, train_labels, test_images, test_labels]


def compared_layer(setting: Setting, before: int, after: int, rng: np.random.Generator) -> Module:
    """A convolution, or the units that take its place. They start within 5 x 5 pixels."""
    if setting.kernel:
        return Conv2d(before, after, setting.kernel, bias=False, rng=rng)
    return DisplacedConv(
        before,
        after,
        setting.units,
        extent=2,
        sigma=setting.sigma,
        learn_sigma=setting.learn_sigma,
        bias=False,
        displacement_rate=10,
        bound=6,
        displacement_gradient=setting.gradient,
        rng=rng,
    )


def make(setting: Setting, seed: int) -> Sequential:
    """Three layers; the first is an ordinary convolution in every network, as in the paper."""
    rng = np.random.default_rng(seed)
    first, second, third = WIDTHS[setting.data]
    faces = setting.data == "faces"
    classes, size = (2, 6) if faces else (10, 4)
    return Sequential(
        Conv2d(1, first, 3, bias=False, rng=rng),
        BatchNorm2d(first),
        ReLU(),
        *([MaxPool2d(2)] if faces else []),
        compared_layer(setting, first, second, rng),
        BatchNorm2d(second),
        ReLU(),
        MaxPool2d(2),
        compared_layer(setting, second, third, rng),
        BatchNorm2d(third),
        ReLU(),
        Flatten(),
        Linear(third * size * size, classes, rng=rng),
    )


def compared(network: Module) -> list[Module]:
    """The two layers that are convolutions in one network and units in another."""
    layers = [layer for _, layer in network.modules() if isinstance(layer, Conv2d | DisplacedConv)]
    return layers[1:]


def accuracy(network: Module, images: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of images whose class the network names."""
    right = [
        (network(images[i : i + 200]).data.argmax(1) == labels[i : i + 200]).sum()
        for i in range(0, len(images), 200)
    ]
    return float(sum(right) / len(images))


def groups_of(network: Module, fixed: bool) -> list[dict]:
    """What is trained; without the displacements if they are to stay."""
    groups = parameter_groups(network)
    if fixed:
        placed = {layer.displacement for layer in compared(network)}
        groups = [g for g in groups if all(p not in placed for p in g["parameters"])]
    return groups


def train(setting: Setting, seed: int, folder: Path | None = None) -> dict[str, Any]:
    """Train one network, look at its units, and prune them more and more: an `Outcome`, by names.

    The units go into the folder.
    """
    images, labels, *others = load(setting.data, seed)
    held_out = [array[: setting.held_out] for array in others]
    network = make(setting, seed)
    optimizer = AdamW(groups_of(network, setting.fixed), weight_decay=0.05)
    batch = BATCH[setting.data]
    steps = setting.epochs * -(-len(images) // batch)
    watched = [array[:WATCHED] for array in held_out]
    trainer = Trainer(
        network,
        optimizer,
        lambda net, x, y: F.cross_entropy(net(x), y),
        schedule=cosine_schedule(setting.lr, steps, warmup=steps // 20),
        seed=seed,
        after_step=project,
    )
    start = [layer.displacements() for layer in displaced_layers(network)]
    history = trainer.fit(
        minibatches(batch, images, labels),
        setting.epochs,
        evaluate=lambda net: {"accuracy": accuracy(net, *watched)},
        progress=False,
    )
    layers, displaced = compared(network), displaced_layers(network)
    units = [layer.displacements() for layer in displaced]
    if folder is not None:
        arrays = {f"{n}: {name}": getattr(each, name) for n, each in enumerate(units) for name in SHOWN}
        files.save(units_file(setting, seed, folder), arrays)
    found = Outcome(
        accuracy(network, *held_out),
        [line["accuracy"] for line in history],
        [line["loss"] for line in history],
        sum(layer.num_parameters for layer in layers),
        [float(layer.sigma) for layer in displaced],
        prune(network, displaced, held_out) if setting.prune else [],
        [reach(*each) for each in zip(start, units)],
    )
    return asdict(found)


def displaced_layers(network: Module) -> list[DisplacedConv]:
    """Those of the compared layers that are of units."""
    return [layer for layer in compared(network) if isinstance(layer, DisplacedConv)]


def reach(start: Units, end: Units) -> list[list[float]]:
    """Of all units and of the strongest tenth, mean distances at the start and now, percent outside of it.

    They start within 2.5 pixels along each axis.
    """
    weight, rows = np.abs(end.weight), []
    first, last = (np.hypot(*units.displacement.astype(np.float64).T) for units in (start, end))
    outside = np.abs(end.displacement).max(axis=1) > 2.5
    for least in (0.0, 0.9):
        strong = weight >= np.quantile(weight, least)
        rows.append([float(first.mean()), float(last[strong].mean()), 100 * float(outside[strong].mean())])
    return rows


def units_file(setting: Setting, seed: int, folder: Path) -> Path:
    """Where units are until the picture is drawn."""
    digest = hashlib.sha256(repr(setting).encode()).hexdigest()[:12]
    return folder / f"{digest}-{seed}.safetensors"


def units_of(setting: Setting, seed: int, folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Displacements and weights of each layer; what only has its numbers kept is trained again."""
    path = units_file(setting, seed, folder)
    if not path.exists():
        train(setting, seed, folder)
    arrays = files.load(path)[0]
    return [(arrays[f"{n}: displacement"], arrays[f"{n}: weight"]) for n in range(2)]


def prune(
    network: Module, layers: list[DisplacedConv], held_out: list[np.ndarray]
) -> list[tuple[int, float]]:
    """Remove more and more units: how many are left, and what the network can still do."""
    found = []
    for threshold in THRESHOLDS:
        for layer in layers:
            layer.prune(threshold)
        found.append((sum(layer.num_units for layer in layers), accuracy(network, *held_out)))
    return found


def train_all(
    settings: Iterable[Setting], seeds: Sequence[int], shown: Sequence[Setting], folder: Path, **how: Any
) -> dict[Setting, list[Outcome]]:
    """Every setting once per seed; the units of those that are shown go into the folder."""
    wanted = list(dict.fromkeys(settings))
    jobs = {
        (described(setting), seed): (setting, seed, folder if setting in shown else None)
        for seed in seeds
        for setting in wanted
    }
    results = run(train, jobs, **how)
    return {
        setting: [Outcome(**results[described(setting), seed]) for seed in seeds]  # type: ignore[arg-type]
        for setting in wanted
    }


def described(setting: Setting) -> str:
    """What is not as usual of it."""
    changed = [f.name for f in fields(setting) if getattr(setting, f.name) != f.default]
    return ", ".join([setting.name, *(f"{name} {getattr(setting, name)}" for name in changed)])
