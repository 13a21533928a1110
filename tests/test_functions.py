"""Every differentiable function: numerical derivatives, second order, awkward arrays."""

import tracemalloc

import numpy as np
import pytest
from _contract import threads
from _function_cases import CASES, conv_case, draw, every_case, transpose_case
from hypothesis import given, settings
from hypothesis import strategies as st

from autodiff import Tape, Variable, check_gradients
from autodiff import functions as F
from autodiff.check import GradientError
from autodiff.lift import lifted


@every_case
def test_planted_error_is_found(case, monkeypatch):
    """Scaling by 1.001 what any one of the recorded functions passes on makes the check fail."""
    arrays = draw(case)
    with Tape() as tape:
        case.call(*[Variable(a) for a in arrays])
    for function in {step.function for step in tape.steps}:
        with monkeypatch.context() as patch:
            _plant(patch, function)
            with pytest.raises(GradientError):
                check_gradients(
                    case.call, *arrays, reference=case.reference, method=case.method, verbose=False
                )


def _plant(patch, function):
    """Scale by 1.001 every gradient that the rules of a function give."""

    def scaled(rule):
        return rule and (lambda g, s: rule(g, s) * 1.001)

    def all_scaled(rule):
        return rule and (lambda g, s, needs: [None if v is None else v * 1.001 for v in rule(g, s, needs)])

    patch.setattr(function, "gradients", tuple(map(scaled, function.gradients)))
    patch.setattr(function, "joint", all_scaled(function.joint))


@every_case
def test_any_strides(case):
    """Transposed, reversed and sliced arrays give what contiguous ones give, to the last bits."""
    arrays = draw(case)

    def strided(a):
        spread = np.full(tuple(2 * s for s in a.shape[::-1]), np.nan)
        view = spread[tuple(slice(None, None, -2) for _ in a.shape)].T if a.ndim else spread
        view[...] = a
        return view

    def run(inputs):
        with Tape() as tape:
            inputs = [Variable(a) for a in inputs]
            y = case.call(*inputs)
        grad = np.random.default_rng(2).standard_normal(y.shape)
        return [y.data, *tape.gradient(y, inputs, grad=grad)]

    for plain, other in zip(run(arrays), run([strided(a) for a in arrays])):
        np.testing.assert_allclose(plain, other, rtol=1e-12, atol=1e-13)


