"""What all formulations that slide a window share, in PyTorch: paddings, shifted images, unfolded ones.

Images are planes (N, C, H, W). A formulation for lines is the one for planes, on arrays with an axis of one
row: `on_lines`; people write it so too, and the views cost nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


class Cannot(Exception):
    """A formulation does not do what a case asks for; it says what."""


@dataclass(frozen=True)
class Window:
    """The steps of a sliding window; `padding`, of planes on both axes, is by default that of "same"."""

    stride: int = 1
    dilation: int = 1
    padding: int | None = None

    def paddings(self, kernel: Sequence[int]) -> tuple[int, ...]:
        """Of each axis of the kernel; of a line's one row there is none."""
        same = tuple(self.dilation * (size - 1) // 2 for size in kernel)
        if self.padding is None:
            return same
        line = kernel[0] == 1 and kernel[1] != 1
        return (0 if line else self.padding, self.padding)

    def padded(self, x: Tensor, kernel: Sequence[int]) -> Tensor:
        """The image with zeros around it."""
        y, x_ = self.paddings(kernel)
        return F.pad(x, (x_, x_, y, y))

    def shifts(
        self, image: Tensor, kernel: Sequence[int], size: Sequence[int]
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Each tap (a, b), and what it sees of the padded image: a view of the size of the output."""
        (h, w), s, d = size, self.stride, self.dilation
        for a in range(kernel[0]):
            for b in range(kernel[1]):
                rows = slice(a * d, a * d + (h - 1) * s + 1, s)
                yield a, b, image[..., rows, b * d : b * d + (w - 1) * s + 1 : s]

    def unfolded(self, x: Tensor, kernel: Sequence[int], size: Sequence[int]) -> Tensor:
        """(N, C, kh*kw, Ho, Wo): all shifted copies at once."""
        steps = {"padding": self.paddings(kernel), "stride": self.stride, "dilation": self.dilation}
        return F.unfold(x, tuple(kernel), **steps).view(*x.shape[:2], kernel[0] * kernel[1], *size)

    def views(self, x: Tensor, kernel: Sequence[int]) -> Tensor:
        """(N, C, Ho, Wo, kh, kw), without a copy."""
        if self.dilation > 1:
            raise Cannot("Tensor.unfold has no dilation")
        image = self.padded(x, kernel)
        return image.unfold(2, kernel[0], self.stride).unfold(3, kernel[1], self.stride)


def by_group(tensor: Tensor, groups: int) -> Tensor:
    """(N, G, C/G, ...): the channels of a group side by side, so that they broadcast over its filter."""
    return tensor.unflatten(1, (groups, -1))


def on_lines(formulations: dict[str, Callable], *axes: Sequence[int]) -> dict[str, Callable]:
    """The formulations for lines: `axes` are those that each array lacks, in order, and the output's is 2."""

    def on_line(formulation: Callable) -> Callable:
        def in_plane(*tensors: Tensor) -> Tensor:
            planes = []
            for tensor, missing in zip(tensors, axes):
                for axis in missing:
                    tensor = tensor.unsqueeze(axis)
                planes.append(tensor)
            return formulation(*planes, *tensors[len(axes) :]).squeeze(2)

        return in_plane

    return {name: on_line(formulation) for name, formulation in formulations.items()}
