"""What detection.py trains: proposals once for each seed, and detectors that all get the same of them."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _detection_scenes import CLASSES, drawn, held_out
from _study import Found, Key, run

import dynarray as dyn
from autodiff.data import Loader
from autodiff.layers import Module
from autodiff.metrics import Detections, Truth, box_iou, mean_average_precision
from autodiff.networks import FPN, RFCN, RPN, SmallBackbone
from autodiff.optim import AdamW, cosine_schedule
from autodiff.train import Trainer

CHANNELS = 24, 48, 72, 96  # of the backbone, at strides 2, 4, 8 and 16; pyramids alone have the last
STRIDE, ANCHORS = 8, (16, 26, 42)  # of the proposals, and of their anchors, in pixels
WIDTH = 64  # channels before the heads
SAMPLING = {"out_channels": 8, "post_channels": 32, "features": 32, "fuse": "mean"}
BATCH = 4
FIELDS = "images", "boxes", "box_labels"
PROPOSALS = 50  # regions of an image


class Variant(NamedTuple):
    """A detector: what is before its heads."""

    name: str
    sampling: dict[str, Any] | None = None  # of `DynamicSamplingConv`
    pyramid: str | None = None  # the upsampler of a feature pyramid


class Plan(NamedTuple):
    """How long is trained, and on how many scenes it is judged."""

    proposal_epochs: int
    epochs: int
    steps: int  # of an epoch
    tests: int
    lr: float = 3e-3


def backbone_of(count: int, rng: Any) -> SmallBackbone:
    """So many stages."""
    return SmallBackbone(CHANNELS[:count], rng=rng)


def proposer(seed: int) -> RPN:
    """Where something is."""
    rng = np.random.default_rng([seed, 0])
    strides, sizes = (STRIDE,), (ANCHORS,)
    return RPN(backbone_of(3, rng), strides=strides, sizes=sizes, width=WIDTH, rng=rng)


def detector(variant: Variant, seed: int) -> RFCN:
    """What it is."""
    rng = np.random.default_rng([seed, 1])
    options: dict[str, Any] = {"bins": 5, "rng": rng}
    if variant.pyramid is None:
        sampling = None if variant.sampling is None else {**SAMPLING, **variant.sampling}
        backbone = backbone_of(3, rng)
        return RFCN(backbone, len(CLASSES), strides=(STRIDE,), width=WIDTH, sampling=sampling, **options)
    pyramid = FPN(backbone_of(4, rng), WIDTH, levels=3, upsample=variant.pyramid, rng=rng)
    # Objects are small here: those of 16 pixels are read at stride 4, from 32 on at stride 8.
    return RFCN(pyramid, len(CLASSES), strides=(4, 8, 16), width=None, cells=4, **options)


def scenes_without_end(count: int) -> Loader:
    """Batches of scenes that nobody has seen before; an epoch is only so many of them."""
    return Loader([{}] * (count * BATCH), BATCH, transform=drawn, fields=FIELDS)


def fit(
    network: Module, loss: Callable, evaluate: Callable, path: Path, epochs: int, plan: Plan, seed: int
) -> Trainer:
    """Train to the end, from the last checkpoint on if there is one."""
    total = epochs * plan.steps
    optimizer = AdamW(network.parameters(), plan.lr, weight_decay=0.01)
    schedule = cosine_schedule(plan.lr, total, warmup=min(30, total // 2))
    trainer = Trainer(network, optimizer, loss, schedule=schedule, max_norm=5.0, seed=seed)
    if path.exists():
        trainer.load(path)
    loader = scenes_without_end(plan.steps)
    trainer.fit(loader, epochs, evaluate=evaluate, checkpoint=path, every=100, progress=False)
    return trainer


# ---------------------------------------------------------------------------------------------------------
# Judging


def proposed(rpn: RPN, images: Any) -> list:
    """Regions of images."""
    return rpn.propose(images, most=PROPOSALS, before=300, least=4)


def detect(network: RFCN, rpn: RPN, image: np.ndarray) -> Detections:
    """What is where in one image."""
    (found,) = network.detect(image[None], proposed(rpn, image[None]))
    return found


def recall(tests: Sequence[dict], rpn: Any) -> dict[str, float]:
    """The share of objects that a proposal overlaps by half."""
    best = []
    for test in tests:
        if len(test["boxes"]):
            best.extend(box_iou(proposed(rpn, test["images"][None])[0], test["boxes"]).max(0))
    return {"recall": float(np.mean(np.array(best) >= 0.5))}


def precision(tests: Sequence[dict], rpn: RPN, network: Any) -> dict[str, float]:
    """Mean average precision of PASCAL VOC, at two overlaps."""
    found = [detect(network, rpn, test["images"]) for test in tests]
    there = [Truth(test["boxes"], test["box_labels"]) for test in tests]
    return {
        f"ap_{percent}": mean_average_precision(found, there, len(CLASSES), threshold=percent / 100)
        for percent in (50, 75)
    }


# ---------------------------------------------------------------------------------------------------------
# All trainings


def train_proposals(seed: int, plan: Plan, folder: Path) -> RPN:
    """The proposals of a seed: trained first, and then fixed."""
    rpn = proposer(seed)
    judge = partial(recall, held_out(plan.tests))
    path = folder / f"proposals-{seed}.safetensors"

    def loss(net: RPN, images: Any, boxes: Any, _: Any) -> Any:
        return net.loss(images, boxes, count=64)

    fit(rpn, loss, judge, path, plan.proposal_epochs, plan, 2 * seed)
    return rpn


def train_detector(variant: Variant, seed: int, plan: Plan, folder: Path) -> tuple[RFCN, RPN, list[dict]]:
    """A detector, the proposals it looks at, and its history."""
    rpn = train_proposals(seed, plan, folder)
    network = detector(variant, seed)
    # There is no ImageNet here: the backbone begins as that of the proposals.
    inner = network.backbone if variant.pyramid is None else network.backbone.backbone
    inner.load_state_dict(rpn.backbone.state_dict(), strict=False)

    def loss(net: RFCN, images: Any, boxes: Any, labels: Any) -> Any:
        return net.loss(images, proposed(rpn, images), boxes, labels, mined=24)

    name = "".join(letter if letter.isalnum() else "_" for letter in variant.name)
    path = folder / f"{name}-{seed}.safetensors"
    judge = partial(precision, held_out(plan.tests), rpn)
    trainer = fit(network, loss, judge, path, plan.epochs, plan, 2 * seed + 1)
    return network, rpn, trainer.history


class Job(NamedTuple):
    """One training; without a variant that of the proposals."""

    variant: Variant | None
    seed: int
    plan: Plan
    folder: Path


def work(job: Job) -> dict[str, float]:
    """What was measured in the end."""
    if job.variant is None:
        rpn = train_proposals(job.seed, job.plan, job.folder)
        return recall(held_out(job.plan.tests), rpn) | {"parameters": rpn.num_parameters}
    network, _, history = train_detector(job.variant, job.seed, job.plan, job.folder)
    return history[-1] | {"parameters": network.num_parameters}


def train_all(
    variants: Sequence[Variant], seeds: Iterable[int], plan: Plan, folder: Path
) -> dict[Key, Found]:
    """Outcomes by name ("proposals" among them) and seed; what was stopped goes on by its checkpoint."""
    seeds, found = list(seeds), {}
    for some in ((None,), variants):  # proposals before those who need them
        jobs = {
            ("proposals" if variant is None else variant.name, seed): (Job(variant, seed, plan, folder),)
            for seed in seeds
            for variant in some
        }
        found |= run(work, jobs, workers=dyn.get_num_threads())
    return found