@every_case
def test_float32_stays_float32(case):
    arrays = [a.astype(np.float32) for a in draw(case)]
    originals = [a.copy() for a in arrays]
    with Tape() as tape:
        inputs = [Variable(a) for a in arrays]
        y = case.call(*inputs)
    assert case.call(*arrays).dtype == y.dtype
    grads = tape.gradient(y, inputs, grad=np.ones(y.shape, y.dtype))
    assert [g.dtype for g in grads] == [np.float32] * len(grads)
    assert [g.shape for g in grads] == [a.shape for a in arrays]
    for before, after in zip(originals, arrays):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("call", "shapes"),
    [
        (F.add, ((0, 3), (3,))),
        (F.multiply, ((2, 0), (1,))),
        (F.sum, ((0, 3),)),
        (lambda x: F.mean(x, 0), ((2, 0),)),
        (F.matmul, ((2, 0), (0, 3))),
        (lambda x: F.softmax(x, 0), ((3, 0),)),
        (lambda x: F.softmax(x, 1), ((3, 0),)),
        (lambda x: F.reshape(x, (0, 6)), ((2, 0, 3),)),
        (lambda x: F.getitem(x, slice(0, 0)), ((4, 2),)),
        (lambda x, y: F.concatenate([x, y]), ((0, 2), (3, 2))),
        (lambda x, w, b: F.conv2d(x, w, b, padding=1), ((0, 3, 4, 4), (2, 3, 3, 3), (2,))),
        (lambda x, w, b: F.conv2d(x, w, b, padding=1), ((2, 3, 0, 4), (2, 3, 3, 3), (2,))),
        (lambda x, w, b: F.conv2d(x, w, b), ((2, 3, 2, 2), (2, 3, 3, 3), (2,))),
        (lambda x, w, b: F.conv2d(x, w, b), ((2, 0, 4, 4), (2, 0, 3, 3), (2,))),
        (lambda x, w, b: F.conv2d(x, w, b), ((2, 3, 4, 4), (0, 3, 3, 3), (0,))),
        (lambda x, w, b: F.conv2d(x, w, b), ((0, 3, 4, 4), (2, 3, 1, 1), (2,))),
        (lambda x, w, b: F.conv2d(x, w, b), ((2, 3, 0, 4), (0, 3, 1, 1), (0,))),
        (lambda x, w, b: F.conv2d(x, w, b), ((2, 0, 4, 4), (2, 0, 1, 1), (2,))),
        (lambda x, w, b: F.conv2d(x, w, b, groups=3), ((2, 3, 0, 0), (3, 1, 1, 1), (3,))),
        (lambda x: F.avg_pool2d(x, 2), ((0, 2, 4, 4),)),
        (lambda x: F.max_pool2d(x, 2), ((0, 2, 4, 4),)),
        (lambda x: F.pixel_shuffle(x, 2), ((0, 4, 2, 2),)),
        (lambda x: F.resize(x, (3, 3)), ((0, 2, 4, 4),)),
    ],
)
def test_zero_size(call, shapes):
    with Tape() as tape:
        inputs = [Variable(np.ones(s)) for s in shapes]
        y = call(*inputs)
    grads = tape.gradient(y, inputs, grad=np.ones(y.shape))
    assert [g.shape for g in grads] == list(shapes)
    assert all(np.isfinite(g).all() for g in grads)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_conv2d_drawn(data):
    def pick(*values):
        return data.draw(st.sampled_from(values))

    groups = pick(1, 2, 3)
    kernel = pick(1, 2, 3), pick(1, 2, 4)
    weight = (groups * pick(1, 2), pick(1, 2), *kernel)
    shape = (pick(1, 2), groups * weight[1], pick(1, 3, 6), pick(2, 5))
    options = ((pick(1, 2, 3), pick(1, 2)), (pick(0, 1, 3), pick(0, 2)), (pick(1, 2), pick(1, 3)))
    spans = [shape[2 + i] + 2 * options[1][i] - options[2][i] * (kernel[i] - 1) for i in (0, 1)]
    if min(spans) >= 1:
        case = conv_case(shape, weight, *options, groups)
        check_gradients(case.call, *draw(case), reference=case.reference, method="complex", verbose=False)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_conv_transpose2d_drawn(data):
    def pick(*values):
        return data.draw(st.sampled_from(values))

    groups = pick(1, 2)
    weight = (groups * pick(1, 2), pick(1, 2), pick(1, 2, 3), pick(1, 3))
    shape = (pick(0, 1, 2), weight[0], pick(1, 2, 4), pick(2, 3))
    stride, dilation = (pick(1, 2, 3), pick(1, 2)), (pick(1, 2), pick(1, 3))
    padding = pick(0, 1), pick(0, 1)
    extra = tuple(data.draw(st.integers(0, s - 1)) for s in stride)
    sizes = [
        (shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight[2 + i] - 1) for i in (0, 1)
    ]
    if min(size + e + 1 for size, e in zip(sizes, extra)) >= 0:
        case = transpose_case(shape, weight, stride, padding, extra, dilation, groups)
        check_gradients(case.call, *draw(case), reference=case.reference, method="complex", verbose=False)


