"""`dynamic_conv2d` and `dynamic_sampling_conv2d` in PyTorch: the formulations that ours are timed against.

Each takes the tensors of the operator's array arguments in order, at stride 1, and lets autograd find the
gradients. "paper": the kernel of each pixel composed, and applied to each region. The others use the same
factors as ours. Whichever is fastest in a run, eager and compiled, is the peer.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import Cannot, Window, on_lines


def _offsets(samples: int, step: int) -> Iterator[tuple[int, int]]:
    places = [(i - (samples - 1) // 2) * step for i in range(samples)]
    return ((y, x) for y in places for x in places)


def _moved(image: Tensor, y: int, x: int) -> Tensor:
    """image[..., h + y, w + x], zero outside."""
    h, w = image.shape[-2:]
    padded = F.pad(image, (max(0, -x), max(0, x), max(0, -y), max(0, y)))
    return padded[..., max(0, y) : max(0, y) + h, max(0, x) : max(0, x) + w]


def _taps(kernel: Tensor) -> Iterator[tuple[int, int, int]]:
    """Number and offsets of each tap of a kernel (N, O, kh, kw, H, W)."""
    kh, kw = kernel.shape[2:4]
    return ((a * kw + b, a - kh // 2, b - kw // 2) for a in range(kh) for b in range(kw))


def _attended(z: Tensor, sample_attention: Any, s: int) -> Tensor:
    return z if sample_attention is None else z * (sample_attention.flatten(2, 3)[:, :, s] + 1)


def _fused(regions: Iterable[Tensor], fuse: str, samples: int) -> Any:
    """What all regions gave, as one: the sum is added up as they come."""
    if fuse == "sum":
        y: Any = 0
        for region in regions:
            y = y + region
        return y
    stacked = torch.stack(list(regions), 1)
    return stacked.max(1).values if fuse == "max" else stacked.unflatten(1, (samples, samples))


def _paper(samples: int, sample_stride: int, fuse: str) -> Callable:
    def paper(x: Tensor, u: Tensor, v: Tensor, by_sample: Any = None, by_position: Any = None) -> Tensor:
        """The composed kernel (N, O, C, taps, H, W), and its product with the unfolded image per region."""
        centre = v.shape[2] * v.shape[3] // 2
        one = torch.arange(v.shape[2] * v.shape[3], device=x.device).eq(centre).to(x.dtype)
        on_centre = (u + 1 / x.shape[1])[:, :, :, None] * one[:, None, None]
        kernel = v.flatten(2, 3)[:, :, None] + on_centre

        def of_region(s: int, dy: int, dx: int) -> Tensor:
            region = torch.stack([_moved(x, dy + a, dx + b) for _, a, b in _taps(v)], 2)
            products = torch.einsum("ncthw,nocthw->nothw", region, kernel)
            if by_position is not None:
                products = products * (_moved(by_position, dy, dx).flatten(2, 3) + 1)
            return _attended(products.sum(2), by_sample, s)

        places = enumerate(_offsets(samples, sample_stride))
        return _fused((of_region(s, dy, dx) for s, (dy, dx) in places), fuse, samples)

    return paper


def _spatial(x: Tensor, v: Tensor, by_position: Any, dy: int, dx: int) -> Any:
    """What the spatial kernel makes of the sum over channels, in one region."""
    total, y = x.sum(1, keepdim=True), 0
    for t, a, b in _taps(v):
        part = v.flatten(2, 3)[:, :, t] * _moved(total, dy + a, dx + b)
        if by_position is not None:
            part = part * (_moved(by_position.flatten(2, 3)[:, :, t], dy, dx) + 1)
        y = y + part
    return y


def _factored(samples: int, sample_stride: int, fuse: str) -> dict[str, Callable]:
    def offsets() -> Iterator[tuple[int, int]]:
        return _offsets(samples, sample_stride)

    def fused(of_channels: Callable) -> Callable:
        def factored(
            x: Tensor, u: Tensor, v: Tensor, by_sample: Any = None, by_position: Any = None
        ) -> Tensor:
            centre, mean = v.shape[2] * v.shape[3] // 2, x.mean(1, keepdim=True)
            dots = of_channels(x, u)

            def of_region(s: int, dy: int, dx: int) -> Tensor:
                z = dots[s] + _moved(mean, dy, dx)  # the residual: cheaper here than on each channel
                if by_position is not None:
                    z = z * (_moved(by_position.flatten(2, 3)[:, :, centre], dy, dx) + 1)
                return _attended(z + _spatial(x, v, by_position, dy, dx), by_sample, s)

            return _fused((of_region(s, dy, dx) for s, (dy, dx) in enumerate(offsets())), fuse, samples)

        return factored

    def one_by_one(x: Tensor, kernel: Tensor) -> Any:
        """A product and a sum for each region, which a compiler may fuse."""
        return [(kernel * _moved(x, dy, dx)[:, None]).sum(2) for dy, dx in offsets()]

    def together(x: Tensor, kernel: Tensor) -> Tensor:
        """One matrix product for each pixel, (O, C) times (C, S*S)."""
        regions = torch.stack([_moved(x, dy, dx) for dy, dx in offsets()])
        return torch.einsum("snchw,nochw->snohw", regions, kernel)

    return {"factored, region by region": fused(one_by_one), "factored, one product": fused(together)}


def _shared(samples: int, step: int, fuse: str) -> dict[str, Callable]:
    """What taps see, X1 * Ap, made once on a padded image, of which each region is a part."""
    before = (samples - 1) // 2 * step
    margin = (before, (samples - 1) * step - before) * 2

    def seen(x: Tensor, v: Tensor, by_position: Any) -> tuple[Tensor, Any]:
        """(N, O or 1, taps, ...), and Ap on the centre."""
        total = F.pad(x.sum(1, keepdim=True), margin)
        maps = torch.stack([_moved_within(x, margin, a, b) for _, a, b in _taps(v)], 2)
        if by_position is None:
            return maps, torch.ones_like(total)
        attended = F.pad(by_position.flatten(2, 3), margin) + 1
        return maps * attended, attended[:, :, v.shape[2] * v.shape[3] // 2]

    def parts(x: Tensor, u: Tensor, v: Tensor, by_sample: Any = None, by_position: Any = None) -> Tensor:
        """Region by region, for a compiler that fuses."""
        maps, central = seen(x, v, by_position)
        wide, kernel, (h, w) = F.pad(x, margin), v.flatten(2, 3), x.shape[2:]

        def of_region(s: int) -> Tensor:
            top, left = s // samples * step, s % samples * step
            here = (..., slice(top, top + h), slice(left, left + w))
            pixels = wide[here]
            dots = (u * pixels[:, None]).sum(2) + pixels.mean(1, keepdim=True)
            return _attended(dots * central[here] + (kernel * maps[here]).sum(2), by_sample, s)

        return _fused(map(of_region, range(samples * samples)), fuse, samples)

    def windows(x: Tensor, u: Tensor, v: Tensor, by_sample: Any = None, by_position: Any = None) -> Tensor:
        """All regions at once, as views (..., S, S, H, W): little to compile."""
        maps, central = seen(x, v, by_position)

        def regions(image: Tensor) -> Tensor:
            return image.unfold(-2, x.shape[2], step).unfold(-2, x.shape[3], step)

        pixels = regions(F.pad(x, margin))
        dots = (u[:, :, :, None, None] * pixels[:, None]).sum(2) + pixels.mean(1, keepdim=True)
        z = dots * regions(central) + (v.flatten(2, 3)[:, :, :, None, None] * regions(maps)).sum(2)
        z = z if by_sample is None else z * (by_sample + 1)
        if fuse == "stack":
            return z.movedim((2, 3), (1, 2))
        return z.sum((2, 3)) if fuse == "sum" else z.flatten(2, 3).max(2).values

    return {"factored, shared maps": parts, "factored, views": windows}


def _moved_within(x: Tensor, margin: tuple, a: int, b: int) -> Tensor:
    """The sum over channels, moved, on an image with margins."""
    left, right, top, bottom = margin
    total = F.pad(x.sum(1, keepdim=True), (left + abs(b), right + abs(b), top + abs(a), bottom + abs(a)))
    h, w = x.shape[2] + top + bottom, x.shape[3] + left + right
    return total[..., abs(a) + a : abs(a) + a + h, abs(b) + b : abs(b) + b + w]


def _boxed(samples: int, sample_stride: int, fuse: str) -> Callable:
    def boxed(x: Tensor, u: Tensor, v: Tensor, by_sample: Any = None, by_position: Any = None) -> Tensor:
        """Without attention: one region of box sums, rows before columns."""
        if by_sample is not None or by_position is not None:
            raise Cannot("box sums are right without attention only")
        if fuse != "sum":
            raise Cannot("box sums are sums")
        places = [(i - (samples - 1) // 2) * sample_stride for i in range(samples)]
        reach = samples * sample_stride + v.shape[2]
        wide = F.pad(x, (reach,) * 4)
        sums: Any = 0
        for y in places:
            sums = sums + torch.roll(wide, -y, 2)
        box: Any = 0
        for place in places:
            box = box + torch.roll(sums, -place, 3)
        h, w = x.shape[2:]
        box_here, total = box[:, None, :, reach : reach + h, reach : reach + w], box.sum(1, keepdim=True)
        y = (u * box_here).sum(2) + total[..., reach : reach + h, reach : reach + w] / x.shape[1]
        for t, a, b in _taps(v):
            y = (
                y
                + v.flatten(2, 3)[:, :, t] * total[..., reach + a : reach + a + h, reach + b : reach + b + w]
            )
        return y

    return boxed


def _sampling(samples: int, sample_stride: int = 1, fuse: str = "sum") -> dict[str, Callable]:
    return {
        "paper": _paper(samples, sample_stride, fuse),
        **_factored(samples, sample_stride, fuse),
        **_shared(samples, sample_stride, fuse),
        "factored, box sums": _boxed(samples, sample_stride, fuse),
    }


def _conv(stride: int = 1, dilation: int = 1, padding: int | None = None) -> dict[str, Callable]:
    window = Window(stride, dilation, padding)

    def unfold(x: Tensor, weight: Tensor) -> Tensor:
        """The published form: unfold, multiply, sum over channels and taps."""
        columns = window.unfolded(x, weight.shape[3:5], weight.shape[5:]).flatten(1, 2)
        return (columns[:, None] * weight.flatten(2, 4)).sum(2)

    def einsum(x: Tensor, weight: Tensor) -> Tensor:
        columns = window.unfolded(x, weight.shape[3:5], weight.shape[5:]).flatten(1, 2)
        return torch.einsum("nkhw,nokhw->nohw", columns, weight.flatten(2, 4))

    def shifts(x: Tensor, weight: Tensor) -> Tensor:
        """A product and a sum over channels for each tap."""
        kernel = weight.shape[3:5]
        y: Any = 0
        for a, b, here in window.shifts(window.padded(x, kernel), kernel, weight.shape[5:]):
            y = y + (weight[:, :, :, a, b] * here[:, None]).sum(2)
        return y

    def multiply_adds(x: Tensor, weight: Tensor) -> Tensor:
        """A product added up in place for each tap and channel."""
        kernel, size = weight.shape[3:5], weight.shape[5:]
        y = x.new_zeros((*weight.shape[:2], *size))
        for a, b, here in window.shifts(window.padded(x, kernel), kernel, size):
            for c in range(x.shape[1]):
                y.addcmul_(weight[:, :, c, a, b], here[:, c : c + 1])
        return y

    def views(x: Tensor, weight: Tensor) -> Tensor:
        """Windows without a copy, for a compiler: a single loop."""
        columns = window.views(x, weight.shape[3:5])[:, None]
        return (columns * weight.movedim((3, 4), (5, 6))).sum((2, 5, 6))

    return {
        "unfold": unfold,
        "einsum": einsum,
        "shifts": shifts,
        "multiply-adds": multiply_adds,
        "views": views,
    }


# Per operator: its parameters -> the formulations by name.
FORMULATIONS: dict[str, Callable[..., dict[str, Callable]]] = {
    "dynamic_conv2d": _conv,
    "dynamic_conv1d": lambda **params: on_lines(_conv(**params), (2,), (3, 5)),
    "dynamic_sampling_conv2d": _sampling,
}
