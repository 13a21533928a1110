"""Imports run one way, stay light, and name no deep-learning framework."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each layer may import itself and those before it.
LAYERS = ("rawkernels", "dynarray", "autodiff", "examples")
FRAMEWORKS = {
    "torch",
    "torchvision",
    "jax",
    "jaxlib",
    "flax",
    "tensorflow",
    "keras",
    "mxnet",
    "paddle",
    "chainer",
}
# Kept out of `import dynarray`: each takes longer to import than the whole budget, or may not be installed.
HEAVY = {"numba", "llvmlite", "cupy", "cuda", "matplotlib", "skimage", "sklearn", "scipy"}
# What an import may take, in calls of Python functions and in modules beside NumPy's: a time would depend on
# what else the machine does. Ten thousand calls take some hundredths of a second.
MOST_CALLS = {"dynarray": 15_000, "autodiff": 40_000}
MOST_MODULES = {"dynarray": 60, "autodiff": 150}
if sys.version_info >= (3, 12):  # whose own modules import more of each other: 72 are loaded by 3.14
    MOST_CALLS["dynarray"], MOST_MODULES["dynarray"] = 17_000, 75


def imported_names(source: str, package: str = "") -> list[tuple[str, int]]:
    """Every module that the source names in an import, wherever in the file, with its line number.

    `package` is the dotted package of the file, against which relative imports are resolved.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            found.append((".".join([*base, *([node.module] if node.module else [])]), node.lineno))
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
                found.append((str(first.value), node.lineno))
    return found


def upward_imports(source: str, layer: str, package: str) -> list[str]:
    """The imports in `source` that reach a layer above its own."""
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"tests", "benchmarks"}
    found = imported_names(source, package)
    return [f"line {line}: {name}" for name, line in found if name.split(".")[0] in above]


def sources(directory: str) -> list[Path]:
    """The Python files below one directory of the project."""
    return sorted((ROOT / directory).rglob("*.py"))


@pytest.mark.parametrize("layer", LAYERS)
def test_no_layer_imports_one_above_it(layer: str) -> None:
    files = sources(layer)
    assert files, f"{layer}/ holds no Python file"
    offenders = {}
    for path in files:
        package = ".".join(path.relative_to(ROOT).parent.parts)
        found = upward_imports(path.read_text(), layer, package)
        if found:
            offenders[str(path.relative_to(ROOT))] = found
    assert not offenders


@pytest.mark.parametrize(
    "source",
    [
        "import autodiff",
        "import numpy, autodiff.tape",
        "from autodiff.tape import Tape",
        "def f():\n    from autodiff import Tape",
        "from ...autodiff import tape",
        "from ... import autodiff\nimport autodiff as ad",
        "import importlib\nimportlib.import_module('autodiff.tape')",
        "from examples import joint_upsampling",
        "import benchmarks",
    ],
)
def test_the_check_sees_an_upward_import(source: str) -> None:
    assert upward_imports(source, "dynarray", "dynarray.cpu")


@pytest.mark.parametrize(
    "source", ["import rawkernels", "from . import _check", "from ..reference import x", "import autodiffer"]
)
def test_the_check_allows_imports_of_the_own_and_lower_layers(source: str) -> None:
    assert upward_imports(source, "dynarray", "dynarray.cpu") == []


CPU = "dynarray.cpu"


def strange_imports(source: str, package: str) -> list[str]:
    """The imports in a file of the CPU folder that reach another operator family than its own."""
    own = package.removeprefix(f"{CPU}.").split(".")[0]
    found = []
    for name, line in imported_names(source, package):
        inside = name.startswith(f"{CPU}.")
        family = name.removeprefix(f"{CPU}.").split(".")[0]
        if name == CPU or (inside and family not in (own, "engine")):
            found.append(f"line {line}: {name}")
    return found


def test_cpu_families_import_the_engine_and_no_other_family() -> None:
    files = sources("dynarray/cpu")
    families = {path.parent.name for path in files} - {"cpu", "engine"}
    assert {"local_filter", "atoms", "deform", "displaced", "dynamic_sampling"} <= families
    offenders = {}
    for path in files:
        found = strange_imports(path.read_text(), ".".join(path.relative_to(ROOT).parent.parts))
        if found:
            offenders[str(path.relative_to(ROOT))] = found
    assert not offenders


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("from ..atoms import kernels", "dynarray.cpu.deform"),
        ("from ..atoms.kernels import filter_planes", "dynarray.cpu.deform"),
        ("from .. import atoms", "dynarray.cpu.deform"),
        ("from dynarray.cpu.atoms import kernels", "dynarray.cpu.deform"),
        ("def f():\n    import dynarray.cpu.atoms", "dynarray.cpu.deform"),
        ("from ..atoms import kernels", "dynarray.cpu.engine"),
    ],
)
def test_the_check_sees_another_family(source: str, package: str) -> None:
    assert strange_imports(source, package)


@pytest.mark.parametrize(
    "source",
    [
        "from . import kernels",
        "from .kernels import f",
        "from ..engine import parallel",
        "from ..engine.compile import jit",
        "from ..._check import check_int",
    ],
)
def test_the_check_allows_the_engine_and_the_own_family(source: str) -> None:
    assert strange_imports(source, "dynarray.cpu.deform") == []


def test_no_framework_is_imported_but_where_it_stands_beside_ours() -> None:
    """In the benchmarks, and in the scripts that hand arrays to one and back."""
    offenders = []
    for directory in LAYERS:
        for path in sources(directory):
            if path.is_relative_to(ROOT / "examples" / "interop"):
                continue
            offenders += [
                f"{path.relative_to(ROOT)}:{line} {name}"
                for name, line in imported_names(path.read_text())
                if name.split(".")[0] in FRAMEWORKS
            ]
    assert not offenders


_IMPORT_PROBE = """
import importlib, json, sys
import numpy
before, calls = set(sys.modules), 0
def count(frame, event, argument):
    global calls
    calls += event == "call"
sys.setprofile(count)
importlib.import_module("{module}")
sys.setprofile(None)
print(json.dumps({{"calls": calls, "loaded": sorted(set(sys.modules) - before)}}))
"""


def probe_import(module: str) -> dict:
    """Import NumPy, then the module, in a fresh interpreter: Python functions called, and modules loaded."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_PROBE.format(module=module)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", ["dynarray", "autodiff"])
def test_import_is_light(module: str) -> None:
    loaded = {name.split(".")[0] for name in probe_import(module)["loaded"]}
    assert module in loaded
    assert not loaded & (HEAVY | FRAMEWORKS)


@pytest.mark.parametrize("module", ["dynarray", "autodiff"])
def test_import_is_quick(module: str) -> None:
    probe_import(module)  # writes the byte code, which an installation has too
    found = probe_import(module)
    assert found["calls"] <= MOST_CALLS[module]
    assert len(found["loaded"]) <= MOST_MODULES[module]


def test_a_slow_import_is_seen() -> None:
    found = probe_import("scipy.special")
    assert found["calls"] > MOST_CALLS["dynarray"] and len(found["loaded"]) > MOST_MODULES["dynarray"]