def test_conv_transpose2d_is_the_adjoint_of_conv2d():
    """<conv(x), y> = <x, conv_transpose(y)> for every size that the stride maps to one, by output_padding."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 3, 3, 3))
    for size in (7, 8, 9):
        x = rng.standard_normal((2, 3, size, size))
        y = F.conv2d(x, w, stride=3, padding=1)
        g = rng.standard_normal(y.shape)
        extra = (size + 2 - 3) % 3
        back = F.conv_transpose2d(g, w, stride=3, padding=1, output_padding=extra)
        assert back.shape == x.shape
        np.testing.assert_allclose((y * g).sum(), (x * back).sum(), rtol=1e-12)


SEVERAL = (
    "conv2d",
    "conv2d strided",
    "conv2d grouped",
    "conv2d grouped, stride 1",
    "conv2d many outputs",
)


@pytest.mark.parametrize("size", [1, 500, 3000])
@pytest.mark.parametrize("name", SEVERAL)
def test_conv2d_by_blas_in_several_tiles(monkeypatch, size, name):
    """Tiles of some rows, of parts of a row, and of single outputs, as CuPy arrays take them."""
    monkeypatch.setattr("autodiff.functions.convolution.TILE_BYTES", size)
    monkeypatch.setattr("autodiff.functions.convolution._native", lambda *arrays: None)
    case = CASES[name]
    check_gradients(case.call, *draw(case), reference=case.reference, method="complex", verbose=False)


@pytest.mark.parametrize("item", [1, 1000])
@pytest.mark.parametrize("name", SEVERAL)
def test_conv2d_by_kernels_in_several_blocks(monkeypatch, item, name):
    from dynarray.cpu.engine.convolution import plan

    for bound, value in (("ITEM_BYTES", item), ("CONV_DEPTH", 5), ("CONV_SLOT_BYTES", item)):
        monkeypatch.setattr(plan, bound, value)
    case = CASES[name]
    plans = (plan.conv_plan, plan.conv_weight_plan)
    for each in plans:
        each.cache_clear()
    try:
        check_gradients(case.call, *draw(case), reference=case.reference, method="complex", verbose=False)
    finally:
        for each in plans:
            each.cache_clear()


def test_conv2d_needs_little_scratch():
    """Forward and backward of a large kernel on a wide image: unfolded whole, the input would take 100 MB.

    In one thread: each has scratch of its own. Kernels are compiled before, which takes more than the arrays.
    """

    def gradients(x, w, padding):
        with Tape(check=False) as tape:
            inputs = [Variable(x), Variable(w)]
            y = F.conv2d(*inputs, padding=padding)
        tape.gradient(y, inputs, grad=y.data)
        return y.data

    x, w = np.ones((1, 64, 8, 1024), np.float32), np.ones((4, 64, 7, 7), np.float32)
    gradients(x[..., :9], w[..., :3, :3], 1)
    with threads(1):
        tracemalloc.start()
        try:
            y = gradients(x, w, 3)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < x.nbytes + 2 * y.nbytes + w.nbytes + (8 << 20)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: F.conv2d(np.ones((1, 3, 4, 4)), np.ones((2, 2, 3, 3))),
            ValueError,
            r"C/groups = 3, got \(2, 2, 3, 3\)",
        ),
        (
            lambda: F.conv2d(np.ones((3, 4, 4)), np.ones((2, 2, 3, 3))),
            ValueError,
            r"x must be \(N, C, H, W\)",
        ),
        (lambda: F.conv2d(np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), stride=0), ValueError, "stride"),
        (lambda: F.conv2d(np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), stride=1.5), TypeError, "stride"),
        (lambda: F.conv2d(np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), groups=2), ValueError, "groups"),
        (
            lambda: F.conv2d(np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), np.ones(3)),
            ValueError,
            r"bias must be \(O,\)",
        ),
        (
            lambda: F.conv_transpose2d(np.ones((1, 3, 4, 4)), np.ones((2, 2, 3, 3))),
            ValueError,
            r"conv_transpose2d: x must be .* got \(1, 3, 4, 4\) and \(2, 2, 3, 3\)",
        ),
        (
            lambda: F.conv_transpose2d(np.ones((1, 2, 4, 4)), np.ones((2, 2, 3, 3)), output_padding=1),
            ValueError,
            r"output_padding must be less than stride, got \(1, 1\)",
        ),
        (
            lambda: F.conv_transpose2d(np.ones((1, 2, 4, 4)), np.ones((2, 2, 3, 3)), np.ones(3)),
            ValueError,
            r"bias must be \(O,\) = \(2,\)",
        ),
        (
            lambda: F.conv_transpose2d(np.ones((1, 2, 1, 1)), np.ones((2, 2, 3, 3)), padding=4),
            ValueError,
            "cuts off",
        ),
        (
            lambda: F.conv_transpose2d(np.ones((1, 3, 4, 4)), np.ones((3, 2, 3, 3)), groups=2),
            ValueError,
            "groups",
        ),
        (lambda: F.einsum("ij,jk->ik", np.ones((2, 3))), ValueError, "names 2 operands, got 1"),
        (lambda: F.einsum("ij->i", np.ones(3)), ValueError, r"'ij' do not fit .* \(3,\)"),
        (
            lambda: F.einsum("ij,jk->ik", np.ones((2, 3)), np.ones((4, 2))),
            ValueError,
            "axis 'j' has the lengths",
        ),
        (lambda: F.einsum("ij->ik", np.ones((2, 3))), ValueError, "has 'k' where it must not be"),
        (lambda: F.einsum("i1->i", np.ones((2, 3))), ValueError, "has '1' where it must not be"),
        (lambda: F.einsum("ii->i", np.ones((2, 3))), ValueError, "axis 'i'"),
        (
            lambda: F.group_norm(np.ones((1, 4, 2)), 3, np.ones(4), np.ones(4)),
            ValueError,
            "group_norm: groups",
        ),
        (
            lambda: F.cross_entropy(np.ones((3, 2)), np.array([0, 2, 1])),
            ValueError,
            "labels must be from 0 to 1, got 2",
        ),
        (
            lambda: F.end_point_error(np.ones((1, 2, 3)), np.ones((1, 2, 3)), np.ones(3)),
            ValueError,
            r"valid must have shape \(1, 3\)",
        ),
        (lambda: F.mse(np.ones((3, 1)), np.ones(3)), ValueError, "mse: prediction and target"),
        (lambda: F.pixel_shuffle(np.ones((1, 6, 2, 2)), 2), ValueError, "6 channels"),
        (lambda: F.max_pool2d(np.ones((1, 1, 4, 4)), 2, padding=2), ValueError, "padding"),
        (lambda: F.cross_entropy(np.ones((3, 2)), np.ones(3)), TypeError, "cross_entropy: labels"),
        (lambda: F.squeeze(np.ones((3, 2)), 0), ValueError, "squeeze"),
        (lambda: F.nonsense, AttributeError, "nonsense"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_slopes_at_kinks():
    """Where a function has no slope, the one documented."""
    with Tape() as tape:
        x = Variable(np.zeros(1))
        values = [F.abs(x), F.relu(x), F.maximum(x, 0.0), F.power(x, 0), F.power(x, 1), F.clip(x, 0, 1)]
    slopes = [float(tape.gradient(v, x, keep=True, grad=np.ones(1))[0]) for v in values]
    assert slopes == [0, 0, 0.5, 0, 1, 1]


def test_losses_of_nothing_known():
    """Where nothing counts the loss is 0 and so is its gradient, whatever stands there."""
    logits, flow = Variable(np.ones((2, 3))), Variable(np.ones((1, 2, 3)))
    with Tape() as tape:
        a = F.cross_entropy(logits, np.array([7, 7]), ignore_index=7)
        b = F.end_point_error(flow, np.full((1, 2, 3), np.nan), np.zeros((1, 3)))
        c = F.end_point_error(flow, flow.data)
    assert [float(v) for v in (a, b, c)] == [0, 0, 0]
    for value, source in ((a, logits), (b, flow), (c, flow)):
        np.testing.assert_array_equal(tape.gradient(value, source, keep=True), np.zeros(source.shape))


def test_dropout_keeps_the_mean_and_the_share():
    x = np.full(100_000, 2.0, np.float32)
    y = F.dropout(x, 0.25, rng=np.random.default_rng(0))
    assert y.dtype == np.float32
    assert set(np.unique(y)) == {0, np.float32(2 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.01


def test_where_keeps_nan_out():
    with Tape() as tape:
        x = Variable(np.array([-1.0, 4.0]))
        y = F.sum(F.where(x > 0, F.sqrt(F.where(x > 0, x, 1.0)), 0.0))
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 0.25])


def test_nan_passes_through():
    for f in (F.relu, F.sigmoid, F.leaky_relu, F.softplus, F.abs, F.softmax):
        assert np.isnan(f(np.array([np.nan, 1.0]))).any()


def test_large_values_do_not_overflow():
    x = np.array([-1e4, -800.0, 0.0, 800.0, 1e4])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_allclose(F.sigmoid(x), [0, 0, 0.5, 1, 1])
        np.testing.assert_allclose(F.softplus(x), [0, 0, np.log(2), 800, 1e4])
        np.testing.assert_allclose(F.softmax(x), [0, 0, 0, 0, 1])
        assert np.isfinite(F.log_softmax(x)).all()


def test_operators_of_dynarray_are_functions():
    assert set(lifted) <= set(dir(F))
    assert all(getattr(F, name) is function for name, function in lifted.items())
