"""Recipes run from files on the disk to the metric they report, and go on after a kill to the same bits."""

import argparse
import csv
import importlib
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from _image_files import png_bytes, ppm_bytes, write
from _ranks import run, with_mpirun
from test_detection import overlap

from autodiff import data, distributed, files
from autodiff import functions as F
from autodiff.metrics import Detections, Truth, mean_average_precision
from autodiff.networks import RFCN, RPN, DSNet, FlowNetS, SmallBackbone, dau_cifar10

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


def goes_on_after_a_kill(recipe: Path, options: list, folder: Path, whole: dict[str, float]) -> None:
    """Killed once its third checkpoint is written; then to the numbers and the bits of the whole run."""
    killed = start("-c", KILLED, 3, recipe, *options, "--output", folder / "killed")
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    resumed = start(recipe, *options, "--output", folder / "killed")
    assert "going on from step 2" in resumed.stdout
    assert reported(resumed) == whole
    arrays, same = (files.load(folder / run / "checkpoint.safetensors")[0] for run in ("whole", "killed"))
    assert all(np.array_equal(same[name], arrays[name], equal_nan=True) for name in arrays)


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

    goes_on_after_a_kill(recipe, options, tmp_path, whole)
    again = reported(start(recipe, *options, "--evaluate", tmp_path / "whole" / "checkpoint.safetensors"))
    assert again["end_point_error"] == whole["end_point_error"]
    log = (tmp_path / "whole" / "log.csv").read_text().splitlines()
    assert log[0] == "epoch,step,lr,loss,end_point_error"
    assert [line.split(",")[1] for line in log[1:]] == ["2", "4"]


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    """Four images to train on and two to judge by, in the format of VOC; colours tell the classes apart."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: data)")
    root, rng = tmp_path_factory.mktemp("VOC2012"), np.random.default_rng(0)
    names = [f"2007_{number:06d}" for number in range(6)]
    for name in names:
        labels = np.zeros((36, 44, 1), np.uint8)
        top, left = rng.integers(0, 20, 2)
        labels[top : top + 14, left : left + 20] = rng.integers(1, 21)
        labels[top, left : left + 20] = 255
        pixels = np.repeat(labels * 12, 3, axis=2) + rng.integers(0, 10, (36, 44, 3), dtype=np.uint8)
        (root / "JPEGImages").mkdir(exist_ok=True)
        image.fromarray(pixels).save(root / f"JPEGImages/{name}.jpg", "JPEG", quality=95)
        write(root / f"SegmentationClass/{name}.png", png_bytes(labels, 8, 3))
    write(root / "ImageSets/Segmentation/train.txt", "\n".join(names[:4]).encode())
    write(root / "ImageSets/Segmentation/val.txt", "\n".join(names[4:]).encode())
    return root


@pytest.mark.slow
def test_segmentation_recipe_from_files_to_the_mean_iou_and_after_a_kill(voc, tmp_path):
    recipe = RECIPES / "dsnet_voc.py"
    options = ["--data", voc, "--quick", "--workers", 1, "--every", 1]
    whole = reported(start(recipe, *options, "--output", tmp_path / "whole"))
    assert whole["step"] == 4 and 0 <= whole["mean_iou"] <= whole["pixel_accuracy"] <= 1
    goes_on_after_a_kill(recipe, options, tmp_path, whole)

    # Judged by hand: probabilities over two sizes and their mirror images, intersections over unions.
    checkpoint = tmp_path / "whole" / "checkpoint.safetensors"
    arrays, _ = files.load(checkpoint)
    network = DSNet(SmallBackbone((8, 8, 8)), 21, width=8, dilations=(1, 2), auxiliary=True).eval()
    own = {name.removeprefix("network."): a for name, a in arrays.items() if name.startswith("network.")}
    network.load_state_dict(own)
    predicted, true = [], []
    for sample in data.VOCSegmentation(voc, "val"):
        mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        x = ((sample["image"] / 255 - mean) / deviation).astype(np.float32)[None]
        total = 0
        for size in ((36, 44), (54, 66)):
            for step in (1, -1):
                scores = network(F.resize(x, size)[..., ::step]).data
                powers = np.exp(scores - scores.max(1, keepdims=True))
                total = total + F.resize((powers / powers.sum(1, keepdims=True))[..., ::step], (36, 44))
        known = sample["labels"] != 255
        predicted.append(total[0].argmax(0)[known])
        true.append(sample["labels"][known])
    predicted, true = np.concatenate(predicted), np.concatenate(true)
    ious = [
        ((predicted == k) & (true == k)).sum() / ((predicted == k) | (true == k)).sum()
        for k in np.union1d(predicted, true)
    ]
    assert whole["mean_iou"] == pytest.approx(np.mean(ious), rel=1e-4)

    options += ["--stage", "fine-tune", "--start", checkpoint]
    tuned = reported(start(recipe, *options, "--output", tmp_path / "tuned"))
    assert tuned["step"] == 4 and tuned["loss"] < whole["loss"]


def curve(folder: Path) -> list[list[float]]:
    """Each line of a recipe's log."""
    with open(folder / "log.csv") as file:
        return [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]


