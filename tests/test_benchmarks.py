"""The benchmarks: a run works and says what it must, the report repeats it, the floor is counted right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dynarray as dyn
from benchmarks.__main__ import main
from benchmarks.cases import BATCH, CASES, GROWTH, TARGETS, cases
from benchmarks.cases.case import PASSES, Case, Work
from benchmarks.cases.local_filter import flops
from benchmarks.cases.targets import PRICE, reached
from benchmarks.harness import growth, isolated, run, session
from benchmarks.harness.floor import Floor
from benchmarks.report import pages, plots, table
from examples import _record

ROOT = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")


def case(operator: str, params: dict | None = None, **shapes: tuple[int, ...]) -> Case:
    return Case(operator, operator, shapes, flops, params or {})


# Counted by hand. A row of 5 pixels under 3 taps has 4 + 5 + 4 = 13 (output, tap) pairs inside, a column of 4
# pixels 3 + 4 + 3 = 10: 130 pairs a channel, 520 for N*C = 4. x has 80 floats, channel 36, spatial 360, y 80.
DDF = {"x": (2, 2, 4, 5), "channel_filter": (2, 2, 3, 3), "spatial_filter": (2, 1, 3, 3, 4, 5)}
HAND_COUNTED = {
    "ddf mul": (
        case("ddf", {"combine": "mul"}, **DDF),
        Work(4 * (80 + 36 + 360), 4 * 80, 3 * 520),
        Work(4 * (80 + 80 + 36 + 360), 4 * (80 + 36 + 360), 8 * 520),
    ),
    "ddf add": (
        case("ddf", {"combine": "add"}, **DDF),
        Work(4 * (80 + 36 + 360), 4 * 80, 3 * 520),
        Work(4 * (80 + 80 + 36 + 360), 4 * (80 + 36 + 360), 6 * 520),
    ),
    # Stride 2 on 5 pixels: outputs at 0, 2, 4 with 2 + 3 + 2 = 7 pairs an axis, 49 a channel, 4 channels.
    "involution, stride 2": (
        case("involution", {"stride": 2}, x=(1, 4, 5, 5), weight=(1, 2, 3, 3, 3, 3)),
        Work(4 * (100 + 162), 4 * 36, 2 * 196),
        Work(4 * (36 + 100 + 162), 4 * (100 + 162), 4 * 196),
    ),
    # 2 pixels under 3 taps have 2 + 2 pairs; each row and column is used twice: 8 * 8 pairs a channel.
    "carafe x2": (
        case("carafe", {"kernel_size": 3, "scale": 2}, x=(1, 3, 2, 2), masks=(1, 9, 4, 4)),
        Work(4 * (12 + 144), 4 * 48, 2 * 3 * 64),
        Work(4 * (48 + 12 + 144), 4 * (12 + 144), 4 * 3 * 64),
    ),
}


@pytest.mark.parametrize("name", HAND_COUNTED)
def test_least_work_is_what_counting_by_hand_gives(name):
    counted, forward, backward = HAND_COUNTED[name]
    total = Work(*(one + other for one, other in zip(forward, backward, strict=True)))
    assert total.bytes == forward.bytes + backward.bytes == total.read + total.written
    assert counted.work() == {"forward": forward, "backward": backward, "forward_backward": total}


def test_floor_is_the_slowest_of_moving_reading_and_arithmetic():
    floor = Floor(bytes_per_s=1e9, read_bytes_per_s=8e8, flops_per_s=1e10)
    assert floor.ms(Work(1_000_000, 1_000_000, 0)) == pytest.approx(2)
    assert floor.ms(Work(1_000_000, 1_000_000, 10_000_000)) == pytest.approx(2)
    assert floor.ms(Work(1_000_000, 1_000_000, 50_000_000)) == pytest.approx(5)
    assert floor.ms(Work(1_900_000, 100_000, 0)) == pytest.approx(1.9 / 0.8)
    assert floor.ms(Work(100_000, 1_900_000, 0)) == pytest.approx(2)


def not_arrays(params):
    """The parameters that do not say of places where they are."""
    return {name: value for name, value in params.items() if not isinstance(value, np.ndarray)}


def test_cases_are_distinct_and_cover_the_shapes_that_have_targets():
    titles = [case.title for case in CASES]
    assert len(set(titles)) == len(titles)
    wanted = {
        ("ddf", (2, 256, 56, 56), "mul"),
        ("ddf", (2, 256, 56, 56), "add"),
        ("ddf", (1, 64, 256, 256), "mul"),
        ("carafe", (1, 256, 64, 64), None),
        ("involution", (2, 256, 56, 56), None),
        ("atom_conv2d", (2, 64, 56, 56), None),
    }
    assert wanted <= {(case.operator, case.shapes.get("x"), case.params.get("combine")) for case in CASES}
    for each in CASES:
        assert each.small is not None
        assert each.small.operator == each.operator
        assert not_arrays(each.small.params) == not_arrays(each.params)
        assert each.small.input_bytes < 1e5


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_every_operator_has_a_case(backend):
    assert {case.operator for case in cases(backend)} == set(dyn.OPERATORS)


def test_a_gpu_gets_more_images_of_the_same():
    wanted = {f"{case.title}, batch x{BATCH}" for case in CASES}
    larger = {case.title: case for case in cases("cuda")}
    assert wanted <= set(larger)
    deform = larger[f"deform (1, 64, 64, 64) to 64 k3, batch x{BATCH}"]
    assert deform.shapes["x"] == (BATCH, 64, 64, 64) and deform.shapes["weight"] == (64, 64, 3, 3)
    assert deform.output_shape == (BATCH, 64, 64, 64)
    sides = {case.shapes["x"] for case in larger.values() if case.operator == "ddf"}
    assert {(2, 256, 200, 300), *((32, 256, side, side) for side in (7, 14, 28, 56, 112))} <= sides


GLUTTON = """
import json
import numpy as np
import dynarray as dyn
from benchmarks.harness import child

