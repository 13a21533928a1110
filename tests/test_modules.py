"""What modules find, refuse and show; what goes into and out of files; 16 bits in optimisers."""

import re
from collections import deque
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest

from autodiff import Tape, Variable
from autodiff import functions as F
from autodiff.files import Contents, FileError
from autodiff.layers import BatchNorm2d, Linear, MaxPool2d, Module, ReLU, Sequential
from autodiff.optim import SGD, Adam, AdamW
from autodiff.train import Trainer, minibatches


class Holder(Module):
    """A module with the attributes that it is given."""

    def __init__(self, **members):
        for name, value in members.items():
            setattr(self, name, value)


@pytest.mark.parametrize("seed", range(10))
def test_parameters_are_found_at_any_depth(seed):
    """Random trees of lists, tuples, dicts and modules; the names are the paths."""
    rng, expected = np.random.default_rng(seed), {}

    def grow(path, depth):
        kind = rng.choice(["list", "tuple", "dict", "module"]) if depth else "leaf"
        if kind == "leaf":
            expected[path] = Variable(rng.standard_normal(2))
            return expected[path]
        names = [str(i) for i in range(int(rng.integers(1, 4)))]
        if kind in ("dict", "module"):
            names = [f"n{name}" for name in names]
        members = {name: grow(f"{path}.{name}", int(rng.integers(depth))) for name in names}
        if kind == "module":
            return Holder(**members)
        return members if kind == "dict" else [list, tuple][kind == "tuple"](members.values())

    net = Holder(a=grow("a", 4), b=grow("b", 3), act=F.relu, size=3)
    found = net.named_parameters()
    assert found.keys() == expected.keys()
    assert all(found[path] is expected[path] for path in found)
    assert {id(p) for p in net.parameters()} == {id(p) for p in expected.values()}
    assert net.num_parameters == 2 * len(expected)
    assert not net.ignored()
    state = {name: value + 1 for name, value in net.state_dict().items()}
    net.load_state_dict(state)
    for name, value in net.named_parameters().items():
        np.testing.assert_array_equal(value.data, state[name])


def test_a_parameter_in_two_places_counts_once():
    v = Variable(np.ones(3))
    net = Holder(a=[v], b={"again": v})
    assert len(net.parameters()) == 1
    assert list(net.named_parameters()) == ["a.0", "b.again"]


def test_names_that_collide_and_cycles_are_refused():
    v, w = Variable(1.0), Variable(2.0)
    with pytest.raises(ValueError, match=r"two of its members are called 'd\.1'"):
        Holder(d={1: v, "1": w}).parameters()
    with pytest.raises(ValueError, match=r"two of its members are called 'd\.a\.b'"):
        Holder(d={"a": {"b": v}, "a.b": w}).state_dict()
    with pytest.raises(ValueError, match=r"two of its parameters are called 'd\.a\.w'"):
        Holder(d={"a": Holder(w=v), "a.w": w}).parameters()
    loop: list = [v]
    loop.append(loop)
    with pytest.raises(ValueError, match=r"loop\.1 is a list or dict that contains itself"):
        Holder(loop=loop).parameters()
    net = Holder(part=Holder())
    net.part.parent = [net]
    with pytest.raises(ValueError, match=r"it contains itself, as part\.parent\.0"):
        net.parameters()


HIDDEN = {
    "a set": lambda v: {v},
    "a deque": lambda v: deque([v]),
    "an object": lambda v: type("Plain", (), {})() if v is None else _plain(v),
    "a closure": lambda v: lambda x: x * v,
    "a partial": lambda v: partial(F.multiply, v),
    "a method": lambda v: Holder(v=v).parameters,
}


def _plain(v):
    plain = type("Plain", (), {})()
    plain.weight = [v]
    return plain


