"""What outputs read of each array: the one place where halos of tiles and chunks come from.

Each operator says it in its own file, in one line, to `register`: `windowed` for a kernel that slides over x,
`pointwise` for what reads one place, or a `Halo` of its own. Along one axis it is a `Reach`; reaches of
functions that follow each other compose.

A tile is made by a call of the operator itself, on the part of each array that a `frame` of outputs reads,
and cut out of what comes of it: so that the border of the image is the business of the operator alone.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from math import gcd, lcm, prod
from typing import Any, NamedTuple

import numpy as np

from ._check import check_int, check_pair
from ._geometry import FARTHEST, PLANE, Space, check_steps, resolve_padding

Range = tuple[int, int]  # first, and one beyond the last


class Reach(NamedTuple):
    """What outputs read of an array, along one axis.

    Output `o` reads the positions from ``o//scale*step - before`` to ``o//scale*step + after``, as far as
    they are in the array.

    Attributes
    ----------
    before, after : int
        Rows (or columns) read before and after the position of the output; negative where it reads none
        there.
    step : int
        Positions between outputs: the stride.
    scale : int
        Outputs for each position: the factor of upsampling.
    more : int or None
        An array of size s has ``((s + more)//step + 1)*scale`` outputs; -1 for padding "same". None where the
        number of outputs does not depend on the size of the array.
    align : int
        Outputs, at whose multiples a part must begin to have the bits of the whole: kernels that make several
        rows together may round them in different ways.
    """

    before: int
    after: int
    step: int = 1
    scale: int = 1
    more: int | None = -1
    align: int = 1

    def reads(self, outputs: Range) -> Range:
        """The positions that a range of outputs reads, also those outside the array.

        Parameters
        ----------
        outputs : (int, int)
            The first output, and one beyond the last.

        Returns
        -------
        (int, int)
            The first position, and one beyond the last.
        """
        first, last = outputs[0] // self.scale, (outputs[1] - 1) // self.scale
        return first * self.step - self.before, last * self.step + self.after + 1

    def readers(self, positions: Range, size: int, mirrored: bool) -> Range:
        """The outputs that read some positions of an array.

        Parameters
        ----------
        positions : (int, int)
            The first position, and one beyond the last.
        size : int
            Positions of the array.
        mirrored : bool
            Whether outputs near its ends read positions inside once more, as most borders make them do.

        Returns
        -------
        (int, int)
            The first output, and one beyond the last; it may lie beyond those that there are.
        """
        start, stop = positions
        low, high = -((self.after - start) // self.step), (stop - 1 + self.before) // self.step
        more = -1 if self.more is None else self.more
        if mirrored and start <= self.before:
            low = 0
        if mirrored and stop + self.after + more + 1 >= size:  # as far beyond the end the last output reads
            high = size + abs(more) + abs(self.before) + abs(self.after)  # all that follow
        return low * self.scale, (high + 1) * self.scale

    def of(self, inner: "Reach") -> "Reach":
        """The reach of outputs through a function whose own outputs, in turn, reach `inner`.

        Parameters
        ----------
        inner : Reach
            That of the function which comes first.

        Returns
        -------
        Reach
            That of both.

        Raises
        ------
        ValueError
            If, after upsampling, a step or a window that changes the size follows.
        """
        step, scale = self.step * inner.step, self.scale * inner.scale
        if inner.scale == 1:
            before = self.before * inner.step + inner.before
            after = self.after * inner.step + inner.after
        else:
            if self.step != 1 or self.more != -1:
                change = f"a step of {self.step}" if self.step != 1 else "a window that changes the size"
                raise ValueError(f"{change} after upsampling by {inner.scale}")
            before = -(-self.before // inner.scale) * inner.step + inner.before
            after = -(-self.after // inner.scale) * inner.step + inner.after
        more = None
        if self.more is not None and inner.more is not None:
            more = inner.more + inner.step * (1 + self.more) if inner.scale == 1 else inner.more
        inner_align = self.scale * (inner.align // gcd(inner.align, self.step))
        return Reach(before, after, step, scale, more, lcm(self.align, inner_align))

    def union(self, other: "Reach") -> "Reach":
        """A reach that covers both.

        Parameters
        ----------
        other : Reach
            Of outputs as many, and as far apart, as those of this one.

        Returns
        -------
        Reach
            The farther of both on each side.

        Raises
        ------
        ValueError
            If the outputs are not so.
        """
        if self.step * other.scale != other.step * self.scale or self.more != other.more:
            raise ValueError(f"outputs of {self.step}/{self.scale} and {other.step}/{other.scale} pixels")
        scale = lcm(self.scale, other.scale)
        one, two = self._at(scale), other._at(scale)
        align = lcm(self.align, other.align)
        return Reach(
            max(one.before, two.before), max(one.after, two.after), one.step, scale, self.more, align
        )

    def _at(self, scale: int) -> "Reach":
        """The same, told by the first of `scale` outputs."""
        factor = scale // self.scale
        return self._replace(
            step=self.step * factor, scale=scale, after=self.after + self.step * (factor - 1)
        )


ONE = Reach(0, 0)
Reaches = Mapping[str, tuple[Reach, ...] | None]


class Halo:
    """How an operator reads its arrays: their last axes are those of the image.

    Parameters
    ----------
    at_outputs : str
        Names of the arrays of which an output reads its own place only.
    values : str
        Names of the arrays whose values say what is read.
    per_image : str
        Names of the arrays that have a part for each image of the batch and none for each place.
    space : Space
        Planes or lines.
    """

    # No dataclass, here and below: each takes more calls to make than a family to import.
    def __init__(
        self, at_outputs: str = "", values: str = "", per_image: str = "", space: Space = PLANE
    ) -> None:
        self.at_outputs, self.values, self.per_image, self.space = at_outputs, values, per_image, space

    def __call__(
        self, name: str, params: Mapping[str, Any], arrays: Mapping[str, Any], origin: Sequence[int]
    ) -> dict[str, tuple[Reach, ...] | None]:
        """The reach into each array, by axis; None for one that every output may read as a whole.

        Arrays in `values` may be the part that some outputs read, of which the first is `origin`.
        """
        reaches: dict[str, tuple[Reach, ...] | None] = dict.fromkeys(arrays)
        reaches |= dict.fromkeys(self.at_outputs.split(), (ONE,) * len(self.space.image))
        return reaches | self.into(name, params, arrays, origin)

    def into(
        self, name: str, params: Mapping[str, Any], arrays: Mapping[str, Any], origin: Sequence[int]
    ) -> dict[str, tuple[Reach, ...]]:
        """The reach into the others."""
        return {}

    def placed(self, arrays: dict[str, Any], starts: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Parts of arrays as the operator takes them, where the parts begin at `starts`."""
        return arrays


class Windowed(Halo):
    """A kernel that slides over x. `kernel` and `scale` name a parameter, or the array that has them."""

    def __init__(
        self, at_outputs: str, kernel: str, scale: str = "", moved: str = "", **options: Any
    ) -> None:
        super().__init__(at_outputs, values=moved, **options)
        self.kernel, self.scale, self.moved = kernel, scale, moved

    def into(
        self, name: str, params: Mapping[str, Any], arrays: Mapping[str, Any], origin: Sequence[int]
    ) -> dict[str, tuple[Reach, ...]]:
        axes = len(self.space.image)
        kernel = self._kernel(name, params, arrays)
        stride, dilation = (
            check_steps(name, key, params.get(key, 1), 1, axes) for key in ("stride", "dilation")
        )
        padding = resolve_padding(name, params.get("padding"), kernel, dilation)
        scale = self._scale(name, params, arrays)
        reaches = []
        for k, s, d, p in zip(kernel, stride, dilation, padding):
            span = d * (k - 1)
            reaches.append(Reach(p, span - p, s, scale, 2 * p - span - 1))
        if self.moved:
            points = arrays[self.moved]
            pairs = prod(points.shape[1:-axes]) // axes
            places = points.reshape(points.shape[0], pairs, axes, *points.shape[-axes:])
            for axis in range(axes):
                low, high = farthest(places[:, :, axis], params.get("border", "constant"))
                reach = reaches[axis]
                reaches[axis] = reach._replace(before=reach.before - low, after=reach.after + high + 1)
        return {"x": tuple(reaches)}

    def _kernel(self, name: str, params: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[int, ...]:
        axes = len(self.space.image)
        if self.kernel in params:
            return check_pair(name, self.kernel, params[self.kernel], 1)
        shape = tuple(arrays[self.kernel].shape)
        return shape[-2 * axes : -axes] if self.kernel in self.at_outputs.split() else shape[-axes:]

    def _scale(self, name: str, params: Mapping[str, Any], arrays: Mapping[str, Any]) -> int:
        if not self.scale:
            return 1
        value = params[self.scale] if self.scale in params else arrays[self.scale].shape[1]
        return check_int(name, self.scale, value, 1)


def windowed(at_outputs: str, *, kernel: str, **options: Any) -> Windowed:
    """The halo of a kernel that slides over x, with the usual parameters as far as the operator has them.

    Parameters
    ----------
    at_outputs : str
        Names of the arrays that have one part for each output.
    kernel : str
        The parameter that is the size of the kernel, or the array that has it: before the axes of the
        outputs, or at its end.
    **options
        ``scale``, the parameter or array with the factor of upsampling, ``moved``, the array by which taps
        are moved, and what `Halo` has.
    """
    return Windowed(at_outputs, kernel, **options)


def pointwise(*at_outputs: str, **options: Any) -> Halo:
    """The halo of an operator that reads of these arrays the place of the output, of others everything."""
    return Halo(" ".join(at_outputs), **options)


def farthest(displacements: Any, border: str = "constant") -> Range:
    """The smallest and the largest whole number of pixels that points are away, rounded down.

    What is no number, or infinite, reads no pixel where the border is zero.
    """
    finite = np.isfinite(displacements)
    if border != "constant" and not finite.all():
        return -FARTHEST, FARTHEST
    if not finite.any():
        return 0, 0
    far = (
        np.floor(pick(np.where(finite, displacements, 0))).clip(-FARTHEST, FARTHEST)
        for pick in (np.min, np.max)
    )
    low, high = (int(value) for value in far)
    return low, high


def mirrors(operator: str, params: Mapping[str, Any]) -> bool:
    """Whether outputs near the border read pixels inside once more; what reads the other side is refused."""
    border = params.get("border", "constant")
    if border == "wrap":
        raise ValueError(
            f"{operator}: border 'wrap' reads the other side of the image: no tile or chunk has such a halo"
        )
    return bool(border != "constant")


def needed(reach: Reach, size: int, outputs: Range, mirrored: bool = False) -> Range:
    """The positions inside an array that outputs read, at least one if there are any."""
    start, stop = reach.reads(outputs)
    if mirrored:
        start, stop = min(start, 2 * size - 1 - stop), max(stop, 1 - start)
    start = max(0, min(start, size - 1))
    return start, min(size, max(stop, start + 1))


def frame(
    parts: Sequence[tuple[Reach, int]],
    total: int,
    outputs: Range,
    mirrored: bool = False,
    besides: Sequence[Range | None] = (),
) -> Range:
    """The outputs, of `total`, of a call that has the given ones among its own, all along one axis.

    `parts` are the reaches into the arrays and their sizes. The call is that on what `region` says; of some
    arrays it has the positions in `besides`, too, which perhaps no output reads.
    """
    unit, wanted = lcm(*(reach.scale for reach, _ in parts)), list[tuple[Reach, int, int]]()
    for (reach, size), more in zip_longest(parts, besides):
        if reach.more is not None:
            start, stop = needed(reach, size, outputs, mirrored)
            wanted.append((reach, min(start, more[0]), max(stop, more[1])) if more else (reach, start, stop))
    first = min([outputs[0], *(start // reach.step * reach.scale for reach, start, _ in wanted)])
    first -= first % lcm(unit, *(reach.align for reach, _ in parts))
    last = outputs[1]
    for reach, _, stop in wanted:
        assert reach.more is not None
        begin = first // reach.scale * reach.step
        cells = -(-(max(stop, begin + 1) - begin + 1 + reach.more) // reach.step)
        last = max(last, first + cells * reach.scale)
    return first, min(total, -(-last // unit) * unit)


def region(reach: Reach, size: int, outputs: Range) -> Range:
    """The part of an array whose outputs are those of a `frame`."""
    if reach.more is None:
        return needed(reach, size, outputs)
    start = outputs[0] // reach.scale * reach.step
    cells = -(-(outputs[1] - outputs[0]) // reach.scale)
    return min(start, size), max(min(start, size), min(size, start + cells * reach.step - 1 - reach.more))


class AtPoints(Halo):
    """Points are given as they lie in the image, and told from the place of their output."""

    def into(
        self, name: str, params: Mapping[str, Any], arrays: Mapping[str, Any], origin: Sequence[int]
    ) -> dict[str, tuple[Reach, ...]]:
        points, border = arrays["points"], params.get("border", "constant")
        reaches = []
        for axis, first in enumerate(origin):
            along = (-1,) + (1,) * (1 - axis)
            places = first + np.arange(points.shape[3 + axis]).reshape(along)
            low, high = farthest(np.floor(points[:, :, axis]) - places, border)
            reaches.append(Reach(-low, high + 1, more=None))
        return {"x": tuple(reaches)}

    def placed(self, arrays: dict[str, Any], starts: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Exact, because no point in the image lies before its part."""
        points = arrays["points"]
        begin = np.asarray(starts["x"], points.dtype).reshape(2, 1, 1)
        return {**arrays, "points": points - begin}
