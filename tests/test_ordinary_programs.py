"""Programs as people write them: each gets the gradient that its formula has."""

import copy
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from autodiff import Tape, Variable, checkpoint, grad, stop_gradient, value_and_grad
from autodiff import functions as F
from autodiff.layers import Dropout, Linear, Module, Sequential, Tanh
from autodiff.optim import SGD, Adam


def network(*widths, seed=0):
    rng = np.random.default_rng(seed)
    layers = [Linear(a, b, rng=rng, dtype=np.float64) for a, b in pairwise(widths)]
    return Sequential(*(part for layer in layers for part in (layer, Tanh())))


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def slope(f, parameter, step=1e-5):
    """Central differences by every element of a parameter, of a function that gives a plain number."""
    found, flat = np.zeros(parameter.shape), parameter.data.reshape(-1)
    for i, value in enumerate(flat.copy()):
        flat[i] = value + step
        ahead = f()
        flat[i] = value - step
        found.flat[i] = (ahead - f()) / (2 * step)
        flat[i] = value
    return found


def check(f, grads, parameters):
    for gradient, parameter in zip(grads, parameters, strict=True):
        np.testing.assert_allclose(gradient, slope(f, parameter), rtol=1e-6, atol=1e-8)


def test_metrics_are_read_within_the_block():
    net, x = network(3, 2), draw(1, 5, 3)
    log = []
    with Tape() as tape:
        y = net(x)
        loss = F.mean(F.square(y))
        log.append((loss.item(), f"{loss:.3f}", bool(loss < 9), int((y > 0).sum()), str(loss)))
        best = min(loss, Variable(7.0), key=lambda v: v.item())
    assert best is loss
    assert log[0][0] == loss.data
    check(lambda: (net(x).data ** 2).mean(), tape.gradient(loss, net.parameters()), net.parameters())


def test_gradients_are_accumulated_over_batches():
    net, batches = network(3, 4, 2), [draw(i, 5, 3) for i in range(4)]
    sums, total = [0.0] * len(net.parameters()), 0.0
    for x in batches:
        with Tape() as tape:
            loss = F.sum(F.square(net(x)))
        sums = [a + g for a, g in zip(sums, tape.gradient(loss, net.parameters()))]
        total += loss
    assert total.item() == sum((net(x).data ** 2).sum() for x in batches)
    check(lambda: sum((net(x).data ** 2).sum() for x in batches), sums, net.parameters())


def test_moving_averages_of_weights():
    net, x = network(3, 2), draw(1, 5, 3)
    average, optimizer = copy.deepcopy(net), SGD(net.parameters(), 0.1)
    history = [[p.data.copy() for p in net.parameters()]]
    for _ in range(5):
        with Tape() as tape:
            loss = F.mse(net(x), stop_gradient(average(x)) + 1.0)
        optimizer.step(tape.gradient(loss, net.parameters()))
        for a, p in zip(average.parameters(), net.parameters(), strict=True):
            a.data = 0.9 * a.data + 0.1 * p.data
        history.append([p.data.copy() for p in net.parameters()])
    for i, a in enumerate(average.parameters()):
        expected = history[0][i]
        for values in history[1:]:
            expected = 0.9 * expected + 0.1 * values[i]
        np.testing.assert_array_equal(a.data, expected)


def test_a_frozen_extractor_outside_the_tape():
    extractor, head, x = network(3, 4, seed=1), network(4, 2, seed=2), draw(1, 5, 3)
    features = extractor(x)
    with Tape() as tape:
        loss = F.sum(F.square(head(features)))
    grads = tape.gradient(loss, head.parameters(), keep=True)
    check(lambda: (head(features.data).data ** 2).sum(), grads, head.parameters())
    with pytest.raises(ValueError, match=r"'(transpose|matmul|add|tanh)' that was not computed.*source \d"):
        tape.gradient(loss, extractor.parameters())


