"""Shapes drawn for the benchmarks: of every operator, within bounds, by a seed, reported by the worst."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from random import Random

import numpy as np
import pytest

import dynarray as dyn
from benchmarks.__main__ import main
from benchmarks.cases import CASES, DRAWN, drawing
from benchmarks.cases.case import PASSES, Case, Work, grid
from benchmarks.cases.deform import sample_nearby
from benchmarks.harness import drawn, floor, session
from benchmarks.report import pages, shapes, table

EACH = pytest.mark.parametrize("table_of", DRAWN, ids=lambda each: each.operator)


def test_every_operator_has_shapes_to_draw():
    assert sorted(each.operator for each in DRAWN) == sorted(dyn.OPERATORS)


@EACH
def test_shapes_are_valid_calls_within_bounds_and_one_in_three_is_small(table_of):
    fixed = {case.title for case in CASES}
    for seed in (1, 2):
        cases = table_of.cases(12, seed)
        titles = {case.title for case in cases}
        assert len(titles) == 12 and not titles & fixed
        for index, case in enumerate(cases):
            assert case.operator == table_of.operator
            work = case.work()["forward"]
            floor_ms = max(work.bytes / 30e6, work.flops / 200e6)
            assert (floor_ms < 0.1) == (index % 3 == 2)
            assert work.bytes <= 2**26 and work.flops <= 1e9
            image = next(iter(case.shapes.values()))
            assert prod(case.output_shape) > 0 and image[0] <= 64
            if case.operator != "compose_atoms":
                assert image[1] <= 512 and max(image[2:]) <= (1024 if len(image) == 4 else 16384)


@EACH
def test_a_seed_draws_the_same_whatever_else_is_drawn(table_of):
    titles = [case.title for case in table_of.cases(6, 3)]
    assert [case.title for case in table_of.cases(12, 3)][:6] == titles
    assert [case.title for case in table_of.cases(6, 4)] != titles
    alone = drawn.DrawnOptions("cpu", 1, operators=(table_of.operator,), number=6, seed=3)
    assert [case.title for case in alone.cases()] == titles
    everything = drawn.DrawnOptions("cpu", 1, number=6, seed=3).cases()
    assert [case.title for case in everything if case.operator == table_of.operator] == titles


def test_a_table_that_draws_nothing_within_its_bounds_says_so(monkeypatch):
    monkeypatch.setattr(drawing, "_TRIES", 50)
    with pytest.raises(RuntimeError, match="ddf: its table draws no more calls"):
        replace(next(each for each in DRAWN if each.operator == "ddf"), most_bytes=10).cases(1, 0)


def test_what_is_drawn_lies_where_it_should():
    random = Random("a seed")
    sides = [drawing.SIDE(random, {}) for _ in range(300)]
    assert min(sides) >= 7 and max(sides) <= 1024 and any(side % 2 for side in sides)
    assert sum(side < 90 for side in sides) > 90 and sum(side > 90 for side in sides) > 90
    for _ in range(300):
        groups = drawing.divisor("c", 8)(random, {"c": 36})
        assert 36 % groups == 0 and groups <= 8
        assert 7 <= drawing.beside("h", drawing.SIDE)(random, {"h": 9}) <= 1024
    assert {drawing.spread(1, 3)(random, {}) for _ in range(100)} == {1, 2, 3}


def test_a_grid_is_in_the_middle_of_its_taps():
    assert grid((7, 10), 3) == ((7, 10), {}, "")
    assert grid((7, 10), 3, 2, 2) == ((4, 5), {"stride": 2, "dilation": 2}, " stride 2 dilation 2")
    # Four taps at -1, 0, 1, 2: of 7 pixels the last has none.
    assert grid((7,), 4) == ((6,), {"padding": 1}, "")
    assert grid((7,), 3, padded=True) == ((7,), {"padding": 1}, "")
    assert grid((7,), 1, 1, 3) == ((7,), {}, "")


def test_points_lie_near_their_own_pixels():
    x, points = sample_nearby(2, 3, 40, 50, 6).arrays(np.random.default_rng(0))
    assert x.shape == (2, 3, 40, 50) and points.dtype == np.float32
    rows, columns = np.mgrid[:40, :50]
    for axis, own in enumerate((rows, columns)):
        away = points[:, :, axis] - own
        assert abs(away.mean()) < 0.1 and 0.9 < away.std() < 1.1


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict:
    """The results file of a quick run, as a user starts one."""
    output = tmp_path_factory.mktemp("drawn") / "results.json"
    arguments = [
        "drawn",
        "--backend",
        "reference",
        "--threads",
        "1",
        "--quick",
        "--number",
        "1",
        "--seed",
        "7",
    ]
    assert main([*arguments, "--output", str(output)]) == 0
    return json.loads(output.read_text())


def test_a_quick_run_measures_each_operator(quick):
    assert quick["kind"] == drawn.KIND and quick["complete"] is True and quick["quick"] is True
    assert (quick["seed"], quick["number"]) == (7, 1)
    assert [row["operator"] for row in quick["rows"]] == [each.operator for each in DRAWN]
    for row in quick["rows"]:
        assert list(row["passes"]) == list(PASSES) and row["compile_s"] == 0
        assert all(measured["ms"] > 0 for measured in row["passes"].values())
    assert all(row["title"] in shapes.document(quick, table.plain) for row in quick["rows"])


def test_a_run_goes_on_where_it_was_interrupted_unless_the_seed_is_another(monkeypatch):
    measured = []

    def timed(case, *_):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(case.title)
        return {"peer_problems": []}

    monkeypatch.setattr(drawn, "timed", timed)
    monkeypatch.setattr(session, "describe", lambda device: {"commit": "this"})
    options = drawn.DrawnOptions("reference", 1, operators=("ddf", "carafe"), quick=True, number=4)
    saved = []
    with pytest.raises(KeyboardInterrupt):
        drawn.run(options, str, lambda result: saved.append(json.dumps(result)))
    left = json.loads(saved[-1])
    first, titles = list(measured), [case.title for case in options.cases()]
    measured[:] = []
    with pytest.raises(KeyboardInterrupt):
        drawn.run(options, str, earlier=json.loads(saved[-1]))
    assert first + measured == titles[:6]
    measured[:] = []
    with pytest.raises(KeyboardInterrupt):
        drawn.run(replace(options, seed=1), str, earlier=left)
    assert measured == [case.title for case in replace(options, seed=1).cases()][:3]


@pytest.mark.parametrize(
    ("given", "flops", "expected"), [(None, 10**9, drawn.COMPILE_S), (2.0, 10**9, 2.0), (2.0, 10, 0.0)]
)
def test_peers_of_small_calls_are_not_compiled(monkeypatch, given, flops, expected):
    seen = []
    monkeypatch.setattr(
        drawn, "timed", lambda case, device, limits, how, say: seen.append(how.compile_s) or {}
    )
    options = drawn.DrawnOptions("reference", 1, operators=("ddf",), number=1, compile_s=given)
    cases = options.cases()
    monkeypatch.setattr(drawn.DrawnOptions, "cases", lambda self: cases)
    monkeypatch.setattr(Case, "work", lambda case: dict.fromkeys(PASSES, Work(8, 0, flops)))
    monkeypatch.setattr(floor, "measure", lambda *_, quick: floor.Floor(1e9, 1e9, 1e9))
    drawn.run(options, str)
    drawn.run(replace(options, quick=True), str)
    assert seen == [expected, 0.0]


def shape(title, operator, **passes):
    """A row of which each pass has: milliseconds, floor, and peers as (kind, formulation, milliseconds)."""
    made = {}
    for name, (ms, floor_ms, *peers) in passes.items():
        by_kind: dict = {}
        for kind, formulation, peer_ms in peers:
            entry = {"formulation": formulation, "ms": peer_ms, "ratio": peer_ms / ms, "calls": 5}
            by_kind.setdefault(kind, []).append(entry)
        made[name] = {"ms": ms, "floor_ms": floor_ms, "of_floor": floor_ms / ms, "peers": by_kind}
    return {"title": title, "operator": operator, "passes": made, "peer_problems": [], "dtype": "float32"}


# Forward passes: twice as fast as the peer at 50 %; slower than it at 40 %; slower, but at 95 % of the floor;
# small, where only eager peers count.
ROWS = [
    shape("a", "ddf", forward=(2, 1, ("eager", "u", 9), ("compiled", "s", 4)), forward_backward=(8, 6)),
    shape("b", "ddf", forward=(1, 0.4, ("eager", "u", 0.8)), forward_backward=(8, 2)),
    shape("c", "ddf", forward=(1, 0.95, ("eager", "u", 1.06)), forward_backward=(8, 4.8)),
    shape(
        "d",
        "ddf",
        forward=(0.1, 0.05, ("eager", "u", 0.11), ("compiled", "s", 0.02)),
        forward_backward=(0.5, 0.2, ("eager", "u", 1.0)),
    ),
    shape(
        "e",
        "sample_points",
        forward=(1, 0.35, ("eager", "g", 3)),
        forward_backward=(1, 0.2, ("eager", "g", 3)),
    ),
]


@pytest.fixture
def result(quick) -> dict:
    return quick | {"quick": False, "rows": ROWS}


def test_of_each_operator_the_median_and_the_worst_are_shown(result):
    header, rows = shapes.summary([result], large=True)
    assert rows[0] == [
        *("`ddf`", "3", "1.06x", "0.80x", "50%", "40%"),
        *("4", "2.00x", "2.00x", "50%", "25%"),
    ]
    assert rows[1] == [
        "`sample_points`",
        "1",
        "3.00x",
        "3.00x",
        "35%",
        "35%",
        "1",
        "3.00x",
        "3.00x",
        "20%",
        "20%",
    ]
    assert {len(cells) for cells in rows} == {len(header)}
    _, rows = shapes.summary([result], large=False)
    assert rows[0] == ["`ddf`", "1", "1.10x", "1.10x", "50%", "50%", "0", "", "", "", ""]
    _, rows = shapes.brief(result)
    assert rows[0] == ["`ddf`", "1.1x, worst 0.8x", "50%, worst 40%", "2.0x, worst 2.0x", "50%, worst 25%"]


def test_what_is_below_what_is_wanted_is_told(result):
    _, rows = shapes.every_shape(result)
    told = {(cells[0], cells[1]): cells[-1] for cells in rows}
    both = "forward + backward"
    assert {key: text for key, text in told.items() if text} == {
        ("b", "forward"): "0.80x, 40%",
        ("b", both): "25%",
        ("d", both): "40%",
        ("e", both): "20%",
    }
    assert [cells[5] for cells in rows if cells[1] == "forward"] == [
        *("compiled s", "eager u", "eager u", "eager u", "eager g"),
    ]
    text = shapes.verdict(result)
    assert "6 of 10 passes have that" in text
    assert text.endswith("times as fast: `ddf` forward, `ddf` forward + backward.")


def test_drawn_shapes_are_shown_from_the_last_finished_run_and_displace_no_fixed_rows(result, tmp_path):
    for day, seed, complete in ((1, 11, True), (2, 12, True), (3, 13, False)):
        dated = result | {"date": f"2026-01-0{day}T00:00:00+00:00", "seed": seed, "complete": complete}
        (tmp_path / f"{day}.json").write_text(json.dumps(dated))
    for text in (pages.drawn_shapes(tmp_path), pages.every_drawn_shape(tmp_path)):
        assert "Seed 12," in text and "Seed 11," not in text and "Seed 13," not in text
        assert "| `ddf` |" in text
    line = pages.drawn_in_a_line(tmp_path)
    assert "both passes: `ddf` 2.0x and 2.0x, `sample_points` 3.0x and 3.0x." in line
    assert pages.newest(tmp_path) == [] and pages.benchmarks(tmp_path) == pages.NOTHING
    empty: Path = tmp_path / "empty"
    empty.mkdir()
    assert pages.drawn_shapes(empty) == pages.every_drawn_shape(empty) == pages.NOTHING
    assert pages.drawn_in_a_line(empty) == pages.NOTHING