@pytest.mark.parametrize("way", HIDDEN)
@pytest.mark.parametrize("depth", [0, 2])
def test_what_is_not_found_is_named(way, depth):
    hidden = HIDDEN[way](Variable(1.0))
    for _ in range(depth):
        hidden = [hidden]
    net = Sequential(Holder(helper=hidden))
    (path,) = net.ignored()
    assert path == ".".join(["layers.0.helper", *["0"] * depth])
    assert re.search("is not searched, and it holds a (Variable|Module)", net.ignored()[path])
    with pytest.warns(UserWarning, match=re.escape(path)):
        assert net.parameters() == []
    assert path.removeprefix("layers.0.") in str(net)


def test_arrays_in_lists_and_members_of_classes_are_named_too():
    class Shared(Module):
        weight = Variable(1.0)

    net = Holder(scales=[np.ones(2)], shared=Shared())
    assert set(net.ignored()) == {"scales.0", "shared.weight"}
    with pytest.warns(UserWarning, match=r"shared\.weight: a Variable of the class Shared"):
        net.parameters()


@pytest.mark.parametrize("after", ["within a tape", "released", "outside"])
def test_results_that_are_kept_are_no_parameters(after):
    net = Holder(layer=Linear(2, 3, rng=0))
    names, tape = list(net.named_parameters()), Tape()
    with nullcontext() if after == "outside" else tape:
        net.last = net.layer(np.ones((1, 2), np.float32))
        net.all = {"seen": [net.last * 2.0]}
        assert list(net.named_parameters()) == list(net.state_dict()) == names
    if after == "released":
        tape.release()
    assert net.num_parameters == sum(p.size for p in net.parameters()) == 9
    assert set(net.ignored()) == {"last", "all.seen.0"}
    assert "not part of it: last (the result of a function" in str(net)


def test_loading_what_is_there():
    source, net = Sequential(Linear(2, 3, rng=0), Linear(3, 1, rng=1)), Sequential(Linear(2, 3, rng=2))
    before = net.state_dict()
    with pytest.raises(ValueError, match=r"unexpected: layers\.1\.weight"):
        net.load_state_dict(source.state_dict())
    report = net.load_state_dict(source.state_dict(), strict=False)
    assert report == ([], ["layers.1.weight", "layers.1.bias"])
    np.testing.assert_array_equal(net[0].weight.data, source[0].weight.data)
    report = source.load_state_dict(before, strict=False)
    assert report.missing == ["layers.1.weight", "layers.1.bias"]
    assert report.unexpected == []
    assert net.load_state_dict(before) == ([], [])
    with pytest.raises(
        TypeError, match=r"mapping of names to arrays, got Contents; .* files\.load\(path\)\.arrays"
    ):
        net.load_state_dict(Contents(before, {}))
    wrong = {**before, "layers.0.bias": np.ones(4, np.float32)}
    with pytest.raises(ValueError, match=r"layers\.0\.bias: expected \(3,\) float32, got \(4,\) float32"):
        net.load_state_dict(wrong, strict=False)
    net[0].bias.data.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        net.load_state_dict({name: value + 1 for name, value in before.items()})
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def trainer_of(seed):
    net = Sequential(Linear(2, 3, rng=seed), ReLU(), Linear(3, 1, rng=seed + 1))
    x = np.random.default_rng(seed).standard_normal((8, 2)).astype("f4")
    trainer = Trainer(net, Adam(net.parameters()), lambda net, x, y: F.mse(net(x), y), seed=seed)
    return trainer, minibatches(4, x, x[:, :1])


