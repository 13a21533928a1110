"""A page for each example, written anew with each build: what it says, prints and draws, and its downloads.

Examples are not run by the build, since some take minutes. What they printed lies in ``examples/results``:
tables of full runs, which `examples._record` writes, and in its folder ``printed`` what a run without options
printed:

    python docs/_gallery.py NAME ...

runs examples and records that; one that serves is asked once, and stopped. Pictures are those of
``docs/images``.
"""

import ast
import io
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from urllib.request import urlopen

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.report.pages import SECTIONS  # noqa: E402, the folder of this file is no package

EXAMPLES = ROOT / "examples"
IMAGES = ROOT / "docs" / "images"
PRINTED = EXAMPLES / "results" / "printed"
LONGEST = 60  # lines of what was printed, on a page


def examples() -> list[Path]:
    """The scripts that are for readers; those with an underscore belong to them."""
    return sorted(EXAMPLES.glob("[!_]*.py"))


def belonging(script: Path) -> list[Path]:
    """The modules of the same folder that a script imports, and those that these import."""
    found: dict[Path, None] = {}
    waiting = [script]
    while waiting:
        source = waiting.pop().read_text("utf-8")
        for name in re.findall(r"^(?:from|import) (\w+)", source, flags=re.MULTILINE):
            module = EXAMPLES / f"{name}.py"
            if module.exists() and module not in found:
                found[module] = None
                waiting.append(module)
    return sorted(found)