class Glutton:
    def run(self, arrays, params):
        held = np.ones(params["extra"], np.uint8)
        return arrays[0] + 1, params["extra"]

    def gradients(self, grad_output, saved, needs):
        held = np.ones(2 * saved, np.uint8)
        return (grad_output + 1,)

dyn.OPERATORS["glutton"] = Glutton()
task = {"operator": "glutton", "backend": "reference", "threads": 1, "dtype": "float64"}
task["params"] = {"extra": SIZE}
small = {"dtype": "float64", "shapes": [[1, 1, 2, 2]], "output_shape": [1, 1, 2, 2]}
large = {"shapes": [[2, 100, 100, 100]], "output_shape": [2, 100, 100, 100]}
print(json.dumps(child.memory(task | large | {"small": small})))
"""


@LINUX
def test_memory_of_an_operator_that_takes_a_known_amount():
    size = 50_000_000
    command = [sys.executable, "-c", GLUTTON.replace("SIZE", str(size))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout)
    # The output of 16 MB is not counted; a few pages were there already.
    assert abs(peaks["forward"] - size) < 3_000_000
    assert abs(peaks["backward"] - 2 * size) < 3_000_000


def test_memory_bound_is_32_megabytes_and_a_twentieth_of_inputs_and_outputs():
    counted = HAND_COUNTED["involution, stride 2"][0]
    bound = isolated.memory(counted, "reference", 1)["bound"]
    assert bound == {
        "forward": 32_000_000 + int(0.05 * 4 * 298),
        "backward": 32_000_000 + int(0.05 * 4 * 560),
    }


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict:
    """The results file of a quick run, as a user starts one."""
    output = tmp_path_factory.mktemp("benchmarks") / "results.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "run",
        "--backend",
        "reference",
        "--threads",
        "1",
        "--quick",
    ]
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert table.document(result, table.plain) in done.stdout
    return result


def test_a_run_saves_each_row_and_goes_on_where_it_was_interrupted(monkeypatch):
    measured, saved = [], []

    def row(case, *_):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(case.title)
        return {"title": case.title}

    monkeypatch.setattr(run, "_row", row)
    monkeypatch.setattr(session, "describe", lambda device: {"commit": "this", "machine": "the same"})
    options = run.Options("reference", 1, quick=True, first_calls=False)
    with pytest.raises(KeyboardInterrupt):
        run.run(options, str, lambda result: saved.append(json.dumps(result)))
    assert [len(json.loads(text)["rows"]) for text in saved] == [1, 2]
    left = json.loads(saved[-1])
    assert left["complete"] is False
    first, measured[:] = list(measured), ["the count starts anew"] * 3
    result = run.run(options, str, earlier=left)
    titles = [case.small.title for case in CASES]
    assert result["complete"] is True
    assert all(result["floor"][name] >= rate for name, rate in left["floor"].items())
    assert [each["title"] for each in result["rows"]] == titles
    assert measured[3:] == titles[2:] and first == titles[:2]
    # One of another commit is not continued.
    measured[:] = ["the count starts anew"] * 3
    run.run(options, str, earlier={**left, "commit": "another"})
    assert measured[3:] == titles


def test_the_best_floor_counts_for_all_rows():
    work = {"read": 500_000, "written": 500_000, "flops": 0}
    measured = {"ms": 4.0, **work, "floor_ms": 1.0, "of_floor": 0.25}
    before = Floor(bytes_per_s=1e9, read_bytes_per_s=4e9, flops_per_s=3e9)
    result = {"floor": before._asdict(), "rows": [{"passes": {"forward": measured}}]}
    session.raise_floor(result, Floor(bytes_per_s=2e9, read_bytes_per_s=1e9, flops_per_s=1e9))
    assert result["floor"] == {"bytes_per_s": 2e9, "read_bytes_per_s": 4e9, "flops_per_s": 3e9}
    assert measured["floor_ms"] == pytest.approx(0.5) and measured["of_floor"] == pytest.approx(0.125)
    session.raise_floor(result, Floor(1e8, 1e8, 1e8))  # a machine that is busy
    assert measured["of_floor"] == pytest.approx(0.125)


def test_quick_run_measures_every_case(quick):
    assert [row["title"] for row in quick["rows"]] == [case.small.title for case in CASES]
    assert quick["complete"] is True
    assert quick["backend"] == "reference" and quick["threads"] == 1 and quick["quick"] is True
    assert quick["versions"]["numpy"] == np.__version__
    assert quick["machine"]["cpu"] and quick["machine"]["cores"] >= 1
    for row in quick["rows"]:
        assert list(row["passes"]) == list(PASSES)
        for measured in row["passes"].values():
            assert 0 < measured["quartile_1"] <= measured["ms"] <= measured["quartile_3"]
            floor = Floor(**quick["floor"]).ms(Work(*(measured[each] for each in Work._fields)))
            assert measured["floor_ms"] == pytest.approx(floor)
            assert measured["of_floor"] == pytest.approx(floor / measured["ms"])
        for seconds in row["first_call_s"].values():
            assert all(value > 0 for value in seconds.values())
            assert set(seconds) == {"import", "forward", "backward"}


@LINUX
def test_quick_run_finds_little_extra_memory(quick):
    for row in quick["rows"]:
        memory = row["memory_bytes"]
        assert "problem" not in memory
        assert all(0 <= memory[name] < 5e6 < memory["bound"][name] for name in ("forward", "backward"))


def test_results_name_no_path_and_no_host(quick):
    text = json.dumps(quick)
    assert str(ROOT) not in text
    assert str(Path.home()) not in text
    assert os.uname().nodename not in text.split()


def test_report_is_reproducible_and_keeps_what_is_not_marked(quick, tmp_path, monkeypatch):
    results = tmp_path / "results"
    results.mkdir()
    for day, name in ((1, "b"), (2, "a")):
        dated = quick | {"quick": False, "date": f"2026-01-0{day}T00:00:00+00:00", "threads": day}
        (results / f"{name}.json").write_text(json.dumps(dated))
    later = quick | {"date": "2027-01-01T00:00:00+00:00"}
    (results / "c.json").write_text(json.dumps(later))
    row = quick["rows"][0] | {"title": "another"}
    (results / "d.json").write_text(json.dumps(later | {"quick": False, "rows": [row], "threads": 3}))
    monkeypatch.setattr(
        pages, "SECTIONS", {**pages.SECTIONS, "all benchmarks": lambda: pages.every_benchmark(results)}
    )
    text = "# Title\n<!-- all benchmarks:begin -->\nold\n<!-- all benchmarks:end -->\nbetween\n"
    text += "<!-- operators:begin --><!-- operators:end -->\nlast\n"
    once = pages.fill(text)
    assert pages.fill(once) == once
    assert once.startswith("# Title\n<!-- all benchmarks:begin -->\n") and once.endswith(
        "<!-- operators:end -->\nlast\n"
    )
    assert "\nold\n" not in once and "\nbetween\n" in once
    # Each row as it was measured last.
    assert "2 threads" in once and "2026-01-02" in once and "2026-01-01" not in once
    assert "3 threads" in once and once.count("| another |") == len(PASSES) + 1
    for row in quick["rows"]:
        assert once.count(f"| {row['title']} |") == len(PASSES) + 1


def test_the_summary_has_a_table_for_each_machine(quick, tmp_path):
    first, *others = quick["rows"]
    found = quick | {"quick": False, "rows": [first]}
    elsewhere = found | {"machine": quick["machine"] | {"cpu": "an abacus"}, "rows": others}
    elsewhere["date"] = "2999-01-01T00:00:00+00:00"
    for name, result in (("a", found), ("b", elsewhere)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    text = pages.benchmarks(tmp_path)
    here, there = text.split("**Backend `reference`.**")[1:]
    assert "an abacus" in there and "an abacus" not in here
    assert f"| {first['title']} |" in here and f"| {first['title']} |" not in there
    for row in others:
        assert f"| {row['title']} |" in there


def test_first_calls_may_be_left_out(quick):
    first, second, *_ = quick["rows"]
    without = first | {"first_call_s": None}
    header, rows = table.costs(quick | {"rows": [without, second]})
    assert rows[0][3:] == ["", ""] and all(rows[1][3:]) and len(header) == 5
    header, rows = table.costs(quick | {"rows": [without]})
    assert len(header) == len(rows[0]) == 3


def test_peers_that_were_left_out_are_a_table_by_reason(quick):
    row = quick["rows"][0]
    problems = [
        "eager unfold, einsum: no dilation",
        "eager views: no dilation",
        "compiled views: Mismatch: all: wrong",
    ]
    result = quick | {"rows": [row | {"peer_problems": problems}, quick["rows"][1]]}
    rows = [
        [row["title"], "eager unfold, einsum; eager views", "no dilation"],
        [row["title"], "compiled views", "Mismatch: all: wrong"],
    ]
    assert table.left_out(result) == (["operator, shape", "left out", "because"], rows)
    assert table.plain(*table.left_out(result)) in table.document(result, table.plain)
    assert "left out" not in table.document(quick, table.plain)


def test_targets_belong_to_cases_and_are_shown_beside_what_was_reached(quick):
    assert set(TARGETS) <= {case.title for case in CASES}
    row = json.loads(json.dumps(quick["rows"][0])) | {"title": "ddf mul (2, 256, 56, 56) k3"}
    peers = {
        "eager": [{"formulation": "a", "ratio": 5.04}, {"formulation": "b", "ratio": 9.0}],
        "compiled": [{"formulation": "a", "ratio": 2.5}],
        PRICE: [{"formulation": "3 x 3", "ratio": 0.5}],
    }
    for name in ("forward", "forward_backward"):
        row["passes"][name] |= {"ms": 1.0, "peers": peers}
    _, (cells,) = table.summary([quick | {"rows": [row]}])
    assert cells[1:3] == ["1", "compiled 2.5x (3x), eager 5.0x (10x)"]
    _, (cells,) = table.summary([quick | {"rows": [row | {"title": "carafe (1, 256, 64, 64) x2 k5"}]}])
    assert cells[2] == "best 2.5x (3x)"
    _, (cells,) = table.summary([quick | {"rows": [row | {"title": "deform (1, 64, 64, 64) to 64 k3"}]}])
    assert cells[2] == "torchvision - (8x), plain conv2d 0.5x (0.71x)"
    _, (cells,) = table.summary([quick | {"rows": [row | {"title": "none"}]}])
    assert cells[2] == "compiled 2.5x, eager 5.0x, plain conv2d 0.5x"
    assert reached(peers, "b") == 9.0 and reached(peers, "c") is None


def test_every_operator_grows_along_each_of_its_sizes():
    assert {each.operator for each in GROWTH} == set(dyn.OPERATORS)
    for each in GROWTH:
        assert "pixels" in each.axes and len(each.axes) >= 3
        for points in each.axes.values():
            assert len(points) >= 4
            work = [each.case(changed).work()["forward"] for _, changed in points]
            assert [a.bytes for a in work] == sorted({a.bytes for a in work})  # each larger than the last
            for _, changed in points:
                case = each.case(changed)
                assert case.operator == each.operator
                assert case.small is not None and not_arrays(case.small.params) == not_arrays(case.params)
                assert case.input_bytes + case.output_bytes < 2.5e8


def test_an_exponent_is_the_slope_of_the_logarithms():
    sizes = [1, 4, 16, 64]
    assert growth.exponent(sizes, [3.0 * size for size in sizes]) == pytest.approx(1)
    assert growth.exponent(sizes, [size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert growth.exponent(sizes, [7.0] * 4) == pytest.approx(0)


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    """A folder with the results file of a quick run of one operator's growth."""
    folder = tmp_path_factory.mktemp("growth")
    arguments = ["growth", "--backend", "reference", "--threads", "1", "--quick", "--operator", "ddf"]
    assert main([*arguments, "--output", str(folder / "growth.json")]) == 0
    result = json.loads((folder / "growth.json").read_text())
    assert result["complete"] and result["kind"] == "growth" and not pages.load(folder, "growth")
    (folder / "growth.json").write_text(json.dumps(result | {"quick": False}))
    return folder