def test_functional_updates():
    """w = w - lr * g makes a new Variable each time, which is the source of the next gradient."""
    x, w = draw(1, 5, 3), Variable(draw(2, 3, 2))
    expected, before = w.data.copy(), w
    for _ in range(4):
        with Tape() as tape:
            loss = F.sum(F.square(F.matmul(x, w)))
        w = w - 0.01 * tape.gradient(loss, w)
        expected = expected - 0.01 * 2 * x.T @ (x @ expected)
    np.testing.assert_allclose(w.data, expected, rtol=1e-12)
    with Tape() as tape:
        loss = F.sum(w)
    with pytest.raises(ValueError, match=r"'subtract' that was not computed on this tape"):
        tape.gradient(loss, before)


def test_parameters_computed_where_they_are_made():
    class Scaled(Module):
        def __init__(self):
            self.first, self.second = Variable(draw(1, 3)) * 0.1, Variable(draw(2, 3)) * 0.2

        def forward(self, x):
            return x * self.first + self.second

    net = Scaled()
    with Tape() as tape:
        loss = F.sum(net(np.full(3, 2.0)))
    first, second = tape.gradient(loss, net.parameters())
    np.testing.assert_array_equal(first, [2, 2, 2])
    np.testing.assert_array_equal(second, [1, 1, 1])


def test_recurrence_cut_into_pieces():
    """Each piece starts from the state of the one before, as a constant."""
    w, u, state = Variable(draw(1, 3, 3) * 0.3), Variable(draw(2, 2, 3)), np.zeros((4, 3))
    pieces = [draw(10 + i, 6, 4, 2) for i in range(3)]
    for xs in pieces:
        start = stop_gradient(state)

        def piece(xs=xs, start=start):
            h = start
            for x in xs:
                h = F.tanh(F.matmul(h, w) + F.matmul(x, u))
            return h

        with Tape() as tape:
            state = piece()
            loss = F.sum(F.square(state))
        check(lambda piece=piece: (piece().data ** 2).sum(), tape.gradient(loss, [w, u]), [w, u])
    with Tape() as tape:
        loss = F.sum(F.matmul(state, w))  # without stop_gradient
    with pytest.raises(ValueError, match=r"'tanh' that was released.*stop_gradient"):
        tape.gradient(loss, w)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("way", ["grad", "tape", "inner tape"])
def test_learning_to_learn(steps, way):
    """The gradient of the loss after some steps of descent, by the weights before them (MAML)."""
    w, x, y = Variable(draw(1, 3)), draw(2, 4, 3), draw(3, 4)

    def loss_of(w):
        return F.mean(F.square(F.tanh(F.matmul(x, w)) - y))

    def adapted():
        fast = w * 1.0
        for _ in range(steps):
            if way == "grad":
                step = grad(loss_of)(fast)
            elif way == "tape":
                step = tape.gradient(loss_of(fast), fast)
            else:
                with Tape() as inner:
                    loss = loss_of(fast)
                step = inner.gradient(loss, fast)
            fast = fast - 0.3 * step
        return loss_of(fast)

    with Tape() as tape:
        loss = adapted()
    gradient = tape.gradient(loss, w)

    def plain():
        fast = w.data
        for _ in range(steps):
            t = np.tanh(x @ fast)
            fast = fast - 0.3 * x.T @ (2 * (t - y) * (1 - t**2)) / len(y)
        return ((np.tanh(x @ fast) - y) ** 2).mean()

    check(plain, [gradient], [w])


@pytest.mark.parametrize("way", ["own block", "inner tape", "grad"])
def test_gradient_penalties(way):
    critic, x = network(3, 4, 1), Variable(draw(1, 5, 3))
    with Tape() as tape:
        value = F.sum(critic(x))
        if way == "own block":
            g = tape.gradient(value, x)
        elif way == "inner tape":
            with Tape() as inner:
                again = F.sum(critic(x))
            g = inner.gradient(again, x)
        else:
            g = grad(lambda x: F.sum(critic(x)))(x)
        loss = value + F.sum(F.square(g))

    def plain():
        t1, w1 = np.tanh(critic[0](x.data).data), critic[0].weight.data
        t2, w2 = np.tanh(critic[2](t1).data), critic[2].weight.data
        g = ((1 - t2**2) @ w2 * (1 - t1**2)) @ w1
        return t2.sum() + (g**2).sum()

    check(plain, tape.gradient(loss, critic.parameters()), critic.parameters())


