"""The benchmark of a large photograph: it runs, compares before it counts, and the report shows it."""

import json
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from benchmarks import photographs
from benchmarks.report import pages


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a quick run writes."""
    output = tmp_path_factory.mktemp("photographs") / "result.json"
    photographs.main(["--quick", "--output", str(output)])
    return json.loads(output.read_text())


def test_a_quick_run_measures_time_and_memory(result: dict) -> None:
    titles = [row["title"] for row in result["rows"]]
    assert titles[:2] == ["dynarray.images.filter", "scipy.ndimage"]
    for row in result["rows"]:
        assert row["seconds"] > 0
        assert 1e7 < row["peak_bytes"] < 2e9


def test_all_methods_give_the_same_photograph() -> None:
    """Sums in float32 may be rounded to the neighbour of what float64 gives."""
    given = photographs.inputs(30, 40)
    ours, theirs = photographs.ours(*given), photographs.of_scipy(*given)
    differences = abs(ours.astype(int) - theirs.astype(int))
    assert differences.max() <= 1
    assert differences.mean() < 1e-3


def test_another_photograph_is_noticed(result: dict) -> None:
    rows = [{"seconds": 1, "peak_bytes": 1, "part": [[[part]]]} for part in (10, 12)]

    class Done:
        returncode = 0

        @property
        def stdout(self) -> str:
            return json.dumps(rows.pop())

    with (
        patch.object(photographs.subprocess, "run", lambda *_, **__: Done()),
        pytest.raises(AssertionError, match=r"scipy\.ndimage gives another photograph"),
    ):
        photographs.run(True, list(photographs.METHODS)[:2])


def test_the_report_shows_it(result: dict, tmp_path: Path) -> None:
    assert pages.large_photograph(tmp_path) == pages.NOTHING
    (tmp_path / "a.json").write_text(json.dumps(result | {"quick": False}))
    shown = pages.large_photograph(tmp_path)
    for row in result["rows"]:
        note = " (1 of 3 channels timed)" if row["title"] == "scipy.ndimage" else ""
        assert f"| {row['title']}{note} | {row['seconds']:.2f} | {row['peak_bytes'] / 1e9:.2f} |" in shown
    assert "uint8" in shown


def test_the_time_of_three_channels_is_three_times_that_of_one(capsys: pytest.CaptureFixture) -> None:
    def slow(*given: Any) -> np.ndarray:
        time.sleep(0.02 if len(given) > 3 else 0)
        return given[0]

    with patch.dict(photographs.METHODS, {"slow": photographs.Method(slow, channels=1, runs=2)}):
        photographs.measure("slow", "50", "60")
    row = json.loads(capsys.readouterr().out)
    assert row["seconds"] >= 0.06 and (row["channels"], row["runs"]) == (1, 2)
    assert np.shape(row["part"]) == (9, 9, 1)


def test_the_inputs_are_those_of_the_title() -> None:
    photo, kernels, mixture = photographs.inputs(4, 5)
    assert (photo.shape, photo.dtype) == ((4, 5, 3), np.uint8)
    assert (kernels.shape, mixture.shape) == ((6, 15, 15), (6, 4, 5))
    assert photographs.SIZE == (3000, 4000)
