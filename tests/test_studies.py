"""Studies of many trainings: they go on after a stop, their data are what they say, their quick modes run."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_examples import NUMBER, ROOT, run

QUICK = "quick: a few steps show that it runs"


@pytest.fixture
def examples(monkeypatch) -> Any:
    """Modules of examples/ by name."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module


def rows_of(output: str, title: str) -> dict[str, list[str]]:
    """The cells of the table under a title, by their first."""
    (block,) = (block for block in output.strip().split("\n\n") if block.startswith(title))
    lines = [re.split(r" {2,}", line) for line in block.splitlines()[2:]]
    return {line[0]: line[1:] for line in lines}


def test_a_study_goes_on_where_it_was_stopped(examples, tmp_path) -> None:
    study, done = examples("_study"), []

    def work(name: str, seed: int, folder: Path) -> dict[str, Any]:
        done.append((name, seed))
        if len(done) == 3:
            raise KeyboardInterrupt
        return {"score": seed + 0.123456789, "count": seed + 123456, "losses": np.array([1.0, np.pi / 1000])}

    jobs = {(name, seed): (name, seed, tmp_path) for seed in (0, 1) for name in ("A, mul", "B")}
    keep = tmp_path / "parts" / "kept.json"
    how: dict[str, Any] = {"keep": keep, "settings": {"steps": 4}, "workers": 1}
    with pytest.raises(KeyboardInterrupt):
        study.run(work, jobs, **how)
    kept = json.loads(keep.read_text())
    assert kept["settings"] == {"steps": 4}
    (one,) = (part for part in kept["parts"] if part["variant"] == "B")
    assert (one["seed"], one["arguments"]) == (0, "'B', 0")  # a folder decides nothing
    assert one["found"] == {"score": 0.12346, "count": 123456, "losses": [1.0, 0.0031416]}
    found = study.run(work, {key: (*given[:2], Path("elsewhere")) for key, given in jobs.items()}, **how)
    assert done == [("A, mul", 0), ("B", 0), ("A, mul", 1), ("A, mul", 1), ("B", 1)]
    assert list(found) == list(jobs)
    for (_, seed), each in found.items():
        assert each["score"] == (0.12346, 1.1235)[seed] and list(each["losses"]) == [1, 0.0031416]
    assert study.run(work, jobs, **how).keys() == jobs.keys() and len(done) == 5
    # A training of other arguments takes the place of the one that there is.
    study.run(work, {("B", 1): ("B", 2, tmp_path)}, **how)
    assert done[5:] == [("B", 2)] and len(json.loads(keep.read_text())["parts"]) == 4
    with pytest.raises(
        SystemExit, match=r"was made with other settings, \{'steps': 4\}, than \{'steps': 5\}"
    ):
        study.run(work, jobs, **{**how, "settings": {"steps": 5}})
    assert sorted(path.name for path in keep.parent.iterdir()) == ["kept.json", "kept.json.lock"]


def test_what_is_missing_is_said(examples, tmp_path, capsys) -> None:
    study = examples("_study")
    jobs = {(name, seed): (seed,) for seed in (0, 1) for name in ("A", "B")}
    how: dict[str, Any] = {"keep": tmp_path / "kept.json", "workers": 1}

    def work(seed: int) -> dict[str, Any]:
        return {"score": seed + 0.5}

    study.run(work, {("A", seed): (seed,) for seed in (0, 1)}, **how)
    said = r"^unfinished: 2 trainings, about 0 core-minutes, are missing: B 0, B 1$"
    with pytest.raises(SystemExit, match=said):
        study.run(work, jobs, minutes=0, **how)
    rows = rows_of(capsys.readouterr().out, "What there is so far")
    assert rows["A"] == ["2 of 2", "0.0", "score 1"] and rows["B"] == ["0 of 2", "0.0"]


SAVING = """
import sys
from pathlib import Path
from _parts import Parts
parts = Parts(Path("kept.json"), {}, len)
for seed in range(12):
    parts.save((sys.argv[1], seed), str(seed), {"score": float(seed)}, 0.5)
"""


