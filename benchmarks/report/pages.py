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

from .. import kernels_table, photographs
from ..harness import drawn, first_calls
from ..harness.machine import ROOT
from . import claims, plots, shapes
from .table import (
    Table,
    brief,
    document,
    first_calls_document,
    growth_table,
    growth_verdict,
    heading,
    markdown,
    origin,
    place,
    summary,
    times,
)

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
RESULTS = Path(__file__).parents[1] / "results"
APART = RESULTS / "apart"
EXAMPLES = ROOT / "examples" / "results"
IMAGES = ROOT / "docs" / "images"
NOTHING = "Nothing has been measured yet."


def load(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The results files of one kind, oldest first, quick runs aside."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = [result for result in found if result.get("kind", "operators") == kind and not result["quick"]]
    return sorted(found, key=lambda result: result["date"])


def newest(
    folder: Path = RESULTS, kind: str = "operators", key: Sequence[str] = ("title",)
) -> list[dict[str, Any]]:
    """What was measured last: each file with those of its rows that no later one has."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for result in reversed(load(folder, kind)):
        named = [((result["backend"], *(row[name] for name in key)), row) for row in result["rows"]]
        rows = [row for name, row in named if name not in seen]
        seen |= {name for name, _ in named}
        if rows:
            kept.append(result | {"rows": rows})
    return sorted(kept, key=lambda result: (result["backend"], result["date"]))


def _by_place(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Results files by backend and machine: no table mixes two of them."""
    places: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        places.setdefault((result["backend"], place(result)), []).append(result)
    return places


def _tables(results: Sequence[dict[str, Any]], make: Callable[..., Table]) -> list[str]:
    """A table for each machine, and what was measured where."""
    tables = []
    for (backend, where), measured in _by_place(results).items():
        origins = ", ".join(dict.fromkeys(map(origin, measured)))
        tables.append(f"**Backend `{backend}`.** {where}; {origins}.\n\n{markdown(*make(measured))}")
    return tables


def speed(folder: Path = RESULTS) -> str:
    """A line for each operator, per machine."""
    return "\n\n".join(_tables(newest(folder), brief)) or NOTHING


def benchmarks(folder: Path = RESULTS) -> str:
    """A line for each operator and shape, per machine, and the figure."""
    tables = _tables(newest(folder), summary)
    if not tables:
        return NOTHING
    figure = "![Times of the peers, and of the floor, over ours](images/benchmarks.svg)"
    legend = (
        "A ratio is the median time of the best PyTorch formulation of several, eager or compiled, over "
        "ours, in one process, in turn, on arrays that no cache remembers; above 1, ours is faster."
    )
    return "\n\n".join([*tables, legend, figure])


def every_benchmark(folder: Path = RESULTS) -> str:
    """All measured tables of each results file."""
    sections = [
        f"**Backend `{result['backend']}`.** {document(result, markdown)}" for result in newest(folder)
    ]
    return "\n\n".join(sections) or NOTHING


def _latest(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The last finished file of a kind for each backend."""
    last = {result["backend"]: result for result in load(folder, kind) if result["complete"]}
    return [last[backend] for backend in sorted(last)]


def drawn_shapes(folder: Path = RESULTS) -> str:
    """Of each operator the median and the worst, of large calls alone."""
    parts = []
    for result in _latest(folder, drawn.KIND):
        text = (
            f"**Backend `{result['backend']}`.** {place(result)}; {origin(result)}. {shapes.drawing(result)}"
        )
        parts.append(f"{text}\n\n{markdown(*shapes.brief(result))}")
    return "\n\n".join(parts) or NOTHING


def drawn_in_a_line(folder: Path = RESULTS) -> str:
    """The same in running text."""
    parts = [
        "Those are shapes that we know. On shapes drawn at random, which nobody tuned for "
        f"({origin(result)}), the best PyTorch formulation's time over ours, "
        "median and worst of large calls, both passes: "
        f"{shapes.in_a_line(result)}. Where it is below 1, PyTorch is faster."
        for result in _latest(folder, drawn.KIND)
    ]
    return "\n\n".join(parts) or NOTHING


def every_drawn_shape(folder: Path = RESULTS) -> str:
    """All tables of the shapes that were drawn last."""
    sections = (
        f"**Backend `{result['backend']}`.** {shapes.document(result, markdown)}"
        for result in _latest(folder, drawn.KIND)
    )
    return "\n\n".join(sections) or NOTHING


def every_first_call(folder: Path = RESULTS) -> str:
    """First calls, from the last run that measured nothing else."""
    sections = (
        f"**Backend `{result['backend']}`.** {first_calls_document(result, markdown)}"
        for result in _latest(folder, first_calls.KIND)
    )
    return "\n\n".join(sections) or NOTHING


def growth(folder: Path = RESULTS) -> str:
    """How time and memory grow, per machine, and the figure."""
    results = newest(folder, "growth", ("operator", "axis"))
    if not results:
        return NOTHING
    sections = [
        f"**Backend `{result['backend']}`.** {heading(result)}\n\n{growth_verdict(result)}\n\n"
        f"{markdown(*growth_table(result))}"
        for result in results
    ]
    return "\n\n".join([*sections, "![Time against each size](images/growth.svg)"])


def apart(path: Path) -> str:
    """An operator that was measured on its own, at a size that no table has."""
    result = json.loads(path.read_text(encoding="utf-8"))
    return f"{markdown(*times(result))}\n\n{heading(result)}"


def large_photograph(folder: Path = RESULTS) -> str:
    """Time and memory of a large photograph, by several libraries, per machine."""
    results = newest(folder, photographs.KIND)
    sections = [f"{markdown(*photographs.table(result))}\n\n{heading(result)}" for result in results]
    return "\n\n".join(sections) or NOTHING


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
    form = getattr(form, "compiled", form)
    return form is not None and (not isinstance(form, Form) or find_spec(form.module) is not None)


def dtypes() -> str:
    """Which arrays may be float32 beside 16-bit others."""
    rows = [
        [f"`{name}`", f"`{operator.arrays[0]}`", ", ".join(f"`{array}`" for array in operator.may_be_float32)]
        for name, operator in dyn.OPERATORS.items()
        if operator.may_be_float32
    ]
    return markdown(["operator", "float16 or bfloat16", "the same, or float32"], rows)


def example(path: Path) -> str:
    """The tables that an example measured."""
    result = json.loads(path.read_text(encoding="utf-8"))
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    where = f"{settings}; {versions}; commit {result['commit']}, {result['date']}."
    tables = (
        f"**{table['title']}**\n\n{markdown(table['columns'], table['rows'])}" for table in result["tables"]
    )
    command = result.get("command", f"python examples/{result['example']}.py --full")
    return "\n\n".join([*tables, f"Measured by `{command}`: {where}"])


SECTIONS: dict[str, Callable[[], str]] = {
    "speed": speed,
    "benchmarks": benchmarks,
    "all benchmarks": every_benchmark,
    "drawn shapes": drawn_shapes,
    "drawn shapes in a line": drawn_in_a_line,
    "all drawn shapes": every_drawn_shape,
    "first calls": every_first_call,
    "growth": growth,
    "large photograph": large_photograph,
    "operators": operators,
    "dtypes": dtypes,
    "kernels": kernels_table.section,
    "claims": partial(claims.section, EXAMPLES),
    **{f"apart {path.stem.split('-')[0]}": partial(apart, path) for path in sorted(APART.glob("*.json"))},
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


def figures(folder: Path = RESULTS) -> dict[str, list[dict[str, Any]]]:
    """What each figure shows; none without anything measured."""
    shown = {
        "benchmarks.svg": newest(folder),
        "growth.svg": newest(folder, "growth", ("operator", "axis")),
    }
    return {name: results for name, results in shown.items() if results}


def write(pages: Sequence[Path] = PAGES, images: Path = IMAGES) -> list[Path]:
    """Fill the marked sections of these files and draw the figures; those files that it changed."""
    changed = []
    for path in pages:
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    for name, results in figures().items():
        if plots.shown(images / name) != plots.digest(results):
            plots.DRAWN[name](results, images / name)
            changed.append(images / name)
    return changed
