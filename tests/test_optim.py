"""Optimisers against their formulas, and training that works."""

import numpy as np
import pytest

from autodiff import Tape, Variable
from autodiff import functions as F
from autodiff.layers import Linear, Sequential, Tanh
from autodiff.optim import SGD, Adam, AdamW, clip_gradients, cosine_schedule, poly_schedule, step_schedule

GRADS = [np.array([0.5, -2.0]), np.array([1.5, 0.25]), np.array([-1.0, 1.0])]


def run(make):
    p = Variable(np.array([1.0, -3.0]))
    optimizer = make([p])
    for g in GRADS:
        optimizer.step([g.copy()])
    return p.data


def test_sgd():
    p, v = np.array([1.0, -3.0]), 0
    for g in GRADS:
        v = 0.9 * v + g + 0.01 * p
        p = p - 0.1 * v
    np.testing.assert_allclose(run(lambda ps: SGD(ps, 0.1, momentum=0.9, weight_decay=0.01)), p, rtol=1e-14)


def test_sgd_nesterov():
    p, v = np.array([1.0, -3.0]), 0
    for g in GRADS:
        v = 0.9 * v + g
        p = p - 0.1 * (g + 0.9 * v)
    np.testing.assert_allclose(run(lambda ps: SGD(ps, 0.1, momentum=0.9, nesterov=True)), p, rtol=1e-14)


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam(decoupled):
    p, m, v = np.array([1.0, -3.0]), 0, 0
    for t, g in enumerate(GRADS, 1):
        if decoupled:
            p = p - 0.1 * 0.02 * p
        else:
            g = g + 0.02 * p
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        p = p - 0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
    kind = AdamW if decoupled else Adam
    np.testing.assert_allclose(
        run(lambda ps: kind(ps, 0.1, betas=(0.8, 0.95), weight_decay=0.02)), p, rtol=1e-12
    )


def test_groups_have_rates_of_their_own():
    a, b = Variable(np.zeros(2)), Variable(np.zeros(2))
    optimizer = SGD([{"parameters": [a]}, {"parameters": [b], "lr_scale": 0.5}], 1.0)
    optimizer.step([np.ones(2), np.ones(2)])
    np.testing.assert_array_equal(a.data, [-1, -1])
    np.testing.assert_array_equal(b.data, [-0.5, -0.5])


def test_groups_have_weight_decays_of_their_own():
    a, b, c = (Variable(np.ones(2)) for _ in range(3))
    groups = [{"parameters": [a]}, {"parameters": [b], "weight_decay": 0.0}, c]
    SGD(groups, 0.5, weight_decay=0.1).step([np.zeros(2)] * 3)
    np.testing.assert_allclose(a.data, 0.95)
    np.testing.assert_array_equal(b.data, 1)
    np.testing.assert_allclose(c.data, 0.95)


def test_plain_descent_keeps_no_state():
    optimizer = SGD([Variable(np.zeros(2))], 1.0)
    assert set(optimizer.state_dict()) == {"steps", "lr"}


def test_a_gradient_that_does_not_fit_moves_nothing():
    a, b = Variable(np.ones(2)), Variable(np.ones(3))
    optimizer = SGD([a, b], 1.0, momentum=0.9)
    with pytest.raises(ValueError, match=r"gradient \(2,\) for a parameter \(3,\)"):
        optimizer.step([np.ones(2), np.ones(2)])
    assert (a.data == 1).all()
    assert (b.data == 1).all()
    assert optimizer.steps == 0


def test_wrong_use():
    p = Variable(np.zeros(2))
    with pytest.raises(ValueError, match="1 gradients for 2 parameters"):
        SGD([p, Variable(np.zeros(1))], 1.0).step([np.ones(2)])
    with pytest.raises(ValueError, match="given twice"):
        SGD([p, p], 1.0)
    with pytest.raises(TypeError, match="must be Variables"):
        SGD([np.zeros(2)], 1.0)
    with pytest.raises(ValueError, match=r"gradient \(3,\) for a parameter \(2,\)"):
        SGD([p], 1.0).step([np.ones(3)])
    with pytest.raises(ValueError, match=r"a group has parameters, lr_scale, weight_decay, got \['lr', 'par"):
        SGD([{"parameters": [p], "lr": 0.1}], 1.0)
    with pytest.raises(ValueError, match="nesterov needs momentum"):
        SGD([p], 1.0, nesterov=True)