def test_processes_that_share_a_file_lose_nothing(examples, tmp_path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "examples", ROOT)))}
    running = [
        subprocess.Popen([sys.executable, "-c", SAVING, name], cwd=tmp_path, env=environment) for name in "AB"
    ]
    assert [process.wait() for process in running] == [0, 0]
    there = examples("_parts").Parts(tmp_path / "kept.json", {}, len).load()
    assert sorted(there) == [(name, seed) for name in "AB" for seed in range(12)]
    assert all(float(part.found["score"]) == seed for (_, seed), (_, part) in there.items())


DECIDES = '''
RATE, TITLE = 0.5, "a table"
class Layer:
    size = 3
def helper(x):
    return RATE * x
TABLE = {"a": helper}
def work(x):
    """Words."""
    return TABLE["a"](x) + Layer.size  # a comment
def table():
    return TITLE
'''


@pytest.mark.parametrize(
    ("old", "new", "alike"),
    [
        ("Words.", "Other words.", True),
        ("  # a comment", "", True),
        ('"a table"', '"a title"', True),
        ("return TITLE", "return 2 * TITLE", True),
        ("RATE * x", "RATE / x", False),
        ("0.5", "0.6", False),
        ("size = 3", "size = 4", False),
        ('TABLE["a"](x)', 'TABLE["a"](-x)', False),
    ],
)
def test_the_code_that_decides_is_known(examples, tmp_path, monkeypatch, old, new, alike) -> None:
    parts, found = examples("_parts"), []
    assert DECIDES.count(old) == 1
    for name, text in (("one", DECIDES), ("other", DECIDES.replace(old, new))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "trained.py").write_text(text)
        monkeypatch.setattr(parts, "HERE", folder)
        with monkeypatch.context() as inner:
            inner.delitem(sys.modules, "trained", raising=False)
            inner.syspath_prepend(folder)
            found.append(parts.fingerprint(importlib.import_module("trained").work))
            sys.modules.pop("trained")
    assert (found[0] == found[1]) == alike


def test_trainings_compared_have_the_same_batches(examples) -> None:
    study, layers = examples("_study"), importlib.import_module("autodiff.layers")
    drawn: list[list[float]] = []
    for width in (1, 2):
        network, own = layers.Linear(1, width, rng=0), []

        def loss(rng: np.random.Generator, network=network, own=own) -> Any:
            own.append(rng.random())
            return (network(np.full((1, 1), own[-1], np.float32)) ** 2).sum()

        losses = study.train(network, loss, 40, 0.1, [3, 1])
        assert losses.shape == (study.PARTS,) and losses[-1] < losses[0]
        drawn.append(own)
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 40


def test_distances_count_as_much_as_the_amplitude(examples) -> None:
    picture = examples("_dau_picture")
    places = np.array([[3.0, 0.0], [0.0, 0.6], [0.1, 0.0]])
    distance, amplitude = picture.distances([(places, np.array([1.0, 0.5, 0.2]))], 0.3)
    np.testing.assert_allclose(distance, [3, 0.6])
    shares, edges = picture.histogram(distance, amplitude)
    assert dict(zip(edges[:-1][shares > 0], shares[shares > 0])) == {0.5: 1 / 3, 3.0: 2 / 3}


def test_the_density_of_a_crowd_sums_to_its_number(examples) -> None:
    photos = [np.random.default_rng(0).random((70, 80), np.float32)]
    images, densities, counts = examples("_crowds").crowds(photos, 8, 64, np.random.default_rng(1))
    assert images.shape == densities.shape == (8, 1, 64, 64)
    assert len(set(counts)) > 4 and densities.min() >= 0
    np.testing.assert_allclose(densities.sum((1, 2, 3)), counts, rtol=1e-5)


