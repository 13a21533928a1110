"""The notebooks of docs/notebooks as pages of the site: cells as they are, outputs as they were stored."""

import base64
import json
import re
from pathlib import Path
from typing import Any


def _fenced(text: str, language: str) -> str:
    # Not as "python": each block of that name on a page runs on its own, in a test.
    return f"```{language}\n{text.rstrip()}\n```"


def _outputs(cell: dict[str, Any], stem: str, number: int) -> tuple[list[str], dict[str, bytes]]:
    """What a cell printed and drew, and the files of its pictures."""
    parts, pictures = [], {}
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            name = f"{stem}-{number}.png"
            pictures[name] = base64.b64decode(data["image/png"])
            parts.append(f"![What the lines above draw]({name})")
        elif text := "".join(output.get("text", data.get("text/plain", ""))).strip("\n"):
            parts.append(_fenced(text, "text"))
    return parts, pictures


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook in Markdown, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        shown, drawn = _outputs(cell, path.stem, number)
        parts += [_fenced(source, "py"), *shown]
        pictures |= drawn
    note = f"This page is a notebook: [download it](../{path.name})."
    first, *others = parts
    title, _, rest = first.partition("\n\n")
    if not re.match("# ", title):
        raise ValueError(f"{path.name} begins with no title")
    return "\n\n".join([title, note, rest, *others]) + "\n", pictures


def write(folder: Path) -> None:
    """Write the pages of all notebooks into the folder `made` beside them."""
    made = folder / "made"
    made.mkdir(exist_ok=True)
    files: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.ipynb")):
        text, pictures = page(path)
        files |= pictures | {f"{path.stem}.md": text.encode()}
    for old in made.iterdir():
        if old.name not in files:
            old.unlink()
    for name, content in files.items():
        target = made / name
        if not target.exists() or target.read_bytes() != content:
            target.write_bytes(content)
