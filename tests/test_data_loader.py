"""The loader: the same batches in the same order with any number of workers, and errors that say where."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pickle import PicklingError
from types import SimpleNamespace

import numpy as np
import pytest
from _loader_samples import Homeless, Troubled, Watched, augmented, numbered, wait_until

from autodiff import functions as F
from autodiff.data import Loader
from autodiff.data import loader as loader_module
from autodiff.files import FileError
from autodiff.layers import Linear
from autodiff.optim import SGD
from autodiff.train import Trainer


def flat(batches):
    """Batches in terms that can be compared."""
    return [
        {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in batch.items()}
        for batch in batches
    ]


def numbers(loader, epoch):
    return [batch["number"].tolist() for batch in loader.epoch(epoch)]


def test_batches_without_workers():
    loader = Loader(numbered(7), 3, shuffle=False)
    assert len(loader) == 3 and numbers(loader, 0) == [[0, 1, 2], [3, 4, 5], [6]] == numbers(loader, 5)
    batch = next(loader.epoch(0))
    assert batch["image"].shape == (3, 3, 8, 9) and batch["image"].dtype == np.float32
    assert batch["labels"].shape == (3, 8, 9) and batch["name"] == ["s0", "s1", "s2"]
    short = Loader(numbered(7), 3, shuffle=False, drop_last=True)
    assert len(short) == 2 and numbers(short, 0) == [[0, 1, 2], [3, 4, 5]]
    number, image = next(Loader(numbered(7), 3, shuffle=False, fields=["number", "image"]).epoch(0))
    assert number.tolist() == [0, 1, 2] and image.shape == (3, 3, 8, 9)


def test_epochs_differ_and_come_again():
    loader = Loader(numbered(20), 4, transform=augmented, seed=3)
    first = flat(loader.epoch(0))
    assert (
        flat(loader.epoch(0)) == first == flat(Loader(numbered(20), 4, transform=augmented, seed=3).epoch(0))
    )
    assert sorted(n for batch in first for n in batch["number"]) == list(range(20))
    orders = [numbers(loader, epoch) for epoch in range(4)]
    orders += [numbers(Loader(numbered(20), 4, seed=4), 0)]
    assert len({str(order) for order in orders}) == 5
    # A sample has the same random numbers wherever it comes, but others in each epoch.
    drawn = [
        {
            n: d
            for batch in loader.epoch(epoch)
            for n, d in zip(batch["number"].tolist(), batch["drawn"].tolist())
        }
        for epoch in (0, 1)
    ]
    other = Loader(numbered(20), 7, transform=augmented, seed=3)
    again = {n: d for b in other.epoch(0) for n, d in zip(b["number"].tolist(), b["drawn"].tolist())}
    assert again == drawn[0]
    assert not set(drawn[0].values()) & set(drawn[1].values()) and len(set(drawn[0].values())) == 20


@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_an_epoch(shuffle):
    count, ranks = 23, 3
    loaders = [Loader(numbered(count), 2, shuffle=shuffle, rank=rank, ranks=ranks) for rank in range(ranks)]
    for epoch in range(3):
        shares = [[n for batch in numbers(loader, epoch) for n in batch] for loader in loaders]
        assert [len(share) for share in shares] == [7, 7, 7] and {len(loader) for loader in loaders} == {4}
        assert len({n for share in shares for n in share}) == 21


def test_a_trainer_takes_its_batches():
    layer = Linear(1, 1, rng=0)
    samples = [{"x": np.float32([i / 8]), "y": np.float32([3 * i / 8 - 1])} for i in range(16)]
    trainer = Trainer(layer, SGD(layer.parameters(), 0.3), lambda net, x, y: F.mse(net(x), y))
    trainer.fit(Loader(samples, 4, fields=["x", "y"]), 60, progress=False)
    assert abs(layer.weight.data[0, 0] - 3) < 0.1 and abs(layer.bias.data[0] + 1) < 0.1


def test_boxes_are_lists_and_other_shapes_must_agree():
    samples = [
        {"boxes": np.zeros((n, 4)), "box_labels": np.zeros(n, int), "image": np.zeros((3, 2, n))}
        for n in (1, 2)
    ]
    batch = next(Loader(samples, 2, shuffle=False, fields=["boxes", "box_labels"]).epoch(0))
    assert [b.shape for b in batch[0]] == [(1, 4), (2, 4)] and [b.shape for b in batch[1]] == [(1,), (2,)]
    message = r"'image' must have .* got \(3, 2, 1\) float64 of sample 0 and \(3, 2, 2\) float64 of sample 1"
    with pytest.raises(ValueError, match=message):
        next(Loader(samples, 2, shuffle=False).epoch(0))
    with pytest.raises(KeyError, match="sample 1 has no 'a'"):
        next(Loader([{"a": 1}, {"b": 1}], 2, shuffle=False).epoch(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be an int of at least 1, got 0"),
        ({"size": 2.0}, "size must be an int"),
        ({"workers": -1}, "workers must be an int of at least 0"),
        ({"ahead": 0}, "ahead must be an int of at least 1"),
        ({"rank": 2, "ranks": 2}, "rank must be less than ranks, got 2 of 2"),
        ({"ranks": 8}, "7 samples give no batch of 2 to each of 8 ranks"),
        ({"size": 8, "drop_last": True}, "7 samples give no batch of 8 to each of 1 ranks"),
        ({"samples": []}, "samples must not be empty"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Loader(**{"samples": numbered(7), "size": 2, **options})


def test_an_error_names_its_sample():
    with pytest.raises(FileError, match=r"00005.png: is cut short") as caught:
        list(Loader(Troubled("file"), 4, shuffle=False).epoch(0))
    assert caught.value.__notes__ == ["Loader: at sample 5, number 5 of the data set"]


def test_samples_and_what_a_transform_returns_must_be_dicts():
    with pytest.raises(TypeError, match="Loader: samples must be dicts, got ndarray"):
        next(Loader(np.zeros((4, 2)), 2).epoch(0))
    with pytest.raises(TypeError, match="Loader: transform must return a dict, got NoneType") as caught:
        next(Loader(numbered(4), 2, transform=lambda sample, rng: None, shuffle=False).epoch(0))
    assert caught.value.__notes__ == ["Loader: at name 0, number 0 of the data set"]


def test_wrong_fields_and_epochs():
    with pytest.raises(
        TypeError, match=r"fields must be a sequence of names, such as \['image'\], got 'image'"
    ):
        Loader(numbered(4), 2, fields="image")
    for number in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match=r"Loader\.epoch: number must be an int of at least 0"):
            Loader(numbered(4), 2).epoch(number)


def test_no_sample_has_the_random_numbers_of_the_order():
    drawn = {}

    def draw(sample, rng):
        drawn[sample["number"]] = rng.integers(2**62)
        return sample

    for batches, seed in (
        (Loader(numbered(5), 5, transform=draw, seed=3).epoch(4), (3, 4)),
        (Loader(numbered(5), 5, transform=draw)(np.random.default_rng(2)), None),
    ):
        list(batches)
        seed = seed or (int(np.random.default_rng(2).integers(2**63)),)
        assert len(set(drawn.values())) == 5
        assert np.random.default_rng(seed).integers(2**62) not in drawn.values()


class Crew:
    """Workers that never end by themselves; time passes while one waits for them."""

    def __init__(self, count):
        self.now, self.waited, self.killed = 0.0, 0.0, 0
        self.workers = [SimpleNamespace(near=self, far=self, process=self) for _ in range(count)]
        self.pid = 1

    def close(self):
        pass

    def join(self, timeout=0.0):
        self.now += timeout
        self.waited += timeout

    def is_alive(self):
        return True

    def kill(self):
        self.killed += 1


def test_workers_that_do_not_end_are_waited_for_together(monkeypatch):
    crew = Crew(8)
    monkeypatch.setattr(loader_module.time, "monotonic", lambda: crew.now)
    loader_module._end(crew.workers, os.getpid())
    assert crew.killed == 8 and crew.waited <= loader_module.PATIENCE
    # Those of a process of which this is a fork are its own affair.
    crew = Crew(8)
    loader_module._end(crew.workers, os.getpid() + 1)
    assert crew.killed == 0 and crew.waited == 0


def test_a_signal_without_a_name_is_told_by_its_number():
    process = SimpleNamespace(join=lambda timeout: None, exitcode=-(signal.SIGRTMIN + 3), pid=7)
    worker = SimpleNamespace(process=process, number=1, ready=False, expected=[])
    message = loader_module._Worker._obituary(worker, None)
    assert message.startswith(f"Loader: worker 1 (process 7) was killed by signal {signal.SIGRTMIN + 3} (")


# ---- with workers


@pytest.mark.slow
def test_workers_change_neither_batches_nor_order():
    alone = Loader(numbered(30), 4, transform=augmented, seed=1)
    with Loader(numbered(30)[::-1][::-1], 4, transform=augmented, seed=1, workers=3) as loader:
        for epoch in (0, 1):
            assert flat(loader.epoch(epoch)) == flat(alone.epoch(epoch))
        rng = np.random.default_rng
        assert flat(loader(rng(5))) == flat(alone(rng(5)))
        # An epoch that is left early, and two at once.
        epoch = loader.epoch(0)
        next(epoch)
        with pytest.raises(RuntimeError, match="its workers are at another epoch"):
            next(loader.epoch(1))
        epoch.close()
        assert flat(loader.epoch(1)) == flat(alone.epoch(1))
    assert not [child for child in multiprocessing.active_children() if child.name.startswith("loader-")]


@pytest.mark.slow
def test_workers_wait_until_batches_are_taken(tmp_path):
    with Loader(Watched(tmp_path, 60), 2, shuffle=False, workers=2, ahead=3) as loader:
        epoch = loader.epoch(0)
        first = next(epoch)
        # Two workers with three batches of two each, of which one is taken and another may be ordered for it.
        assert wait_until(lambda: len(os.listdir(tmp_path)) >= 12)
        time.sleep(0.5)
        assert len(os.listdir(tmp_path)) <= 14
        rest = list(epoch)
    assert [n for batch in (first, *rest) for n in batch["number"].tolist()] == list(range(60))
    assert len({n for batch in (first, *rest) for n in batch["process"].tolist()} - {os.getpid()}) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("file", FileError, r"a folder/00005\.png: is cut short"),
        ("strange", RuntimeError, "Strange: strange 1 2\nLoader: at sample 5"),
        (
            "killed",
            RuntimeError,
            r"worker 0 \(process \d+\) was killed by signal 9 \(SIGKILL\) at batch 2: sample 4, sample 5",
        ),
        ("exits", RuntimeError, r"worker 0 \(process \d+\) ended with code 3 at batch 2: sample 4, sample 5"),
        ("shape", ValueError, r"got \(2, 2\) float64 of sample 4 and \(3, 3\) float64 of sample 5"),
    ],
)
def test_trouble_in_a_worker_comes_when_its_batch_is_due(kind, error, message):
    with Loader(Troubled(kind), 2, shuffle=False, workers=2) as loader:
        epoch = loader.epoch(0)
        assert next(epoch)["number"].tolist() == [0, 1]
        assert next(epoch)["number"].tolist() == [2, 3]
        with pytest.raises(error, match=message) as caught:
            next(epoch)
        if error is FileError:
            assert caught.value.__notes__[0] == "Loader: at sample 5, number 5 of the data set"
            assert "_loader_samples.py" in caught.value.__notes__[1]
        assert not [child for child in multiprocessing.active_children() if child.name.startswith("loader-")]


def test_what_cannot_be_sent_to_workers_says_so():
    with Loader(numbered(4), 2, transform=lambda sample, rng: sample, workers=1) as loader:
        with pytest.raises((AttributeError, TypeError, PicklingError), match=r"lambda|pickle"):
            next(loader.epoch(0))
        assert not [child for child in multiprocessing.active_children() if child.name.startswith("loader-")]


@pytest.mark.slow
def test_a_loader_that_is_closed_ends_its_epoch():
    with Loader(numbered(8), 2, shuffle=False, workers=1) as loader:
        epoch = loader.epoch(0)
        next(epoch)
        loader.close()
        assert numbers(loader, 0) == [[0, 1], [2, 3], [4, 5], [6, 7]]
        other = loader.epoch(1)
        next(other)
        with pytest.raises(RuntimeError, match="Loader: was closed before batch 1 of this epoch"):
            next(epoch)
        assert len(list(other)) == 3  # whose workers go on
    epoch = loader.epoch(0)
    last = [next(epoch) for _ in range(4)][-1]
    loader.close()
    assert last["number"].tolist() == [6, 7] and next(epoch, None) is None


@pytest.mark.slow
def test_workers_that_cannot_begin_say_why(tmp_path):
    with Loader(Homeless(), 2, workers=1) as loader, pytest.raises(OSError, match="no such disk here"):
        next(loader.epoch(0))
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from autodiff.data import Loader\n"
        "samples = [{'number': 0}]\n"
        "with Loader(samples, 1, workers=1) as loader:\n"
        "    print(list(loader.epoch(0)))\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert ended.returncode == 1
    message = r"ended with code 1 before its first batch; .* belongs under if __name__ == '__main__':"
    assert re.search(message, ended.stderr.splitlines()[-1])