def test_generator_and_discriminator():
    """One pass of the generator for both losses, on one tape."""
    maker, judge, z, real = network(2, 3, seed=1), network(3, 1, seed=2), draw(1, 4, 2), draw(2, 4, 3)

    def losses(fake, stopped):
        return F.mean(F.square(judge(fake) - 1.0)), F.mean(
            F.square(judge(real) - 1.0) + F.square(judge(stopped))
        )

    with Tape() as tape:
        fake = maker(z)
        loss_maker, loss_judge = losses(fake, stop_gradient(fake))
    by_maker = tape.gradient(loss_maker, maker.parameters(), keep=True)
    by_judge = tape.gradient(loss_judge, judge.parameters())
    check(lambda: losses(maker(z).data, maker(z).data)[0].item(), by_maker, maker.parameters())
    check(lambda: losses(maker(z).data, fake.data)[1].item(), by_judge, judge.parameters())
    for optimizer, grads in [(Adam(maker.parameters()), by_maker), (Adam(judge.parameters()), by_judge)]:
        optimizer.step(grads)


def test_dropout_in_a_checkpoint():
    x = Variable(draw(1, 50))

    def run(wrap):
        layer = Dropout(0.5, rng=3)
        with Tape() as tape:
            loss = F.sum(wrap(lambda x: F.tanh(layer(x * x)))(x))
        return loss.data, tape.gradient(loss, x), layer.rng.random()

    for actual, expected in zip(run(checkpoint), run(lambda f: f), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("workers", [1, 3])
def test_shards_in_threads_of_a_pool(workers):
    """Each thread has a tape of its own; or all enter the one of the caller."""
    net, shards = network(3, 4, 1), [draw(i, 5, 3) for i in range(6)]

    def loss_of(x):
        return F.sum(F.square(net(x)))

    def own(x):
        with Tape() as tape:
            loss = loss_of(x)
        return tape.gradient(loss, net.parameters())

    with ThreadPoolExecutor(workers) as pool:
        sums = [sum(grads) for grads in zip(*pool.map(own, shards))]
    check(lambda: sum((net(x).data ** 2).sum() for x in shards), sums, net.parameters())

    def entered(x):
        with tape:
            return loss_of(x)

    with ThreadPoolExecutor(workers) as pool, Tape() as tape:
        loss = sum(pool.map(entered, shards))
    grads = tape.gradient(loss, net.parameters())
    for actual, expected in zip(grads, sums, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_optimisers_take_gradients_as_they_come():
    """Variables, taken within the block, and None, where a parameter was not used."""
    used, unused = Variable(np.ones(2)), Variable(np.ones(3))
    for optimizer in (SGD([used, unused], 0.5, momentum=0.9), Adam([used, unused], weight_decay=0.1)):
        used.data = np.ones(2)
        with Tape() as tape:
            grads = tape.gradient(F.sum(used * 2.0), [used, unused], unused="none")
            assert isinstance(grads[0], Variable)
        optimizer.step(grads)
        assert (used.data < 1).all()
        np.testing.assert_array_equal(unused.data, np.ones(3))
        assert not any(array.any() for array in optimizer.state[1].values())


def test_functions_of_numpy_are_those_of_the_package():
    x, b = Variable(draw(1, 3, 4)), draw(2, 3, 4)
    with Tape() as tape:
        y = np.exp(x) * b + np.maximum(b, x) - b @ np.transpose(x) @ b
        z = np.sum(np.tanh(y), axis=0).mean() + np.concatenate([x, b]).sum()
    same = value_and_grad(
        lambda x: (
            F.mean(F.sum(F.tanh(F.exp(x) * b + F.maximum(b, x) - F.matmul(b @ F.transpose(x), b)), 0))
            + F.sum(F.concatenate([x, b]))
        )
    )(x.data)
    np.testing.assert_array_equal(z.data, same[0])
    np.testing.assert_array_equal(tape.gradient(z, x), same[1])
    assert (b < x).dtype == bool
    assert np.shape(x) == (3, 4)
    assert np.isfinite(x).all()
    total = np.zeros((3, 4))
    with pytest.raises(TypeError, match="cannot be written into an array"):
        total += x
    for wrong in (np.linalg.svd, np.add.reduce, np.fft.fft, np.asarray, np.array):
        with pytest.raises(TypeError, match=r"takes no Variable|take \.data"):
            wrong(x)
