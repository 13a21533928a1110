"""What trainings found, kept in files of the repository: numbers and short curves, and what decides them.

A study of many trainings takes hours, in sessions that end before it does. What each training found stands
in ``results/parts/NAME.json``, to be read and committed; a study goes on from there. Beside the numbers stand
the settings, the arguments of each training, and a fingerprint of the code that it runs.
"""

import ast
import hashlib
import inspect
import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rawkernels.store import replaced

HERE = Path(__file__).parent
PARTS = HERE / "results" / "parts"
DIGITS = 5  # significant ones: a table shows fewer
LONGEST = 20_000  # characters that one training may say

# Windows has none: there two studies at a time may each train what the other has.
fcntl: Any = import_module("fcntl") if os.name == "posix" else None

Key = tuple[str, int]  # what was trained, and its seed
Found = dict[str, np.ndarray]  # what came of it, by name


class Part(NamedTuple):
    """One training."""

    found: Found
    minutes: float  # of one core


def rounded(value: Any) -> Any:
    """Numbers and arrays as JSON keeps them: `DIGITS` significant digits of what is no integer."""
    value = np.asarray(value)
    if value.ndim:
        return [rounded(each) for each in value]
    if value.dtype.kind in "iub":
        return value.item()
    if value.dtype.kind != "f":
        raise TypeError(f"numbers are kept, not {value.dtype}")
    return float(f"{float(value):.{DIGITS}g}")


def read(found: Mapping[str, Any]) -> Found:
    """What a training found, from its rounded form; a study that has just been trained is read alike."""
    return {name: np.asarray(value) for name, value in found.items()}


class Parts:
    """The file of a study.

    Parameters
    ----------
    path : Path
        It need not exist yet; nor its folder.
    settings : mapping
        What all trainings depend on, beside their arguments: numbers and strings.
    work : callable
        What trains: its code, and that of the examples which it calls, decides the numbers.

    Raises
    ------
    SystemExit
        If the file is there, and was made with other settings or by other code.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], work: Any) -> None:
        self.path = path
        self.head = {"settings": dict(settings), "fingerprint": fingerprint(work)}
        self.load()

    def load(self) -> dict[Key, tuple[str, Part]]:
        """What there is: the arguments, and what was found, by what was trained and its seed."""
        if not self.path.exists():
            return {}
        content = json.loads(self.path.read_text(encoding="utf-8"))
        for name, own in self.head.items():
            if content[name] != own:
                raise SystemExit(
                    f"{self.path} was made with other {name}, {content[name]}, than {own}: name another "
                    f"file, or delete this one"
                )
        return {
            (each["variant"], each["seed"]): (each["arguments"], Part(read(each["found"]), each["minutes"]))
            for each in content["parts"]
        }

    def save(self, key: Key, arguments: str, found: Mapping[str, Any], minutes: float) -> None:
        """Add one to what is there by now; of two of the same the first one stays."""
        length = len(json.dumps(found))
        if length > LONGEST:
            raise ValueError(f"{key}: numbers and short curves are kept, not {length:,} characters")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self.path):
            there = self.load()
            if key in there and there[key][0] == arguments:
                return
            old = json.loads(self.path.read_text(encoding="utf-8"))["parts"] if there else []
            new = {"variant": key[0], "seed": key[1], "arguments": arguments, "minutes": round(minutes, 2)}
            parts = [each for each in old if (each["variant"], each["seed"]) != key]
            parts = sorted([*parts, new | {"found": found}], key=lambda each: (each["variant"], each["seed"]))
            with replaced(self.path) as file:
                file.write(self._text(parts).encode())

    def _text(self, parts: list[dict]) -> str:
        """One line for what each name says of each training: then a difference of two versions is short."""
        described = json.dumps({**self.head, "parts": []}, indent=1)
        blocks = []
        for part in parts:
            lines = [f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in part["found"].items()]
            heads = [f"   {json.dumps(name)}: {json.dumps(v)}" for name, v in part.items() if name != "found"]
            blocks.append(",\n".join([*heads, '   "found": {\n']) + ",\n".join(lines) + "\n   }")
        inner = ",\n".join(f"  {{\n{block}\n  }}" for block in blocks)
        return described.replace('"parts": []', f'"parts": [\n{inner}\n ]') + "\n"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While another process has the file, this one waits."""
    if fcntl is None:
        yield
        return
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the lock of a process that was killed is gone
        yield


# ---------------------------------------------------------------------------------------------------------
# What decides the numbers


def described(arguments: tuple) -> str:
    """Of a training, those that decide what it finds: folders do not."""
    return ", ".join(repr(each) for each in arguments if not isinstance(each, Path))


def fingerprint(work: Any) -> str:
    """A digest of the code and the constants that a function of an example reaches, in examples.

    Comments, docstrings and the lie of the lines do not count, nor what it does not reach: tables and
    pictures can change and numbers stay.
    """
    reached: dict[str, str] = {}
    _reach(work, reached)
    return hashlib.sha256(json.dumps(reached, sort_keys=True).encode()).hexdigest()[:16]


def _reach(thing: Any, reached: dict[str, str]) -> None:
    """Add the source of a function or class of the examples, and of what it names."""
    thing = inspect.unwrap(getattr(thing, "func", thing))
    module = inspect.getmodule(thing)
    name = f"{getattr(module, '__name__', '')}.{getattr(thing, '__qualname__', '')}"
    if name in reached or not _own(module):
        return
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    reached[name] = ast.unparse(tree)
    for own in sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}):
        if own not in vars(module):
            continue
        for each in _each(vars(module)[own]):
            if inspect.isroutine(inspect.unwrap(each)) or inspect.isclass(each):
                _reach(each, reached)
        shown = repr(vars(module)[own])
        if not inspect.ismodule(vars(module)[own]) and " at 0x" not in shown and "Path(" not in shown:
            reached[f"{module.__name__}.{own} ="] = shown


def _each(value: Any) -> Iterator[Any]:
    """It, and what it contains: a table of functions reaches them."""
    yield value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for each in value:
            yield from _each(each)


def _own(module: Any) -> bool:
    return module is not None and Path(getattr(module, "__file__", None) or "/").parent == HERE