def test_growth_is_reported_with_exponents_and_memory(grown):
    (result,) = pages.newest(grown, "growth", ("operator", "axis"))
    assert [row["axis"] for row in result["rows"]] == ["pixels", "channels", "taps"]
    for row in result["rows"]:
        for point, scale in zip(row["points"], (1, 4), strict=True):
            for name in ("forward", "forward_backward"):
                point["passes"][name]["ms"] = 2.0 * scale
            point["size"] = 10 * scale
            point["memory_bytes"] |= {"forward": 1_000_000, "backward": 2_000_000 * scale}
    header, rows = table.growth_table(result)
    cells = ["`ddf`", "pixels", "10 to 40", "1.00", "1.00", "8 / 8", "2.0 to 8.0", "32.0"]
    assert rows[0] == cells and len(header) == len(cells)
    assert table.growth_verdict(result).startswith("6 of 6 exponents are at most 1.15")
    assert "in 6 of 6 calls; the most is 8.0 MB" in table.growth_verdict(result)
    last = result["rows"][0]["points"][1]
    last["passes"]["forward"]["ms"], last["memory_bytes"]["backward"] = 32.0, 33_000_000
    verdict = table.growth_verdict(result)
    assert "5 of 6 exponents" in verdict and "`ddf` in pixels, forward: 2.00" in verdict
    assert "in 5 of 6 calls" in verdict


