"""Results files and the registry, written into README and pages of docs/ between markers."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dynarray as dyn
from dynarray._dispatch import BACKENDS, DTYPES
from dynarray._operator import Form

from .machine import ROOT
from .table import document, markdown

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
RESULTS = Path(__file__).with_name("results")
EXAMPLES = ROOT / "examples" / "results"


def newest(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """What was measured last, quick runs aside: each file with those of its rows that no later one has."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = sorted((result for result in found if not result["quick"]), key=lambda result: result["date"])
    seen: set[tuple[str, str]] = set()
    kept = []
    for result in reversed(found):
        rows = [row for row in result["rows"] if (result["backend"], row["title"]) not in seen]
        seen |= {(result["backend"], row["title"]) for row in rows}
        if rows:
            kept.append(result | {"rows": rows})
    return sorted(kept, key=lambda result: (result["backend"], result["date"]))


def benchmarks(folder: Path = RESULTS) -> str:
    """The measured tables of each results file."""
    sections = [
        f"**Backend `{result['backend']}`.** {document(result, markdown)}" for result in newest(folder)
    ]
    return "\n\n".join(sections) or "Nothing has been measured yet."


def operators() -> str:
    """The support table: what each operator takes on which backend, and which gradients it has."""
    rows = [
        [f"`{operator.name}`", ", ".join(f"`{name}`" for name in operator.arrays)]
        + [_support(operator, backend) for backend in BACKENDS]
        for operator in dyn.OPERATORS.values()
    ]
    return markdown(["operator", "arrays, each with its gradient", *(f"`{name}`" for name in BACKENDS)], rows)


def _support(operator: dyn.Operator, backend: str) -> str:
    """The dtypes that a backend takes, "forward only" if it has no backward pass; a dash for neither."""
    if not _exists(operator.forward.get(backend)):
        return "-"
    dtypes = ", ".join(DTYPES[backend])
    return dtypes if _exists(operator.backward.get(backend)) else f"{dtypes} (forward only)"


def _exists(form: Any) -> bool:
    """Whether there is such a function; a module is looked for, not imported."""
    return form is not None and (not isinstance(form, Form) or find_spec(form.module) is not None)


def example(path: Path) -> str:
    """The tables that an example measured."""
    result = json.loads(path.read_text(encoding="utf-8"))
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    where = f"{settings}; {versions}; commit {result['commit']}, {result['date']}."
    tables = (
        f"**{table['title']}**\n\n{markdown(table['columns'], table['rows'])}" for table in result["tables"]
    )
    return "\n\n".join([*tables, f"Measured by `python examples/{result['example']}.py --full`: {where}"])


SECTIONS: dict[str, Callable[[], str]] = {
    "benchmarks": benchmarks,
    "operators": operators,
    **{f"example {path.stem}": partial(example, path) for path in sorted(EXAMPLES.glob("*.json"))},
}


def fill(text: str) -> str:
    """`text` with every section that it marks replaced by what that section should say."""
    for name, section in SECTIONS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if (begin in text) != (end in text):
            raise ValueError(f"{begin} and {end} must come together")
        if begin in text:
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}\n\n{section()}\n\n{end}{rest.partition(end)[2]}"
    return text


def write(pages: Sequence[Path] = PAGES) -> list[Path]:
    """Fill the marked sections of these files; those that it changed."""
    changed = []
    for path in pages:
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed
