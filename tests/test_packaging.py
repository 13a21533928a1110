"""The wheel works away from the checkout, and the commands that the README names exist."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import IN_CI

import dynarray

ROOT = Path(__file__).resolve().parent.parent

# What pip says when it reaches no index; anything else that goes wrong is a failure.
NO_NETWORK = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "ProxyError",
    "Network is unreachable",
)

# What is not the project's: an old build directory beside the sources would slip into a wheel.
IGNORED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "outputs")

# Run by the interpreter of the empty environment: the expected values come from NumPy alone.
SCRIPT = """
import json
import numpy as np
import dynarray as dyn
from numpy.lib.stride_tricks import sliding_window_view

rng = np.random.default_rng(7)
x, weight = rng.standard_normal((2, 4, 9, 11)), rng.standard_normal((2, 1, 3, 3, 9, 11))
windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
expected = np.einsum("nchwab,nabhw->nchw", windows, weight[:, 0])
expected_gradient = np.einsum("nchwab,nchw->nabhw", windows, expected)[:, None]

errors = {}
for backend in ("reference", "cpu", "host"):
    with dyn.use_backend(backend):
        y = dyn.local_filter2d(x, weight)
        gradients = dyn.local_filter2d_backward(expected, x, weight)
    errors[backend] = [
        float(np.abs(found - wanted).max() / np.abs(wanted).max())
        for found, wanted in ((y, expected), (gradients.weight, expected_gradient))
    ]
print(json.dumps({"file": dyn.__file__, "errors": errors}))
"""


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Output of a command that must succeed; a machine without a network skips, unless it is CI's."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment | variables, capture_output=True, text=True
    )
    if done.returncode != 0 and not IN_CI and any(sign in done.stdout + done.stderr for sign in NO_NETWORK):
        pytest.skip(f"no package index can be reached: {' '.join(done.stderr.split())[-200:]}")
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def check_installed(environment: Path, tmp_path: Path) -> None:
    """What is installed there computes on three backends what NumPy says."""
    python = environment / "bin" / "python"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    caches = {"DYNARRAY_CACHE_DIR": str(tmp_path / "host"), "NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    result = json.loads(run(python, "-I", script, cwd=tmp_path, **caches))
    print(result)
    assert Path(result["file"]).is_relative_to(environment)
    assert set(result["errors"]) == {"reference", "cpu", "host"}
    for backend, errors in result["errors"].items():
        assert max(errors) < 1e-13, backend
    assert any((tmp_path / "host").rglob("*.so")), "the host backend compiled nothing"
    report = run(python, "-I", "-m", "dynarray", "info", "--require", "host", cwd=tmp_path, **caches)
    assert "dynarray" in report


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    shutil.copytree(ROOT, source, ignore=IGNORED)
    target = source.parent / "dist"
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", target, source, cwd=source.parent)
    (built,) = target.glob("dynamic_filters-*.whl")
    return built


@pytest.mark.slow
@pytest.mark.timeout(900)  # the download is as fast as the network
def test_the_wheel_holds_the_kernels_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packages = ("rawkernels", "dynarray", "autodiff")
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".nbi", ".nbc")
    }
    suffixes = {Path(name).suffix for name in sources}
    assert {".py", ".cu", ".cuh"} <= suffixes
    assert sources <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(packages)
    for package in packages:
        assert f"{package}/py.typed" in names
    assert [name for name in names if name.endswith("/licenses/LICENSE")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=tmp_path)
    check_installed(environment, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_source_distribution_works_in_an_empty_environment(tmp_path: Path) -> None:
    source, tools, empty = (tmp_path / name for name in ("source", "tools", "empty"))
    shutil.copytree(ROOT, source, ignore=IGNORED)
    for environment in (tools, empty):
        run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(tools / "bin" / "python", *pip, "build", cwd=tmp_path)
    target = tmp_path / "dist"
    run(tools / "bin" / "python", "-m", "build", "--sdist", "--outdir", target, source, cwd=tmp_path)
    (built,) = target.glob("dynamic_filters-*.tar.gz")
    run(empty / "bin" / "python", *pip, built, cwd=tmp_path)
    shutil.rmtree(source)
    check_installed(empty, tmp_path)


@pytest.mark.parametrize("text", ["", "OPERATORS_OF_ANOTHER = 1"])
def test_a_dynarray_of_another_project_is_named(tmp_path: Path, text: str) -> None:
    other = tmp_path / "dynarray" / "__init__.py"
    other.parent.mkdir()
    other.write_text(text)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", "import autodiff"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: autodiff needs the dynarray that comes with it")
    assert str(other) in last


def test_what_is_installed_has_a_name_of_its_own() -> None:
    """The modules keep their names, which are those of other projects; nothing tells to install these."""
    name = project()["name"]
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    ours = ("rawkernels", "dynarray", "autodiff")
    assert name not in ours
    sources = [path for package in ours for path in (ROOT / package).rglob("*.py")]
    for path in (*pages, *sources):
        told = re.findall(r"pip install ['\"]?([A-Za-z][\w-]*)", path.read_text("utf-8"))
        assert not set(ours) & set(told), path.name
    assert f"`{name}`" in (ROOT / "README.md").read_text()


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def make_targets() -> dict[str, str]:
    """Each target of the Makefile, to what it depends on."""
    return dict(re.findall(r"^([a-z][a-z-]*):(.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_the_makefile_installs_extras_that_exist() -> None:
    extras = project()["optional-dependencies"]
    assert {"cuda12", "cuda13", "examples", "bench", "docs", "test"} <= set(extras)
    installed = re.findall(r"\.has-([a-z0-9,]+)", (ROOT / "Makefile").read_text())
    assert installed
    assert {extra for group in installed for extra in group.split(",")} <= set(extras)


def test_the_page_on_installing_lists_every_extra() -> None:
    page = (ROOT / "docs" / "install.md").read_text("utf-8")
    rows = re.findall(r"^\| (`[^|]*) \|[^|]*\|[^|]*\|$", page, flags=re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`([a-z0-9]+)`", row)]
    assert sorted(listed) == sorted(project()["optional-dependencies"])


def test_every_command_of_the_pages_exists() -> None:
    targets = make_targets()
    assert {"demo", "test", "lint", "bench", "gpu-test"} <= set(targets)
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        page: set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text("utf-8"), flags=re.MULTILINE))
        for page in pages
    }
    assert {"demo", "test"} <= named[pages[0]]
    assert set().union(*named.values()) <= set(targets)


def test_ci_runs_the_test_command_of_the_readme(tmp_path: Path) -> None:
    assert run(ROOT / ".ci" / "run", "--print", cwd=tmp_path).strip() == "make test"
    copy = tmp_path / ".ci"
    copy.mkdir()
    shutil.copy(ROOT / ".ci" / "run", copy / "run")
    marker = "<!-- .ci/run executes the next block -->"
    (tmp_path / "README.md").write_text(f"```sh\nno\n```\n{marker}\n```sh\none\ntwo\n```\n```sh\nno\n```\n")
    assert run(copy / "run", "--print", cwd=tmp_path) == "one\ntwo\n"
    (tmp_path / "README.md").write_text("no marker\n```sh\nno\n```\n")
    done = subprocess.run([copy / "run", "--print"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "no marked test command" in done.stderr


def test_the_citation_names_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", text, flags=re.MULTILINE) == [dynarray.__version__]


def test_the_license_is_named_and_there() -> None:
    assert project()["license"] == "MIT"
    assert "MIT License" in (ROOT / "LICENSE").read_text()