def test_parameters_that_moved_away_are_noticed():
    class Elsewhere(np.ndarray):
        """An array of another library."""

    p = Variable(np.ones(2))
    optimizer = Adam([p])
    p.data = p.data.view(Elsewhere)
    with pytest.raises(ValueError, match="moved to another device; make it after that"):
        optimizer.step([np.ones(2)])


def test_float32_stays_float32():
    for kind in (SGD, Adam, AdamW):
        p = Variable(np.ones(2, np.float32))
        data = p.data
        kind([p], 0.1).step([np.ones(2, np.float32)])
        assert p.data is data
        assert data.dtype == np.float32


@pytest.mark.parametrize(
    "kind", [lambda p: SGD(p, 0.1, momentum=0.9), lambda p: Adam(p, 0.1), lambda p: AdamW(p, 0.1)]
)
def test_resuming_gives_the_same_bits(kind):
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((6, 5))
    p = Variable(np.ones(5))
    optimizer = kind([p])
    for g in grads[:3]:
        optimizer.step([g])
    q, state = Variable(p.data.copy()), optimizer.state_dict()
    for g in grads[3:]:
        optimizer.step([g])
    resumed = kind([q])
    resumed.load_state_dict(state)
    for g in grads[3:]:
        resumed.step([g])
    np.testing.assert_array_equal(p.data, q.data)


def test_a_state_that_does_not_fit_changes_nothing():
    optimizer = Adam([Variable(np.zeros((2, 3))), Variable(np.zeros(2, np.float32))], 0.1)
    optimizer.step([np.ones((2, 3)), np.ones(2, np.float32)])
    before = optimizer.state_dict()
    state = {name: value + 1 for name, value in before.items()}
    del state["steps"]
    state["velocity.0"] = np.zeros(2)
    state["first.0"] = np.zeros((3, 2))
    state["second.1"] = np.zeros(2)
    state["lr"] = 0.3
    with pytest.raises(ValueError) as caught:
        optimizer.load_state_dict(state)
    assert str(caught.value).splitlines() == [
        "Adam.load_state_dict:",
        "  missing: steps",
        "  unexpected: velocity.0",
        "  first.0: expected (2, 3) float64, got (3, 2) float64",
        "  second.1: expected (2,) float32, got (2,) float64",
        "  lr: expected () float64, got a float",
    ]
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_clipping():
    grads = [np.array([3.0, 0.0]), np.array([[4.0]], np.float32)]
    clipped, norm = clip_gradients(grads, 1.0)
    assert norm == pytest.approx(5)
    np.testing.assert_allclose(clipped[0], [0.6, 0])
    np.testing.assert_allclose(clipped[1], [[0.8]], rtol=1e-6)
    assert [g.dtype for g in clipped] == [np.float64, np.float32]
    same, _ = clip_gradients(grads, 10.0)
    assert all(a is b for a, b in zip(same, grads))
    for broken in (np.inf, np.nan):
        grads = [np.array([broken, 1.0])]
        same, norm = clip_gradients(grads, 1.0)
        assert same[0] is grads[0]
        assert not np.isfinite(norm)


def test_schedules():
    assert [step_schedule(1.0, 10, 0.5)(i) for i in (0, 9, 10, 20)] == [1, 1, 0.5, 0.25]
    cosine = cosine_schedule(1.0, 110, warmup=10, final=0.1)
    assert [cosine(0), cosine(9), cosine(10)] == pytest.approx([0.1, 1, 1])
    assert [cosine(60), cosine(110), cosine(500)] == pytest.approx([0.55, 0.1, 0.1])
    assert [poly_schedule(1.0, 4, 2)(i) for i in (0, 2, 4, 9)] == [1, 0.25, 0, 0]


def test_training_fits_a_curve():
    rng = np.random.default_rng(0)
    x = np.linspace(-2, 2, 64)[:, None]
    target = np.sin(2 * x)
    model = Sequential(
        Linear(1, 32, rng=rng, dtype=np.float64), Tanh(), Linear(32, 1, rng=rng, dtype=np.float64)
    )
    optimizer = Adam(model.parameters(), 0.02)
    for _ in range(400):
        with Tape() as tape:
            loss = F.mse(model(x), target)
        optimizer.step(tape.gradient(loss, optimizer.parameters))
    assert float(loss) < 1e-3


