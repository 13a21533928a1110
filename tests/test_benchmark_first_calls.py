"""First calls as a kind of results file of their own: measured alone, shown, and within their limit."""

import json

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import CASES
from benchmarks.harness import first_calls, isolated
from benchmarks.report import pages, table

MEASURED = pages.load(pages.RESULTS, first_calls.KIND)
SECONDS = {
    "cold": {"import": 0.1, "forward": 1.0, "backward": 2.9},
    "later": {"import": 0.1, "forward": 0.25, "backward": 0.2},
}


@pytest.fixture
def result(monkeypatch, tmp_path) -> dict:
    """A results file of a run that starts no processes."""
    asked = []

    def first_call(case, backend, threads):
        asked.append((case.title, backend, threads))
        return SECONDS

    monkeypatch.setattr(isolated, "first_call", first_call)
    output = tmp_path / "first.json"
    arguments = ["first-calls", "--threads", "1", "--operator", "ddf", "carafe", "--output", str(output)]
    assert main(arguments) == 0
    result = json.loads(output.read_text())
    titles = [case.title for case in CASES if case.operator in ("ddf", "carafe")]
    assert [row["title"] for row in result["rows"]] == titles
    assert asked == [(title, "cpu", 1) for title in titles]
    # It is complete: nothing is left to go on with.
    assert result["complete"] and main(arguments) == 0 and len(asked) == 2 * len(titles)
    return result


def test_a_run_of_first_calls_measures_nothing_else(result, tmp_path):
    assert result["kind"] == first_calls.KIND and "floor" not in result and result["quick"] is False
    for row in result["rows"]:
        assert row["first_call_s"] == SECONDS and "passes" not in row and "memory_bytes" not in row
    assert pages.newest(tmp_path) == []  # the tables of the operators are made from other files


def test_first_calls_are_shown_from_their_own_file(result, tmp_path):
    text = pages.every_first_call(tmp_path)
    assert "All passes took less than 3 s." in text
    for row in result["rows"]:
        assert f"| {row['title']} | 1.00 | 2.90 | 0.35 |" in text
    earlier = tmp_path / "0.json"
    first, *_ = result["rows"]
    dated = result | {"rows": [first | {"title": "another"}], "date": "2000-01-01T00:00:00+00:00"}
    earlier.write_text(json.dumps(dated))
    assert pages.every_first_call(tmp_path) == text
    earlier.write_text(json.dumps(dated | {"date": "2999-01-01T00:00:00+00:00", "complete": False}))
    assert pages.every_first_call(tmp_path) == text


def test_what_takes_too_long_is_named(result):
    slow = {"cold": {"import": 9.0, "forward": 3.0, "backward": 2.9}, "later": SECONDS["later"]}
    first, *others = result["rows"]
    assert first_calls.slow(result) == []
    changed = result | {"rows": [first | {"first_call_s": slow}, *others]}
    assert first_calls.slow(changed) == [f"{first['title']}, forward: 3.00 s"]
    text = table.first_calls_document(changed, table.plain)
    assert f"Above 3 s: {first['title']}, forward: 3.00 s." in text and "All passes" not in text


def test_a_first_call_is_measured_in_processes_of_its_own():
    case = next(case.small for case in CASES if case.operator == "compose_atoms")
    options = first_calls.Options("reference", 1, ("compose_atoms",), quick=True)
    (row,) = first_calls.run(options, str)["rows"]
    assert row["title"] == case.title
    for seconds in row["first_call_s"].values():
        assert set(seconds) == {"import", "forward", "backward"} and min(seconds.values()) > 0


@pytest.mark.skipif(not MEASURED, reason="no results file of first calls has been committed")
@pytest.mark.parametrize("measured", MEASURED, ids=lambda each: f"{each['backend']}-{each['date'][:10]}")
def test_no_first_call_that_was_measured_took_too_long(measured):
    assert measured["complete"] and {row["operator"] for row in measured["rows"]} == {
        each.operator for each in CASES
    }
    assert first_calls.slow(measured) == []
