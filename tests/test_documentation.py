"""Every example in the README and in the pages of docs/ runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_of_pages_run(block, capsys):
    exec(compile(block, "a page", "exec"), {"__name__": "page"})


def test_the_readme_takes_a_minute():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 150


def test_the_gallery_shows_every_example():
    shown = re.findall(r"\]\(\.\./examples/(\w+\.py)\)", (ROOT / "docs" / "gallery.md").read_text("utf-8"))
    assert sorted(shown) == sorted(path.name for path in (ROOT / "examples").glob("[!_]*.py"))


def test_pages_have_blocks_to_run():
    assert len(BLOCKS) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_pages_show_and_link_to_is_there(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).is_file(), f"{page.name} names {target}"