def test_figures_say_what_they_show(quick, grown, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: bench)")
    drawn = {"benchmarks.svg": [quick], "growth.svg": pages.newest(grown, "growth", ("operator", "axis"))}
    assert set(drawn) == set(plots.DRAWN)
    for name, results in drawn.items():
        path = tmp_path / name
        assert plots.shown(path) is None
        plots.DRAWN[name](results, path)
        assert plots.shown(path) == plots.digest(results)
        text = path.read_text()
        for result in results:
            for row in result["rows"]:
                # Titles are XML in a figure.
                assert row.get("title", row["operator"]).replace(">", "&gt;") in text
        path.with_suffix(".again").write_bytes(path.read_bytes())
        plots.DRAWN[name](results, path)
        assert path.read_bytes() == path.with_suffix(".again").read_bytes()


def test_figures_show_what_was_measured_last():
    for name, results in pages.figures().items():
        assert plots.shown(pages.IMAGES / name) == plots.digest(results), "run: python -m benchmarks report"


def test_half_a_pair_of_markers_is_refused():
    with pytest.raises(ValueError, match="must come together"):
        pages.fill("<!-- benchmarks:begin -->")


def test_best_peer_of_each_kind_is_shown_with_its_ratio(quick):
    row = json.loads(json.dumps(quick["rows"][0]))
    best, other = {"formulation": "a", "ms": 12.34, "ratio": 3.21}, {"formulation": "b", "ms": 99, "ratio": 9}
    row["passes"]["forward"]["peers"] = {"eager": [best, other]}
    header, rows = table.times(quick | {"rows": [row]})
    assert header[-1] == "PyTorch eager"
    assert [cells[-1] for cells in rows] == ["12.3 (3.2x)", "", ""]


