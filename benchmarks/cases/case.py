"""One thing to measure: an operator on arrays of given shapes, and the least work that it can do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from operator import add
from typing import Any, NamedTuple

import numpy as np

import dynarray as dyn
from dynarray._geometry import input_positions, output_size
from dynarray._operator import Checked

PASSES = ("forward", "backward", "forward_backward")


class Work(NamedTuple):
    """The least that a pass must do: bytes read from memory and written to it, floating-point operations."""

    read: int
    written: int
    flops: int

    @property
    def bytes(self) -> int:
        """Bytes moved in all."""
        return self.read + self.written

    def __add__(self, other: tuple) -> "Work":
        return Work(*map(add, self, other))


def pairs_inside(image: Sequence[int], kernel: Sequence[int], outputs: Sequence[int], params: Mapping) -> int:
    """The (output, tap) pairs of a window that read inside the image; `params` are those of a form."""
    count = 1
    for axis, (size, taps, places) in enumerate(zip(image, kernel, outputs, strict=True)):
        steps = (params["stride"][axis], params["dilation"][axis], params["padding"][axis])
        upsample = params.get("upsample", 1)
        positions = np.stack([input_positions(places, tap, *steps, upsample) for tap in range(taps)])
        count *= int(((positions >= 0) & (positions < size)).sum())
    return count


class Grid(NamedTuple):
    """Where a window goes: sizes of the output, parameters, what a title says of them."""

    outputs: tuple[int, ...]
    params: dict[str, int]
    title: str


def grid(
    image: Sequence[int], kernel: int, stride: int = 1, dilation: int = 1, *, padded: bool = False
) -> Grid:
    """The grid of a window in the middle of its taps; `padded`: where an operator must be told the padding.

    Of an even number of taps the middle is none of them, and the padding is always told.
    """
    dilation = dilation if kernel > 1 else 1
    padding = dilation * (kernel - 1) // 2
    outputs = tuple(output_size(size, kernel, stride, dilation, padding) for size in image)
    params = {name: value for name, value in (("stride", stride), ("dilation", dilation)) if value != 1}
    title = "".join(f" {name} {value}" for name, value in params.items())
    return Grid(outputs, params | ({"padding": padding} if padded or kernel % 2 == 0 else {}), title)


@dataclass(frozen=True)
class Buffers:
    """One set of input arrays, the gradient of the output, what the forward pass saved, and parameters."""

    arrays: tuple
    grad_output: Any
    saved: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """An operator, the shapes of its arrays and its parameters.

    Attributes
    ----------
    title : str
        What tables call it; also its key, so no two cases share one.
    operator : str
        Name in ``dynarray.OPERATORS``.
    shapes : dict
        Shape of each array argument, in order; those left out are not there.
    flops : callable
        ``flops(checked) -> (forward, backward)``: floating-point operations that cannot be left out.
    params : dict
        Keyword parameters.
    peers : str, optional
        Module with ``FORMULATIONS``: what the operator is compared with.
    small : Case, optional
        The same kind of call on tiny arrays: it compiles the same kernels, and quick runs measure it instead.
    dtype : str
        Type of all arrays.
    ranges : dict
        Arrays that hold numbers between these limits; the others are normally distributed.
    places : tuple of str
        Arrays of positions in pixels, (..., y and x, rows, columns): normally distributed around their own
        pixels.
    """

    title: str
    operator: str
    shapes: Mapping[str, tuple[int, ...]]
    flops: Callable[[Checked], tuple[int, int]]
    params: Mapping[str, Any] = field(default_factory=dict)
    peers: str | None = None
    small: "Case | None" = None
    dtype: str = "float32"
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    places: tuple[str, ...] = ()

    def checked(self) -> Checked:
        """Arrays and parameters as the backends take them; the arrays are views of a single zero."""
        operator = dyn.OPERATORS[self.operator]
        zero = np.zeros((), self.dtype)
        arrays = (
            np.broadcast_to(zero, self.shapes[name]) if name in self.shapes else None
            for name in operator.arrays
        )
        return operator.check(*arrays, **{**operator.defaults, **self.params})

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        return self.checked().output_shape

    @property
    def input_bytes(self) -> int:
        """Size of all array arguments."""
        return sum(map(prod, self.shapes.values())) * np.dtype(self.dtype).itemsize

    @property
    def output_bytes(self) -> int:
        """Size of the output."""
        return prod(self.output_shape) * np.dtype(self.dtype).itemsize

    def work(self) -> dict[str, Work]:
        """Per pass, the least work: each array read once or written once, all gradients wanted."""
        forward_flops, backward_flops = self.flops(self.checked())
        forward = Work(self.input_bytes, self.output_bytes, forward_flops)
        backward = Work(self.output_bytes + self.input_bytes, self.input_bytes, backward_flops)
        return {"forward": forward, "backward": backward, "forward_backward": forward + backward}

    def arrays(self, rng: Any) -> tuple:
        """Random array arguments, one per name of the operator, None for those left out.

        `rng` is a generator of NumPy or of CuPy, and they are arrays of the same.
        """
        arrays = {
            name: self._random(rng, shape, self.ranges.get(name)) for name, shape in self.shapes.items()
        }
        for name in self.places:
            pixels = arrays[name]
            for axis in (0, 1):
                steps = np.arange(pixels.shape[axis - 2], dtype=self.dtype, like=pixels)
                pixels[..., axis, :, :] += steps[:, None] if axis == 0 else steps
        return tuple(arrays.get(name) for name in dyn.OPERATORS[self.operator].arrays)

    def grad_output(self, rng: Any) -> Any:
        """A random gradient with respect to the output."""
        return self._random(rng, self.output_shape)

    def times(self, batch: int) -> "Case":
        """The same on so many times as many images."""
        images = next(iter(self.shapes.values()))[0]
        shapes = {
            # Arrays that all images share have another first axis.
            name: (batch * shape[0], *shape[1:]) if shape[0] == images else shape
            for name, shape in self.shapes.items()
        }
        larger = replace(self, title=f"{self.title}, batch x{batch}", shapes=shapes)
        larger.checked()  # refuses what was not scaled alike
        return larger

    def _random(self, rng: Any, shape: tuple[int, ...], limits: tuple[float, float] | None = None) -> Any:
        if limits:
            return rng.uniform(*limits, shape).astype(self.dtype)
        return rng.standard_normal(shape, dtype=np.float32).astype(self.dtype, copy=False)
