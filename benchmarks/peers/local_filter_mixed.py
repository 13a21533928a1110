"""`mixed_filter2d` in PyTorch: the formulations that ours are timed against."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import Cannot, Window, by_group


def mixed(stride: int = 1, dilation: int = 1, padding: int | None = None) -> dict[str, Callable]:
    """Of x (N, C, H, W), kernels (B, kh, kw) or (B, C, kh, kw), and mixture (N, G, B, Ho, Wo)."""
    window = Window(stride, dilation, padding)
    return {**_filtered_first(window), **_composed_first(window)}


def _filtered_first(window: Window) -> dict[str, Callable]:
    """A convolution with each kernel, and sums of those."""

    def filtered(x: Tensor, kernels: Tensor, groups: int) -> Tensor:
        """(N, G, C/G, B, Ho, Wo): each channel by each kernel, of an image of one channel at a time."""
        steps = {
            "padding": window.paddings(kernels.shape[-2:]),
            "stride": window.stride,
            "dilation": window.dilation,
        }
        if kernels.ndim == 4:
            filters, channels = kernels.transpose(0, 1).flatten(0, 1)[:, None], x.shape[1]
            z = F.conv2d(x, filters, groups=channels, **steps).unflatten(1, (channels, -1))
        else:
            z = F.conv2d(x.flatten(0, 1)[:, None], kernels[:, None], **steps).unflatten(0, x.shape[:2])
        return by_group(z, groups)

    def convolved(x: Tensor, kernels: Tensor, mixture: Tensor) -> Tensor:
        """A convolution with all kernels, and a weighted sum."""
        z = filtered(x, kernels, mixture.shape[1])
        return (z * mixture[:, :, None]).sum(3).flatten(1, 2)

    def convolved_einsum(x: Tensor, kernels: Tensor, mixture: Tensor) -> Tensor:
        z = filtered(x, kernels, mixture.shape[1])
        return torch.einsum("ngcbhw,ngbhw->ngchw", z, mixture).flatten(1, 2)

    def depthwise(x: Tensor, kernels: Tensor, mixture: Tensor) -> Tensor:
        """The same by a depthwise convolution with so many outputs a channel."""
        if kernels.ndim == 4:
            raise Cannot("kernels of each channel: the convolution with all kernels is depthwise already")
        own = kernels[:, None].expand(-1, x.shape[1], -1, -1)
        return convolved(x, own, mixture)

    def one_by_one(x: Tensor, kernels: Tensor, mixture: Tensor) -> Tensor:
        """One kernel after the other, added up in place."""
        groups = mixture.shape[1]
        y = x.new_zeros((*by_group(x, groups).shape[:3], *mixture.shape[3:]))
        for b in range(len(kernels)):
            y.addcmul_(filtered(x, kernels[b : b + 1], groups).squeeze(3), mixture[:, :, None, b])
        return y.flatten(1, 2)

    return {
        "convolutions, weighted sum": convolved,
        "convolutions, einsum": convolved_einsum,
        "depthwise convolution, weighted sum": depthwise,
        "kernel after kernel": one_by_one,
    }


def _composed_first(window: Window) -> dict[str, Callable]:
    """The filter of each pixel, or its window, and a sum over taps."""

    def composed(x: Tensor, kernels: Tensor, mixture: Tensor) -> Tensor:
        """All filters by a matrix product, then a shifted multiply-add for each tap."""
        if kernels.ndim == 4:
            raise Cannot("kernels of each channel: there is a filter a channel to compose")
        groups, kernel, size = mixture.shape[1], kernels.shape[1:], mixture.shape[3:]
        filters = (kernels.flatten(1).T @ mixture.flatten(3)).view(*mixture.shape[:2], *kernel, *size)
        image = by_group(window.padded(x, kernel), groups)
        y = x.new_zeros((*image.shape[:3], *size))
        for a, b, here in window.shifts(image, kernel, size):
            y.addcmul_(here, filters[:, :, None, a, b])
        return y.flatten(1, 2)

    def unfolded(x: Tensor, kernels: Tensor, mixture: Tensor) -> Tensor:
        """All shifted copies at once, and one sum over taps and kernels."""
        groups, kernel, size = mixture.shape[1], kernels.shape[-2:], mixture.shape[3:]
        columns = by_group(window.unfolded(x, kernel, size), groups)
        if kernels.ndim == 4:
            own = kernels.flatten(2).unflatten(1, (groups, -1))
            return torch.einsum("ngcthw,bgct,ngbhw->ngchw", columns, own, mixture).flatten(1, 2)
        return torch.einsum("ngcthw,bt,ngbhw->ngchw", columns, kernels.flatten(1), mixture).flatten(1, 2)

    return {"filters composed, shifts in place": composed, "unfold, einsum": unfolded}
