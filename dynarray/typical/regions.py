"""Calls of `roi_align` and `ps_roi_pool`."""

import numpy as np

from . import TypicalCall

_X = {"x": (1, 4, 6, 6)}
_REGIONS = {
    "boxes": np.array([[0.5, 1.0, 4.0, 5.0]]),
    "batch_index": np.zeros(1, np.int64),
    "output_size": 2,
}

CALLS = {
    "roi_align": [TypicalCall(_X, _REGIONS), TypicalCall(_X, {**_REGIONS, "sampling_ratio": 2})],
    "ps_roi_pool": [TypicalCall(_X, _REGIONS)],
}
