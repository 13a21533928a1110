"""The benchmarks: a run works and says what it must, the report repeats it, the floor is counted right."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import dynarray as dyn
from benchmarks import isolated, measure, report, table
from benchmarks.__main__ import main
from benchmarks.case import PASSES, Buffers, Case, Work
from benchmarks.cases import CASES
from benchmarks.floor import Floor
from benchmarks.local_filter import flops
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
        Work(4 * (80 + 36 + 360 + 80), 3 * 520),
        Work(4 * (80 + 2 * (80 + 36 + 360)), 8 * 520),
    ),
    "ddf add": (
        case("ddf", {"combine": "add"}, **DDF),
        Work(4 * (80 + 36 + 360 + 80), 3 * 520),
        Work(4 * (80 + 2 * (80 + 36 + 360)), 6 * 520),
    ),
    # Stride 2 on 5 pixels: outputs at 0, 2, 4 with 2 + 3 + 2 = 7 pairs an axis, 49 a channel, 4 channels.
    "involution, stride 2": (
        case("involution", {"stride": 2}, x=(1, 4, 5, 5), weight=(1, 2, 3, 3, 3, 3)),
        Work(4 * (100 + 162 + 36), 2 * 196),
        Work(4 * (36 + 2 * (100 + 162)), 4 * 196),
    ),
    # 2 pixels under 3 taps have 2 + 2 pairs; each row and column is used twice: 8 * 8 pairs a channel.
    "carafe x2": (
        case("carafe", {"kernel_size": 3, "scale": 2}, x=(1, 3, 2, 2), masks=(1, 9, 4, 4)),
        Work(4 * (12 + 144 + 48), 2 * 3 * 64),
        Work(4 * (48 + 2 * (12 + 144)), 4 * 3 * 64),
    ),
}


@pytest.mark.parametrize("name", HAND_COUNTED)
def test_least_work_is_what_counting_by_hand_gives(name):
    counted, forward, backward = HAND_COUNTED[name]
    total = Work(forward.bytes + backward.bytes, forward.flops + backward.flops)
    assert counted.work() == {"forward": forward, "backward": backward, "forward_backward": total}


def test_floor_is_the_slower_of_memory_and_arithmetic():
    floor = Floor(bytes_per_s=1e9, flops_per_s=1e10)
    assert floor.ms(Work(2_000_000, 0)) == pytest.approx(2)
    assert floor.ms(Work(2_000_000, 10_000_000)) == pytest.approx(2)
    assert floor.ms(Work(2_000_000, 50_000_000)) == pytest.approx(5)


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
        assert each.small.operator == each.operator and each.small.params == each.params
        assert each.small.input_bytes < 1e5


def fake_clock(durations: dict[str, float], log: list[tuple[str, int]]):
    """A clock that does not read the time, and contenders that tell it what they cost."""
    last = {}

    def contender(name):
        def call(index):
            log.append((name, index))
            last["ms"] = durations[name]

        return call

    def times(call, first, count):
        return [call(index) or last["ms"] for index in range(first, first + count)]

    return SimpleNamespace(times=times), {name: contender(name) for name in durations}


def test_contenders_take_turns_and_walk_through_the_buffers():
    log: list[tuple[str, int]] = []
    clock, contenders = fake_clock({"ours": 1.0, "peer": 40.0}, log)
    effort = measure.Effort(rounds=3, seconds=0.004, rest=0.0)
    timings = measure.in_turn(contenders, 5, clock, effort)
    assert timings["ours"] == measure.Timing(1.0, 1.0, 1.0, 3 * 4)
    assert timings["peer"] == measure.Timing(40.0, 40.0, 40.0, 3)
    for name in contenders:
        visited = [index for who, index in log if who == name]
        assert visited == [index % 5 for index in range(len(visited))]
    turns = "".join("o" if who == "ours" else "p" for who, _ in log)[6:]  # the first calls set numbers
    assert turns == ("o" * 5 + "p") * 3


def test_summary_is_median_and_quartiles():
    assert measure.summarise([5.0, 1.0, 2.0, 100.0, 3.0]) == measure.Timing(3.0, 2.0, 5.0, 5)
    assert measure.summarise([7.0]) == measure.Timing(7.0, 7.0, 7.0, 1)


def test_cuda_events_bracket_each_call_and_wait_once():
    log = []

    class Event:
        def record(self):
            log.append("event")

    cuda = SimpleNamespace(
        Event=Event,
        get_current_stream=lambda: SimpleNamespace(synchronize=lambda: log.append("wait")),
        get_elapsed_time=lambda start, stop: 0.25,
    )
    assert measure.CudaEvents(cuda).times(log.append, 3, 2) == [0.25, 0.25]
    assert log == ["event", 3, "event", "event", 4, "event", "wait"]


GLUTTON = """
import json
import numpy as np
import dynarray as dyn
from benchmarks import child

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


