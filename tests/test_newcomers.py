"""Programs of people who have read the README, and nothing else, give what they should."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

FOLDER = Path(__file__).with_name("newcomers")
PROGRAMS = {"photograph.py"}


def test_every_program_is_run_by_a_test() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} == PROGRAMS


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
