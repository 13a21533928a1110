"""`roi_align` and `ps_roi_pool`: what is measured, and how much arithmetic it takes."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from random import Random
from typing import Any

import numpy as np

from dynarray._operator import Checked

from .case import Case
from .drawing import GATHERS, IMAGE, Drawn, among, spread
from .growing import CHANNELS, SIDES, Growth, each
from .targets import Target

_PEERS = "benchmarks.peers.regions"
_SAMPLE = 8  # operations of a sample: four corners, each times its weight and added up


def flops(checked: Checked) -> tuple[int, int]:
    """Operations of `roi_align` with as many samples as are asked for, or one a bin, forward and backward."""
    samples = prod(checked.output_shape) * max(1, checked.params["sampling_ratio"]) ** 2
    return _SAMPLE * samples, _SAMPLE * samples


def pooled_flops(checked: Checked) -> tuple[int, int]:
    """Operations of `ps_roi_pool`: one for each pixel of a bin, of which there is one at least."""
    size = prod(checked.output_shape)
    return size, size


def _boxes(n: int, h: int, w: int, regions: int) -> dict[str, Any]:
    """Boxes of whole pixels inside the images but for the last row and column, the same in each run."""
    k = np.arange(regions)
    height, width = (3 + k * step % max(1, extent // 3 - 2) for step, extent in ((7, h), (11, w)))
    top, left = (
        k * step % np.maximum(1, extent - 1 - s) for step, extent, s in ((13, h, height), (29, w, width))
    )
    boxes = np.stack([left, top, left + width, top + height], axis=1).astype(np.float32)
    return {"boxes": boxes, "batch_index": k % n}


def align(n: int, c: int, h: int, w: int, regions: int, bins: int = 7, ratio: int = 2) -> Case:
    params = {**_boxes(n, h, w, regions), "output_size": bins, "sampling_ratio": ratio}
    title = f"roi_align {(n, c, h, w)} {regions} regions of {bins}x{bins}, {ratio or 'adaptive'} samples"
    return Case(title, "roi_align", {"x": (n, c, h, w)}, flops, params, _PEERS)


def pool(n: int, o: int, h: int, w: int, regions: int, bins: int = 7) -> Case:
    params = {**_boxes(n, h, w, regions), "output_size": bins}
    title = f"ps_roi_pool {(n, o, h, w)} {regions} regions of {bins}x{bins}"
    return Case(title, "ps_roi_pool", {"x": (n, o * bins * bins, h, w)}, pooled_flops, params, _PEERS)


CASES = (
    replace(align(1, 256, 100, 136, 1000), small=align(1, 3, 9, 11, 4)),
    replace(align(1, 256, 38, 63, 300, ratio=0), small=align(1, 3, 9, 11, 4, ratio=0)),
    replace(pool(1, 21, 38, 63, 300), small=pool(1, 2, 9, 11, 4)),
)

_BASE = {"n": 1, "h": 64, "w": 64, "regions": 64}
_REGIONS = each("regions", 64, 128, 256, 512)
GROWTH = (
    Growth(
        "roi_align", align, {**_BASE, "c": 32}, {"pixels": SIDES, "channels": CHANNELS, "regions": _REGIONS}
    ),
    Growth(
        "ps_roi_pool",
        pool,
        {**_BASE, "o": 8},
        {"pixels": SIDES, "outputs": each("o", 2, 4, 8, 16), "regions": _REGIONS},
    ),
)


def _few_maps(random: Random, drawn: Mapping[str, Any]) -> int:
    """Outputs of `ps_roi_pool` whose maps are not more than the channels of others."""
    return spread(1, 512 // drawn["bins"] ** 2)(random, drawn)


_DRAWN = {"regions": spread(1, 1024), "bins": among(1, 3, 5, 7, 7, 7, 14)}
DRAWN = (
    Drawn("roi_align", align, {**IMAGE, **_DRAWN, "ratio": among(0, 1, 2, 2, 4)}, least_share=GATHERS),
    Drawn(
        "ps_roi_pool",
        pool,
        {"n": IMAGE["n"], **_DRAWN, "o": _few_maps, "h": IMAGE["h"], "w": IMAGE["w"]},
        least_share=GATHERS,
    ),
)

TARGETS: dict[str, tuple[Target, Target]] = {
    "roi_align (1, 256, 100, 136) 1000 regions of 7x7, 2 samples": ({"torchvision": 3}, {"torchvision": 3}),
}
