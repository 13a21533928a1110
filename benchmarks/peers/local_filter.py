"""`local_filter2d`, its faces and `correlation2d` in PyTorch: the formulations that ours are timed against.

Each takes the tensors of the operator's array arguments in order, at stride 1, and lets autograd find the
gradients. Whichever is fastest in a run, eager and compiled, is the peer; none is best for every shape.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _offsets(kernel: tuple[int, int]) -> Iterator[tuple[int, int]]:
    return ((a, b) for a in range(kernel[0]) for b in range(kernel[1]))


def _padded(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    ry, rx = kernel[0] // 2, kernel[1] // 2
    return F.pad(x, (rx, rx, ry, ry))


def _by_group(tensor: Tensor, groups: int) -> Tensor:
    """(N, G, C/G, ...): the channels of a group side by side, so that they broadcast over its filter."""
    return tensor.unflatten(1, (groups, -1))


# Decoupled dynamic filters: x (N, C, H, W), channel (N, C, kh, kw), spatial (N, G, kh, kw, H, W).


def _shifted_products(combine: Callable) -> Callable:
    def shifted_multiply_adds(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
        """One shifted copy of x per tap, times the combined filter."""
        (groups, *kernel), (h, w) = spatial.shape[1:4], x.shape[2:]
        image, of_channels = _by_group(_padded(x, kernel), groups), _by_group(channel, groups)
        y: Any = 0
        for a, b in _offsets(kernel):
            filters = combine(spatial[:, :, None, a, b], of_channels[..., a, b, None, None])
            y = y + filters * image[..., a : a + h, b : b + w]
        return y.flatten(1, 2)

    return shifted_multiply_adds


def _unfolded_product(combine: Callable) -> Callable:
    def unfold(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
        """All shifted copies at once, then one weighted sum over the taps."""
        (groups, *kernel), size = spatial.shape[1:4], x.shape[2:]
        columns = F.unfold(x, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
        columns = columns.view(x.shape[0], groups, -1, kernel[0] * kernel[1], *size)
        of_channels = _by_group(channel.flatten(2), groups)[..., None, None]
        return (columns * combine(spatial.flatten(2, 3)[:, :, None], of_channels)).sum(3).flatten(1, 2)

    return unfold


def _ddf_mul_in_place(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
    """Shifted copies of x scaled by the channel filter, multiplied and added in one pass each."""
    (groups, *kernel), (h, w) = spatial.shape[1:4], x.shape[2:]
    image, of_channels = _by_group(_padded(x, kernel), groups), _by_group(channel, groups)
    y = torch.zeros_like(_by_group(x, groups))
    for a, b in _offsets(kernel):
        scaled = image[..., a : a + h, b : b + w] * of_channels[..., a, b, None, None]
        y.addcmul_(scaled, spatial[:, :, None, a, b])
    return y.flatten(1, 2)


def _ddf_add_in_place(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
    """As for "mul", with the two filters added first."""
    (groups, *kernel), (h, w) = spatial.shape[1:4], x.shape[2:]
    image, of_channels = _by_group(_padded(x, kernel), groups), _by_group(channel, groups)
    y = torch.zeros_like(_by_group(x, groups))
    for a, b in _offsets(kernel):
        filters = spatial[:, :, None, a, b] + of_channels[..., a, b, None, None]
        y.addcmul_(image[..., a : a + h, b : b + w], filters)
    return y.flatten(1, 2)


def _ddf_add_convolved(x: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
    """The sum of the filters as a sum of outputs: the channel filters become a depthwise convolution."""
    n, c = x.shape[:2]
    kernel = channel.shape[2:]
    padding = kernel[0] // 2, kernel[1] // 2
    image, filters = x.view(1, n * c, *x.shape[2:]), channel.reshape(n * c, 1, *kernel)
    depthwise = F.conv2d(image, filters, padding=padding, groups=n * c)
    return depthwise.view_as(x) + _involution_in_place(x, spatial)


# Involution: x (N, C, H, W), weight (N, G, kh, kw, H, W).


def _involution_shifted(x: Tensor, weight: Tensor) -> Tensor:
    (groups, *kernel), (h, w) = weight.shape[1:4], x.shape[2:]
    image = _by_group(_padded(x, kernel), groups)
    y: Any = 0
    for a, b in _offsets(kernel):
        y = y + weight[:, :, None, a, b] * image[..., a : a + h, b : b + w]
    return y.flatten(1, 2)


def _involution_in_place(x: Tensor, weight: Tensor) -> Tensor:
    (groups, *kernel), (h, w) = weight.shape[1:4], x.shape[2:]
    image = _by_group(_padded(x, kernel), groups)
    y = torch.zeros_like(_by_group(x, groups))
    for a, b in _offsets(kernel):
        y.addcmul_(image[..., a : a + h, b : b + w], weight[:, :, None, a, b])
    return y.flatten(1, 2)


def _involution_unfold(x: Tensor, weight: Tensor) -> Tensor:
    """The published form: unfold, multiply, sum over the taps."""
    (groups, *kernel), size = weight.shape[1:4], x.shape[2:]
    columns = F.unfold(x, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
    columns = columns.view(x.shape[0], groups, -1, kernel[0] * kernel[1], *size)
    return (weight.flatten(2, 3)[:, :, None] * columns).sum(3).flatten(1, 2)


# CARAFE: x (N, C, H, W), masks (N, G*k*k, u*H, u*W).


def _carafe(kernel_size: int, groups: int = 1, scale: int = 2) -> dict[str, Callable]:
    k, u, kernel = kernel_size, scale, (kernel_size, kernel_size)

    def by_phase(masks: Tensor) -> Tensor:
        """(N, G, k*k, u*u, H, W): the masks of each sub-pixel phase on the grid of x."""
        return F.pixel_unshuffle(masks, u).unflatten(1, (groups, k * k, u * u))

    def unfold_and_interpolate(x: Tensor, masks: Tensor) -> Tensor:
        """The usual form: windows of x, repeated to the output size, weighted, summed."""
        columns = F.unfold(x, k, padding=k // 2).view(x.shape[0], -1, *x.shape[2:])
        columns = F.interpolate(columns, scale_factor=u).unflatten(1, (groups, -1, k * k))
        return (columns * masks.unflatten(1, (groups, 1, k * k))).sum(3).flatten(1, 2)

    def in_place_interpolated(x: Tensor, masks: Tensor) -> Tensor:
        """x repeated to the output size, where a tap is a shift by u pixels."""
        h, w = masks.shape[2:]
        image = _by_group(F.interpolate(_padded(x, kernel), scale_factor=u), groups)
        masks = masks.unflatten(1, (groups, k, k))
        y = x.new_zeros(x.shape[0], groups, x.shape[1] // groups, h, w)
        for a, b in _offsets(kernel):
            y.addcmul_(image[..., u * a : u * a + h, u * b : u * b + w], masks[:, :, a, b, None])
        return y.flatten(1, 2)

    def shifted_by_phase(x: Tensor, masks: Tensor) -> Tensor:
        """Each phase at low resolution, then a pixel shuffle."""
        h, w = x.shape[2:]
        image, weight = _by_group(_padded(x, kernel), groups), by_phase(masks)
        y: Any = 0
        for tap, (a, b) in enumerate(_offsets(kernel)):
            y = y + weight[:, :, None, tap] * image[..., None, a : a + h, b : b + w]
        return F.pixel_shuffle(y.flatten(1, 3), u)

    def in_place_by_phase(x: Tensor, masks: Tensor) -> Tensor:
        """As before, multiplied and added in one pass a tap."""
        h, w = x.shape[2:]
        image, weight = _by_group(_padded(x, kernel), groups), by_phase(masks)
        y = x.new_zeros(x.shape[0], groups, x.shape[1] // groups, u * u, h, w)
        for tap, (a, b) in enumerate(_offsets(kernel)):
            y.addcmul_(image[..., None, a : a + h, b : b + w], weight[:, :, None, tap])
        return F.pixel_shuffle(y.flatten(1, 3), u)

    def in_place_phase_after_phase(x: Tensor, masks: Tensor) -> Tensor:
        """As before, one phase after the other."""
        h, w = x.shape[2:]
        image, weight = _by_group(_padded(x, kernel), groups), by_phase(masks)
        phases = []
        for phase in range(u * u):
            y = torch.zeros_like(_by_group(x, groups))
            for tap, (a, b) in enumerate(_offsets(kernel)):
                y.addcmul_(image[..., a : a + h, b : b + w], weight[:, :, None, tap, phase])
            phases.append(y)
        return F.pixel_shuffle(torch.stack(phases, 3).flatten(1, 3), u)

    return {
        "unfold and interpolate": unfold_and_interpolate,
        "shifts, interpolated, in place": in_place_interpolated,
        "shifts by phase": shifted_by_phase,
        "shifts by phase, in place": in_place_by_phase,
        "phase after phase, in place": in_place_phase_after_phase,
    }


# Mixed filters: x (N, C, H, W), kernels (B, kh, kw), mixture (N, G, B, H, W).


def _filtered(x: Tensor, kernels: Tensor, groups: int) -> Tensor:
    """(N, G, C/G, B, H, W): each channel by each kernel, an image of one channel at a time."""
    padding = kernels.shape[1] // 2, kernels.shape[2] // 2
    z = F.conv2d(x.flatten(0, 1)[:, None], kernels[:, None], padding=padding)
    return _by_group(z.unflatten(0, x.shape[:2]), groups)


def _mixed_convolved(x: Tensor, kernels: Tensor, mixture: Tensor) -> Tensor:
    """A convolution with all kernels, and a weighted sum."""
    z = _filtered(x, kernels, mixture.shape[1])
    return (z * mixture[:, :, None]).sum(3).flatten(1, 2)


def _mixed_convolved_einsum(x: Tensor, kernels: Tensor, mixture: Tensor) -> Tensor:
    z = _filtered(x, kernels, mixture.shape[1])
    return torch.einsum("ngcbhw,ngbhw->ngchw", z, mixture).flatten(1, 2)


def _mixed_depthwise(x: Tensor, kernels: Tensor, mixture: Tensor) -> Tensor:
    """The same by a depthwise convolution with so many outputs a channel."""
    channels, padding = x.shape[1], (kernels.shape[1] // 2, kernels.shape[2] // 2)
    z = F.conv2d(x, kernels.repeat(channels, 1, 1)[:, None], padding=padding, groups=channels)
    z = _by_group(z.unflatten(1, (channels, -1)), mixture.shape[1])
    return (z * mixture[:, :, None]).sum(3).flatten(1, 2)


def _mixed_one_by_one(x: Tensor, kernels: Tensor, mixture: Tensor) -> Tensor:
    """One kernel after the other, added up in place."""
    groups = mixture.shape[1]
    y = torch.zeros_like(_by_group(x, groups))
    for b in range(len(kernels)):
        y.addcmul_(_filtered(x, kernels[b : b + 1], groups).squeeze(3), mixture[:, :, None, b])
    return y.flatten(1, 2)


def _composed(kernels: Tensor, mixture: Tensor) -> Tensor:
    """All filters, (N, G, kh, kw, H, W)."""
    filters = kernels.flatten(1).T @ mixture.flatten(3)
    return filters.view(*mixture.shape[:2], *kernels.shape[1:], *mixture.shape[3:])


def _mixed_composed(x: Tensor, kernels: Tensor, mixture: Tensor) -> Tensor:
    """All filters by a matrix product, then a shifted multiply-add for each tap."""
    return _involution_in_place(x, _composed(kernels, mixture))


def _mixed_unfolded(x: Tensor, kernels: Tensor, mixture: Tensor) -> Tensor:
    """All shifted copies at once, and one sum over taps and kernels."""
    kernel, size, groups = kernels.shape[1:], x.shape[2:], mixture.shape[1]
    columns = F.unfold(x, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
    columns = columns.view(x.shape[0], groups, -1, kernel[0] * kernel[1], *size)
    return torch.einsum("ngcthw,bt,ngbhw->ngchw", columns, kernels.flatten(1), mixture).flatten(1, 2)


def _ddf(combine: str = "mul") -> dict[str, Callable]:
    operation = {"mul": torch.mul, "add": torch.add}[combine]
    formulations = {
        "shifts": _shifted_products(operation),
        "shifts, in place": _ddf_mul_in_place if combine == "mul" else _ddf_add_in_place,
        "unfold": _unfolded_product(operation),
    }
    if combine == "add":
        formulations["depthwise convolution and shifts"] = _ddf_add_convolved
    return formulations


def _involution() -> dict[str, Callable]:
    return {
        "shifts": _involution_shifted,
        "shifts, in place": _involution_in_place,
        "unfold": _involution_unfold,
    }


# Correlation: x1, x2 (N, C, H, W).


def _correlation(max_displacement: int, step: int = 1) -> dict[str, Callable]:
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

    return {"shifts and means": shifts_and_means, "unfold": unfold, "products of rows": rows}


def _mixed() -> dict[str, Callable]:
    return {
        "convolutions, weighted sum": _mixed_convolved,
        "convolutions, einsum": _mixed_convolved_einsum,
        "depthwise convolution, weighted sum": _mixed_depthwise,
        "kernel after kernel": _mixed_one_by_one,
        "filters composed, shifts in place": _mixed_composed,
        "unfold, einsum": _mixed_unfolded,
    }


# Per operator: its parameters -> the formulations by name.
FORMULATIONS: dict[str, Callable[..., dict[str, Callable]]] = {
    "ddf": _ddf,
    "carafe": _carafe,
    "correlation2d": _correlation,
    "involution": _involution,
    "local_filter2d": _involution,  # without channel weights they are one
    "mixed_filter2d": _mixed,
}
