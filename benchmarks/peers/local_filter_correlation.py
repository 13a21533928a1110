"""`correlation2d` in PyTorch: the formulations that ours are timed against."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def correlation(max_displacement: int, step: int = 1) -> dict[str, Callable]:
    """Of x1, x2 (N, C, H, W)."""
    reach = max_displacement // step * step
    shifts = range(0, 2 * reach + 1, step)

    def shifts_and_means(x1: Tensor, x2: Tensor) -> Tensor:
        """The usual form: a product and a mean a displacement."""
        (h, w), image = x1.shape[2:], F.pad(x2, (reach,) * 4)
        maps = [(x1 * image[..., a : a + h, b : b + w]).mean(1) for a in shifts for b in shifts]
        return torch.stack(maps, 1)

    def unfold(x1: Tensor, x2: Tensor) -> Tensor:
        """All shifted copies at once, then one sum over the channels."""
        columns = F.unfold(x2, len(shifts), dilation=step, padding=reach)
        columns = columns.unflatten(1, (x1.shape[1], -1))
        return torch.einsum("ncp,nctp->ntp", x1.flatten(2), columns).unflatten(2, x1.shape[2:]) / x1.shape[1]

    def rows(x1: Tensor, x2: Tensor) -> Tensor:
        """A matrix product a displaced row, of which the diagonals are the maps."""
        (h, w), image = x1.shape[2:], F.pad(x2, (reach,) * 4)
        lines = x1.permute(0, 2, 3, 1) / x1.shape[1]
        maps = []
        for a in shifts:
            products = lines @ image[:, :, a : a + h].permute(0, 2, 1, 3)
            maps.append(torch.stack([products.diagonal(b, 2, 3) for b in shifts], 1)[..., :w])
        return torch.cat(maps, 1)

    def displaced(x1: Tensor, x2: Tensor) -> Tensor:
        """A displaced row of maps after the other: views of one image, a product and a sum over channels."""
        (h, w), image = x1.shape[2:], F.pad(x2, (reach,) * 4)
        lines = image.unfold(3, w, step) if len(shifts) > 1 else image[..., None, :]
        maps = [(x1[..., None, :] * lines[:, :, a : a + h]).sum(1).movedim(2, 1) for a in shifts]
        return torch.cat(maps, 1) / x1.shape[1]

    return {
        "shifts and means": shifts_and_means,
        "unfold": unfold,
        "products of rows": rows,
        "rows of views": displaced,
    }
