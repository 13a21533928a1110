"""A results file as tables: plain for the terminal, Markdown for the README."""

from collections.abc import Callable, Sequence
from typing import Any

from ..cases import target
from ..cases.case import PASSES
from ..cases.targets import PASSES as COMPARED
from ..cases.targets import reached
from ..harness.first_calls import LIMIT_S, slow
from ..harness.growth import ABOUT_LINEAR, exponent

Table = tuple[list[str], list[list[str]]]
Render = Callable[[Sequence[str], Sequence[Sequence[str]]], str]

PASS_NAMES = dict(zip(PASSES, ("forward", "backward", "forward + backward"), strict=True))


def plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns separated by spaces, the first one left-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns of numbers are right-aligned."""
    numeric = (all(cell[:1].isdigit() or not cell for cell in column) for column in zip(*rows, strict=True))
    lines = [header, ["---:" if right else "---" for right in numeric], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def times(result: dict[str, Any]) -> Table:
    """Per operator and pass: milliseconds, share of the floor, the best peer of each kind and its ratio."""
    kinds = _peer_kinds(result)
    rows = []
    for row in result["rows"]:
        for name, measured in row["passes"].items():
            rows.append(
                [row["title"], PASS_NAMES[name], milliseconds(measured["ms"]), f"{measured['of_floor']:.0%}"]
            )
            rows[-1] += [_ratio(measured["peers"].get(kind)) for kind in kinds]
    return ["operator, shape", "pass", "ms", "of the floor", *(f"PyTorch {kind}" for kind in kinds)], rows


def costs(result: dict[str, Any]) -> Table:
    """Per operator: peak extra memory and its bound; first calls, if they were asked for."""
    header = ["operator, shape", "extra memory forward / backward", "bound"]
    first = any(row["first_call_s"] for row in result["rows"])
    rows = []
    for row in result["rows"]:
        memory = row["memory_bytes"]
        peaks = memory.get("problem") or " / ".join(_mb(memory[name]) for name in ("forward", "backward"))
        bound = " / ".join(_mb(memory["bound"][name]) for name in ("forward", "backward"))
        rows.append([row["title"], f"{peaks} MB", f"{bound} MB"])
        if first:
            rows[-1] += _first_calls(row["first_call_s"])
    return [*header, *(["first call", "later process"] if first else [])], rows


def _first_calls(seconds: dict[str, Any] | None) -> tuple[str, str]:
    if seconds is None:  # not asked for
        return "", ""
    cold, later = seconds["cold"], seconds["later"]
    first = f"{cold['forward']:.2f} + {cold['backward']:.2f} s"
    return first, f"{later['import'] + later['forward']:.2f} s"


def first_calls(result: dict[str, Any]) -> Table:
    """Per operator: seconds of the first call of each pass on empty caches, and in a later process."""
    header = ["operator, shape", "forward, s", "backward, s", "later process: import and forward, s"]
    rows = []
    for row in result["rows"]:
        cold, later = row["first_call_s"]["cold"], row["first_call_s"]["later"]
        seconds = (cold["forward"], cold["backward"], later["import"] + later["forward"])
        rows.append([row["title"], *(f"{number:.2f}" for number in seconds)])
    return header, rows


def first_calls_document(result: dict[str, Any], render: Render) -> str:
    """Heading, what is above the limit, and the table."""
    above = slow(result)
    text = (
        f"All passes took less than {LIMIT_S:g} s."
        if not above
        else f"Above {LIMIT_S:g} s: {'; '.join(above)}."
    )
    return "\n\n".join([heading(result), text, render(*first_calls(result))])


def summary(results: Sequence[dict[str, Any]]) -> Table:
    """Per operator: milliseconds, and how many times as long the peers take; in brackets the target."""
    header = ["operator, shape"]
    for name in COMPARED:
        header += [f"{PASS_NAMES[name]}, ms", "peers / ours (target)"]
    rows = []
    for row in (row for result in results for row in result["rows"]):
        cells = [row["title"]]
        for name in COMPARED:
            measured = row["passes"][name]
            cells += [milliseconds(measured["ms"]), _against(row["title"], name, measured["peers"])]
        rows.append(cells)
    return header, rows


def brief(results: Sequence[dict[str, Any]]) -> Table:
    """Per operator: how many times as long the best peer takes, at worst and at best over its shapes."""
    ratios: dict[str, list[list[float]]] = {}
    for row in (row for result in results for row in result["rows"]):
        for found, name in zip(ratios.setdefault(row["operator"], [[] for _ in COMPARED]), COMPARED):
            ratio = reached(row["passes"][name]["peers"], "best")
            found += [] if ratio is None else [ratio]
    rows = [
        [f"`{operator}`", *(" to ".join(f"{end:.1f}x" for end in sorted({min(r), max(r)})) for r in found)]
        for operator, found in ratios.items()
        if all(found)
    ]
    return ["operator", *(PASS_NAMES[name] for name in COMPARED)], rows


def _against(title: str, name: str, peers: dict[str, Any]) -> str:
    wanted = target(title, name)
    parts = []
    for what in wanted or sorted(peers):
        ratio = reached(peers, what)
        goal = f" ({wanted[what]:.2g}x)" if what in wanted else ""
        parts.append(f"{what} {'-' if ratio is None else f'{ratio:.1f}x'}{goal}")
    return ", ".join(parts)


def growth_table(result: dict[str, Any]) -> Table:
    """Per operator and axis: the fitted exponents, the time at the largest size, the extra memory."""
    header = ["operator", "grows in", "sizes", "exponent forward", "exponent forward + backward"]
    header += ["largest, ms", "extra memory, MB", "bound, MB"]
    rows = []
    for row in result["rows"]:
        points = row["points"]
        sizes = [point["size"] for point in points]
        exponents = [f"{growth_exponent(row, name):.2f}" for name in COMPARED]
        largest = " / ".join(milliseconds(points[-1]["passes"][name]["ms"]) for name in COMPARED)
        extra = " to ".join(_mb(extra_bytes(points[index])) for index in (0, -1))
        bound = _mb(max(points[-1]["memory_bytes"]["bound"].values()))
        cells = [f"`{row['operator']}`", row["axis"], f"{sizes[0]} to {sizes[-1]}", *exponents]
        rows.append([*cells, largest, extra, bound])
    return header, rows


def growth_exponent(row: dict[str, Any], name: str) -> float:
    """The exponent of one row of a growth file."""
    return exponent(
        [point["size"] for point in row["points"]], [point["passes"][name]["ms"] for point in row["points"]]
    )


def extra_bytes(point: dict[str, Any]) -> int:
    """Peak memory beyond inputs and outputs, in the pass that takes more."""
    memory = point["memory_bytes"]
    return max(memory.get("forward", 0), memory.get("backward", 0))


def growth_verdict(result: dict[str, Any]) -> str:
    """What the table says, in sentences."""
    found = {
        (row["operator"], row["axis"], name): growth_exponent(row, name)
        for row in result["rows"]
        for name in COMPARED
    }
    above = {key: value for key, value in found.items() if value > ABOUT_LINEAR}
    below = f"{len(found) - len(above)} of {len(found)} exponents"
    text = f"{below} are at most {ABOUT_LINEAR:g} (linear growth is 1)"
    if above:
        listed = (
            f"`{o}` in {axis}, {PASS_NAMES[name]}: {value:.2f}" for (o, axis, name), value in above.items()
        )
        text += f"; above: {'; '.join(listed)}"
    points = [point for row in result["rows"] for point in row["points"] if "memory_bytes" in point]
    held = [
        point
        for point in points
        if "problem" not in point["memory_bytes"]
        and all(
            point["memory_bytes"][name] <= limit for name, limit in point["memory_bytes"]["bound"].items()
        )
    ]
    most = max(map(extra_bytes, points))
    return (
        f"{text}. Extra memory stays within its bound (32 MB and 5 % of inputs and outputs) in {len(held)} "
        f"of {len(points)} calls; the most is {_mb(most)} MB."
    )


def heading(result: dict[str, Any]) -> str:
    """Where, with what and when it was measured, in one sentence each."""
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    elsewhere = result["cores_busy_elsewhere"] or 0
    disturbed = f" Other processes kept {elsewhere:.1f} cores busy meanwhile." if elsewhere >= 0.1 else ""
    unfinished = "" if result.get("complete", True) else " The run did not come to its end."
    dtypes = ", ".join(sorted({row["dtype"] for row in result["rows"] if "dtype" in row}) or ["float32"])
    return f"{place(result)}; {dtypes}; {packages}; {origin(result)}.{_floor(result)}{disturbed}{unfinished}"


def place(result: dict[str, Any]) -> str:
    """The machine."""
    machine = result["machine"]
    return machine["gpu"] or f"{machine['cpu']}, {result['threads']} threads of {machine['cores']} cores"


def origin(result: dict[str, Any]) -> str:
    """Commit and date."""
    changed = " with uncommitted changes" if result["uncommitted_changes"] else ""
    return f"commit {(result['commit'] or 'unknown')[:10]}{changed}, {result['date'][:10]}"


def _floor(result: dict[str, Any]) -> str:
    floor = result.get("floor")
    if floor is None:
        return ""
    reading = floor.get("read_bytes_per_s")  # earlier files do not tell it apart
    return (
        f" Floor, measured in the same run: copy {floor['bytes_per_s'] / 1e9:.1f} GB/s (read + written), "
        + (f"reading {reading / 1e9:.1f} GB/s, " if reading else "")
        + f"matrix product {floor['flops_per_s'] / 1e9:.0f} GFLOP/s."
    )


def single_calls(result: dict[str, Any]) -> str:
    """How many peers were not timed in turn with ours."""
    looks = [
        entry
        for row in result["rows"]
        for measured in row["passes"].values()
        for entries in measured["peers"].values()
        for entry in entries
        if entry["calls"] == 1
    ]
    return f"Of {len(looks)} peers and passes the time is that of a single call." if looks else ""


def left_out(result: dict[str, Any]) -> Table:
    """The peers that were not timed, and why."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in result["rows"]:
        for text in row["peer_problems"]:
            formulation, _, reason = text.partition(": ")
            found.setdefault((row["title"], reason), {})[formulation] = None
    rows = [[title, "; ".join(names), reason] for (title, reason), names in found.items()]
    return ["operator, shape", "left out", "because"], rows


def document(result: dict[str, Any], render: Render) -> str:
    """Heading and tables."""
    parts = [heading(result), render(*times(result)), single_calls(result)]
    header, rows = left_out(result)
    parts += [render(header, rows) if rows else "", render(*costs(result))]
    return "\n\n".join(part for part in parts if part)


def _peer_kinds(result: dict[str, Any]) -> list[str]:
    kinds = (
        kind for row in result["rows"] for measured in row["passes"].values() for kind in measured["peers"]
    )
    return list(dict.fromkeys(kinds))


def _ratio(ratios: list[dict[str, Any]] | None) -> str:
    if not ratios:
        return ""
    best = ratios[0]
    return f"{milliseconds(best['ms'])} ({best['ratio']:.1f}x)"


def milliseconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"
