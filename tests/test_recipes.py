"""Recipes run from files on the disk to the metric they report, and go on after a kill to the same bits."""

import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from _image_files import ppm_bytes

from autodiff import files
from autodiff.networks import FlowNetS

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "examples" / "recipes"
# Kills itself once it has written so many checkpoints.
KILLED = """
import os, runpy, signal, sys
from autodiff import train
save, left = train.Trainer.save, [int(sys.argv[1])]
def and_die(*args):
    save(*args)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
train.Trainer.save = and_die
sys.argv = sys.argv[2:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(*command: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    line = [sys.executable, *map(str, command)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=250)


def reported(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    """The last line: names and numbers."""
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"(\w+) ([-+.\w]+)", done.stdout.splitlines()[-1])
    return {name: float(value) for name, value in found}


@pytest.fixture(scope="module")
def chairs(tmp_path_factory) -> Path:
    """Six pairs in the format of FlyingChairs, the last two of which are for validation."""
    folder, rng = tmp_path_factory.mktemp("FlyingChairs_release"), np.random.default_rng(0)
    (folder / "data").mkdir()
    for number in range(1, 7):
        first = rng.integers(0, 256, (3, 80, 96), dtype=np.uint8)
        moved = int(rng.integers(-3, 4))
        start = folder / "data" / f"{number:05d}"
        Path(f"{start}_img1.ppm").write_bytes(ppm_bytes(first))
        Path(f"{start}_img2.ppm").write_bytes(ppm_bytes(np.roll(first, moved, 2)))
        field = np.full((80, 96, 2), [moved, 0], "<f4").tobytes()
        Path(f"{start}_flow.flo").write_bytes(b"PIEH" + struct.pack("<2i", 96, 80) + field)
    (folder / "FlyingChairs_train_val.txt").write_text("1\n1\n1\n1\n2\n2\n")
    return folder


@pytest.mark.slow
def test_flow_recipe_from_files_to_the_end_point_error_and_after_a_kill(chairs, tmp_path):
    recipe = RECIPES / "dscnn_flyingchairs.py"
    options = ["--data", chairs, "--quick", "--workers", 1, "--every", 1]
    whole = reported(start(recipe, *options, "--output", tmp_path / "whole"))
    assert whole["step"] == 4

    # Held-out pairs by hand: the network of the checkpoint, and the mean length of what is wrong.
    arrays, _ = files.load(tmp_path / "whole" / "checkpoint.safetensors")
    sampling = {"samples": 3, "out_channels": 4, "post_channels": 8}
    network = FlowNetS((8,) * 4, (8, 8), sampling=sampling)
    start_of = "network."
    own = {name.removeprefix(start_of): value for name, value in arrays.items() if name.startswith(start_of)}
    network.load_state_dict(own)
    errors = []
    for number in (5, 6):
        pair = [(chairs / "data" / f"{number:05d}_img{k}.ppm").read_bytes()[-3 * 80 * 96 :] for k in (1, 2)]
        images = [np.frombuffer(each, np.uint8).reshape(80, 96, 3).transpose(2, 0, 1) for each in pair]
        images = np.concatenate(images)[None].astype(np.float32) / 255 - np.float32(0.43)
        truth = np.frombuffer((chairs / "data" / f"{number:05d}_flow.flo").read_bytes()[12:], "<f4")
        wrong = network.eval().predict(images)[0] - truth.reshape(80, 96, 2).transpose(2, 0, 1)
        errors.append(np.hypot(*wrong.astype(np.float64)).mean())
    assert whole["end_point_error"] == pytest.approx(np.mean(errors), rel=1e-5)

    killed = start("-c", KILLED, 3, recipe, *options, "--output", tmp_path / "killed")
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    resumed = start(recipe, *options, "--output", tmp_path / "killed")
    assert "going on from step 2" in resumed.stdout
    assert reported(resumed) == whole
    same, _ = files.load(tmp_path / "killed" / "checkpoint.safetensors")
    assert all(np.array_equal(same[name], arrays[name], equal_nan=True) for name in arrays)

    again = reported(start(recipe, *options, "--evaluate", tmp_path / "whole" / "checkpoint.safetensors"))
    assert again["end_point_error"] == whole["end_point_error"]
    log = (tmp_path / "whole" / "log.csv").read_text().splitlines()
    assert log[0] == "epoch,step,lr,loss,end_point_error"
    assert [line.split(",")[1] for line in log[1:]] == ["2", "4"]
