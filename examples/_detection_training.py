"""What detection.py trains: proposals once for each seed, and detectors that all get the same of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _detection_scenes import CLASSES, OBJECTS, held_out, scene, seen
from _study import Found, Key, run

from autodiff import files
from autodiff.layers import Module
from autodiff.metrics import Detections, Truth, box_iou, mean_average_precision
from autodiff.networks import FPN, RFCN, RPN, SmallBackbone
from autodiff.optim import AdamW, cosine_schedule
from autodiff.train import Trainer

CHANNELS = 16, 32, 64, 96  # of the backbone, at strides 2, 4, 8 and 16; pyramids alone have the last
STRIDE, ANCHORS = 8, (16, 22, 32)  # of the proposals, and of their anchors, in pixels
WIDTH = 64  # channels before the heads
BINS = 3
SAMPLING = {"out_channels": 8, "post_channels": 32, "features": 32, "fuse": "mean"}
BATCH = 8
PROPOSALS = 32  # regions of an image
MINED = 16  # of these, that are learned from


class Variant(NamedTuple):
    """A detector: what is before its heads."""

    name: str
    sampling: dict[str, Any] | None = None  # of `DynamicSamplingConv`
    pyramid: str | None = None  # the upsampler of a feature pyramid


class Plan(NamedTuple):
    """How many steps are trained, and on how many scenes it is judged."""

    proposals: int
    steps: int
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
    options: dict[str, Any] = {"bins": BINS, "rng": rng}
    if variant.pyramid is None:
        sampling = None if variant.sampling is None else {**SAMPLING, **variant.sampling}
        backbone = backbone_of(3, rng)
        return RFCN(backbone, len(CLASSES), strides=(STRIDE,), width=WIDTH, sampling=sampling, **options)
    pyramid = FPN(backbone_of(4, rng), WIDTH, levels=3, upsample=variant.pyramid, rng=rng)
    # Objects are small here: those of 16 pixels are read at stride 4, from 32 on at stride 8.
    return RFCN(pyramid, len(CLASSES), strides=(4, 8, 16), width=None, cells=4, **options)


# ---------------------------------------------------------------------------------------------------------
# What is trained on: scenes that nobody has seen before, each once


def drawn(seed: Sequence[int], steps: int) -> Iterator[tuple]:
    """Batches of images, boxes and labels, without end but for the number of steps."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        scenes = [scene("train", rng) for _ in range(BATCH)]
        boxes, labels = ([each[name] for each in scenes] for name in ("boxes", "box_labels"))
        yield np.stack([each["images"] for each in scenes]), boxes, labels


def lessons(rpn: RPN, seed: int, plan: Plan, folder: Path) -> dict[str, np.ndarray]:
    """The scenes that all detectors of a seed are trained on, each with its proposals, made once for all.

    Images (T, B, 3, H, W), objects (T, B, OBJECTS, 5) with their classes last, regions (T, B, PROPOSALS, 4);
    what is not there is NaN.
    """
    path = folder / f"lessons-{seed}.safetensors"
    if not path.exists():
        made: dict[str, list] = {"images": [], "objects": [], "regions": []}
        for images, boxes, labels in drawn([seed, 1], plan.steps):
            made["images"].append(images)
            objects = [np.column_stack(each) for each in zip(boxes, labels)]
            made["objects"].append(_padded(objects, OBJECTS, 5))
            made["regions"].append(_padded(proposed(rpn, seen(images)), PROPOSALS, 4))
        files.save(path, {name: np.stack(arrays) for name, arrays in made.items()})
    return files.load(path)[0]


def _padded(parts: Sequence[np.ndarray], most: int, width: int) -> np.ndarray:
    rows = np.full((len(parts), most, width), np.nan, np.float32)
    for row, part in zip(rows, parts):
        row[: len(part)] = part
    return rows


