"""An operator is its files and one import line: a trial operator joins a copy of the project and passes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRIAL = Path(__file__).with_name("trial")
NAME = "trial_gate2d"
IMPORT = "from .trial import *\n"

# What must see the operator: by the name in its parameters, or because it goes through the whole registry.
MODULES = (
    *("test_every_operator", "test_every_operator_refusals", "test_robustness_refusals"),
    *("test_robustness_large", "test_robustness_threads", "test_operator", "test_types", "test_lift"),
    *(
        "test_special_values",
        "test_benchmarks",
        "test_benchmark_drawn",
        "test_gpu_run",
        "test_documentation",
        "test_docstring_examples",
        "test_docstrings",
        "test_style",
    ),
    *("test_nvrtc", "test_warm_up"),
)
LISTS = (
    *(
        "every_operator_has_a_case",
        "every_operator_has_shapes",
        "grows_along",
        "support_table",
        "tables_are",
        "is_watched",
    ),
    *("table_is_whole", "is_listed", "registry", "every_source_has"),
)
LEFT_OUT = (".*", "__pycache__", "outputs", "build", TRIAL.name)


def run(copy: Path, *command: str) -> str:
    """The output of a command in the copy, which must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with the trial operator: files that it did not have, and a line."""
    place = tmp_path_factory.mktemp("project") / "project"
    shutil.copytree(
        ROOT, place, ignore=shutil.ignore_patterns(".*", "__pycache__", "outputs", "build", "trial")
    )
    for source in (path for path in TRIAL.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        target = place / source.relative_to(TRIAL)
        assert not target.exists()
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source, target)
    package = place / "dynarray" / "__init__.py"
    text = package.read_text()
    last = max(text.rfind("import *\n"), 0) + len("import *\n")
    package.write_text(text[:last] + IMPORT + text[last:])
    return place


@pytest.mark.slow
def test_the_trial_operator_passes_the_suite(copy: Path) -> None:
    assert NAME in run(copy, "-c", f"import dynarray; print(dynarray.{NAME}.__name__, dynarray.__file__)")
    changed = run(copy, "-c", "from benchmarks.__main__ import main; main(['report'])")
    assert changed == "" and f"| `{NAME}` |" in (copy / "docs/guide/backends.md").read_text()
    files = [f"tests/{module}.py" for module in MODULES]
    chosen = " or ".join([NAME, *LISTS])
    options = ("-q", "-m", "not slow", "-p", "no:cacheprovider", "-k", chosen)
    report = run(copy, "-m", "pytest", *options, *files)
    (passed,) = re.findall(r"(\d+) passed", report)
    assert int(passed) > 200 and "failed" not in report


@pytest.mark.slow
def test_what_its_files_do_not_say_is_missed(copy: Path, tmp_path: Path) -> None:
    """Without the file of its calls, or of its benchmarks, or of its warm-up, the lists are not whole."""
    for path, selection in (
        ("tests/_calls/trial.py", "tests/test_robustness_refusals.py"),
        ("benchmarks/cases/trial.py", "tests/test_benchmarks.py"),
        ("dynarray/typical/trial.py", "tests/test_warm_up.py"),
    ):
        moved = tmp_path / Path(path).name
        shutil.move(copy / path, moved)
        try:
            missed = r"No module named '(_calls|benchmarks\.cases|dynarray\.typical)\.trial'"
            with pytest.raises(AssertionError, match=missed):
                run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", selection)
        finally:
            shutil.move(moved, copy / path)