def _escaped(text: str) -> str:
    """Prose of a docstring for Markdown: nothing but code in backticks is marked up."""
    parts = re.split(r"(``.*?``|`[^`\n]+`)", text, flags=re.DOTALL)
    parts[::2] = [re.sub(r"([*_\[\]<>|#$])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def told(docstring: str) -> tuple[str, str]:
    """Title and text of a docstring: paragraphs, underlined headings, and indented blocks as they are."""
    title, _, rest = docstring.partition("\n")
    blocks = []
    for block in re.split(r"\n\s*\n", rest.strip("\n")):
        lines = block.split("\n")
        if len(lines) > 1 and re.fullmatch(r"-{3,}", lines[1]):
            blocks.append(f"## {_escaped(lines[0])}")
            lines = lines[2:]
        if not lines:
            continue
        text = "\n".join(lines)
        if lines[0].startswith("    "):
            blocks.append(f"```text\n{text}\n```")
        elif lines[0].startswith("- "):
            blocks.append("\n".join(line[:2] + _escaped(line[2:]) for line in lines))
        else:
            blocks.append(_escaped(text))
    return _escaped(title.strip().rstrip(".")), "\n\n".join(blocks)


def notebook(script: Path) -> str:
    """The script as a notebook: what it says, a cell for imports and constants, and for each definition."""
    source = script.read_text("utf-8")
    tree = ast.parse(source)
    lines = source.split("\n")
    body = tree.body[1:]
    cells: list[tuple[str, str]] = [("markdown", "# {}\n\n{}".format(*told(ast.get_docstring(tree) or "")))]
    start = tree.body[0].end_lineno or 0
    for node in body:
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
            last = "\n".join(line.removeprefix("    ") for line in lines[node.lineno : node.end_lineno])
            cells.append(("code", f'import sys\n\nsys.argv = ["{script.name}"]  # options, if any\n{last}'))
            break
        text = "\n".join(lines[start : node.end_lineno])
        start = node.end_lineno or start
        separate = isinstance(node, ast.FunctionDef | ast.ClassDef)
        if cells[-1][0] == "code" and not separate:
            cells[-1] = ("code", f"{cells[-1][1]}\n{text}")
        else:
            cells.append(("code", text.strip("\n")))
    if re.search(r"\b__file__\b", source):
        cells.insert(1, ("code", f'__file__ = "{script.name}"  # lies beside this notebook'))
    made = []
    for number, (kind, text) in enumerate(cells):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        run = {"execution_count": None, "outputs": []} if kind == "code" else {}
        made.append(cell | {"source": text.splitlines(keepends=True)} | run)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def pictures(script: Path) -> list[str]:
    """The pictures of the site that the script draws, by their names."""
    source = script.read_text("utf-8")
    names = sorted(path.name for path in IMAGES.glob("*.png"))
    return [name for name in names if name in source or name.startswith(f"{script.stem}_")]


def measured(script: Path) -> str:
    """What a full run measured, and what a run without options printed, as far as they are recorded."""
    parts = []
    if (EXAMPLES / "results" / f"{script.stem}.json").exists():
        parts.append(SECTIONS[f"example {script.stem}"]())
    printed = PRINTED / f"{script.stem}.txt"
    if printed.exists():
        lines = printed.read_text("utf-8").rstrip("\n").split("\n")
        more = [f"... {len(lines) - LONGEST} lines more"] if len(lines) > LONGEST else []
        parts.append("```text\n{}\n```".format("\n".join([*lines[:LONGEST], *more])))
    return "\n\n".join(parts) or "No full run is recorded yet; `--help` lists what it can do."


def page(script: Path) -> str:
    """The page of one example."""
    source = script.read_text("utf-8")
    title, text = told(ast.get_docstring(ast.parse(source)) or "")
    stem, modules = script.stem, belonging(script)
    files = f"[script](../../examples/{script.name}), [notebook]({stem}.ipynb)"
    if modules:
        count = "module that it imports" if len(modules) == 1 else f"{len(modules)} modules that it imports"
        files += f", [both with the {count}]({stem}.zip), which have to lie beside it"
    drawn = [f"![What examples/{script.name} draws](../images/{name})" for name in pictures(script)]
    heading = "## What it gives"
    listing = f"## The script\n\n```py\n{source.rstrip()}\n```"
    parts = [f"# {title}", f"Download: {files}.", text, heading, *drawn, measured(script), listing]
    return "\n\n".join(parts) + "\n"


def bundle(script: Path, target: Path) -> None:
    """Script, notebook and the modules that belong to them, in one file; the same bytes each time."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        texts = {path.name: path.read_text("utf-8") for path in (script, *belonging(script))}
        for name, text in (texts | {f"{script.stem}.ipynb": notebook(script)}).items():
            archive.writestr(zipfile.ZipInfo(f"{script.stem}/{name}"), text)


def write(folder: Path) -> None:
    """Write the pages of all examples, with their notebooks and bundles, as far as they changed."""
    folder.mkdir(exist_ok=True)
    names = set()
    for script in examples():
        for name, text in ((f"{script.stem}.md", page(script)), (f"{script.stem}.ipynb", notebook(script))):
            target = folder / name
            names.add(name)
            if not target.exists() or target.read_text("utf-8") != text:
                target.write_text(text, "utf-8")
        if belonging(script):
            names.add(f"{script.stem}.zip")
            bundle(script, folder / f"{script.stem}.zip")
    for old in folder.iterdir():
        if old.name not in names:
            old.unlink()


def lead_to_pages(app: object, docname: str, source: list[str]) -> None:
    """On the site the gallery leads to the pages of the examples; in the repository, to the scripts."""
    if docname == "gallery":
        source[0] = re.sub(r"\]\(\.\./examples/(\w+)\.py\)", r"](examples/\1.md)", source[0])


def asked(address: str) -> str:
    """What comes of a noisy image that a service gets, and of asking it for its numbers."""
    noisy = np.random.default_rng(0).normal(0.5, 0.1, (120, 160)).astype(np.float32)
    body = io.BytesIO()
    np.save(body, noisy)
    with urlopen(f"{address}/denoise?strength=0.2", body.getvalue()) as answer:
        clean = np.load(io.BytesIO(answer.read()))
    with urlopen(f"{address}/health") as answer:
        health = answer.read().decode().strip()
    return (
        f"> POST /denoise?strength=0.2, an image of noise {noisy.shape}: its standard deviation is "
        f"{noisy.std():.3f}, and {clean.std():.3f} in the answer\n> GET /health: {health}\n> SIGTERM\n"
    )


def printed_by(script: Path, folder: Path) -> str:
    """What a script prints when it runs without options."""
    said = ""
    with subprocess.Popen([sys.executable, script], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if line.startswith("serving on "):
                try:
                    said += asked(line.split()[2])
                finally:
                    process.terminate()
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, str(script))
    return said


def record(name: str) -> None:
    """Run an example without options, and keep what it prints."""
    script = EXAMPLES / f"{name}.py"
    commit = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    with tempfile.TemporaryDirectory() as folder:
        said = printed_by(script, Path(folder))
    versions = f"python {platform.python_version()}, numpy {version('numpy')}, numba {version('numba')}"
    when = f"{time.strftime('%Y-%m-%d', time.gmtime())}, commit {commit.stdout.strip()}"
    PRINTED.mkdir(parents=True, exist_ok=True)
    text = f"$ python examples/{name}.py  # {when}; {versions}\n{said.strip()}\n"
    (PRINTED / f"{name}.txt").write_text(text, "utf-8")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        record(each)
