"""Studies of many trainings: they go on after a stop, their data are what they say, their quick modes run."""

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_examples import NUMBER, ROOT, run

from autodiff.files import FileError

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


def test_a_study_goes_on_where_it_was_stopped(examples, tmp_path, capsys) -> None:
    study, done = examples("_study"), []

    def work(name: str, seed: int) -> dict[str, Any]:
        done.append((name, seed))
        if len(done) == 3:
            raise KeyboardInterrupt
        return {"score": seed + 0.5, "name": np.frombuffer(name.encode(), np.uint8)}

    jobs = {(name, seed): (name, seed) for seed in (0, 1) for name in ("A, mul", "B")}
    how: dict[str, Any] = {"folder": tmp_path / "kept", "settings": {"steps": 4}, "workers": 1}
    with pytest.raises(KeyboardInterrupt):
        study.run(work, jobs, **how)
    assert sorted(path.name for path in how["folder"].iterdir()) == ["a-mul-0.safetensors", "b-0.safetensors"]
    found = study.run(work, jobs, **how)
    assert done == [("A, mul", 0), ("B", 0), ("A, mul", 1), ("A, mul", 1), ("B", 1)]
    assert list(found) == list(jobs)
    for (name, seed), each in found.items():
        assert each["score"] == seed + 0.5 and bytes(each["name"]) == name.encode()
    assert study.run(work, jobs, **how).keys() == jobs.keys() and len(done) == 5
    with pytest.raises(
        SystemExit, match=r"was made with other settings, \{\"steps\": 4\}, than \{\"steps\": 5\}"
    ):
        study.run(work, jobs, **{**how, "settings": {"steps": 5}})
    (how["folder"] / "b-1.safetensors").write_bytes(b"damaged")
    with pytest.raises(FileError):
        study.run(work, jobs, **how)


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
