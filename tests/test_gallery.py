"""Pages of the examples: a notebook is the whole script, a bundle has what it imports, prose stays prose."""

import ast
import importlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = '''"""A title.

Some prose.
"""

import sys
from pathlib import Path

HERE = Path(__file__).stem


def main():
    print(HERE, len(sys.argv))


if __name__ == "__main__":
    main()
'''
# Gives back what it gets, until it is stopped.
SERVES = """
import signal
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"well\\n")

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
server = HTTPServer(("127.0.0.1", 0), Handler)
print("before", flush=True)
print(f"serving on http://127.0.0.1:{server.server_port}", flush=True)
try:
    server.serve_forever()
except KeyboardInterrupt:
    print("stopped")
"""
SCRIPTS = sorted((ROOT / "examples").glob("[!_]*.py"))


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that writes the pages."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("_gallery")


def code_of(notebook: str) -> list[str]:
    """Its cells of code."""
    cells = json.loads(notebook)["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_has_all_that_the_script_does(gallery: ModuleType, script: Path) -> None:
    source = script.read_text("utf-8")
    cells = [cell for cell in code_of(gallery.notebook(script)) if not cell.startswith("__file__ = ")]
    body = ast.parse(source).body[1:]
    if "__main__" in source:
        assert cells.pop().splitlines()[-1] == "main()"
        assert isinstance(body.pop(), ast.If)
    together = ast.parse("\n".join(cells)).body
    assert [ast.dump(node) for node in together] == [ast.dump(node) for node in body]
    assert len(cells) >= 2


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_bundle_imports_nothing_that_is_not_in_it(
    gallery: ModuleType, script: Path, tmp_path: Path
) -> None:
    gallery.bundle(script, tmp_path / "bundle.zip")
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        texts = {Path(name).name: archive.read(name).decode() for name in archive.namelist()}
    assert texts[script.name] == script.read_text("utf-8")
    assert f"{script.stem}.ipynb" in texts
    ours = {path.stem for path in (ROOT / "examples").glob("*.py")}
    for name, text in texts.items():
        if name.endswith(".py"):
            imported = re.findall(r"^\s*(?:from|import) (\w+)", text, flags=re.MULTILINE)
            assert {f"{each}.py" for each in ours & set(imported)} <= set(texts), name


def test_a_notebook_runs_as_its_script_does(
    gallery: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "small.py"
    script.write_text(SMALL)
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in code_of(gallery.notebook(script)):
        exec(cell, names)
    assert capsys.readouterr().out == "small 1\n"


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM cannot be handled on Windows")
def test_a_script_that_serves_is_asked_and_stopped(gallery: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "serves.py"
    script.write_text(SERVES)
    said = gallery.printed_by(script, tmp_path).splitlines()
    assert said[0] == "before" and said[1].startswith("serving on http://127.0.0.1:")
    assert said[2].endswith("(120, 160): its standard deviation is 0.100, and 0.100 in the answer")
    assert said[3:] == ["> GET /health: well", "> SIGTERM", "stopped"]


def test_a_script_that_fails_is_not_recorded(gallery: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("print('half of it', flush=True)\nraise SystemExit(3)\n")
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        gallery.printed_by(script, tmp_path)


def test_a_docstring_becomes_a_page(gallery: ModuleType) -> None:
    title, text = gallery.told(
        "Of x[i] and y.\n\nProse *and* `code[i]`.\n\nA heading\n---------\n    a * b\n\n- one\n- two"
    )
    assert title == r"Of x\[i\] and y"
    assert text == ("Prose \\*and\\* `code[i]`.\n\n## A heading\n\n```text\n    a * b\n```\n\n- one\n- two")


def test_pictures_and_what_was_printed_are_on_the_page(gallery: ModuleType) -> None:
    page = gallery.page(ROOT / "examples" / "dau_by_hand.py")
    printed = (ROOT / "examples" / "results" / "printed" / "dau_by_hand.txt").read_text("utf-8")
    assert "](../images/dau_by_hand.png)" in page
    assert printed.splitlines()[0] in page and printed.startswith("$ python examples/dau_by_hand.py  # 20")
    assert "**Four held-out photographs" in gallery.page(ROOT / "examples" / "denoising.py")
    recorded = {path.stem for path in (ROOT / "examples" / "results" / "printed").iterdir()}
    assert recorded <= {script.stem for script in SCRIPTS}
