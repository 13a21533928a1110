"""Shapes drawn at random, as tables: of each operator the median and the worst, and every shape."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..cases import DRAWN
from ..cases.drawing import LARGE_MS
from ..cases.targets import PASSES
from .table import PASS_NAMES, Render, Table, heading, left_out, milliseconds, single_calls

# What is wanted of a call whose floor is at least `LARGE_MS`: of the best peer's time, unless ours is within
# a ninth of the floor; of smaller ones, no more time than the best eager peer.
RATIO, MEDIAN_RATIO, NEAR_FLOOR, SMALL_RATIO = 1.2, 2.5, 0.9, 1.0


@dataclass(frozen=True)
class Reading:
    """One pass of one shape."""

    title: str
    ms: float
    share: float  # of the floor
    large: bool
    ratio: float | None  # time of the best peer over ours
    best: str

    @property
    def wanted(self) -> float:
        """The ratio that is wanted."""
        if not self.large:
            return SMALL_RATIO
        return min(RATIO, self.near_floor)

    @property
    def near_floor(self) -> float:
        """The ratio of a call that takes a ninth longer than the floor."""
        return NEAR_FLOOR * (self.ratio or 0.0) / self.share

    def misses(self, least_share: float) -> str:
        """What of all that is wanted it does not have, in words."""
        below = [f"{self.ratio:.2f}x"] if self.ratio is not None and self.ratio < self.wanted else []
        return ", ".join(
            [*below, *([f"{self.share:.0%}"] if self.large and self.share < least_share else [])]
        )


def readings(result: dict[str, Any], operator: str, name: str) -> list[Reading]:
    """One pass of all shapes of an operator."""
    found = []
    for row in result["rows"]:
        if row["operator"] == operator:
            measured = row["passes"][name]
            large = measured["floor_ms"] >= LARGE_MS
            ratio, best = _best(measured["peers"], ("eager", "compiled") if large else ("eager",))
            found.append(Reading(row["title"], measured["ms"], measured["of_floor"], large, ratio, best))
    return found


def _best(peers: dict[str, list[dict[str, Any]]], kinds: Iterable[str]) -> tuple[float | None, str]:
    """The best peer of some kinds: its ratio, and what it is called."""
    entries = [
        (entry["ratio"], f"{kind} {entry['formulation']}") for kind in kinds for entry in peers.get(kind, ())
    ]
    return min(entries, default=(None, ""))


def _operators(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["operator"] for result in results for row in result["rows"]))


def _least_share(operator: str) -> float:
    return next((table.least_share for table in DRAWN if table.operator == operator), 0.0)


def _ratios(found: Iterable[Reading]) -> list[float]:
    """Of those that have a peer."""
    return [each.ratio for each in found if each.ratio is not None]


def _spread(values: Sequence[float], form: str) -> list[str]:
    """Median and worst."""
    return [form.format(median(values)), form.format(min(values))] if values else ["", ""]


def summary(results: Sequence[dict[str, Any]], *, large: bool) -> Table:
    """Per operator: shapes, and of each pass the ratio to the best peer and the share of the floor."""
    header = ["operator"]
    for name in PASSES:
        short = {"forward": "forward", "forward_backward": "f+b"}[name]
        header += [f"{short}: shapes", "peer / ours, median", "worst", "of the floor, median", "worst"]
    rows = []
    for operator in _operators(results):
        cells = [f"`{operator}`"]
        for name in PASSES:
            found = [
                each for result in results for each in readings(result, operator, name) if each.large == large
            ]
            cells += [
                str(len(found)),
                *_spread(_ratios(found), "{:.2f}x"),
            ]
            cells += _spread([each.share for each in found], "{:.0%}")
        rows.append(cells)
    return header, rows


def brief(result: dict[str, Any]) -> Table:
    """Per operator, of its large calls: median and worst of both passes."""
    header = ["operator"]
    for name in PASSES:
        header += [f"{PASS_NAMES[name]}: peer / ours", "of the floor"]
    rows = []
    for operator in _operators([result]):
        cells = [f"`{operator}`"]
        for name in PASSES:
            found = [each for each in readings(result, operator, name) if each.large]
            for values, form in (
                (_ratios(found), "{:.1f}x"),
                ([each.share for each in found], "{:.0%}"),
            ):
                cells.append(", worst ".join(_spread(values, form)) if values else "")
        rows.append(cells)
    return header, rows


def in_a_line(result: dict[str, Any]) -> str:
    """Per operator the median and the worst ratio of both passes of its large calls."""
    found = []
    for operator in _operators([result]):
        ratios = _ratios(each for each in readings(result, operator, "forward_backward") if each.large)
        if ratios:
            found.append(f"`{operator}` {median(ratios):.1f}x and {min(ratios):.1f}x")
    return ", ".join(found)


def every_shape(result: dict[str, Any]) -> Table:
    """Both passes of every shape: milliseconds, share of the floor, the best peer, what is not as wanted."""
    header = [
        "operator, shape",
        "pass",
        "ms",
        "of the floor",
        "peer / ours",
        "best peer",
        "below what is wanted",
    ]
    rows = []
    for operator in _operators([result]):
        least = _least_share(operator)
        both = [readings(result, operator, name) for name in PASSES]
        for passes in zip(*both, strict=True):
            for name, each in zip(PASSES, passes, strict=True):
                ratio = "" if each.ratio is None else f"{each.ratio:.2f}x"
                cells = [each.title, PASS_NAMES[name], milliseconds(each.ms), f"{each.share:.0%}"]
                rows.append([*cells, ratio, each.best, each.misses(least)])
    return header, rows


def verdict(result: dict[str, Any]) -> str:
    """How many calls are as they are wanted, and the operators whose median is not."""
    counted, held, behind = 0, 0, []
    for operator in _operators([result]):
        for name in PASSES:
            found = readings(result, operator, name)
            counted += len(found)
            held += sum(not each.misses(_least_share(operator)) for each in found)
            # Each against the ratio that is wanted of it.
            against = [
                each.ratio / min(MEDIAN_RATIO, each.near_floor)
                for each in found
                if each.large and each.ratio is not None
            ]
            if against and median(against) < 1:
                behind.append(f"`{operator}` {PASS_NAMES[name]}")
    text = (
        f"Wanted of a call whose floor is at least {LARGE_MS:g} ms: {RATIO:g} times as fast as the best "
        "peer, or within a ninth of the floor, and half of the floor (gathers and scatters: 30 %); of a "
        f"smaller one: no slower than the best eager peer. {held} of {counted} passes have that."
    )
    listed = (
        f" In the median less than {MEDIAN_RATIO:g} times as fast: {', '.join(behind)}." if behind else ""
    )
    return text + listed


def drawing(result: dict[str, Any]) -> str:
    """What was drawn."""
    return f"Seed {result['seed']}, {result['number']} shapes of each operator."


def document(result: dict[str, Any], render: Render) -> str:
    """All tables of a results file."""
    header, rows = left_out(result)
    parts = [
        f"{heading(result)} {drawing(result)} {single_calls(result)}".strip(),
        verdict(result),
        f"Floor of at least {LARGE_MS:g} ms:",
        render(*summary([result], large=True)),
        "Smaller calls, beside eager peers:",
        render(*summary([result], large=False)),
        render(*every_shape(result)),
        render(header, rows) if rows else "",
    ]
    return "\n\n".join(part for part in parts if part)
