"""Programs of people who have read the README and the site, and nothing else, give what they should."""

import contextlib
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

FOLDER = Path(__file__).with_name("newcomers")
PROGRAMS = {"photograph.py", "pipeline.py", "lecture.ipynb"}


def test_every_program_is_run_by_a_test() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.is_file()} == PROGRAMS


@pytest.fixture(scope="module")
def photograph() -> dict[str, Any]:
    """The names of the program, when it is through."""
    return runpy.run_path(str(FOLDER / "photograph.py"))


def test_a_photograph_is_blurred_as_its_widths_say(photograph: dict[str, Any]) -> None:
    photo, blurred = photograph["photo"], photograph["blurred"]
    assert (blurred.shape, blurred.dtype) == (photo.shape, np.uint8)
    assert (blurred[:, 0] == photo[:, 0]).all()
    last = gaussian_filter(photo.astype(np.float64), (4, 4, 0), mode="mirror")[:, -1]
    assert (blurred[:, -1] == np.rint(last)).all()
    assert (photograph["grey"] == blurred[..., 0]).all()


def test_the_slope_is_that_of_the_loss(photograph: dict[str, Any]) -> None:
    loss, slope, at = photograph["loss"], photograph["slope"], 0.9 * photograph["sigma"]
    assert slope.shape == at.shape
    assert slope.mean() < 0  # the true width is larger everywhere
    # Along a line on which no pixel meets one of the widths, where slopes change.
    direction = np.random.default_rng(0).normal(size=at.shape)
    direction *= np.minimum(1, 1e4 * abs(at - np.rint(at)))
    step = 1e-5
    central = (float(loss(at + step * direction)) - float(loss(at - step * direction))) / (2 * step)
    assert (slope * direction).sum() == pytest.approx(central, rel=1e-6)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names of the program, when it is through."""
    with contextlib.chdir(tmp_path_factory.mktemp("pipeline")):
        names = runpy.run_path(str(FOLDER / "pipeline.py"))
        return names | {"stored": np.load("files/correction.npy")}


@pytest.mark.slow  # compiles kernels, and trains
def test_a_pipeline_trains_and_goes_on_from_a_file(pipeline: dict[str, Any]) -> None:
    resumed, whole = (pipeline[name].network.state_dict() for name in ("resumed", "whole"))
    untrained = pipeline["make"]().state_dict()
    for name, array in whole.items():
        assert np.array_equal(resumed[name], array), name
    assert any(not np.array_equal(untrained[name], array) for name, array in whole.items())
    noise = pipeline["noisy"] - pipeline["clean"]
    gain = 10 * np.log10(np.mean(noise**2) / np.mean((noise + pipeline["at_once"]) ** 2))
    assert pipeline["after"] - pipeline["before"] == pytest.approx(gain, abs=1e-3) and gain > 3


@pytest.mark.slow
def test_a_pipeline_serves_from_threads_and_tiles_a_file(pipeline: dict[str, Any]) -> None:
    assert len(pipeline["from_threads"]) == 8
    for alone, among_others in zip(pipeline["one_by_one"], pipeline["from_threads"], strict=True):
        assert np.array_equal(alone, among_others)
    assert np.array_equal(pipeline["stored"], pipeline["at_once"])


@pytest.mark.slow  # a notebook has a process of its own
def test_a_lecture_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra docs is not installed")
    notebook = nbformat.read(FOLDER / "lecture.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.get("text", "") for output in outputs)
    said = [line for line in printed.splitlines() if line.endswith((": True", ": False"))]
    assert len(said) == 5 and all(line.endswith(": True") for line in said)
    assert "def forward(" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
