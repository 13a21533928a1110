"""What keeps the CPU folder readable: short signatures and records, and names that mean one thing."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "dynarray" / "cpu"
PARAMETERS = 8  # positional ones of a function
FIELDS = 10  # of a record


def defined_names(tree: ast.Module) -> Iterator[str]:
    """What a module defines at its top; what it imports is defined elsewhere."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))


def is_record(node: ast.ClassDef) -> bool:
    """Whether a class is a NamedTuple."""
    return any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in node.bases)


def offences(sources: dict[str, str]) -> list[str]:
    """All that is too long, and all names that two files define."""
    found, files = [], defaultdict(list)
    for file, source in sources.items():
        tree = ast.parse(source)
        for name in dict.fromkeys(defined_names(tree)):
            files[name].append(file)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                number = len(node.args.posonlyargs) + len(node.args.args)
                if number > PARAMETERS:
                    found.append(f"{file}: {node.name} has {number} positional parameters")
            elif isinstance(node, ast.ClassDef) and is_record(node):
                number = sum(isinstance(line, ast.AnnAssign) for line in node.body)
                if number > FIELDS:
                    found.append(f"{file}: {node.name} has {number} fields")
            elif isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple):
                found.append(f"{file}: line {node.lineno} splats a row of values")
    found += [f"{name} is defined in {' and '.join(these)}" for name, these in files.items() if these[1:]]
    return found


def test_the_cpu_folder_holds_what_it_promises() -> None:
    sources = {str(path.relative_to(FOLDER)): path.read_text() for path in sorted(FOLDER.rglob("*.py"))}
    assert len(sources) > 20
    assert offences(sources) == []


LONG = "def f(a, b, c, d, /, e, f, g, h, i):\n    pass\n"
METHOD = "class A:\n    def f(self, a, b, c, d, e, f, g, h):\n        pass\n"
RECORD = "class R(NamedTuple):\n" + "".join(f"    field_{i}: int\n" for i in range(11))


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"a.py": LONG}, "a.py: f has 9 positional parameters"),
        ({"a.py": METHOD}, "a.py: f has 9 positional parameters"),
        ({"a.py": RECORD}, "a.py: R has 11 fields"),
        ({"a.py": "f(*(a, b), c)"}, "a.py: line 1 splats a row of values"),
        ({"a.py": "ROWS = 1", "b/a.py": "ROWS: int = 2"}, "ROWS is defined in a.py and b/a.py"),
        ({"a.py": "A, _B = 1, 2", "b.py": "def _B(): pass"}, "_B is defined in a.py and b.py"),
        ({"a.py": "class C: pass", "b.py": "C = 3"}, "C is defined in a.py and b.py"),
    ],
)
def test_the_check_sees(sources: dict[str, str], expected: str) -> None:
    assert offences(sources) == [expected]


@pytest.mark.parametrize(
    "sources",
    [
        {"a.py": "def f(a, b, c, d, e, f, g, h, *, i, j): pass"},
        {"a.py": RECORD.replace("    field_10: int\n", "")},
        {"a.py": "from .b import ROWS", "b.py": "ROWS = 1\nROWS = 2"},
        {"a.py": "def f():\n    x = 1", "b.py": "def g():\n    x = 1"},
        {"a.py": "f(*rest, *also)"},
    ],
)
def test_the_check_allows(sources: dict[str, str]) -> None:
    assert offences(sources) == []