@pytest.mark.slow
@with_mpirun
def test_a_recipe_has_the_same_curve_by_two_processes(voc, tmp_path):
    """One image for each: normalised over both, and a mean over the pixels that count of both."""
    command = [RECIPES / "dsnet_voc.py", "--data", voc, "--quick", "--workers", 0]
    reported(start(*command, "--output", tmp_path / "whole"))
    ran = run(2, tmp_path, [*map(str, command), "--output", "parts"])
    assert ran.code == 0, ran.output
    one, two = curve(tmp_path / "whole"), curve(tmp_path / "parts")
    assert len(one) == 2
    np.testing.assert_allclose(np.array(two), np.array(one), rtol=1e-5)
    assert ran.output.count("mean_iou") == 3  # two epochs and the end, of one rank


class OneOfTwo(distributed.Communicator):
    """A rank that is alone: it notes down what it would add up."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def sum(self, value):
        self.noted = value
        return value


def test_ranks_judge_by_parts_that_add_up_to_the_whole(monkeypatch, rng):
    monkeypatch.syspath_prepend(RECIPES)
    names = ("_recipe", "_voc", "_imagenet")
    recipe, voc, imagenet = modules = [importlib.import_module(name) for name in names]
    images = rng.integers(0, 256, (5, 3, 8, 9), dtype=np.uint8)
    areas = rng.integers(0, 21, (5, 8, 9))
    pictures = [{"image": image, "labels": labels} for image, labels in zip(images, areas)]

    class Labelled(list):
        labels = np.array([3, 0, 1, 2, 3])

    def scores(x):
        return np.stack([np.roll(x.mean((1,)), k, 2) * (-1) ** k for k in range(21)], axis=1)

    def guess(x):
        return x.mean((2, 3)) @ np.linspace(-1, 1, 3 * 7).reshape(3, 7)

    def judged(comm):
        for module in modules:
            monkeypatch.setattr(module, "ranks", lambda: comm)
        found = [voc.judge(pictures, scores)]
        counts = [comm.noted] if hasattr(comm, "noted") else []
        found.append(
            imagenet.evaluate(Labelled(pictures), lambda s: recipe.standardized(s["image"]), 2, guess)
        )
        return found, [*counts, getattr(comm, "noted", None)]

    monkeypatch.setattr(recipe, "ranks", lambda: OneOfTwo(1))
    with pytest.raises(SystemExit, match="a batch of 3 cannot be shared evenly by 2 processes"):
        recipe.load(argparse.Namespace(workers=0), pictures, 3, None, ["image"])
    (areas_judged, classes_judged), _ = judged(distributed.Communicator())
    (_, one), (_, other) = judged(OneOfTwo(0)), judged(OneOfTwo(1))
    confusion, right = (a + b for a, b in zip(one, other))
    assert confusion.sum() == 5 * 8 * 9 and min(each[0].sum() for each in (one, other)) > 0
    assert areas_judged["pixel_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert 0 < areas_judged["pixel_accuracy"] < 1
    assert classes_judged == {"top_1": right[0] / 5, "top_5": right[1] / 5}
    assert 0 < right[1] < 5


def test_ranks_detect_in_parts_that_follow_one_another(monkeypatch):
    """Each looks at its own images alone; all judge by what all have found."""
    monkeypatch.syspath_prepend(RECIPES)
    recipe, rfcn = (importlib.import_module(name) for name in ("_recipe", "rfcn_voc"))
    samples = [
        {
            "image": np.full((3, 72, 72), 50 * k, np.uint8),
            "boxes": np.array([(0, 0, 20 + 14 * k, 36)], np.float32),
            "box_labels": np.array([k % 2]),
            "difficult": np.array([False]),
        }
        for k in range(5)
    ]
    looked_at = []

    class Network:
        """Says of all images that there is the same."""

        def propose(self, images, **_):
            looked_at.append(float(images.mean()))
            return [np.array([[0, 0, 30, 36]], np.float32)]

        def detect(self, images, regions, **_):
            return [Detections(regions[0], np.array([-images.mean()]), np.array([0]))]

    def judged(comm):
        for module in (recipe, rfcn):
            monkeypatch.setattr(module, "ranks", lambda: comm)
        looked_at.clear()
        found = rfcn.recall(rfcn.QUICK, samples, Network())
        found |= rfcn.precision(rfcn.QUICK, samples, Network(), "2007", Network())
        return found, list(looked_at)

    given = []

    class Second(OneOfTwo):
        """Goes first, and does not hear of the other."""

        def gather(self, value):
            given.append(value)
            return [value[:1] * 3, value]

    class First(OneOfTwo):
        """Is told what that one gave."""

        def gather(self, value):
            return [value, given.pop(0)]

    whole, images = judged(distributed.Communicator())
    assert 0 < whole["recall"] < 1 and 0 < whole["mean_average_precision"] < 1
    _, second = judged(Second(1))
    both, first = judged(First(0))
    assert both == whole and not given
    assert sorted(first + second) == sorted(images) and (len(first), len(second)) == (6, 4)


def test_recipes_share_their_trainer():
    """So that what holds for one holds for all: units within their bounds, ranks, what draws."""
    for path in RECIPES.glob("*.py"):
        assert ("Trainer(" in path.read_text()) == (path.name == "_recipe.py"), path.name


@pytest.fixture(scope="module")
def voc_boxes(tmp_path_factory) -> Path:
    """Two images to train on and three to judge by, in the format of VOC, with boxes of bright objects."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: data)")
    root, rng = tmp_path_factory.mktemp("VOC2007"), np.random.default_rng(0)
    names = [f"{number:06d}" for number in range(5)]
    for number, name in enumerate(names):
        high, wide = 36 + 4 * number, 44
        pixels, objects = rng.integers(0, 80, (high, wide, 3), dtype=np.uint8), ""
        for kind, left in (("cat", 2), ("dog", 24)):
            top = int(rng.integers(1, high - 15))
            pixels[top : top + 14, left : left + 16] += np.uint8(120)
            hard = int(kind == "dog" and number in (0, 4))
            box = {"xmin": left + 1, "ymin": top + 1, "xmax": left + 16, "ymax": top + 14}
            frame = "".join(f"<{side}>{value}</{side}>" for side, value in box.items())
            objects += (
                f"<object><name>{kind}</name><difficult>{hard}</difficult><bndbox>{frame}</bndbox></object>"
            )
        (root / "JPEGImages").mkdir(exist_ok=True)
        image.fromarray(pixels).save(root / f"JPEGImages/{name}.jpg", "JPEG", quality=95)
        write(root / f"Annotations/{name}.xml", f"<annotation>{objects}</annotation>".encode())
    write(root / "ImageSets/Main/trainval.txt", "\n".join(names[:2]).encode())
    write(root / "ImageSets/Main/test.txt", "\n".join(names[2:]).encode())
    return root


