"""No page says by hand what was measured: such numbers come from a results file, between markers.

A hand that types a measurement is not there when it is measured again. What a number with a unit may be
outside of the markers is a definition, a limit that the code has, a figure that another's paper gives, or
arithmetic that the reader can do: `ALLOWED` names each, with the reason.
"""

import json
import re
from pathlib import Path

import pytest

from benchmarks.report.pages import SECTIONS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES += [path for path in (ROOT / "docs").rglob("*.md") if not {"api", "examples", "made"} & set(path.parts)]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

WORD = "half|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|forty|fifty|a hundred"
TIME = r"[nmuµ]?s|min|h|(?:nano|micro|milli)?seconds?|minutes?|hours?|days?"
MEMORY = r"[kKMGT]i?B|(?:kilo|mega|giga|tera)?bytes?"
RATE = r"[MGT]?FLOPS?(?:/s)?|Gbit/s|fps|images/s"
QUALITY = r"dB|%|percent|per cent|mIoU|mAP|AP|points of|points? better|points? worse"
SPEED = r"times (?:as|faster|slower|more|less|larger|smaller|that|the)|-?fold"
NUMBER = r"[0-9][0-9.,]*"
MEASURE = re.compile(
    rf"(?<![\w.])(?:(?:{NUMBER}[\s-]?|(?:{WORD})[\s-])"
    rf"(?:{TIME}|{MEMORY}|{RATE}|{QUALITY}|{SPEED})(?![\w/])"
    rf"|{NUMBER}x(?!\d| \d|\w)"  # 3.5x, and not 3x3
    rf"|\d+\.\d+ (?:pixels|px))",
)

ESTIMATE = r"^### A cluster, estimated\n\nNothing below was measured;.*?(?=^#|\Z)"

LIMIT = "a size that the code sets"
HOW = "how something is measured, which the code sets"
OWN = "what a dtype or a device is, by definition"
PAPER = "another's figure, said to be the paper's"
SUM = "arithmetic on sizes that the sentence names"
SPOKEN = "a manner of speaking, not a measurement"
ALLOWED = {
    ("README.md", "ten-minute"): SPOKEN,
    ("docs/index.md", "ten-minute"): SPOKEN,
    ("docs/benchmarks.md", "0.1 ms"): HOW,
    ("docs/benchmarks.md", "3 times as"): HOW,
    ("docs/benchmarks.md", "100 %"): HOW,
    ("docs/benchmarks.md", "32 MB"): HOW,
    ("docs/benchmarks.md", "5 %"): HOW,
    ("docs/benchmarks.md", "16 times as"): HOW,
    ("docs/benchmarks.md", "10 minutes"): HOW,
    ("docs/benchmarks.md", "32 bytes"): OWN,
    ("docs/benchmarks.md", "4 bytes"): OWN,
    ("docs/checking_kernels.md", "48 KiB"): OWN,
    ("docs/claims.md", "95 %"): HOW,
    ("docs/deform.md", "four-fold"): HOW,
    ("docs/deform.md", "16 bytes"): LIMIT,
    ("docs/deform.md", "32 MiB"): LIMIT,
    ("docs/deform.md", "32 points of"): LIMIT,
    ("docs/dtypes.md", "3000.3 pixels"): OWN,
    ("docs/dynamic_sampling.md", "forty times the"): SUM,
    ("docs/dynamic_sampling.md", "95 %"): HOW,
    ("docs/dynamic_sampling.md", "10 mAP"): PAPER,
    ("docs/dynamic_sampling.md", "ten times as"): HOW,
    ("docs/large.md", "16 GB"): LIMIT,
    ("docs/large.md", "32 MB"): LIMIT,
    ("docs/large.md", "192 MB"): LIMIT,
    ("docs/local_filter.md", "8 MB"): LIMIT,
    ("docs/local_filter.md", "10.8 GB"): SUM,
    ("docs/photographs.md", "21.6 GB"): SUM,
}


def prose(text: str) -> str:
    """A page without what is generated, code, links' targets, and what is said to be an estimate."""
    for name in SECTIONS:
        marked = rf"<!-- {re.escape(name)}:begin -->.*?<!-- {re.escape(name)}:end -->"
        text = re.sub(marked, "", text, flags=re.DOTALL)
    text = re.sub(ESTIMATE, "", text, flags=re.M | re.S)
    text = re.sub(r"\blecture of \d+ minutes", "", text)  # how long it is to be
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.sub(r"`[^`]*`|\]\([^)]*\)(?:\{[^}]*\})?|\{width=\w+\}", "`", text)


def typed(text: str) -> list[str]:
    """The numbers with units that a page says by hand."""
    return [" ".join(found.group().split()) for found in MEASURE.finditer(prose(text))]


def content(path: Path) -> str:
    """The text of a page, or of the cells of a notebook that are text."""
    if path.suffix == ".md":
        return path.read_text("utf-8")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def test_no_page_has_a_measured_number_of_its_own() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), number)
        for path in (*PAGES, *NOTEBOOKS)
        for number in typed(content(path))
    }
    assert not found - set(ALLOWED), "generate them from a results file: benchmarks/report/pages.py"
    assert not set(ALLOWED) - found, "allowed, and no longer there"
    assert all(ALLOWED.values())


@pytest.mark.parametrize(
    "text",
    [
        "It takes 1.3 s, or",
        "took 12\nminutes",
        "needs 300 MB more",
        "is 0.31 dB behind",
        "is 3.5x as fast",
        "five times as fast as",
        "2 times faster",
        "28 % are missing",
        "lost 4 points of mean",
        "an error of 0.4 pixels",
        "| 17 ms |",
        "<!-- no section:begin --> 3 ms <!-- no section:end -->",
    ],
)
def test_a_number_that_was_typed_is_seen(text: str) -> None:
    assert len(typed(f"Words before {text} and after.")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "a 3 x 3 convolution, 3x3 taps, in 2x2 blocks",
        "five of 16 pixels, tens of channels, hundreds and thousands",
        "<!-- speed:begin -->\n| 3.5x | 12 ms |\n<!-- speed:end -->",
        "`1.5 s` and [a link](of-10-ms.md#3-mb)",
        "```python\nwait = 3  # 3 s\n```",
        "x1, 2 of them; 4 axes; version 3.11; 0 times infinity",
    ],
)
def test_what_is_no_measurement_is_let_pass(text: str) -> None:
    assert not typed(f"Words before {text} and after.")
