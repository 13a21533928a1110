"""How the calls of an operator grow, one axis at a time: what ``python -m benchmarks growth`` measures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .case import Case

Points = list[tuple[int, dict[str, int]]]


@dataclass(frozen=True)
class Growth:
    """One operator: how a call is made, the sizes it starts from, and the axes along which it grows.

    An axis is a list of ``(size, arguments that are changed)``: work should be proportional to the size.
    `tiny` are the arguments of a small call.
    """

    operator: str
    make: Callable[..., Case]
    base: Mapping[str, int]
    axes: Mapping[str, Points]
    tiny: Mapping[str, int] = field(default_factory=lambda: {"h": 9, "w": 11})

    def case(self, changed: Mapping[str, int]) -> Case:
        """A call; its small form has the same kernel on few pixels."""
        sizes = {**self.base, **changed}
        return Case(**{**vars(self.make(**sizes)), "small": self.make(**{**sizes, **self.tiny})})


def pixels(*sides: int) -> Points:
    """Square images."""
    return [(side * side, {"h": side, "w": side}) for side in sides]


def squared(name: str, *values: int) -> Points:
    """Of a kernel, its taps; of samples along an axis, the regions."""
    return [(value * value, {name: value}) for value in values]


def each(name: str, *values: int) -> Points:
    """An argument that is itself the size."""
    return [(value, {name: value}) for value in values]


SIDES = pixels(32, 64, 128, 256)
CHANNELS = each("c", 16, 32, 64, 128)
TAPS = squared("kernel", 3, 5, 7, 9)
BASE = {"n": 1, "c": 32, "h": 64, "w": 64}

# Of a line.
LENGTHS = each("length", 1024, 4096, 16384, 65536)
LINE = {"n": 1, "c": 32, "length": 4096}
TAPS_OF_A_LINE = each("kernel", 3, 9, 27, 81)
TINY_LINE = {"length": 23}