def test_an_operator_s_worst_and_best_ratio_are_its_line():
    def row(operator, forward, both):
        # A plain convolution is another operator, and no peer.
        plain = [{"formulation": "plain", "ratio": 0.1}]
        passes = {}
        for name, ratios in (("forward", forward), ("forward_backward", both)):
            first, *others = [{"formulation": str(ratio), "ratio": ratio} for ratio in ratios] or [None]
            passes[name] = {"peers": {"plain conv2d": plain, "compiled": others}}
            passes[name]["peers"] |= {"eager": [first]} if first else {}
        return {"operator": operator, "passes": passes}

    rows = [row("f", [2.04, 5.51], [9.0, 3.0]), row("f", [4.0], [8.0]), row("g", [], [])]
    header, lines = table.brief([{"rows": rows[:1]}, {"rows": rows[1:]}])
    assert header == ["operator", "forward", "forward + backward"]
    assert lines == [["`f`", "2.0x to 4.0x", "3.0x to 8.0x"]]


def test_support_table_has_a_row_for_each_operator():
    lines = pages.operators().splitlines()
    assert len(lines) == 2 + len(dyn.OPERATORS)
    for line, operator in zip(lines[2:], dyn.OPERATORS.values(), strict=True):
        assert line.startswith(f"| `{operator.name}` | `{operator.arrays[0]}`")
        assert "float32" in line


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda path: path.name)
def test_tables_are_what_the_report_generates(page):
    text = page.read_text(encoding="utf-8")
    assert pages.fill(text) == text, "run: python -m benchmarks report"


def test_an_example_s_tables_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(_record, "HERE", tmp_path)
    assert _record.spread([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"
    path = _record.record("walk", {"How far": (["who", "m"], [["she", "12"], ["he", "9"]])}, seeds=5)
    text = pages.example(path)
    assert text.startswith("**How far**\n\n| who | m |\n| --- | ---: |\n| she | 12 |\n| he | 9 |\n")
    assert "`python examples/walk.py --full`: seeds 5; python" in text


def test_unknown_operator_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--operator", "nothing"])
    assert "invalid choice" in capsys.readouterr().err
