"""Calls of `roi_align` and `ps_roi_pool`."""

import numpy as np

from . import TypicalCall

_X, _MANY = {"x": (1, 4, 6, 6)}, {"x": (1, 32, 6, 6)}  # read in planes, and packed
_REGIONS = {
    "boxes": np.array([[0.5, 1.0, 4.0, 5.0]]),
    "batch_index": np.zeros(1, np.int64),
    "output_size": 2,
}

CALLS = {
    "roi_align": [TypicalCall(_X, _REGIONS), TypicalCall(_MANY, {**_REGIONS, "output_size": 7})],
    "ps_roi_pool": [TypicalCall(_X, _REGIONS)],
}
