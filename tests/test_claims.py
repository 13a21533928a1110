"""The page of claims: its numbers are those of results files, and its verdicts follow by one rule."""

import json
from pathlib import Path

import pytest
from scipy import stats

from benchmarks.report import claims
from benchmarks.report.claims import CLAIMS, Cell, Claim
from benchmarks.report.pages import EXAMPLES

ROOT = Path(__file__).resolve().parent.parent
ALL = [claim for own in CLAIMS.values() for claim in own]


@pytest.mark.parametrize("seeds", claims.T95)
def test_the_quantiles_are_those_of_student(seeds) -> None:
    assert claims.T95[seeds] == pytest.approx(stats.t.ppf(0.975, seeds - 1), abs=6e-4)


@pytest.mark.parametrize(
    ("ours", "against", "sign", "expected"),
    [
        # Of five, a mean counts beyond 2.776 / sqrt(5) = 1.2415 times the deviation.
        ("0.130 ± 0.100", None, 1, "as claimed"),
        ("0.130 ± 0.100", None, -1, "the reverse"),
        ("-0.130 ± 0.100", None, -1, "as claimed"),
        ("0.120 ± 0.100", None, 1, "not told apart"),
        ("0.120 ± 0.100", None, 0, "no difference seen"),
        ("-0.130 ± 0.100", None, 0, "there is a difference: smaller"),
        ("0.130 ± 0.100", None, 0, "there is a difference: larger"),
        # Deviations 3 and 4 make 5: a difference counts beyond 6.2.
        ("16.3 ± 3.0", "10.0 ± 4.0", 1, "as claimed"),
        ("16.1 ± 3.0", "10.0 ± 4.0", 1, "not told apart"),
        ("10.0 ± 3.0", "16.3 ± 4.0", 1, "the reverse"),
        # What was measured once has no spread.
        ("16.3 ± 3.0", "10.0", 1, "as claimed"),
        ("2.5 ± 1.0", 1.0, 1, "as claimed"),
        ("2.2 ± 1.0", 1.0, 1, "not told apart"),
    ],
)
def test_verdicts_by_hand(tmp_path, ours, against, sign, expected) -> None:
    rows = [["A, more", "7 ± 1"], ["A", ours], ["B", against if isinstance(against, str) else ""]]
    table = {"title": "Errors of all", "columns": ["what", "error"], "rows": rows}
    content = {"example": "study", "settings": {"seeds": 5}, "tables": [{"title": "Else"}, table]}
    (tmp_path / "study.json").write_text(json.dumps(content))
    other = Cell("Errors", "B", "error") if isinstance(against, str) else against
    claim = Claim("It is better.", "study", Cell("Errors", "A", "error"), other, sign, "all")
    text = claims.section(tmp_path, {"Somebody, 2020": (claim,)})
    shown = f"{ours} against {against}" if isinstance(against, str) else ours
    assert f"| It is better. | {shown}; 5 seeds | {expected} | all | `study.py` |" in text
    (tmp_path / "study.json").unlink()
    assert "| It is better. | not yet run | not yet run | all |" in claims.section(tmp_path, {"S": (claim,)})


def test_what_is_no_number_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="no number, and no mean with its spread"):
        claims.number("0 of 5")


@pytest.mark.parametrize("claim", ALL, ids=[claim.claim[:40] for claim in ALL])
def test_each_claim_is_asked_by_an_example(claim) -> None:
    source = (ROOT / "examples" / f"{claim.example}.py").read_text(encoding="utf-8")
    for cell in (claim.ours, claim.against):
        if isinstance(cell, Cell):
            # Of studies that have no file yet: what tables will be called stands in the source.
            assert cell.title in source or (EXAMPLES / f"{claim.example}.json").exists()
    _, shown, verdict, *_ = claims.row_of(claim, EXAMPLES)
    exists = (EXAMPLES / f"{claim.example}.json").exists()
    assert (shown != "not yet run") == (verdict != "not yet run") == exists


def test_the_page_says_what_the_files_say() -> None:
    page = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    assert claims.section(EXAMPLES) in page
    # One of them read by hand.
    tables = json.loads((EXAMPLES / "denoising.json").read_text(encoding="utf-8"))["tables"]
    (row,) = (row for row in tables[0]["rows"] if row[0] == "filter atoms")
    (line,) = (line for line in page.splitlines() if "denoising" in line and line.startswith("|"))
    assert line.split(" | ")[1].startswith(row[4])
