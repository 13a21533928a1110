"""The training loop: what it does, what its checkpoints hold, and that they continue to the same bits."""

import itertools
import json
import os
import sys

import numpy as np
import pytest

from autodiff import Tape, Variable, files
from autodiff import functions as F
from autodiff.layers import (
    BatchNorm2d,
    Conv2d,
    DisplacedConv,
    Dropout,
    Flatten,
    Linear,
    ReLU,
    Sequential,
    parameter_groups,
    project,
)
from autodiff.optim import SGD, Adam, AdamW, cosine_schedule
from autodiff.train import Trainer, minibatches

RNG = np.random.default_rng(0)
X = RNG.standard_normal((22, 1, 6, 6)).astype(np.float32)
LABELS = (X.mean((1, 2, 3)) > 0).astype(np.int64)


def network(seed=0, bits=np.random.PCG64):
    rng = np.random.default_rng(seed)
    return Sequential(
        Conv2d(1, 3, 3, rng=rng),
        BatchNorm2d(3),
        ReLU(),
        Dropout(0.2, rng=np.random.Generator(bits(5))),
        Flatten(),
        Linear(108, 2, rng=rng),
    )


def cross_entropy(net, x, labels):
    return F.cross_entropy(net(x), labels)


def trainer(seed=0, kind=Adam, **options):
    net = network(seed, options.pop("bits", np.random.PCG64))
    return Trainer(net, kind(net.parameters(), 0.01), cross_entropy, seed=3, **options)


def batches():
    """22 rows in batches of 5: the last one has two."""
    return minibatches(5, X, LABELS)


def everything(t):
    """All that a training consists of, in comparable form."""
    arrays = {**t.network.state_dict(), **{f"optimizer.{k}": v for k, v in t.optimizer.state_dict().items()}}
    generators = {name: str(g.bit_generator.state) for name, g in t.network.generators().items()}
    counts = (t.epoch, t.batch, t.step, t.seed, t._total)
    return {name: a.tobytes() for name, a in arrays.items()}, generators, counts, t.history


def test_units_are_within_their_bound_for_whoever_looks():
    """A large step leads them out: evaluation, checkpoint and the next step see them brought back."""
    layer = DisplacedConv(1, 2, bound=1.25, displacement_rate=1e4, rng=0)
    reach = []

    def seen(*_):
        reach.append(float(abs(layer.displacement.data).max()))
        return {}

    def loss(net, x):
        seen()
        return F.sum(F.square(net(x)))

    t = Trainer(layer, SGD(parameter_groups(layer), 1.0), loss, after_step=project)
    t.fit(minibatches(11, X), 2, evaluate=seen, progress=False)
    assert len(reach) == 6
    assert reach[1:] == [1.25] * 5  # it began within


class Interrupted(Exception):
    pass


def interrupted_after(steps):
    """Batches that raise when the training asks for one too many, in whichever epoch that is."""
    served = itertools.count()

    def draw(rng):
        for batch in batches()(rng):
            if next(served) == steps:
                raise Interrupted
            yield batch

    return draw


def test_an_epoch_is_the_loop_of_the_docstring():
    t = trainer(schedule=cosine_schedule(0.02, 10))
    t.fit(batches(), 2, progress=False)

    net = network()
    optimizer, step, means = Adam(net.parameters(), 0.01), 0, []
    for epoch in range(2):
        losses = []
        for x, labels in batches()(np.random.default_rng([3, epoch])):
            with Tape() as tape:
                value = cross_entropy(net, x, labels)
            optimizer.lr = cosine_schedule(0.02, 10)(step)
            optimizer.step(tape.gradient(value, optimizer.parameters))
            losses.append(float(value))
            step += 1
        means.append(np.mean(losses))
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, t.network.state_dict()[name])
    assert [line["loss"] for line in t.history] == pytest.approx(means, rel=1e-12)
    assert [(line["epoch"], line["step"]) for line in t.history] == [(1, 5), (2, 10)]
    assert t.history[-1]["lr"] == cosine_schedule(0.02, 10)(9)


def test_it_learns():
    t = trainer()
    t.fit(batches(), 30, progress=False)
    assert t.history[-1]["loss"] < 0.2 * t.history[0]["loss"]


@pytest.mark.parametrize("stop", [5, 10, 3, 7, 14])
@pytest.mark.parametrize("kind", [Adam, AdamW, lambda p, lr: SGD(p, lr, momentum=0.9)])
def test_resumed_training_gives_the_same_bits(tmp_path, stop, kind):
    """Stopped at the end of an epoch, and within one."""
    path = tmp_path / "run.safetensors"
    options = {"kind": kind, "schedule": cosine_schedule(0.02, 15), "max_norm": 0.5}
    whole = trainer(**options)
    whole.fit(batches(), 3, progress=False)

    first = trainer(**options)
    with pytest.raises(Interrupted):
        first.fit(interrupted_after(stop), 3, checkpoint=path, every=1, progress=False)
    resumed = trainer(seed=99, **options)  # its own weights are others
    resumed.load(path)
    assert resumed.step == stop
    resumed.fit(batches(), 3, progress=False)
    assert everything(resumed) == everything(whole)


