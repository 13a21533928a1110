"""Optical flow on FlyingChairs with a dynamic sampling convolution in FlowNetS, as DSCNN did it.

    python examples/recipes/dscnn_flyingchairs.py --data FlyingChairs_release
    python examples/recipes/dscnn_flyingchairs.py --data FlyingChairs_release --evaluate FILE

Wu et al., "Dynamic Filtering with Large Sampling Field for ConvNets", ECCV 2018, section 4.2, over
Dosovitskiy et al., "FlowNet", ICCV 2015. It trains for weeks on a CPU; a run that was stopped goes on where
its last checkpoint was written, to the same bits.

What the papers say is what `Settings` has. They do not say where the layer is "inserted" (``--placement``),
nor how the schedule of FlowNet, 600k steps of 8 pairs, is brought to half as many of 16: here its times are
halved. FlowNet also turns and shifts the images; of its geometric augmentation only the scale is here.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from _recipe import load, make_trainer, parser, ranks, run, share

from autodiff.data import FlyingChairs, augment
from autodiff.layers import Module
from autodiff.metrics import end_point_error
from autodiff.networks import FlowNetS, flownet, multi_scale_error
from autodiff.optim import Adam

MEAN = 0.43  # of the images, about: what is taken off


@dataclass(frozen=True)
class Settings:
    """Those of the papers."""

    iterations: int = 300_000
    batch: int = 16  # twice FlowNet's
    lr: float = 1e-4
    halve_after: int = 150_000  # steps; and from there on every
    halve_every: int = 50_000
    weight_decay: float = 4e-4
    crop: tuple[int, int] = (320, 448)  # rows and columns
    scale: tuple[float, float] = (0.9, 2.0)  # FlowNet's range
    channels: tuple[int, ...] = flownet.CHANNELS
    expanded: tuple[int, ...] = flownet.EXPANDED
    samples: int = 7
    sample_stride: int = 2
    outputs: int = 24
    post_channels: int = 128


QUICK = replace(
    Settings(),
    iterations=4,
    batch=2,
    crop=(64, 64),
    channels=(8, 8, 8, 8),
    expanded=(8, 8),
    samples=3,
    outputs=4,
    post_channels=8,
)


def prepared(sample: dict[str, Any]) -> dict[str, Any]:
    """Both images as channels of one, about zero."""
    pair = np.concatenate([sample["image"], sample["second"]])
    pair = pair.astype(np.float32) / 255 if pair.dtype == np.uint8 else pair
    return {"images": pair - np.float32(MEAN), "flow": sample["flow"]}


def augmented(settings: Settings, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A part of the images, larger or smaller than it was, in other colours."""
    sample = augment.random_scale(sample, rng, *settings.scale)
    sample = augment.random_crop(sample, rng, settings.crop)
    return prepared(augment.random_colors(sample, rng))


def loss_of(network: Module, images: Any, flow: Any) -> Any:
    """The loss of FlowNet; weights of the coarsest sizes if there are fewer than in the paper."""
    flows = network(images)
    weights = flownet.SCALE_WEIGHTS[: len(flows)]
    return multi_scale_error(flows, flow, weights=weights)


def learning_rate(settings: Settings, step: int) -> float:
    """Halved after some steps, and again and again."""
    late = step - settings.halve_after
    return settings.lr if late < 0 else settings.lr * 0.5 ** (1 + late // settings.halve_every)


def evaluate(samples: FlyingChairs, network: Any) -> dict[str, float]:
    """Mean end-point error over the pairs of the validation part, at their full size."""
    total = 0.0
    for sample in share(samples):
        pair = prepared(sample)
        total += end_point_error(network.predict(pair["images"][None])[0], pair["flow"])
    return {"end_point_error": ranks().sum(total) / len(samples)}


def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate."""
    commands = parser("dscnn_flyingchairs", __doc__ or "", "the folder FlyingChairs_release")
    commands.add_argument("--placement", choices=flownet.PLACEMENTS, default="beside")
    commands.add_argument("--plain", action="store_true", help="FlowNetS without the layer, to compare with")
    options = commands.parse_args(argv)
    settings = QUICK if options.quick else Settings()
    sampling = {
        "samples": settings.samples,
        "sample_stride": settings.sample_stride,
        "out_channels": settings.outputs,
        "post_channels": settings.post_channels,
    }
    network = FlowNetS(
        settings.channels,
        settings.expanded,
        sampling=None if options.plain else sampling,
        placement=options.placement,
        rng=options.seed,
    )
    optimizer = Adam(network.parameters(), settings.lr, weight_decay=settings.weight_decay)
    trainer = make_trainer(options, network, optimizer, loss_of, schedule=partial(learning_rate, settings))
    training, held_out = (FlyingChairs(options.data, part) for part in ("train", "val"))
    prepared_by = partial(augmented, settings)
    with load(options, training, settings.batch, prepared_by, ("images", "flow")) as loader:
        run(options, trainer, loader, settings.iterations, partial(evaluate, held_out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
