"""What an example measured, as a file that the documentation's tables are made from."""

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def picture_in(output: Path, name: str, parser: argparse.ArgumentParser) -> Path:
    """Where a picture goes: into a folder, under its usual name, or to the file that was named."""
    if output.is_dir():
        return output / name
    if not output.parent.is_dir():
        parser.error(f"--output: there is no folder {output.parent}")
    return output


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation over repeated runs, as tables show them."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def shown(values: Sequence[float], digits: int = 3) -> str:
    """As `spread`, or the value alone if there is one."""
    return spread(values, digits) if len(values) > 1 else f"{values[0]:.{digits}f}"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """On the terminal, with columns as wide as their widest cell."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows)]
    print(f"\n{title}")
    for row in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def record(
    name: str,
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
    *,
    command: str = "",
    **settings: Any,
) -> Path:
    """Write the tables of a run to ``examples/results/<name>.json``.

    Parameters
    ----------
    name : str
        The example: its module's name.
    tables : mapping
        From a title to (columns, rows), every cell as the text to be shown.
    command : str
        What was run, if it was not the example with ``--full``.
    **settings
        What the numbers depend on: seeds, steps, sizes.

    Returns
    -------
    Path
        The file. ``python -m benchmarks report`` writes it into the pages that have a section
        ``<!-- example <name>:begin -->`` ... ``<!-- example <name>:end -->``.
    """
    content = {
        "example": name,
        "command": command or f"python examples/{name}.py --full",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "numba": version("numba")},
        "settings": settings,
        "tables": [
            {"title": title, "columns": list(columns), "rows": [list(row) for row in rows]}
            for title, (columns, rows) in tables.items()
        ],
    }
    path = HERE / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
