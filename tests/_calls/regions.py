"""Calls of `roi_align` and `ps_roi_pool`: drawn, bad and heavy ones."""

from typing import Any

import numpy as np

from dynarray.reference import regions

from ._call import Bad, Case, Good, Heavy


def boxes_of(seed: int, regions: int, height: int, width: int, images: int) -> dict[str, np.ndarray]:
    """Boxes in and around images, some of them inverted, and the image of each."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-2.0, np.array([width, height]) + 2.0, (regions, 2))
    sizes = rng.uniform(-1.0, np.array([width, height]) + 1.0, (regions, 2))
    boxes = np.concatenate([corners, corners + sizes], axis=1)
    if seed % 2:  # samples and edges of bins on pixels
        boxes = np.round(2 * boxes) / 2
    return {"boxes": boxes, "batch_index": rng.integers(0, max(images, 1), regions)}


def _regions(pick: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """The parameters that both have. Where there are no images there are no regions."""
    n, h, w = (sizes[symbol] for symbol in ("N", "H", "W"))
    regions = pick((3, 1, 5, 0)) if n else 0
    scale = pick((1.0, 0.5, 1.7))
    extent = round(h / scale), round(w / scale)
    bins = pick(((2, 3), 1, 3, (1, 2)))
    return {
        **boxes_of(pick(range(50)), regions, *extent, n),
        "output_size": bins,
        "spatial_scale": scale,
    }


def _sizes(pick: Any, fixed: dict[str, int]) -> dict[str, int]:
    return {"N": pick((1, 2, 0)), "H": pick(range(9)), "W": pick(range(9)), **fixed}


def _roi_align_cases(pick: Any, **fixed: int) -> Case:
    sizes = _sizes(pick, fixed)
    options = {"sampling_ratio": pick((0, 2, 1, 3)), "aligned": pick((True, False))}
    shape = (sizes["N"], pick((3, 1, 17, 70)), sizes["H"], sizes["W"])
    return Case({"x": shape}, {**_regions(pick, sizes), **options})


def _ps_roi_pool_cases(pick: Any, **fixed: int) -> Case:
    sizes = _sizes(pick, fixed)
    params = _regions(pick, sizes)
    high, wide = np.broadcast_to(params["output_size"], 2).tolist()
    channels = pick((2, 1, 9)) * high * wide
    return Case({"x": (sizes["N"], channels, sizes["H"], sizes["W"])}, params)


CASES = {"roi_align": _roi_align_cases, "ps_roi_pool": _ps_roi_pool_cases}

_BOXES = {
    "boxes": np.array([[0.0, 1.0, 3.0, 4.0], [1.0, 0.0, 4.0, 5.0], [2.0, 2.0, 4.0, 3.0]]),
    "batch_index": np.array([0, 1, 1]),
}
_X = {"x": (2, 12, 6, 5)}
GOOD = {
    "roi_align": Good(_X, {**_BOXES, "output_size": (2, 3)}, (3, 12, 2, 3)),
    "ps_roi_pool": Good(_X, {**_BOXES, "output_size": (2, 3)}, (3, 2, 2, 3)),
}
SYMBOLS = {name: {"x": "N, C, H, W"} for name in GOOD}


def _bad(name: str) -> list[Bad]:
    boxes, images = _BOXES["boxes"], _BOXES["batch_index"]
    return [
        Bad(name, {"boxes": boxes[:, :3]}, ValueError, ("boxes", "(R, 4)", "(3, 3)")),
        Bad(name, {"boxes": boxes[0]}, ValueError, ("boxes", "(R, 4)", "(4,)")),
        Bad(name, {"boxes": boxes.astype(int)}, TypeError, ("boxes", "int64", "float32", "float64")),
        Bad(name, {"boxes": boxes.tolist()}, TypeError, ("boxes", "array", "list")),
        Bad(name, {"batch_index": images[:2]}, ValueError, ("batch_index", "(R) = (3)", "(2,)")),
        Bad(name, {"batch_index": images * 1.0}, TypeError, ("batch_index", "float64", "int64")),
        Bad(name, {"batch_index": 0}, TypeError, ("batch_index", "array", "int")),
        Bad(name, {"output_size": 0}, ValueError, ("output_size", "at least 1", "0")),
        Bad(name, {"output_size": (2, 3, 1)}, TypeError, ("output_size", "(y, x)", "(2, 3, 1)")),
        Bad(name, {"spatial_scale": 0.0}, ValueError, ("spatial_scale", "above 0", "0.0")),
        Bad(name, {"spatial_scale": np.nan}, ValueError, ("spatial_scale", "finite", "nan")),
        Bad(name, {"spatial_scale": "1"}, TypeError, ("spatial_scale", "real", "'1'")),
    ]


BAD = [
    *_bad("roi_align"),
    *_bad("ps_roi_pool"),
    Bad("roi_align", {"sampling_ratio": -1}, ValueError, ("sampling_ratio", "at least 0", "-1")),
    Bad("roi_align", {"sampling_ratio": 1 << 20}, ValueError, ("sampling_ratio", "at most", str(1 << 20))),
    Bad("roi_align", {"aligned": 1}, TypeError, ("aligned", "bool", "1")),
    Bad("ps_roi_pool", {"output_size": 5}, ValueError, ("x", "O*ph*pw", "(5, 5)", "C = 12")),
]
LARGE = dict.fromkeys(GOOD, "its boxes say which image they are of: see tests/test_regions.py")

_SMALL = {**boxes_of(0, 2, 3, 3, 1), "output_size": 2}
HEAVY = {
    "roi_align": Heavy(
        "roi_align",
        {"x": (1, 96, 512, 512)},
        {**boxes_of(1, 256, 512, 512, 1), "output_size": 7, "sampling_ratio": 2},
        {"x": (1, 32, 3, 3)},
        _SMALL,
    ),
    "ps_roi_pool": Heavy(
        "ps_roi_pool",
        {"x": (1, 1764, 96, 128)},
        {**boxes_of(1, 256, 96, 128, 1), "output_size": 7},
        {"x": (1, 4, 3, 3)},
        _SMALL,
    ),
}


def is_exact(call: Any) -> bool:
    """Where each weight of a pixel is a multiple of 2**-8: means of three are rounded, and most positions."""
    params = {**call.operator.defaults, **call.params}
    params["output_size"] = tuple(np.broadcast_to(params["output_size"], 2).tolist())
    bins = {"roi_align": regions._sampled_bins, "ps_roi_pool": regions._pooled_bins}[call.operator.name]
    weights = [w for each in bins(call.arrays[0], **params) for w in (each.by_row, each.by_column)]
    return all((256 * w % 1 == 0).all() for w in weights)
