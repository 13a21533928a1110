"""The pages of the API reference, written anew with each build: one page a package, one section a file of it.

What is public is decided here once, for the reference and for the tests: the names in a module's ``__all__``,
or those that are defined in it or in the files of its folder.
"""

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

# Every public module, with the title of its page.
MODULES = {
    "dynarray": "Operators",
    "dynarray.images": "Photographs",
    "dynarray.kernels": "Builders of filters",
    "dynarray.tiles": "Tiles",
    "dynarray.typing": "Types",
    "autodiff": "The tape",
    "autodiff.functions": "Functions",
    "autodiff.functions.linalg": "Linear algebra",
    "autodiff.layers": "Layers",
    "autodiff.optim": "Optimisers",
    "autodiff.train": "Training",
    "autodiff.networks": "Networks",
    "autodiff.networks.detection": "Parts of detectors",
    "autodiff.data": "Data sets",
    "autodiff.data.augment": "Augmentation",
    "autodiff.metrics": "Metrics",
    "autodiff.files": "Files",
    "autodiff.distributed": "Several processes",
}


def public_names(module: ModuleType) -> list[str]:
    """The names that a module offers, in the order in which it defines or imports them."""
    listed = getattr(module, "__all__", None)
    if listed is not None and module.__name__ != "autodiff.functions":
        return [name for name in listed if not inspect.ismodule(getattr(module, name))]
    return [name for name, value in vars(module).items() if name[0] != "_" and _belongs(value, name, module)]


def _belongs(value: Any, name: str, module: ModuleType) -> bool:
    if inspect.ismodule(value):
        return False
    home = getattr(value, "__module__", None)
    if not isinstance(home, str) or not (callable(value) or type(value).__module__.startswith("autodiff")):
        return name.isupper()  # a constant, or an alias of a type
    if module.__name__ == "autodiff.functions":  # which lends out the tape's own and the operators
        return home.split(".")[0] in ("autodiff", "dynarray")
    return home == module.__name__ or home.startswith(module.__name__ + ".")


def _home(value: Any, module: ModuleType) -> str:
    """The heading under which a name stands: the file that defines it, in words."""
    home = getattr(value, "__module__", "") or ""
    if home == "autodiff.lift" and module.__name__ == "autodiff.functions":
        return "operators of dynarray"
    if home.startswith("rawkernels") or home == module.__name__ or not home.startswith(module.__name__):
        return "general"
    return home.split(".")[len(module.__name__.split("."))].strip("_").replace("_", " ")


def sections(module: ModuleType) -> dict[str, list[str]]:
    """The names of a module by heading."""
    found: dict[str, list[str]] = {}
    for name in public_names(module):
        found.setdefault(_home(getattr(module, name), module), []).append(name)
    # Nobody looks for the types of results first.
    for names in found.values():
        names.sort(key=lambda name: name.endswith("Gradients"))
    return found


def _entry(module: ModuleType, name: str) -> list[str]:
    value = getattr(module, name)
    path = f"{module.__name__}.{name}"
    if inspect.isclass(value):
        return [f".. autoclass:: {path}", "   :members:", ""]
    return [f".. {'autofunction' if callable(value) else 'autodata'}:: {path}", ""]


def page(module: ModuleType, title: str) -> str:
    """A page in reStructuredText: what the module says of itself, and each name by the file that has it."""
    heading = f"{title}: {module.__name__}"
    lines = [f".. _api-{module.__name__}:", "", heading, "=" * len(heading), ""]
    lines += [f".. automodule:: {module.__name__}", "   :no-members:", ""]
    lines += [f".. currentmodule:: {module.__name__}", ""]
    found = sections(module)
    for where, names in found.items():
        if len(found) > 1:
            lines += [where.capitalize(), "-" * len(where), ""]
        lines += [".. autosummary::", "", *(f"   {name}" for name in names), ""]
        for name in names:
            lines += _entry(module, name)
    return "\n".join(lines)


def write(folder: Path) -> None:
    """Write all pages and their table of contents; a file that would not change keeps its time."""
    folder.mkdir(exist_ok=True)
    texts = {name: page(importlib.import_module(name), title) for name, title in MODULES.items()}
    heading = "API reference"
    lines = [heading, "=" * len(heading), "", "Every public name, by the module that offers it.", ""]
    lines += [".. toctree::", "   :maxdepth: 2", "", *(f"   {name}" for name in MODULES), ""]
    texts["index"] = "\n".join(lines)
    for path in folder.glob("*.rst"):
        if path.stem not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