TORCH = {
    "sgd": (lambda p: SGD(p, 0.1), lambda t, p: t.SGD(p, 0.1)),
    "sgd momentum": (
        lambda p: SGD(p, 0.1, momentum=0.9, weight_decay=0.03),
        lambda t, p: t.SGD(p, 0.1, momentum=0.9, weight_decay=0.03),
    ),
    "sgd nesterov": (
        lambda p: SGD(p, 0.1, momentum=0.8, weight_decay=0.03, nesterov=True),
        lambda t, p: t.SGD(p, 0.1, momentum=0.8, weight_decay=0.03, nesterov=True),
    ),
    "sgd groups": (
        lambda p: SGD(
            [{"parameters": p[:1], "lr_scale": 0.1}, {"parameters": p[1:], "weight_decay": 0.3}],
            0.1,
            momentum=0.9,
            weight_decay=0.01,
        ),
        lambda t, p: t.SGD(
            [{"params": p[:1], "lr": 0.01}, {"params": p[1:], "weight_decay": 0.3}],
            0.1,
            momentum=0.9,
            weight_decay=0.01,
        ),
    ),
    "adam": (
        lambda p: Adam(p, 0.02, betas=(0.8, 0.95), weight_decay=0.1),
        lambda t, p: t.Adam(p, 0.02, betas=(0.8, 0.95), weight_decay=0.1),
    ),
    "adam defaults": (lambda p: Adam(p), lambda t, p: t.Adam(p)),
    "adamw": (
        lambda p: AdamW(p, 0.02, betas=(0.8, 0.95), epsilon=1e-6, weight_decay=0.1),
        lambda t, p: t.AdamW(p, 0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    ),
    "adamw defaults": (lambda p: AdamW(p), lambda t, p: t.AdamW(p)),
}


@pytest.mark.parametrize(("ours", "theirs"), TORCH.values(), ids=TORCH.keys())
def test_pytorch_takes_the_same_steps(ours, theirs):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    start = [rng.standard_normal((3, 4)), rng.standard_normal(5)]
    here = [Variable(a.copy()) for a in start]
    there = [torch.tensor(a, requires_grad=True) for a in start]
    optimizer, other = ours(here), theirs(torch.optim, there)
    for _ in range(30):
        # Both go downhill on sum(sin(p) * p**2), each from where it is.
        optimizer.step([np.cos(p.data) * p.data**2 + 2 * p.data * np.sin(p.data) for p in here])
        other.zero_grad()
        sum((torch.sin(p) * p**2).sum() for p in there).backward()
        other.step()
    for a, b, first in zip(here, there, start):
        np.testing.assert_allclose(a.data, b.detach().numpy(), rtol=1e-10, atol=1e-12)
        assert np.abs(a.data - first).max() > 1e-3


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (step_schedule(0.3, 4, 0.5), lambda t, o: t.StepLR(o, 4, 0.5)),
        (cosine_schedule(0.3, 20, final=0.01), lambda t, o: t.CosineAnnealingLR(o, 20, eta_min=0.01)),
        (poly_schedule(0.3, 20, 0.9), lambda t, o: t.PolynomialLR(o, 20, power=0.9)),
        (
            cosine_schedule(0.3, 20, warmup=5),
            lambda t, o: t.SequentialLR(
                o,
                [t.LinearLR(o, 0.2, 1.0, total_iters=4), t.CosineAnnealingLR(o, 15)],
                milestones=[5],
            ),
        ),
    ],
    ids=["step", "cosine", "poly", "warmup"],
)
def test_pytorch_follows_the_same_schedules(ours, theirs):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.3)
    scheduler = theirs(torch.optim.lr_scheduler, optimizer)
    found = []
    for _ in range(20):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose([ours(step) for step in range(20)], found, rtol=1e-10, atol=1e-15)


def test_pytorch_clips_the_same():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(0)
    grads = [rng.standard_normal((3, 4)), rng.standard_normal(5)]
    clipped, norm = clip_gradients(grads, 0.7)
    there = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads]
    for p, g in zip(there, grads):
        p.grad = torch.tensor(g)
    other = float(torch.nn.utils.clip_grad_norm_(there, 0.7))
    assert norm == pytest.approx(other, rel=1e-12)
    for a, p in zip(clipped, there):
        # PyTorch adds 1e-6 to the norm that it divides by.
        np.testing.assert_allclose(a * norm / (norm + 1e-6), p.grad.numpy(), rtol=1e-10)
