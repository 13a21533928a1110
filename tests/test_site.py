"""The site is built without a warning, has every public name, leads nowhere that is not there, and works."""

import fcntl
import functools
import importlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from _browser import Browser, find
from matplotlib.image import imread

from dynarray._info import VARIABLES

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("sphinx", reason="the extra docs is not installed")


def build(folder: Path) -> None:
    """The site, or what the build complains of."""
    command = [sys.executable, "-m", "sphinx", "--builder", "html", "--fail-on-warning", "--keep-going"]
    places = ["--quiet", "--doctree-dir", str(folder.with_name("doctrees")), str(ROOT / "docs"), str(folder)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*command, *places], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built once for all processes of the test run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, done = shared / "site", shared / "site-is-built"
    with (shared / "site-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            build(folder)
            done.touch()
    return folder


class Page(HTMLParser):
    """The anchors of a page, and what it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the attributes that name or refer."""
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value or "")
            elif name in ("href", "src") and value:
                self.targets.append(value)


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """All pages by their files."""
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}


def missing(path: Path, target: str, pages: dict[Path, Page]) -> bool:
    """Whether a reference within the site leads nowhere."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return False
    to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not to.is_file():
        return True
    return bool(parts.fragment) and to in pages and unquote(parts.fragment) not in pages[to].anchors


@pytest.mark.slow
def test_every_reference_leads_somewhere(pages: dict[Path, Page]) -> None:
    assert len(pages) > 40
    lost = {
        path.name: bad
        for path, page in pages.items()
        if (bad := sorted({target for target in page.targets if missing(path, target, pages)}))
    }
    assert not lost


def test_a_lost_reference_is_seen(tmp_path: Path) -> None:
    first, second = tmp_path / "a.html", tmp_path / "b.html"
    first.write_text('<a href="b.html#here">')
    second.write_text('<p id="here"><img src="no.png">')
    found = {path: Page(path) for path in (first, second)}
    assert not missing(first, "b.html#here", found)
    assert missing(first, "b.html#there", found)
    assert missing(second, "no.png", found)


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """The site works without a network: scripts, styles, fonts and pictures are its own."""
    for path in site.rglob("*.html"):
        page = Page(path)
        assert not [target for target in page.targets if target.startswith(("http://", "//"))], path.name


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(pages: dict[Path, Page], monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    reference = importlib.import_module("_reference")
    anchors = set().union(*(page.anchors for page in pages.values()))
    names = {
        f"{module}.{name}"
        for module in reference.MODULES
        for name in reference.public_names(importlib.import_module(module))
    }
    assert len(names) > 350
    assert {"dynarray.ddf_backward", "autodiff.functions.max", "autodiff.data.VOC_CLASSES"} <= names
    assert not names - anchors


def test_the_guide_lists_every_variable_of_the_environment() -> None:
    text = (ROOT / "docs" / "guide" / "environment.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)) == set(VARIABLES)


def test_the_picture_of_the_start_page_is_drawn(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    script = importlib.import_module("draw_start")
    photo, noisy, ((_, one, fixed), (_, many, each)) = script.filtered()
    padded = np.pad(noisy, script.SIZE // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, one.shape[:2])
    for kernel, result in ((one, fixed), (many, each)):
        assert np.allclose(np.einsum("abyx,yxab->yx", kernel, windows), result)
    assert np.mean((noisy - photo) ** 2) > np.mean((fixed - photo) ** 2) > np.mean((each - photo) ** 2)
    script.draw(tmp_path / "picture.png")
    committed = ROOT / "docs" / "images" / "dynamic_filter.png"
    assert imread(tmp_path / "picture.png").shape == imread(committed).shape
    assert committed.stat().st_size < 150_000


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where a server shows the site."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *details: object) -> None:
            """Say nothing."""

    handler = functools.partial(Handler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def chromium() -> str:
    """The browser; without one the test is skipped."""
    program = find()
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    return program


BROKEN = """Promise.all([...document.images].map(image => {
    image.loading = "eager";
    return image.decode().then(() => "", () => image.src);
})).then(found => found.filter(source => source))"""

PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
WIDER_THAN_THE_SCREEN = "document.documentElement.scrollWidth > document.documentElement.clientWidth"

RESULTS = """new Promise(done => {
    const look = () => {
        const links = [...document.querySelectorAll("#search-results li a")];
        links.length ? done(links.map(link => link.href)) : setTimeout(look, 50);
    };
    look();
})"""


@pytest.mark.slow
def test_the_site_in_a_browser(site: Path, address: str, pages: dict[Path, Page], tmp_path: Path) -> None:
    with Browser(chromium(), tmp_path / "profile") as browser:
        wrong = {}
        for path in pages:
            browser.open(f"{address}/{path.relative_to(site).as_posix()}")
            found = [*browser.run(BROKEN), *browser.problems]
            browser.send("Emulation.setDeviceMetricsOverride", **PHONE)
            if browser.run(WIDER_THAN_THE_SCREEN):
                found.append("wider than a phone")
            browser.send("Emulation.clearDeviceMetricsOverride")
            if found:
                wrong[path.name] = found
        assert not wrong
        search_for_border(browser, address)


@pytest.mark.slow
def test_every_example_has_a_page_with_its_downloads(site: Path, pages: dict[Path, Page]) -> None:
    names = [path.stem for path in (ROOT / "examples").glob("[!_]*.py")]
    led_to = {target.partition("#")[0] for target in pages[site / "gallery.html"].targets}
    pictures = [target for target in pages[site / "gallery.html"].targets if target.startswith("_images/")]
    assert len(names) > 10 and len(pictures) > 8
    for name in names:
        assert f"examples/{name}.html" in led_to
        targets = pages[site / "examples" / f"{name}.html"].targets
        assert {f"{name}.py", f"{name}.ipynb"} <= {Path(target).name for target in targets}


def search_for_border(browser: Browser, address: str) -> None:
    """As a reader does it: click, type, Enter, and follow the first result."""
    browser.open(f"{address}/index.html")
    browser.run("document.querySelector('.search-button__button').click()")
    browser.send("Input.insertText", text="border")
    browser.expect()
    browser.press("Enter")
    browser.loaded()
    assert "/search.html" in browser.run("location.href")
    results = browser.run(RESULTS)
    assert any("guide/layouts.html" in result for result in results)
    browser.open(results[0])
    assert "border" in browser.run("document.querySelector('main').innerText").lower()
    assert not browser.problems


def test_a_problem_on_a_page_is_seen(tmp_path: Path) -> None:
    program = find()
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt install chromium)")
    bad = tmp_path / "bad.html"
    bad.write_text('<img src="none.png"><script>console.error("planted"); throw Error("thrown")</script>')
    with Browser(program, tmp_path / "profile") as browser:
        browser.open(bad.as_uri())
        told = "\n".join(browser.problems)
        assert all(sign in told for sign in ("planted", "thrown", "FILE_NOT_FOUND"))
        assert browser.run(BROKEN)


# One page of each kind: they differ in what they are made of. Of long ones axe takes long.
KINDS = (
    "index",
    "gallery",
    "search",
    "dynamic_sampling",
    "guide/layouts",
    "examples/gradient_in_ten_lines",
    "notebooks/made/a_tape_in_100_lines",
    "api/autodiff.files",
)
DARK = ("index", "guide/layouts")  # other colours, the same parts
VIOLATIONS = """axe.run().then(found => found.violations.map(
    violation => [violation.id, violation.nodes.length, violation.nodes[0].target.join(" ")]))"""


def violations(browser: Browser) -> list[list[object]]:
    """What axe, a checker of accessible pages, has against the page: rule, how often, where first."""
    axe = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    browser.send("Runtime.evaluate", expression=Path(axe.__file__).with_name("axe.min.js").read_text("utf-8"))
    return browser.run(VIOLATIONS)


@pytest.mark.slow
def test_pages_can_be_used_by_everybody(address: str, tmp_path: Path) -> None:
    """Names for screen readers, contrast in light and dark, order of headings, and what else axe knows."""
    wrong = {}
    with Browser(chromium(), tmp_path / "profile") as browser:
        for kind in KINDS:
            browser.open(f"{address}/{kind}.html")
            assert not browser.problems
            for theme in ("light", "dark") if kind in DARK else ("light",):
                browser.run(f"document.documentElement.dataset.theme = '{theme}'")
                if found := violations(browser):
                    wrong[kind, theme] = found
    assert not wrong


def test_a_page_that_not_everybody_can_use_is_seen(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    body = '<main><img src="x.png"><p style="color: #ccc">pale</main>'
    bad.write_text(f'<html lang="en"><title>t</title>{body}')
    with Browser(chromium(), tmp_path / "profile") as browser:
        browser.open(bad.as_uri())
        assert {"image-alt", "color-contrast"} <= {rule for rule, *_ in violations(browser)}


FOCUS = """(() => {
    document.getAnimations().forEach(animation => animation.finish());
    const at = document.activeElement, style = getComputedStyle(at), box = at.getBoundingClientRect();
    return {name: at.innerText || at.ariaLabel || at.title, tag: at.tagName,
            seen: box.width > 0 && box.height > 0 && box.bottom > 0 && box.top < innerHeight,
            marked: style.outlineStyle !== "none" || style.boxShadow !== "none",
            inside: Boolean(at.closest("main"))};
})()"""


@pytest.mark.slow
def test_the_site_by_keyboard(address: str, tmp_path: Path) -> None:
    """Tab goes from one thing to the next, each visible and marked; the first leads past the navigation."""
    with Browser(chromium(), tmp_path / "profile") as browser:
        browser.open(f"{address}/index.html")
        browser.press("Tab")
        stops = [browser.run(FOCUS)]
        while stops[-1]["tag"] != "BODY" and len(stops) < 100:  # where it goes when all have been visited
            browser.press("Tab")
            stops.append(browser.run(FOCUS))
        assert stops.pop()["tag"] == "BODY", "the keyboard is caught"
        assert stops[0]["name"].lower().startswith("skip to main")
        assert any("search" in stop["name"].lower() for stop in stops)
        assert sum(stop["inside"] for stop in stops) > 5
        assert not [stop for stop in stops if not (stop["name"] and stop["seen"] and stop["marked"])]
        browser.open(f"{address}/index.html")
        browser.press("Tab")
        browser.press("Enter")
        browser.press("Tab")
        assert browser.run(FOCUS)["inside"]