def test_an_interruption_costs_at_most_the_steps_since_the_last_checkpoint(tmp_path):
    path = tmp_path / "a"
    for every, expected in ((None, 5), (3, 9)):
        with pytest.raises(Interrupted):
            trainer().fit(interrupted_after(9), 3, checkpoint=path, every=every, progress=False)
        t = trainer()
        t.load(path)
        assert t.step == expected


def test_each_part_of_a_checkpoint_is_needed(tmp_path):
    """Without any one of them, the resumed training takes another course: the comparison above can fail."""
    path = tmp_path / "a"
    whole = trainer(schedule=None)
    whole.fit(batches(), 1, progress=False)
    whole.save(path)
    whole.fit(batches(), 2, progress=False)

    def spoil_optimizer(t):
        t.optimizer.state[0]["first"][...] = 0

    def spoil_count(t):
        t.optimizer.steps = 0

    def spoil_average(t):
        t.network[1].running_mean[...] = 0

    def spoil_generator(t):
        t.network[3].rng.random()

    def spoil_seed(t):
        t.seed += 1

    for spoil in (None, spoil_optimizer, spoil_count, spoil_average, spoil_generator, spoil_seed):
        t = trainer(seed=99)
        t.load(path)
        if spoil:
            spoil(t)
        t.fit(batches(), 2, progress=False)
        same = everything(t)[0] == everything(whole)[0]
        assert same == (spoil is None), spoil


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_every_kind_of_generator_is_kept(tmp_path, kind):
    bits = getattr(np.random, kind)
    one, other = trainer(bits=bits), trainer(bits=bits)
    one.network[3].rng.integers(0, 9, 3, dtype=np.uint8)  # leaves half a word unused, which is state too
    one.save(tmp_path / "a")
    other.load(tmp_path / "a")
    np.testing.assert_array_equal(
        one.network[3].rng.integers(0, 2**31, 700, dtype=np.uint32),
        other.network[3].rng.integers(0, 2**31, 700, dtype=np.uint32),
    )


def test_saving_changes_nothing_and_is_repeatable(tmp_path):
    t = trainer()
    t.fit(batches(), 1, progress=False)
    before = everything(t)
    t.save(tmp_path / "a")
    t.save(tmp_path / "b")
    assert everything(t) == before
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_evaluation_sees_the_network_in_evaluation_mode():
    t, modes = trainer(), []

    def evaluate(net):
        modes.extend(module.training for _, module in net.modules())
        return {"accuracy": np.float32(0.5), "epoch so far": len(modes)}

    t.fit(batches(), 2, evaluate=evaluate, progress=False)
    assert modes == [False] * 14
    assert not t.network.training
    assert [line["accuracy"] for line in t.history] == [0.5, 0.5]
    assert type(t.history[0]["accuracy"]) is float
    assert trainer().network.training


def test_gradients_are_clipped():
    free, bound = trainer(kind=SGD), trainer(kind=SGD, max_norm=1e-6)
    start = np.concatenate([p.data.ravel() for p in free.network.parameters()])
    for t in (free, bound):
        t.train_batch(X, LABELS)
    moves = [
        np.linalg.norm(np.concatenate([p.data.ravel() for p in t.network.parameters()]) - start)
        for t in (free, bound)
    ]
    assert moves[0] > 1e-4
    assert moves[1] < 1e-7


@pytest.mark.parametrize("factor", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops_before_the_step(factor):
    t = trainer()
    t.loss = lambda net, x, labels: cross_entropy(net, x, labels) * factor
    before = [p.data.copy() for p in t.network.parameters()]
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf|-inf) at step 0"):
        t.fit(batches(), 1, progress=False)
    for p, value in zip(t.network.parameters(), before):
        np.testing.assert_array_equal(p.data, value)
    assert t.optimizer.steps == 0


def test_a_gradient_that_is_not_finite_stops_before_the_step():
    w = Variable(np.zeros(2))
    net = Sequential()
    net.w = w
    t = Trainer(net, SGD([w], 0.1), lambda net: F.sum(F.sqrt(net.w)), max_norm=1.0)
    with (
        pytest.raises(FloatingPointError, match="the gradient has norm inf at step 0"),
        np.errstate(all="ignore"),
    ):
        t.train_batch()
    assert (w.data == 0).all()


def test_an_epoch_without_batches_is_an_error():
    with pytest.raises(ValueError, match="an epoch without batches"):
        trainer().fit(lambda rng: [], 1, progress=False)


def test_progress_prints_a_line_per_epoch(capsys, monkeypatch):
    trainer().fit(batches(), 2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:6:2] for line in lines] == [["epoch", "step", "lr"]] * 2
    monkeypatch.setitem(sys.modules, "tqdm", None)  # without the package too
    trainer().fit(batches(), 1)
    assert capsys.readouterr().out.splitlines() == lines[:1]
    trainer().fit(batches(), 1, progress=False)
    assert capsys.readouterr().out == ""


