"""The tables of docs/recipes.md: what stands there as ours is what the recipes have."""

import ast
import importlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(path.stem for path in (ROOT / "examples" / "recipes").glob("[!_]*.py"))


def tables() -> dict[str, dict[str, tuple[str, Any]]]:
    """By recipe and setting: what the paper has, in words, and what is ours."""
    found = {}
    parts = re.split(r"^## `(\w+)\.py`$", (ROOT / "docs" / "recipes.md").read_text("utf-8"), flags=re.M)
    for name, text in zip(parts[1::2], parts[2::2]):
        rows = re.findall(r"^\| `([\w-]+)`[^|]* \| ([^|]+) \| `([^|]+)` \|$", text, re.M)
        assert len(rows) == text.count("\n|") - 2, "a row that is not understood"
        found[name] = {setting: (paper, ast.literal_eval(ours)) for setting, paper, ours in rows}
    return found


def test_every_recipe_has_a_table() -> None:
    assert sorted(tables()) == RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_our_settings_are_those_of_the_recipe(name: str, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples" / "recipes")
    recipe = importlib.import_module(name)
    with pytest.raises(SystemExit):
        recipe.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    shown = dict(re.findall(r"(--[\w-]+) [A-Z_]+ (?:(?!--)[^()])*\(?default: ([\w.]+)", text))
    table = {setting: ours for setting, (_, ours) in tables()[name].items()}
    options = {setting: table.pop(setting) for setting in list(table) if setting.startswith("--")}
    assert table == asdict(recipe.Settings())
    assert {option: float(shown[option]) for option in options} == options
