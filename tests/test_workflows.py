"""Workflow files are YAML that says what it should, and a release is prepared for an index."""

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dynarray

yaml = pytest.importorskip("yaml", reason="PyYAML, which dask and myst-parser bring, is not installed")

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(name: str) -> dict[Any, Any]:
    """A workflow; YAML takes its key "on" for True."""
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8"))


def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    """All steps of all jobs."""
    return [step for job in workflow["jobs"].values() for step in job.get("steps", ())]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_well_formed(path: Path) -> None:
    workflow = read(path.stem)
    assert {"name", True, "permissions", "jobs"} <= set(workflow)
    for name, job in workflow["jobs"].items():
        assert ("uses" in job) != ("runs-on" in job and bool(job["steps"])), name
        needed = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
        assert set(needed) <= set(workflow["jobs"]), name
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step), step
        assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@[\w./]+", step["uses"])
        for named in re.findall(r"(?<![\w/-])\.(?:ci|github)/[\w./]+", step.get("run", "")):
            assert (ROOT / named).is_file(), named


def test_tests_run_on_all_systems_and_versions() -> None:
    matrix = read("tests")["jobs"]["everywhere"]["strategy"]["matrix"]
    for system in ("ubuntu", "macos", "windows", "arm"):
        assert any(system in name for name in matrix["os"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f">={matrix['python'][0]}" == project["requires-python"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(11, 15)]
    said = [name.rpartition(" ")[2] for name in project["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert said and set(said) <= set(matrix["python"])


def test_a_release_is_published_without_a_password_after_the_tests() -> None:
    jobs = read("release")["jobs"]
    assert read("release")[True] == {"push": {"tags": ["v*"]}}
    assert jobs["build"]["needs"] == "tests" and jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert [name for name, job in jobs.items() if "permissions" in job] == ["publish"]
    assert "secrets" not in (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")


@pytest.fixture
def script() -> ModuleType:
    """The script that prepares README and pyproject.toml."""
    spec = importlib.util.spec_from_file_location("for_the_index", ROOT / ".github" / "for_the_index.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_and_pictures_lead_to_the_repository(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "dynarray").mkdir()
    for name in ("README.md", "pyproject.toml", "dynarray/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    with pytest.raises(SystemExit, match=r"the tag is v9\.9\.9, and the version"):
        script.main("https://example.org", "a/b", "v9.9.9", tmp_path)
    tag = f"v{dynarray.__version__}"
    script.main("https://example.org", "a/b", tag, tmp_path)
    readme = (tmp_path / "README.md").read_text("utf-8")
    assert f"](https://example.org/a/b/raw/{tag}/docs/images/dynamic_filter.png)" in readme
    assert f"](https://example.org/a/b/blob/{tag}/docs/tour.md)" in readme
    targets = re.findall(r"\]\(([^)\s]+)\)", readme)
    assert len(targets) > 10 and all(target.startswith("https://") for target in targets)
    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    assert urls["Source"] == "https://example.org/a/b" and len(urls) == 4
    before = (tmp_path / "pyproject.toml").read_text("utf-8")
    script.main("https://example.org", "c/d", tag, tmp_path)
    assert (tmp_path / "pyproject.toml").read_text("utf-8") == before