def rewritten(path, **changes):
    """The checkpoint with other values in its state; a value of None removes the entry."""
    arrays, metadata = files.load(path)
    state = json.loads(metadata["state"])
    state |= changes
    files.save(
        path, arrays, {**metadata, "state": json.dumps({k: v for k, v in state.items() if v is not None})}
    )


GENERATOR = "layers.3.rng"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": -1}, "counts must be whole numbers"),
        ({"step": 1.5}, "counts must be whole numbers"),
        ({"batch": True}, "counts must be whole numbers"),
        ({"seed": None}, "KeyError: 'seed'"),
        ({"total": "1"}, "total a float"),
        ({"history": {}}, "history must be a list of dicts"),
        ({"history": [3]}, "history must be a list of dicts"),
        ({"optimizer": "SGD"}, "it was trained by SGD, this is Adam"),
        ({"generators": {}}, r"generators \[\], but the network has \['layers.3.rng'\]"),
        ({"generators": 3}, "TypeError"),
        ({"generators": {GENERATOR: 3}}, "TypeError"),
        ({"generators": {GENERATOR: {"bit_generator": "MT19937"}}}, "PCG64"),
        (
            {"generators": {GENERATOR: {"bit_generator": "PCG64", "state": {"state": -1, "inc": 2**200}}}},
            "OverflowError",
        ),
    ],
)
def test_a_checkpoint_with_a_bad_state_changes_nothing(tmp_path, changes, message):
    path = tmp_path / "a"
    saved = trainer()
    saved.fit(batches(), 1, progress=False)
    saved.save(path)
    rewritten(path, **changes)
    t = trainer(seed=1)
    t.fit(batches(), 2, progress=False)
    before = everything(t)
    with pytest.raises(files.FileError, match=message) as caught:
        t.load(path)
    assert str(caught.value).startswith(f"{path}: has no valid state of a training")
    assert everything(t) == before


@pytest.mark.parametrize("state", ["", "[]", "3", "null", "{" * 10_000, "[" * 100_000, '{"seed": 0}'])
def test_a_state_that_is_no_state(tmp_path, state):
    t = trainer()
    t.save(tmp_path / "a")
    arrays, metadata = files.load(tmp_path / "a")
    files.save(tmp_path / "a", arrays, {**metadata, "state": state})
    before = everything(t)
    with pytest.raises(files.FileError, match="no valid state of a training"):
        t.load(tmp_path / "a")
    assert everything(t) == before


def test_a_checkpoint_of_another_training_changes_nothing(tmp_path):
    path = tmp_path / "a"
    other = Sequential(Linear(3, 2, rng=0))
    Trainer(other, SGD(other.parameters(), 0.1, momentum=0.9), cross_entropy).save(path)
    t = trainer()
    before = everything(t)
    with pytest.raises(files.FileError, match="is of another training") as caught:
        t.load(path)
    faults = str(caught.value).splitlines()[1:]
    assert "  missing: network.layers.5.weight" in faults
    assert "  missing: optimizer.first.0" in faults
    assert "  unexpected: optimizer.velocity.0" in faults
    assert "  network.layers.0.weight: expected (3, 1, 3, 3) float32, got (2, 3) float32" in faults
    assert everything(t) == before

    files.save(path, t.network.state_dict())
    with pytest.raises(files.FileError, match="is no checkpoint: its kind is None"):
        t.load(path)
    assert everything(t) == before


def test_a_checkpoint_cut_short_anywhere_changes_nothing(tmp_path):
    path = tmp_path / "a"
    t = trainer()
    t.save(path)
    content = path.read_bytes()
    before = everything(t)
    for cut in np.linspace(0, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:cut])
        with pytest.raises(files.FileError):
            t.load(path)
    assert everything(t) == before
    assert os.listdir(tmp_path) == ["a"]


def test_minibatches_take_every_row_once_in_an_order_of_the_seed():
    rows = np.arange(10)
    draw = minibatches(4, rows, rows * 2)
    first, second = list(draw(np.random.default_rng(0))), list(draw(np.random.default_rng(0)))
    assert [len(a) for a, _ in first] == [4, 4, 2]
    assert sorted(np.concatenate([a for a, _ in first])) == list(range(10))
    for (a, b), (c, _) in zip(first, second):
        np.testing.assert_array_equal(b, 2 * a)
        np.testing.assert_array_equal(a, c)
    other = np.concatenate([a for a, _ in draw(np.random.default_rng(1))])
    assert (other != np.concatenate([a for a, _ in first])).any()
    plain = minibatches(4, rows, shuffle=False)(np.random.default_rng(0))
    np.testing.assert_array_equal(np.concatenate([a for (a,) in plain]), rows)


@pytest.mark.parametrize(("size", "arrays"), [(0, [X]), (2, []), (2, [X, LABELS[1:]])])
def test_minibatches_refuse_what_does_not_fit(size, arrays):
    with pytest.raises(ValueError, match="minibatches: size"):
        minibatches(size, *arrays)