@pytest.mark.parametrize("fault", ["interrupt", "read-only", "damaged"])
def test_a_failed_load_changes_nothing(fault, tmp_path, monkeypatch):
    trainer, batches = trainer_of(0)
    trainer.fit(batches, 2, progress=False)
    trainer.save(tmp_path / "good")
    other, batches = trainer_of(5)
    other.fit(batches, 1, progress=False)
    states = other.network.state_dict(), other.optimizer.state_dict()
    shown = other.history, other.step, repr(other)

    def fail(*args):
        raise KeyboardInterrupt

    if fault == "interrupt":
        monkeypatch.setattr(other.optimizer, "load_state_dict", fail)
    elif fault == "read-only":
        other.optimizer.state[-1]["second"].flags.writeable = False
    else:
        (tmp_path / "good").write_bytes((tmp_path / "good").read_bytes()[:-5])
    with pytest.raises((KeyboardInterrupt, ValueError, FileError)):
        other.load(tmp_path / "good")
    monkeypatch.undo()
    for old, new in zip(states, (other.network.state_dict(), other.optimizer.state_dict()), strict=True):
        for name, value in old.items():
            np.testing.assert_array_equal(new[name], value)
    assert shown == (other.history, other.step, repr(other))


def test_the_trainer_names_unused_parameters_once():
    net = Holder(used=Linear(2, 1, rng=0), idle=Linear(2, 1, rng=1))
    trainer = Trainer(net, SGD(net.parameters(), 0.1), lambda net, x: F.sum(net.used(x)))
    before = net.idle.weight.data.copy()
    with pytest.warns(UserWarning, match=r"does not depend on idle\.weight, idle\.bias;") as told:
        for _ in range(3):
            trainer.train_batch(np.ones((4, 2), "f4"))
    assert len(told) == 1
    np.testing.assert_array_equal(net.idle.weight.data, before)


def test_networks_show_a_tree():
    net = Sequential(Linear(2, 3, rng=0), [MaxPool2d(2, stride=1), BatchNorm2d(3)])
    assert str(net).splitlines() == [
        "Sequential, 15 parameters",
        "  layers.0: Linear, 9 parameters: weight (3, 2), bias (3,)",
        "  layers.1.0: MaxPool2d(2, stride=1)",
        "  layers.1.1: BatchNorm2d, 6 parameters: weight (3,), bias (3,); buffers running_mean (3,), "
        "running_variance (3,)",
    ]
    assert net._repr_html_() == f"<pre>{net}</pre>"


def test_tapes_optimisers_and_trainers_show_what_they_hold():
    x = Variable(np.ones(4))
    with Tape() as tape:
        F.sum(F.square(x))
    assert repr(tape) == "Tape: 2 steps keep 32 bytes in 1 array"
    assert "square" in tape._repr_html_()
    optimizer = AdamW([x], 0.01)
    assert repr(optimizer) == (
        "AdamW(lr=0.01, betas=(0.9, 0.999), epsilon=1e-08, weight_decay=0.01): 1 parameter of 4 values, "
        "0 steps taken"
    )
    trainer, batches = trainer_of(0)
    trainer.fit(batches, 1, progress=False)
    shown = repr(trainer)
    for text in ("epoch 1, step 2", "Sequential, 13 parameters", "Adam(lr=0.001", "last: epoch 1"):
        assert text in shown
    assert trainer._repr_html_().startswith("<pre>Trainer")


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
@pytest.mark.parametrize("seed", range(3))
def test_parameters_of_16_bits_move_like_those_of_32(kind, seed):
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(20).astype("f2")
    grads = [np.where(rng.random(20) < 0.3, 0, rng.standard_normal(20) * 1e-4).astype("f2") for _ in range(5)]
    options = {"momentum": 0.9} if kind is SGD else {}
    half, single = Variable(start.copy()), Variable(start.astype("f4"))
    optimizers = [kind([v], 0.01, weight_decay=0.1, **options) for v in (half, single)]
    for g in grads:
        optimizers[0].step([g])
        optimizers[1].step([g.astype("f4")])
        assert half.dtype == np.float16
        assert all(a.dtype == np.float32 for a in optimizers[0].state[0].values())
        # Each step rounds what the same step in float32 would give.
        np.testing.assert_array_equal(half.data, single.data.astype("f2"))
        single.data = half.data.astype("f4")
