"""`deform_conv2d` in PyTorch: torchvision's operator, and its gradients by its own backward kernels.

A formulation with ``grid_sample`` is not compared: it normalises coordinates to -1..1, and rounding moves
points across the borders of pixels, where derivatives jump.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def _deform_conv2d(padding: int) -> dict[str, Callable]:
    def torchvision(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
        """Columns of one image after the other, then a product."""
        from torchvision.ops import deform_conv2d  # where it is missing, this peer alone is left out

        maps = (None if each is None else each.flatten(1, -3) for each in (offset, mask))
        offset_map, mask_map = maps
        return deform_conv2d(x, offset_map, weight, padding=padding, mask=mask_map)

    return {"torchvision": torchvision}


def _plain(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, padding="same")


# The convolution on the regular grid.
PRICES: dict[str, Callable] = {"deform_conv2d": _plain}

# Per operator: its parameters -> the formulations by name.
FORMULATIONS: dict[str, Callable[..., dict[str, Callable]]] = {"deform_conv2d": _deform_conv2d}
