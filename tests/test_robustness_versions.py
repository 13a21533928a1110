"""The oldest versions that pyproject.toml allows: the contract, in an environment of their own."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from test_packaging import ROOT, project, run

from dynarray import OPERATORS

# Enough of the contract for every operator to run forward and backward, on every backend without a GPU. What
# "ptx" needs is no requirement of the project.
CONTRACT = "test_public_functions and not ptx"
FOR_TESTS = ("pytest", "pytest-timeout", "hypothesis", "ml_dtypes")


def oldest(requirements: list[str]) -> dict[str, str]:
    """The lowest minor version of each requirement, which must be one of the form name>=version."""
    found = {}
    for requirement in requirements:
        match = re.fullmatch(r"([a-z]+)>=(\d+)(?:\.(\d+))?", requirement)
        assert match, f"{requirement} names no oldest version"
        found[match[1]] = f"{match[2]}.{match[3] or 0}"
    return found


def test_the_oldest_versions_are_read_from_the_requirements() -> None:
    assert oldest(["numpy>=2", "scipy>=1.13"]) == {"numpy": "2.0", "scipy": "1.13"}
    assert set(oldest(project()["dependencies"])) == {"numpy", "scipy", "numba"}
    with pytest.raises(AssertionError, match="numba names no oldest version"):
        oldest(["numba"])


def oldest_python() -> str:
    """The oldest Python that the project takes."""
    version = project()["requires-python"].removeprefix(">=")
    if sys.version.startswith(f"{version}."):
        return sys.executable
    found = shutil.which(f"python{version}")
    if found is None:
        pytest.skip(f"no python{version} on the PATH")
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)  # the download is as fast as the network
def test_the_oldest_versions_keep_the_contract(tmp_path: Path) -> None:
    environment, versions = tmp_path / "environment", oldest(project()["dependencies"])
    run(oldest_python(), "-m", "venv", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    pinned = [f"{name}=={version}.*" for name, version in versions.items()]
    quiet = ("--quiet", "--disable-pip-version-check")
    run(python, "-m", "pip", "install", *quiet, *pinned, *FOR_TESTS, cwd=tmp_path)
    script = f"print(*(__import__(name).__version__ for name in {list(versions)}))"
    installed = run(python, "-c", script, cwd=tmp_path).split()
    for (name, wanted), version in zip(versions.items(), installed, strict=True):
        assert version.startswith(f"{wanted}."), f"{name} {version} instead of {wanted}"
    tests = ROOT / "tests" / "test_every_operator.py"
    options = ("-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", CONTRACT)
    cache = str(tmp_path / "numba")
    report = run(
        python, "-m", "pytest", *options, tests, cwd=ROOT, PYTHONPATH=str(ROOT), NUMBA_CACHE_DIR=cache
    )
    print(report)
    (passed,) = re.findall(r"(\d+) passed", report)
    assert int(passed) >= 2 * len(OPERATORS) and "failed" not in report