def test_made_scenes_have_planes_and_edges(examples) -> None:
    """In the middle of a layer both maps are linear: their second differences vanish but at outlines."""
    scenes, flows = examples("joint_scenes"), examples("_flow_data")
    photos = flows.photographs(["brick", "coins"])
    for quantity, components in (("depth", 1), ("flow", 2)):
        maps = scenes.made(quantity, photos, np.random.default_rng(3))
        assert len(maps) == components
        for scene in maps:
            assert scene.photo.shape == (3, *flows.SIZE) and scene.valid.all()
            bent = abs(np.diff(scene.disparity, 2, axis=1)) > 1e-4
            assert 0 < bent.mean() < 0.2
    low = scenes.low_resolution(maps[0], 4)
    # An image that says nothing: the guided filter is two means, which leave a plane as it is inside.
    plane = np.add.outer(np.arange(16.0), 2 * np.arange(24.0))
    found = scenes.guided(plane, np.zeros((3, 64, 96)), 2, 1e-3)
    expected = np.add.outer(np.arange(64.0), 2 * np.arange(96.0)) / 4 - 1.5 * 3 / 4
    np.testing.assert_allclose(found[12:-12, 12:-12], expected[12:-12, 12:-12], atol=1e-5)
    assert low.shape == (16, 24)


def test_flow_networks_differ_by_the_layer_alone(examples) -> None:
    """Counted by hand: 32 inputs, 24 outputs, 7 x 7 regions, 3 x 3 taps, 48 channels behind the layer."""
    flow, network = examples("optical_flow"), examples("_flow_network")

    def count(module: Any) -> int:
        return sum(parameter.data.size for parameter in module.parameters())

    made = {variant.name: network.make(variant, 0) for variant in flow.VARIANTS}
    kernels, attention = 33 * 24 * (32 + 9), 33 * 24 * 49 + 33 * 24 * 9
    layer = (32 * 9 + 1) * 32 + kernels + attention + 25 * 48
    assert count(made[flow.SUM].sampling) == layer
    assert count(made[flow.WIDE].sampling) == pytest.approx(layer, rel=0.01)
    assert count(made[flow.WIDE]) == pytest.approx(count(made[flow.SUM]), rel=0.01)
    assert count(made["no attention"].sampling) == layer - attention
    assert made[flow.PLAIN].sampling is None and made[flow.PLACED].conv3 is None
    # Beside it 48 channels more come to three layers; in its place as many as before come to one.
    third = (25 * 32 + 1) * 48
    assert count(made[flow.PLACED]) == count(made[flow.PLAIN]) + layer - third
    joined = 48 * (9 * 48 + 9 * 2 + 16 * 16)
    assert count(made[flow.SUM]) == count(made[flow.PLAIN]) + layer + joined
    # The cells of Table 4: the network has what its row says that it has.
    params = {name: made[name].sampling for name in (flow.SUM, "no residual", "no attention", "neither")}
    found = {
        name: (each.params["kernel_residual"], each.params["attention_residual"], bool(each.sample_attention))
        for name, each in params.items()
    }
    assert found == {
        flow.SUM: (True, True, True),
        "no residual": (False, False, True),
        "no attention": (True, True, False),
        "neither": (False, False, False),
    }


def test_flow_is_learned_from_pairs_that_are_new_in_every_step(examples, monkeypatch) -> None:
    """One network and another see the same pairs; no step, and no other seed, sees them again."""
    flow, seen = examples("optical_flow"), {}
    make_pairs = flow.make_pairs
    for name, seed in ((flow.PLAIN, 0), (flow.S1, 0), (flow.PLAIN, 1)):
        own = seen[name, seed] = []

        def spy(*args, own=own, **named):
            own.append(make_pairs(*args, **named))
            return own[-1]

        (variant,) = (each for each in flow.VARIANTS if each.name == name)
        flow.data_of(2)  # which draws pairs too, those that are held out
        monkeypatch.setattr(flow, "make_pairs", spy)
        flow.train(flow.Job(variant, seed, steps=3, batch=2, rate=1e-3, tests=2))
        monkeypatch.setattr(flow, "make_pairs", make_pairs)
    images = {key: [image.tobytes() for pairs in own for image in pairs.images] for key, own in seen.items()}
    assert images[flow.PLAIN, 0] == images[flow.S1, 0]
    assert len({*images[flow.PLAIN, 0], *images[flow.PLAIN, 1]}) == 12


