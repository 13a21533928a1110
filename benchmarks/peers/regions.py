"""`roi_align` and `ps_roi_pool` in PyTorch: torchvision's operators.

The last pixel of a box of `ps_roi_pool` belongs to it; torchvision's ends before the last, so that it is
given boxes that are one pixel larger. The two agree where boxes are whole pixels that do not touch the last
row or column.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _regions(boxes: Any, batch_index: Any, beyond: int = 0) -> Callable[[Any, Any], Tensor]:
    """Boxes as torchvision takes them, on a device and of a dtype, where they lie before a call is timed."""
    rows = np.concatenate([batch_index[:, None], boxes + np.array([0, 0, beyond, beyond])], axis=1)

    @cache
    def regions(device: Any, dtype: Any) -> Tensor:
        return torch.from_numpy(rows).to(device, dtype)

    return regions


def _roi_align(boxes: Any, batch_index: Any, output_size: int, sampling_ratio: int) -> dict[str, Callable]:
    regions = _regions(boxes, batch_index)

    def torchvision(x: Tensor) -> Tensor:
        """One sample after the other, four pixels each."""
        from torchvision.ops import roi_align  # where it is missing, this peer alone is left out

        given = regions(x.device, x.dtype)
        return roi_align(x, given, output_size, sampling_ratio=sampling_ratio, aligned=True)

    return {"torchvision": torchvision}


def _ps_roi_pool(boxes: Any, batch_index: Any, output_size: int) -> dict[str, Callable]:
    regions = _regions(boxes, batch_index, beyond=1)

    def torchvision(x: Tensor) -> Tensor:
        """One bin after the other, pixel by pixel."""
        from torchvision.ops import ps_roi_pool

        return ps_roi_pool(x, regions(x.device, x.dtype), output_size)

    return {"torchvision": torchvision}


# Per operator: its parameters -> the formulations by name.
FORMULATIONS: dict[str, Callable[..., dict[str, Callable]]] = {
    "roi_align": _roi_align,
    "ps_roi_pool": _ps_roi_pool,
}
