"""The notebooks run from top to bottom, and what is stored in them is what they give."""

from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra docs is not installed")

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def printed(cell: Any) -> str:
    """The text that a cell gave."""
    return "".join(output["text"] for output in cell["outputs"] if output["output_type"] == "stream")


def drawn(cell: Any) -> int:
    """The pictures that it drew."""
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_gives_what_is_stored_in_it(path: Path, tmp_path: Path) -> None:
    stored, ran = (nbformat.read(path, as_version=4) for _ in range(2))
    nbformat.validate(stored)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(ran, timeout=None, kernel_name="python3", resources=resources).execute()
    for old, new in zip(stored["cells"], ran["cells"], strict=True):
        if old["cell_type"] == "code":
            assert printed(old) == printed(new)
            assert drawn(old) == drawn(new)
    assert path.stat().st_size < 200_000