def test_a_network_that_breaks_has_failed(examples, monkeypatch) -> None:
    """Its loss is not finite; then it is taken to say that nothing moves, to the end of its curve."""
    flow = examples("optical_flow")
    variant = flow.VARIANTS[0]
    with np.errstate(all="ignore"):
        found = flow.judge(flow.Job(variant, 0, steps=20, batch=2, rate=1e30, tests=4))
    data = flow.data_of(4)
    still = np.hypot(data.held_out.flow[:, 0], data.held_out.flow[:, 1]).mean()
    assert np.isnan(found["losses"][-1]) and len(found["errors"]) == flow.POINTS
    assert found["errors"][-1] == pytest.approx(still, rel=1e-6)
    outcome = flow.outcome_of(examples("_parts").read(found))
    # One that goes on, far off, counts no worse than one that stops.
    far = outcome._replace(errors=outcome.errors + 80, visible_error=80.0, stereo_error=80.0)
    for each in (outcome, far):
        made = flow.Tables({(variant.name, 0): each}, data, 1)
        assert made.failed(variant.name) == "100"
        assert made.error(variant.name) == f"{still:.3f}"
        assert made.errors(variant.name) == [(made.still, made.still_visible, made.still_stereo)]
        assert made.curves(variant.name).max() == pytest.approx(still, rel=1e-6)


def test_decoupled_filters_runs_quickly(tmp_path: Path) -> None:
    done = run("decoupled_filters.py", "--quick", cwd=tmp_path)
    assert done.stdout.startswith(QUICK)
    rows = rows_of(done.stdout, "Which of eleven photographs")
    counts = {name: int(cells[0].replace(",", "")) for name, cells in rows.items()}
    # Middles have 16, 16 and 24 channels, and FilterNorm a number for each channel and tap.
    assert counts["convolution"] - counts["depthwise"] == 9 * (16 * 15 + 16 * 15 + 24 * 23)
    for combine in ("mul", "add"):
        with_norm, without = counts[f"DDF {combine}"], counts[f"DDF {combine}, no FilterNorm"]
        assert with_norm - without == 9 * (16 + 16 + 24)
    assert counts["depthwise"] < counts["DDF mul"] == counts["DDF add"] < counts["convolution"]
    assert all(0 <= float(cells[2]) <= 100 for cells in rows.values())
    assert list(tmp_path.iterdir()) == []


def test_atom_tasks_runs_quickly(tmp_path: Path) -> None:
    done = run("atom_tasks.py", "--quick", cwd=tmp_path)
    assert done.stdout.startswith(QUICK)
    for title, alone in (("Twice the resolution", "bicubic"), ("Figures in a crowd", "always the mean")):
        rows = rows_of(done.stdout, title)
        assert list(rows) == [alone, "convolutions", "filter atoms"]
        ordinary, atoms = (int(rows[name][0].replace(",", "")) for name in ("convolutions", "filter atoms"))
        assert abs(atoms / ordinary - 1) < 0.04  # a channel more or less is 6 %
        assert all(
            re.fullmatch(NUMBER, cell)
            for name in ("convolutions", "filter atoms")
            for cell in rows[name][2:3]
        )
    # Bicubic interpolation of the same photographs, whose similarity is known to be high.
    assert 20 < float(rows_of(done.stdout, "Twice the resolution")["bicubic"][0]) < 45


def test_joint_scenes_runs_quickly(tmp_path: Path) -> None:
    done = run("joint_scenes.py", "--quick", cwd=tmp_path)
    assert done.stdout.startswith(QUICK)
    rows = rows_of(done.stdout, "A quarter of the resolution")
    assert list(rows) == ["bicubic", "joint bilateral", "guided", "DDF-Up"]
    errors = {name: [float(cell) for cell in cells[:3]] for name, cells in rows.items()}
    # Whoever looks at the image is better than who does not; the network begins as interpolation.
    for place in (0, 1):
        assert min(errors["joint bilateral"][place], errors["guided"][place]) < errors["bicubic"][place]
    for ours, plain in zip(errors["DDF-Up"], errors["bicubic"]):
        assert 0 < ours < 2 * plain
