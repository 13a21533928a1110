"""Shapes drawn at random from what people use: what ``python -m benchmarks drawn`` measures.

The fixed rows are known to whoever tunes a kernel. These are not: a seed a run, which its results file names.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

from .case import Case, Work

# One argument of the maker of a case, from what was drawn before it.
Draw = Callable[[Random, Mapping[str, Any]], Any]

# Of a call: so that a shape takes some seconds with all its peers, of which some write out all windows.
MOST_BYTES, MOST_FLOPS = 1 << 26, 250_000_000
# A machine with which to tell large calls from small ones before anything is measured: two cores of 2023.
_BYTES_PER_S, _FLOPS_PER_S = 30e9, 200e9
LARGE_MS = 0.1  # of the floor: below, what a call costs by itself is part of what is measured
SMALL_EVERY = 3  # one of so many shapes is a small call
GATHERS = 0.3  # of the floor, where addresses come out of arrays
_TRIES = 100_000
SHORTEST, LONGEST = 7, 1024  # sides of images


def among(*values: Any) -> Draw:
    """One of these; what is listed twice comes twice as often."""
    return lambda random, _: random.choice(values)


def spread(least: int, most: int) -> Draw:
    """Any whole number between these, of each order of magnitude equally many."""
    return lambda random, _: min(most, int(least * ((most + 1) / least) ** random.random()))


def either(*draws: Draw) -> Draw:
    """As one of these."""
    return lambda random, drawn: random.choice(draws)(random, drawn)


def divisor(of: str, most: int = 512) -> Draw:
    """A number of groups that divides another argument: often one."""

    def draw(random: Random, drawn: Mapping[str, Any]) -> int:
        number = drawn[of]
        divisors = [d for d in range(1, min(number, most) + 1) if number % d == 0]
        return random.choice((1, random.choice(divisors)))

    return draw


def beside(of: str, draw: Draw) -> Draw:
    """The other side of an image: as long, in proportion to the first as in photographs, or any."""

    def other(random: Random, drawn: Mapping[str, Any]) -> int:
        side = drawn[of]
        chosen = (side, side, 4 * side // 3, 3 * side // 2, 2 * side // 3, draw(random, drawn))
        return min(LONGEST, max(SHORTEST, random.choice(chosen)))

    return other


BATCH = among(1, 1, 1, 1, 2, 2, 4, 8, 16, 32, 64)
CHANNELS = either(among(1, 3, 4, 16, 32, 64, 96, 128, 256, 512), spread(1, 512))
FEW_CHANNELS = either(among(1, 3, 4, 8, 16, 32), spread(1, 64))
SIDE = either(among(7, 14, 28, 56, 112, 224, 32, 64, 128, 256, 512, 768, 1024), spread(SHORTEST, LONGEST))
LENGTH = either(among(64, 128, 256, 512, 1000, 1024, 2048, 4096, 8000, 16000), spread(7, 16384))
KERNEL = among(1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 5, 7, 7, 9)
ODD_KERNEL = among(1, 3, 3, 3, 3, 5, 5, 5, 7, 7, 9)
KERNEL_OF_A_LINE = among(1, 3, 3, 4, 5, 5, 7, 9, 9, 15, 31)
STRIDE = among(1, 1, 1, 1, 2)
DILATION = among(1, 1, 1, 1, 2, 3)
IMAGE: Mapping[str, Draw] = {"n": BATCH, "c": CHANNELS, "h": SIDE, "w": beside("h", SIDE)}
SIGNAL: Mapping[str, Draw] = {"n": BATCH, "c": CHANNELS, "length": LENGTH}
STEPS: Mapping[str, Draw] = {"stride": STRIDE, "dilation": DILATION}


@dataclass(frozen=True)
class Drawn:
    """One operator: how a call is made, how each argument of that is drawn, in order, and its bounds.

    A maker that is given what cannot be raises ValueError: then it is drawn again. `least_share` of the floor
    is wanted of a large call.
    """

    operator: str
    make: Callable[..., Case]
    sizes: Mapping[str, Draw]
    most_bytes: int = MOST_BYTES
    most_flops: int = MOST_FLOPS
    least_share: float = 0.5

    def cases(self, number: int, seed: int, *, large: bool = True) -> list[Case]:
        """So many calls, each another; the same for the same seed, whatever is drawn for other operators.

        One of three is a small call; all are, if none is to be `large`.
        """
        random = Random(f"{seed} {self.operator}")
        found: dict[str, Case] = {}
        for index in range(number):
            small = not large or index % SMALL_EVERY == SMALL_EVERY - 1
            case = next(
                case
                for case in self._allowed(random)
                if case.title not in found and (floor_ms(case.work()["forward"]) < LARGE_MS) == small
            )
            found[case.title] = case
        return list(found.values())

    def _allowed(self, random: Random) -> Iterator[Case]:
        """One call after the other, of those within the bounds."""
        for tried in count():
            if tried == _TRIES:
                raise RuntimeError(
                    f"{self.operator}: its table draws no more calls that are within its bounds"
                )
            sizes: dict[str, Any] = {}
            for name, draw in self.sizes.items():
                sizes[name] = draw(random, sizes)
            try:
                case = self.make(**sizes)
                work = case.work()["forward"]
            except ValueError:
                continue
            if case.output_bytes and work.bytes <= self.most_bytes and work.flops <= self.most_flops:
                yield case


def floor_ms(work: Work) -> float:
    """The floor on the machine that tells large calls from small ones."""
    return 1e3 * max(work.bytes / _BYTES_PER_S, work.flops / _FLOPS_PER_S)