def test_quick_run_measures_every_case(quick):
    assert [row["title"] for row in quick["rows"]] == [case.small.title for case in CASES]
    assert quick["backend"] == "reference" and quick["threads"] == 1 and quick["quick"] is True
    assert quick["versions"]["numpy"] == np.__version__
    assert quick["machine"]["cpu"] and quick["machine"]["cores"] >= 1
    for row in quick["rows"]:
        assert list(row["passes"]) == list(PASSES)
        for measured in row["passes"].values():
            assert 0 < measured["quartile_1"] <= measured["ms"] <= measured["quartile_3"]
            floor = Floor(**quick["floor"]).ms(Work(measured["bytes"], measured["flops"]))
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
        report, "SECTIONS", {**report.SECTIONS, "benchmarks": lambda: report.benchmarks(results)}
    )
    text = "# Title\n<!-- benchmarks:begin -->\nold\n<!-- benchmarks:end -->\nbetween\n"
    text += "<!-- operators:begin --><!-- operators:end -->\nlast\n"
    once = report.fill(text)
    assert report.fill(once) == once
    assert once.startswith("# Title\n<!-- benchmarks:begin -->\n") and once.endswith(
        "<!-- operators:end -->\nlast\n"
    )
    assert "\nold\n" not in once and "\nbetween\n" in once
    # Each row as it was measured last.
    assert "2 threads" in once and "2026-01-02" in once and "2026-01-01" not in once
    assert "3 threads" in once and once.count("| another |") == len(PASSES) + 1
    for row in quick["rows"]:
        assert once.count(f"| {row['title']} |") == len(PASSES) + 1


def test_half_a_pair_of_markers_is_refused():
    with pytest.raises(ValueError, match="must come together"):
        report.fill("<!-- benchmarks:begin -->")


def test_best_peer_of_each_kind_is_shown_with_its_ratio(quick):
    row = json.loads(json.dumps(quick["rows"][0]))
    best, other = {"formulation": "a", "ms": 12.34, "ratio": 3.21}, {"formulation": "b", "ms": 99, "ratio": 9}
    row["passes"]["forward"]["peers"] = {"eager": [best, other]}
    header, rows = table.times(quick | {"rows": [row]})
    assert header[-1] == "PyTorch eager"
    assert [cells[-1] for cells in rows] == ["12.3 (3.2x)", "", ""]


def test_support_table_has_a_row_for_each_operator():
    lines = report.operators().splitlines()
    assert len(lines) == 2 + len(dyn.OPERATORS)
    for line, operator in zip(lines[2:], dyn.OPERATORS.values(), strict=True):
        assert line.startswith(f"| `{operator.name}` | `{operator.arrays[0]}`")
        assert "float32" in line


@pytest.mark.parametrize("page", report.PAGES, ids=lambda path: path.name)
def test_tables_are_what_the_report_generates(page):
    text = page.read_text(encoding="utf-8")
    assert report.fill(text) == text, "run: python -m benchmarks report"


def test_an_example_s_tables_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(_record, "HERE", tmp_path)
    assert _record.spread([1.0, 2.0, 3.0], 2) == "2.00 ± 1.00"
    path = _record.record("walk", {"How far": (["who", "m"], [["she", "12"], ["he", "9"]])}, seeds=5)
    text = report.example(path)
    assert text.startswith("**How far**\n\n| who | m |\n| --- | ---: |\n| she | 12 |\n| he | 9 |\n")
    assert "`python examples/walk.py --full`: seeds 5; python" in text


def test_peers_agree_with_ours_on_tiny_arrays():
    pytest.importorskip("torch", reason="PyTorch is not installed (extra: bench)")
    from benchmarks import local_filter_torch, peers_torch

    rng = np.random.default_rng(0)
    for tiny in (case.small for case in CASES):
        for name, function in local_filter_torch.FORMULATIONS[tiny.operator](**tiny.params).items():
            buffers = Buffers(tiny.arrays(rng), tiny.grad_output(rng))
            calls = peers_torch._calls(function, [peers_torch._tensors(buffers)], compiled=False)
            with dyn.use_backend("reference"):
                output, saved = dyn.OPERATORS[tiny.operator].run(buffers.arrays, tiny.params)
                needs = (True,) * len(buffers.arrays)
                gradients = dyn.OPERATORS[tiny.operator].gradients(buffers.grad_output, saved, needs)
            results = calls["forward"](0), *calls["forward_backward"](0)
            peers_torch._compare(name, results, (output, *gradients))
            with pytest.raises(peers_torch.Mismatch, match="gradient 1"):
                peers_torch._compare(
                    name, results, (output, gradients[0], gradients[1] * 1.001, *gradients[2:])
                )


def test_unknown_operator_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--operator", "nothing"])
    assert "invalid choice" in capsys.readouterr().err
