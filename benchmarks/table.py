"""A results file as tables: plain for the terminal, Markdown for the README."""

from collections.abc import Callable, Sequence
from typing import Any

from .case import PASSES

Table = tuple[list[str], list[list[str]]]
Render = Callable[[Sequence[str], Sequence[Sequence[str]]], str]

_PASS_NAMES = dict(zip(PASSES, ("forward", "backward", "forward + backward"), strict=True))


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
            rows.append([row["title"], _PASS_NAMES[name], _ms(measured["ms"]), f"{measured['of_floor']:.0%}"])
            rows[-1] += [_ratio(measured["peers"].get(kind)) for kind in kinds]
    return ["operator, shape", "pass", "ms", "of the floor", *(f"PyTorch {kind}" for kind in kinds)], rows


def costs(result: dict[str, Any]) -> Table:
    """Per operator: peak extra memory and its bound, first calls with empty caches and in a later process."""
    header = ["operator, shape", "extra memory forward / backward", "bound", "first call", "later process"]
    rows = []
    for row in result["rows"]:
        memory, seconds = row["memory_bytes"], row["first_call_s"]
        peaks = memory.get("problem") or " / ".join(_mb(memory[name]) for name in ("forward", "backward"))
        bound = " / ".join(_mb(memory["bound"][name]) for name in ("forward", "backward"))
        cold, later = seconds["cold"], seconds["later"]
        first = f"{cold['forward']:.2f} + {cold['backward']:.2f} s"
        rows.append(
            [row["title"], f"{peaks} MB", f"{bound} MB", first, f"{later['import'] + later['forward']:.2f} s"]
        )
    return header, rows


def heading(result: dict[str, Any]) -> str:
    """Where, with what and when it was measured, in one sentence each."""
    machine, versions, floor = result["machine"], result["versions"], result["floor"]
    place = machine["gpu"] or f"{machine['cpu']}, {result['threads']} threads of {machine['cores']} cores"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    changed = " with uncommitted changes" if result["uncommitted_changes"] else ""
    commit = f"commit {(result['commit'] or 'unknown')[:10]}{changed}"
    elsewhere = result["cores_busy_elsewhere"] or 0
    disturbed = f" Other processes kept {elsewhere:.1f} cores busy meanwhile." if elsewhere >= 0.1 else ""
    dtypes = ", ".join(sorted({row["dtype"] for row in result["rows"]}))
    return (
        f"{place}; {dtypes}; {packages}; {commit}, {result['date'][:10]}. Floor, measured in the same run: "
        f"copy {floor['bytes_per_s'] / 1e9:.1f} GB/s (read + written), "
        f"matrix product {floor['flops_per_s'] / 1e9:.0f} GFLOP/s.{disturbed}"
    )


def document(result: dict[str, Any], render: Render) -> str:
    """Heading and both tables."""
    return "\n\n".join([heading(result), render(*times(result)), render(*costs(result))])


def _peer_kinds(result: dict[str, Any]) -> list[str]:
    kinds = (
        kind for row in result["rows"] for measured in row["passes"].values() for kind in measured["peers"]
    )
    return list(dict.fromkeys(kinds))


def _ratio(ratios: list[dict[str, Any]] | None) -> str:
    if not ratios:
        return ""
    best = ratios[0]
    return f"{_ms(best['ms'])} ({best['ratio']:.1f}x)"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3g}" if milliseconds < 100 else f"{milliseconds:.0f}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"