@pytest.mark.slow
def test_detection_recipe_from_files_to_average_precision_and_after_a_kill(voc_boxes, tmp_path):
    recipe = RECIPES / "rfcn_voc.py"
    options = ["--data", voc_boxes, "--quick", "--workers", 0, "--every", 1]
    first = reported(start(recipe, *options, "--stage", "proposals", "--output", tmp_path / "proposals"))
    assert first["step"] == 4 and 0 <= first["recall"] <= 1
    options += ["--proposals", tmp_path / "proposals" / "checkpoint.safetensors"]
    whole = reported(start(recipe, *options, "--output", tmp_path / "whole"))
    assert whole["step"] == 4
    goes_on_after_a_kill(recipe, options, tmp_path, whole)

    # Judged by hand: images with a shorter side of 72 pixels, boxes brought back to those of the files.
    rpn = RPN(SmallBackbone((8, 8)), strides=(4,), sizes=((16, 32),), width=4)
    sampling = {"out_channels": 2, "features": 4, "post_channels": 4}
    network = RFCN(SmallBackbone((8, 8)), 20, strides=(4,), bins=3, width=8, sampling=sampling)
    for each, stage in ((rpn, "proposals"), (network, "whole")):
        arrays, _ = files.load(tmp_path / stage / "checkpoint.safetensors")
        each.load_state_dict(
            {n.removeprefix("network."): a for n, a in arrays.items() if n.startswith("network.")}
        )
    found, there, best = [], [], []
    for sample in data.VOCDetection(voc_boxes, "test"):
        mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        high, wide = sample["image"].shape[1:]
        larger = F.resize(
            sample["image"][None], tuple(round(side * 72 / min(high, wide)) for side in (high, wide))
        )
        x = ((larger / 255 - mean) / deviation).astype(np.float32)
        regions = rpn.propose(x, most=200, least=4)
        boxes, scores, labels = network.detect(x, regions, least=0.0)[0]
        factor = np.array([wide / x.shape[3], high / x.shape[2]] * 2)
        ends = np.array([0, 0, 1, 1])
        boxes, regions = ((each + ends) * factor - ends for each in (boxes, regions[0]))
        found.append(Detections(boxes, scores, labels))
        there.append(Truth(sample["boxes"], sample["box_labels"], sample["difficult"]))
        best += [max(overlap(region, box) for region in regions) for box in sample["boxes"].astype(float)]
    assert first["recall"] == pytest.approx(np.mean(np.array(best) >= 0.5), rel=1e-5) and first["recall"] > 0
    precision = mean_average_precision(found, there, 20, rule="2007")
    assert whole["mean_average_precision"] == pytest.approx(precision, rel=1e-4) and precision > 0

    # The network without dynamic sampling is another one.
    refused = start(recipe, *options, "--plain", "--evaluate", tmp_path / "whole" / "checkpoint.safetensors")
    assert refused.returncode and "network.sampling.kernel.weight" in refused.stderr


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """Two classes in folders, four images to train on and three to judge by."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for part, counts in (("train", (2, 2)), ("val", (2, 1))):
        for name, count in zip(("n01440764", "n01443537"), counts):
            for number in range(count):
                pixels = rng.integers(0, 256, (3, 50, 70), dtype=np.uint8)
                write(root / part / name / f"{number}.ppm", ppm_bytes(pixels))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddf_imagenet", "dau_imagenet"])
def test_classification_recipes_from_files_to_accuracy_and_after_a_kill(imagenet, tmp_path, name):
    recipe = RECIPES / f"{name}.py"
    options = ["--data", imagenet, "--quick", "--workers", 1, "--every", 1]
    whole = reported(start(recipe, *options, "--output", tmp_path / "whole"))
    assert whole["step"] == 4 and whole["top_5"] == 1  # of two classes
    assert round(whole["top_1"] * 3, 4) in (0, 1, 2, 3)
    goes_on_after_a_kill(recipe, options, tmp_path, whole)
    again = reported(start(recipe, *options, "--evaluate", tmp_path / "whole" / "checkpoint.safetensors"))
    assert again == {"top_1": whole["top_1"], "top_5": 1}


@pytest.mark.slow
def test_cifar_recipe_from_files_to_accuracy(tmp_path, rng):
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        images = [bytes([label]) + rng.bytes(3072) for label in range(2 if name != "test_batch" else 10)]
        write(tmp_path / f"{name}.bin", b"".join(images))
    options = ["--data", tmp_path, "--quick", "--workers", 0, "--every", 1, "--units", 2, 1]
    whole = reported(start(RECIPES / "dau_cifar10.py", *options, "--output", tmp_path / "whole"))
    assert whole["step"] == 4 and 0 <= whole["top_1"] <= whole["top_5"] <= 1

    # Judged by hand: the middle of each test image, standardised.
    arrays, _ = files.load(tmp_path / "whole" / "checkpoint.safetensors")
    network = dau_cifar10((2, 1), channels=(4, 4, 4), side=24).eval()
    own = {name.removeprefix("network."): a for name, a in arrays.items() if name.startswith("network.")}
    network.load_state_dict(own)
    test = np.frombuffer((tmp_path / "test_batch.bin").read_bytes(), np.uint8).reshape(10, 3073)
    x = test[:, 1:].reshape(10, 3, 32, 32)[:, :, 4:28, 4:28] / 255
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    scores = network(((x - mean) / deviation).astype(np.float32)).data
    ranks = (scores > scores[range(10), range(10)][:, None]).sum(1)
    assert whole["top_1"] == pytest.approx((ranks < 1).mean()) and whole["top_5"] == pytest.approx(
        (ranks < 5).mean()
    )


@pytest.mark.slow
def test_units_recipe_from_files_to_the_mean_iou_and_after_a_kill(voc, tmp_path):
    recipe = RECIPES / "dau_fcn_voc.py"
    options = ["--data", voc, "--quick", "--workers", 1, "--every", 1]
    whole = reported(start(recipe, *options, "--output", tmp_path / "whole"))
    assert whole["step"] == 4 and 0 <= whole["mean_iou"] <= whole["pixel_accuracy"] <= 1
    # In the first of two epochs: two steps, of which the first has a classifier of zeros.
    first = (tmp_path / "whole" / "log.csv").read_text().splitlines()[1].split(",")
    assert float(first[3]) == pytest.approx(np.log(21), rel=0.05)
    goes_on_after_a_kill(recipe, options, tmp_path, whole)