def taught(made: Mapping[str, np.ndarray]) -> Iterator[tuple]:
    """Batches of images, regions, boxes and labels, from `lessons`."""
    for images, *padded in zip(made["images"], made["regions"], made["objects"]):
        regions, objects = ([part[np.isfinite(part[:, 0])] for part in each] for each in padded)
        boxes, labels = zip(*((part[:, :4], part[:, 4].astype(np.int64)) for part in objects))
        yield seen(images), regions, boxes, labels


def fit(network: Module, loss: Callable, batches: Callable, steps: int, path: Path, plan: Plan) -> Trainer:
    """Train to the end, or read what was trained."""
    optimizer = AdamW(network.parameters(), plan.lr, weight_decay=0.01)
    schedule = cosine_schedule(plan.lr, steps, warmup=min(30, steps // 2))
    trainer = Trainer(network, optimizer, loss, schedule=schedule, max_norm=5.0)
    if path.exists():
        trainer.load(path)
    trainer.fit(batches, 1, checkpoint=path, progress=False)
    network.eval()
    return trainer


# ---------------------------------------------------------------------------------------------------------
# Judging


def proposed(rpn: RPN, images: Any) -> list:
    """Regions of images."""
    return rpn.propose(images, most=PROPOSALS, before=200, least=4)


def detect(network: RFCN, rpn: RPN, image: np.ndarray) -> Detections:
    """What is where in one image, of bytes."""
    images = seen(image[None])
    (found,) = network.detect(images, proposed(rpn, images))
    return found


def recall(tests: Sequence[dict], rpn: Any) -> dict[str, float]:
    """The share of objects that a proposal overlaps by half."""
    best = []
    for test in tests:
        if len(test["boxes"]):
            best.extend(box_iou(proposed(rpn, seen(test["images"][None]))[0], test["boxes"]).max(0))
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

    def loss(net: RPN, images: Any, boxes: Any, _: Any) -> Any:
        return net.loss(seen(images), boxes, count=64)

    path = folder / f"proposals-{seed}.safetensors"
    fit(rpn, loss, lambda _: drawn([seed, 0], plan.proposals), plan.proposals, path, plan)
    return rpn


def train_detector(variant: Variant, seed: int, plan: Plan, folder: Path) -> tuple[RFCN, RPN]:
    """A detector, and the proposals that it looks at."""
    rpn = train_proposals(seed, plan, folder)
    network = detector(variant, seed)
    # There is no ImageNet here: the backbone begins as that of the proposals.
    inner = network.backbone if variant.pyramid is None else network.backbone.backbone
    inner.load_state_dict(rpn.backbone.state_dict(), strict=False)

    def loss(net: RFCN, *batch: Any) -> Any:
        return net.loss(*batch, mined=MINED)

    name = "".join(letter if letter.isalnum() else "_" for letter in variant.name)
    path = folder / f"{name}-{seed}.safetensors"
    fit(network, loss, lambda _: taught(lessons(rpn, seed, plan, folder)), plan.steps, path, plan)
    return network, rpn


class Job(NamedTuple):
    """One training; without a variant that of the proposals."""

    variant: Variant | None
    seed: int
    plan: Plan


def work(job: Job, folder: Path) -> dict[str, float]:
    """What was measured in the end."""
    tests = held_out(job.plan.tests)
    if job.variant is None:
        rpn = train_proposals(job.seed, job.plan, folder)
        lessons(rpn, job.seed, job.plan, folder)
        return recall(tests, rpn) | {"parameters": rpn.num_parameters}
    network, rpn = train_detector(job.variant, job.seed, job.plan, folder)
    return precision(tests, rpn, network) | {"parameters": network.num_parameters}


def train_all(
    variants: Sequence[Variant], seeds: Iterable[int], plan: Plan, folder: Path, **kept: Any
) -> dict[Key, Found]:
    """Outcomes by name ("proposals" among them) and seed; `kept` are further arguments of `run`."""
    seeds, found = list(seeds), {}
    for some in ((None,), variants):  # proposals before those who need them
        jobs: dict[Key, tuple] = {
            ("proposals" if variant is None else variant.name, seed): (Job(variant, seed, plan), folder)
            for seed in seeds
            for variant in some
        }
        found |= run(work, jobs, **kept)
    return found
