"""The house rules: short files and functions, documented public functions, no name of one machine."""

import ast
import importlib
import inspect
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE = 500
MAX_FUNCTION = 60
CODE = {".py", ".cu", ".cuh", ".h", ".hpp", ".cpp"}
PACKAGES = ("dynarray", "autodiff")
TEXT = CODE | {".md", ".toml", ".txt", ".json", ".yml", ".yaml", ".cfg", ".rst", ""}

FOREIGN = {
    "a package registry's host": re.compile(
        r"\b(?:pypi\.(?:org|io)|pythonhosted\.org|download\.pytorch\.org|conda\.anaconda\.org|pypi\.nvidia\.com)\b"
        r"|--(?:extra-)?index-url|--find-links"
    ),
    "a path of one machine": re.compile(r"""(?<![\w.~/-])/(?:root|home|work|Users|opt|mnt|scratch)/[\w.]"""),
}


def project_files(suffixes: set[str]) -> list[Path]:
    """The files of the project that git knows, or, outside a checkout, all that are not in an environment."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode == 0:
        names = [name for name in listing.stdout.split("\0") if name]
    else:
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()]
        names = [name for name in names if not re.match(r"\.|build/|dist/|.*__pycache__", name)]
    return sorted(ROOT / name for name in names if Path(name).suffix in suffixes and (ROOT / name).is_file())


def relative(path: Path) -> str:
    """The path as it is written in the project."""
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring: a long explanation is no long function."""
    last = function.end_lineno or function.lineno
    length = last - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def foreign(text: str) -> list[str]:
    """What the text names of the world outside the project."""
    hits = ((what, found) for what, pattern in FOREIGN.items() for found in pattern.finditer(text))
    return [f"{what}: {found.group()}" for what, found in hits]


def test_no_file_is_long() -> None:
    files = project_files(CODE)
    assert len(files) > 10
    lengths = {relative(path): len(path.read_text().splitlines()) for path in files}
    assert not {name: length for name, length in lengths.items() if length > MAX_FILE}


def test_no_function_is_long() -> None:
    long = {
        f"{relative(path)}:{function.lineno} {function.name}": code_lines(function)
        for path in project_files({".py"})
        for function in functions(ast.parse(path.read_text()))
        if code_lines(function) > MAX_FUNCTION
    }
    assert not long


def test_a_long_function_is_seen() -> None:
    body = "".join(f"    x{i} = {i}\n" for i in range(MAX_FUNCTION))
    docstring = '    """' + "words\n" * MAX_FUNCTION + '    """\n'
    (too_long,) = functions(ast.parse(f"def f():\n{body}"))
    (documented,) = functions(ast.parse(f"def f():\n{docstring}    return 1\n"))
    assert code_lines(too_long) == MAX_FUNCTION + 1
    assert code_lines(documented) == 2


def test_every_public_function_and_class_of_autodiff_says_what_it_does() -> None:
    """Most are NumPy's functions under NumPy's names: a sentence is enough, on each and on each method."""
    autodiff = importlib.import_module("autodiff")
    undocumented = []
    for name, value in vars(autodiff).items():
        if name.startswith("_") or not getattr(value, "__module__", "").startswith(PACKAGES):
            continue
        members = {name: value}
        if inspect.isclass(value):
            members |= {
                f"{name}.{key}": member
                for key, member in vars(value).items()
                if inspect.isfunction(member) and not key.startswith("_")
            }
        undocumented += [key for key, member in members.items() if not (inspect.getdoc(member) or "").strip()]
    assert not undocumented


def test_no_file_names_a_registry_or_a_machine() -> None:
    offenders = {}
    for path in project_files(TEXT):
        if path == Path(__file__).resolve():
            continue
        found = foreign(path.read_text(errors="replace"))
        if found:
            offenders[relative(path)] = found
    assert not offenders


@pytest.mark.parametrize(
    "text",
    [
        "pip install --index-url x",
        "see pypi" + ".org/simple",
        "cd /ho" + "me/someone",
        "'/ro" + "ot/x'",
        "path=/wo" + "rk/a",
    ],
)
def test_a_foreign_name_is_seen(text: str) -> None:
    assert foreign(text)


@pytest.mark.parametrize(
    "text", ["~/.cache/x", "docs/home/x.md", "/proc/cpuinfo", "a / work / b", "#!/usr/bin/env"]
)
def test_an_ordinary_path_is_no_foreign_name(text: str) -> None:
    assert not foreign(text)
