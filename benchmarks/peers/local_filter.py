"""`local_filter2d` and its faces in PyTorch: the formulations that ours are timed against.

Each takes the tensors of the operator's array arguments in order, and lets autograd find the gradients.
Whichever is fastest in a run, eager and compiled, is the peer; none is best for every shape.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .local_filter_correlation import correlation
from .local_filter_mixed import mixed
from .windows import Cannot, Window, by_group, on_lines

# A filter a pixel: x (N, C, H, W), weight (N, G, kh, kw, Ho, Wo).


def by_pixel(window: Window) -> dict[str, Callable]:
    """Of involution, and of every operator that has such filters in the end."""

    def shifted(x: Tensor, weight: Tensor) -> Tensor:
        """One shifted copy of x per tap, times the filter."""
        groups, *kernel = weight.shape[1:4]
        image = by_group(window.padded(x, kernel), groups)
        y: Any = 0
        for a, b, here in window.shifts(image, kernel, weight.shape[4:]):
            y = y + weight[:, :, None, a, b] * here
        return y.flatten(1, 2)

    def in_place(x: Tensor, weight: Tensor) -> Tensor:
        groups, *kernel = weight.shape[1:4]
        image = by_group(window.padded(x, kernel), groups)
        y = x.new_zeros((*image.shape[:3], *weight.shape[4:]))
        for a, b, here in window.shifts(image, kernel, weight.shape[4:]):
            y.addcmul_(here, weight[:, :, None, a, b])
        return y.flatten(1, 2)

    def unfold(x: Tensor, weight: Tensor) -> Tensor:
        """The published form: unfold, multiply, sum over the taps."""
        groups, *kernel = weight.shape[1:4]
        columns = by_group(window.unfolded(x, kernel, weight.shape[4:]), groups)
        return (weight.flatten(2, 3)[:, :, None] * columns).sum(3).flatten(1, 2)

    def einsum(x: Tensor, weight: Tensor) -> Tensor:
        """The same as a product of matrices a pixel and group: filters that many channels share."""
        groups, *kernel = weight.shape[1:4]
        columns = by_group(window.unfolded(x, kernel, weight.shape[4:]), groups)
        return torch.einsum("ngcthw,ngthw->ngchw", columns, weight.flatten(2, 3)).flatten(1, 2)

    def views(x: Tensor, weight: Tensor) -> Tensor:
        """Windows without a copy, for a compiler: a single loop."""
        groups, *kernel = weight.shape[1:4]
        columns = by_group(window.views(x, kernel), groups)
        return (columns * weight[:, :, None].movedim((3, 4), (5, 6))).sum((5, 6)).flatten(1, 2)

    return {
        "shifts": shifted,
        "shifts, in place": in_place,
        "unfold": unfold,
        "unfold, einsum": einsum,
        "views": views,
    }


def _by_pixel(stride: int = 1, dilation: int = 1, padding: int | None = None) -> dict[str, Callable]:
    return by_pixel(Window(stride, dilation, padding))


def _by_place(stride: int = 1, dilation: int = 1, padding: int | None = None) -> dict[str, Callable]:
    return on_lines(by_pixel(Window(stride, dilation, padding)), (2,), (2, 4))


# Decoupled dynamic filters: x (N, C, H, W), channel (N, C, kh, kw), spatial (N, G, kh, kw, Ho, Wo).


def _ddf(combine: str = "mul", stride: int = 1, dilation: int = 1) -> dict[str, Callable]:
    window = Window(stride, dilation)
    operation: Callable = {"mul": torch.mul, "add": torch.add}[combine]

    def shifted(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
        """One shifted copy of x per tap, times the combined filter."""
        groups, *kernel = spatial.shape[1:4]
        image, of_channels = by_group(window.padded(x, kernel), groups), by_group(channel, groups)
        y: Any = 0
        for a, b, here in window.shifts(image, kernel, spatial.shape[4:]):
            y = y + operation(spatial[:, :, None, a, b], of_channels[..., a, b, None, None]) * here
        return y.flatten(1, 2)

    def in_place(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
        """For "mul", the copies of x are scaled by the channel filter; for "add", the filters are added."""
        groups, *kernel = spatial.shape[1:4]
        image, of_channels = by_group(window.padded(x, kernel), groups), by_group(channel, groups)
        y = x.new_zeros((*image.shape[:3], *spatial.shape[4:]))
        for a, b, here in window.shifts(image, kernel, spatial.shape[4:]):
            one, other = of_channels[..., a, b, None, None], spatial[:, :, None, a, b]
            if combine == "mul":
                y.addcmul_(here * one, other)
            else:
                y.addcmul_(here, other + one)
        return y.flatten(1, 2)

    def unfold(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
        """All shifted copies at once, then one weighted sum over the taps."""
        groups, *kernel = spatial.shape[1:4]
        columns = by_group(window.unfolded(x, kernel, spatial.shape[4:]), groups)
        of_channels = by_group(channel.flatten(2), groups)[..., None, None]
        return (columns * operation(spatial.flatten(2, 3)[:, :, None], of_channels)).sum(3).flatten(1, 2)

    return {
        "shifts": shifted,
        "shifts, in place": in_place,
        "unfold": unfold,
        **_ddf_products(combine, window),
    }


def _ddf_products(combine: str, window: Window) -> dict[str, Callable]:
    """With one combination of the filters alone, where it can be left to others."""
    pixelwise = by_pixel(window)

    def scaled(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
        """The copies scaled by the channel filter, then a product of matrices a pixel."""
        if combine == "add":
            raise Cannot('for "mul" alone')
        groups, *kernel = spatial.shape[1:4]
        columns = window.unfolded(x, kernel, spatial.shape[4:]) * channel.flatten(2)[..., None, None]
        weight = spatial.flatten(2, 3)
        return torch.einsum("ngcthw,ngthw->ngchw", by_group(columns, groups), weight).flatten(1, 2)

    def convolved(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
        """The sum of the filters as a sum of outputs: the channel filters become a depthwise convolution."""
        if combine == "mul":
            raise Cannot('for "add" alone')
        (n, c), kernel = x.shape[:2], channel.shape[2:]
        steps = {"padding": window.paddings(kernel), "stride": window.stride, "dilation": window.dilation}
        filters = channel.reshape(n * c, 1, *kernel)
        depthwise = F.conv2d(x.reshape(1, n * c, *x.shape[2:]), filters, groups=n * c, **steps)
        y = pixelwise["shifts, in place"](x, spatial)
        return depthwise.view_as(y) + y

    return {"scaled copies, einsum": scaled, "depthwise convolution and shifts": convolved}


def _ddf_upsample(combine: str = "mul", dilation: int = 1) -> dict[str, Callable]:
    """channel (N, u, u, C, kh, kw), spatial (N, G, kh, kw, u*H, u*W): a phase is a decoupled filter."""

    def by_phase(formulation: Callable) -> Callable:
        def phases(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
            """Each at low resolution, then a pixel shuffle."""
            u = channel.shape[1]
            made = [
                formulation(x, channel[:, i, j], spatial[..., i::u, j::u]) for i in range(u) for j in range(u)
            ]
            return F.pixel_shuffle(torch.stack(made, 2).flatten(1, 2), u)

        return phases

    def interpolated(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
        """x repeated to the output size, where a tap is a shift by u pixels, and the channel filters too."""
        (groups, *kernel), (h, w), u = spatial.shape[1:4], spatial.shape[4:], channel.shape[1]
        image = by_group(F.interpolate(Window(1, dilation).padded(x, kernel), scale_factor=u), groups)
        y: Any = 0
        for a, b, here in Window(1, u * dilation).shifts(image, kernel, (h, w)):
            of_phases = by_group(channel[..., a, b].movedim(3, 1), groups).repeat(1, 1, 1, h // u, w // u)
            filters = spatial[:, :, None, a, b]
            y = y + (filters * of_phases if combine == "mul" else filters + of_phases) * here
        return y.flatten(1, 2)

    formulations = {f"{name}, by phase": by_phase(each) for name, each in _ddf(combine, 1, dilation).items()}
    return {**formulations, "shifts, interpolated": interpolated}


# CARAFE: x (N, C, H, W), masks (N, G*k*k, u*H, u*W).


def _by_phase(masks: Tensor, groups: int, scale: int) -> Tensor:
    """(N, G, k*k, u*u, H, W): the masks of each sub-pixel phase on the grid of x."""
    return F.pixel_unshuffle(masks, scale).unflatten(1, (groups, -1, scale * scale))


def _carafe_unfolded(k: int, groups: int, u: int) -> dict[str, Callable]:
    def unfold_and_interpolate(x: Tensor, masks: Tensor) -> Tensor:
        """The usual form: windows of x, repeated to the output size, weighted, summed."""
        columns = F.unfold(x, k, padding=k // 2).view(x.shape[0], -1, *x.shape[2:])
        columns = F.interpolate(columns, scale_factor=u).unflatten(1, (groups, -1, k * k))
        return (columns * masks.unflatten(1, (groups, 1, k * k))).sum(3).flatten(1, 2)

    def unfold_by_phase(x: Tensor, masks: Tensor) -> Tensor:
        """Windows of x, and a product of matrices a pixel: taps by phases."""
        columns = by_group(Window().unfolded(x, (k, k), x.shape[2:]), groups)
        return F.pixel_shuffle(
            torch.einsum("ngcthw,ngtuhw->ngcuhw", columns, _by_phase(masks, groups, u)).flatten(1, 3), u
        )

    return {"unfold and interpolate": unfold_and_interpolate, "unfold by phase, einsum": unfold_by_phase}


def _carafe(kernel_size: int, groups: int = 1, scale: int = 2) -> dict[str, Callable]:
    k, u, kernel, window = kernel_size, scale, (kernel_size, kernel_size), Window()
    offsets = [(a, b) for a in range(k) for b in range(k)]

    def in_place_interpolated(x: Tensor, masks: Tensor) -> Tensor:
        """x repeated to the output size, where a tap is a shift by u pixels."""
        h, w = masks.shape[2:]
        image = by_group(F.interpolate(window.padded(x, kernel), scale_factor=u), groups)
        masks = masks.unflatten(1, (groups, k, k))
        y = x.new_zeros(x.shape[0], groups, x.shape[1] // groups, h, w)
        for a, b in offsets:
            y.addcmul_(image[..., u * a : u * a + h, u * b : u * b + w], masks[:, :, a, b, None])
        return y.flatten(1, 2)

    def shifted_by_phase(x: Tensor, masks: Tensor) -> Tensor:
        """Each phase at low resolution, then a pixel shuffle."""
        h, w = x.shape[2:]
        image, weight = by_group(window.padded(x, kernel), groups), _by_phase(masks, groups, u)
        y: Any = 0
        for tap, (a, b) in enumerate(offsets):
            y = y + weight[:, :, None, tap] * image[..., None, a : a + h, b : b + w]
        return F.pixel_shuffle(y.flatten(1, 3), u)

    def in_place_by_phase(x: Tensor, masks: Tensor) -> Tensor:
        """As before, multiplied and added in one pass a tap."""
        h, w = x.shape[2:]
        image, weight = by_group(window.padded(x, kernel), groups), _by_phase(masks, groups, u)
        y = x.new_zeros(x.shape[0], groups, x.shape[1] // groups, u * u, h, w)
        for tap, (a, b) in enumerate(offsets):
            y.addcmul_(image[..., None, a : a + h, b : b + w], weight[:, :, None, tap])
        return F.pixel_shuffle(y.flatten(1, 3), u)

    def in_place_phase_after_phase(x: Tensor, masks: Tensor) -> Tensor:
        """As before, one phase after the other."""
        h, w = x.shape[2:]
        image, weight = by_group(window.padded(x, kernel), groups), _by_phase(masks, groups, u)
        phases = []
        for phase in range(u * u):
            y = torch.zeros_like(by_group(x, groups))
            for tap, (a, b) in enumerate(offsets):
                y.addcmul_(image[..., a : a + h, b : b + w], weight[:, :, None, tap, phase])
            phases.append(y)
        return F.pixel_shuffle(torch.stack(phases, 3).flatten(1, 3), u)

    return {
        "shifts, interpolated, in place": in_place_interpolated,
        "shifts by phase": shifted_by_phase,
        "shifts by phase, in place": in_place_by_phase,
        "phase after phase, in place": in_place_phase_after_phase,
        **_carafe_unfolded(kernel_size, groups, scale),
    }


# Per operator: its parameters -> the formulations by name.
FORMULATIONS: dict[str, Callable[..., dict[str, Callable]]] = {
    "ddf": _ddf,
    "ddf_upsample": _ddf_upsample,
    "carafe": _carafe,
    "involution": _by_pixel,
    "local_filter2d": _by_pixel,  # without channel weights they are one
    "local_filter1d": _by_place,
    "correlation2d": correlation,
    "mixed_filter2d": mixed,
    "mixed_filter1d": lambda **params: on_lines(mixed(**params), (2,), (-2,), (3,)),
}
