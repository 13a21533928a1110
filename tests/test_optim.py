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
    with pytest.raises(ValueError, match="misshapen: steps"):
        resumed.load_state_dict({k: v for k, v in state.items() if k != "steps"})


def test_clipping():
    grads = [np.array([3.0, 0.0]), np.array([[4.0]], np.float32)]
    clipped, norm = clip_gradients(grads, 1.0)
    assert norm == pytest.approx(5)
    np.testing.assert_allclose(clipped[0], [0.6, 0])
    np.testing.assert_allclose(clipped[1], [[0.8]], rtol=1e-6)
    assert [g.dtype for g in clipped] == [np.float64, np.float32]
    same, _ = clip_gradients(grads, 10.0)
    assert all(a is b for a, b in zip(same, grads))


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
