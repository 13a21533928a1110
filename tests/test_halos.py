"""What outputs read: said by each operator, worked out for networks, refused by name if there is none."""

from typing import Any

import numpy as np
import pytest
from _contract import Call, each_operator, each_with_halo, full_call, make_call, seeded_case, with_halo

import autodiff
import dynarray as dyn
from autodiff import functions as F
from autodiff import layers
from autodiff.networks import ddf_resnet50, resnet50
from dynarray import Operator
from dynarray._halo import Reach, frame, needed, region


def _first_place(call: Call) -> tuple[int, ...]:
    """An output in the middle of the image, which is the last axes."""
    axes = len(call.operator.reads.space.image)
    return tuple(size // 2 for size in call.grad_output.shape[-axes:])


def _with_nan(array: np.ndarray, ranges: list[tuple[int, int]]) -> np.ndarray:
    """NaN at all places but those."""
    other = np.full_like(array, np.nan)
    inside = (..., *(slice(start, stop) for start, stop in ranges))
    other[inside] = array[inside]
    return other


@each_with_halo
@pytest.mark.parametrize("seed", range(4))
def test_an_output_reads_no_more_than_is_declared(operator: Operator, seed: int) -> None:
    call = with_halo(make_call(operator, seeded_case(operator, seed + 40, N=1, H=23, W=31), seed))
    if not call.grad_output.size:
        return
    place = _first_place(call)
    reaches = operator.halo(call.params, call.arrays)
    axes, changed = len(place), []
    for name, array in zip(operator.arrays, call.arrays):
        reach = reaches.get(name)
        if array is None or reach is None or name in operator.reads.values.split():
            changed.append(array)  # what says where others are read must stay as it is
            continue
        ranges = [needed(r, n, (p, p + 1)) for r, n, p in zip(reach, array.shape[-axes:], place)]
        changed.append(_with_nan(array, ranges))
    here = (..., *place)
    whole, some = operator(call.arrays, **call.params), operator(tuple(changed), **call.params)
    np.testing.assert_allclose(some[here], whole[here], rtol=1e-12, atol=1e-12)


# Those whose windows are exact: x is read on every edge of what they declare.
WINDOWS = ["local_filter2d", "ddf", "carafe", "involution", "dynamic_conv2d", "atom_conv2d", "local_filter1d"]


@pytest.mark.parametrize("name", WINDOWS)
def test_an_output_reads_all_that_is_declared(name: str) -> None:
    operator = dyn.OPERATORS[name]
    call = with_halo(full_call(operator, 3, N=1, H=23, W=31))
    place = _first_place(call)
    reach = operator.halo(call.params, call.arrays)["x"]
    assert reach is not None
    x = call.arrays[0]
    for axis, (each, p) in enumerate(zip(reach, place)):
        start, stop = each.reads((p, p + 1))
        for edge in (start, stop - 1):
            if not 0 <= edge < x.shape[2 + axis]:
                continue
            other = x.copy()
            other[(slice(None), slice(None), *(slice(None),) * axis, edge)] = np.nan
            y = operator((other, *call.arrays[1:]), **call.params)
            assert np.isnan(y[(..., *place)]).all(), (name, axis, edge)


def test_the_halo_of_a_window_by_hand() -> None:
    x, weight = np.ones((1, 2, 20, 20)), np.ones((1, 1, 3, 5, 10, 20))
    rows, columns = dyn.OPERATORS["local_filter2d"].halo(
        {"stride": (2, 1), "dilation": (3, 1), "padding": (3, 2)}, (x, weight, None)
    )["x"]
    assert (rows.before, rows.after, rows.step, rows.scale) == (3, 3, 2, 1)
    assert (columns.before, columns.after, columns.step) == (2, 2, 1)


def test_displacements_and_offsets_say_how_far_outputs_read() -> None:
    x, weight = np.ones((1, 1, 40, 40)), np.ones((1, 1, 2))
    displacement = np.array([[-3.5, 0.25], [2.0, 7.75]]).reshape(1, 1, 2, 2)
    rows, columns = dyn.OPERATORS["displaced_conv2d"].halo({}, (x, weight, displacement, 0.5, None))["x"]
    # The blur of sigma 0.5 has a radius of 3; interpolation reads the pixel after the one it is rounded down
    # to.
    assert (rows.before, rows.after) == (4 + 3, 2 + 1 + 3)
    assert (columns.before, columns.after) == (0 + 3, 7 + 1 + 3)
    offset = np.zeros((1, 1, 3, 3, 2, 40, 40))
    offset[..., 0, 0, 0], offset[..., 1, 5, 5] = -4.5, 6.25
    offset[0, 0, 0, 0, :, 9, 9] = np.inf, np.nan  # read nothing
    reach = dyn.OPERATORS["deform_conv2d"].halo(
        {"padding": 1}, (x, offset, np.ones((1, 1, 3, 3)), None, None)
    )["x"]
    assert reach is not None
    assert [(each.before, each.after) for each in reach] == [(1 + 5, 1 + 1), (1, 1 + 6 + 1)]


@each_operator
def test_an_operator_has_a_halo_or_refuses_by_name(operator: Operator) -> None:
    call = with_halo(full_call(operator))
    if operator.reads is not None:
        reach = operator.halo(call.params, call.arrays)
        assert any(each is not None for each in reach.values())
        assert list(reach) == [n for n, a in zip(operator.arrays, call.arrays) if a is not None]
    else:
        with pytest.raises(TypeError, match=rf"{operator.name}: .* no halo"):
            operator.halo(call.params, call.arrays)
        with pytest.raises(TypeError, match=rf"{operator.name}: .* no halo"):
            dyn.tiles.apply(operator, call.arrays, np.zeros(call.grad_output.shape), 4, params=call.params)


def test_a_halo_is_refused_by_name() -> None:
    local = dyn.OPERATORS["local_filter2d"]
    arrays = (np.ones((1, 1, 4, 4)), np.ones((1, 1, 3, 3, 4, 4)), None)
    with pytest.raises(TypeError, match=r"local_filter2d: unknown parameter 'strode'"):
        local.halo({"strode": 1}, arrays)
    with pytest.raises(ValueError, match=r"local_filter2d: stride must be at least 1"):
        local.halo({"stride": 0}, arrays)
    with pytest.raises(ValueError, match=r"those of local_filter2d, \(x, weight, channel_weight\)"):
        local.halo({}, arrays[:2])
    silent = dyn.Operator(
        **{f: getattr(local, f) for f in local.__dataclass_fields__ if f not in ("reads", "_passed")}
    )
    with pytest.raises(TypeError, match=r"local_filter2d: .* no halo"):
        silent.halo({}, arrays)


@pytest.mark.parametrize("outer", [Reach(1, 2, 2, 1, 0), Reach(3, 0), Reach(0, 4, 3)])
@pytest.mark.parametrize("inner", [Reach(2, 1, 3, 1, -2), Reach(1, 1), Reach(5, 0, 2)])
def test_reaches_compose(outer: Reach, inner: Reach) -> None:
    """Through both at once outputs read what they read through one after the other."""
    for first in range(5):
        outputs = first, first + 3
        assert outer.of(inner).reads(outputs) == inner.reads(outer.reads(outputs))
    for size in range(20, 40):
        between = (size + inner.more) // inner.step + 1
        both = outer.of(inner)
        assert (size + both.more) // both.step == (between + outer.more) // outer.step


@pytest.mark.parametrize(
    "reach",
    [Reach(1, 1), Reach(2, 5, 3, 1, 0), Reach(1, 1, 1, 2), Reach(3, -3, 1, 1, 5), Reach(0, 4, 2, 1, -5)],
)
def test_the_frame_of_a_part_makes_its_outputs_and_as_many_as_it_says(reach: Reach) -> None:
    for size in range(6, 40):
        total = ((size + reach.more) // reach.step + 1) * reach.scale
        for first in range(total):
            for last in range(first + 1, total + 1):
                begin, end = frame([(reach, size)], total, (first, last))
                start, stop = region(reach, size, (begin, end))
                assert begin <= first and last <= end <= total
                assert ((stop - start + reach.more) // reach.step + 1) * reach.scale == end - begin
                low, high = needed(reach, size, (first, last))
                assert start <= low and high <= stop
                assert start == begin // reach.scale * reach.step


def _network(name: str) -> Any:
    rng = np.random.default_rng(1)
    if name == "pools":
        return layers.Sequential(
            layers.Conv2d(3, 8, 5, rng=rng),
            layers.MaxPool2d(2),
            layers.Conv2d(8, 8, 3, dilation=2, rng=rng),
            layers.AvgPool2d(3, 1, 1),
            layers.LeakyReLU(),
        )
    if name == "carafe":
        return layers.Sequential(
            layers.Conv2d(3, 8, 3, stride=2, rng=rng), layers.CARAFE(8, compressed=4, rng=rng), layers.Tanh()
        )
    if name == "displaced":
        return layers.Sequential(
            layers.DisplacedConv(3, 4, rng=rng), layers.ReLU(), layers.DisplacedConv(4, 4, rng=rng)
        )
    if name == "atoms":
        return layers.AtomConv(3, 4, rng=rng).eval()
    return layers.hold_averages(layers.DDFUp(3, rng=rng), _image(20, 28))


def _image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((1, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize("name", ["pools", "carafe", "displaced", "atoms", "ddf_up"])
def test_networks_by_tiles_have_the_bits_of_the_whole(name: str) -> None:
    network, x = _network(name), _image(60, 76)
    whole = network(x).data
    reach = autodiff.halo(network, (1, 3, 20, 28))
    out = dyn.tiles.apply(network, (x,), np.full_like(whole, np.nan), (13, 21), halo=reach)
    assert out.tobytes() == whole.tobytes()


def test_the_reach_of_a_network_is_what_its_outputs_read() -> None:
    """By hand: 5 x 5, then every second one of 2 x 2, then 3 x 3 of which each is two further."""
    network = layers.Sequential(
        layers.Conv2d(3, 8, 5, rng=0), layers.MaxPool2d(2), layers.Conv2d(8, 8, 3, rng=0)
    )
    ((rows, columns),) = autodiff.halo(network, (1, 3, 22, 26))
    assert rows == columns
    assert (rows.before, rows.after, rows.step, rows.scale) == (2 + 2, 2 + 1 + 2, 2, 1)


def test_two_inputs_have_a_reach_each() -> None:
    def join(x: Any, guide: Any) -> Any:
        kernel = np.ones((1, 1, 3, 3), np.float32)
        return F.concatenate(
            [F.conv2d(x, kernel, padding=1), F.upsample_nearest(F.avg_pool2d(guide, 2), 2)], 1
        )

    x, guide = autodiff.halo(join, (1, 1, 22, 26), (1, 1, 22, 26))
    assert [(each.before, each.after) for each in x] == [(1, 1)] * 2
    assert all(each.step == each.scale == 2 and each.after >= 1 for each in guide)


REFUSED = {
    "batch statistics": (
        lambda: layers.Sequential(layers.Conv2d(3, 4, 3, rng=0), layers.BatchNorm2d(4)),
        r"normalize, in layers\.1 \(BatchNorm2d\)",
    ),
    "group statistics": (
        lambda: layers.Sequential(layers.Conv2d(3, 4, 3, rng=0), layers.GroupNorm(2, 4)).eval(),
        r"normalize, in layers\.1 \(GroupNorm\)",
    ),
    "averages of DDF": (lambda: layers.DDF(3, rng=0), r"mean, in DDF: .*hold_averages"),
    "global pooling": (
        lambda: layers.Sequential(layers.ReLU(), layers.GlobalAvgPool()),
        r"mean, in layers\.1",
    ),
    "offsets": (lambda: layers.DeformConv(3, 4, rng=0), r"deform_conv2d, in DeformConv: .*offset"),
    "softmax over columns": (lambda: layers.Softmax(axis=3), r"softmax"),
    "an array of the image's size": (lambda: lambda x: x + np.ones((22, 26), np.float32), r"add: an array"),
    "a part": (lambda: lambda x: x[:, :, 1:], r"getitem: .*part of the image"),
    "rows joined": (lambda: lambda x: F.concatenate([x, x], 2), r"concatenate"),
    "a plain array": (lambda: lambda x: x.data, r"the output must be"),
    "flat": (lambda: layers.Flatten(), r"reshape"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_has_no_halo_is_refused_by_name(why: str) -> None:
    make, words = REFUSED[why]
    with pytest.raises(ValueError, match=words):
        autodiff.halo(make(), (1, 3, 22, 26))


def test_held_averages_are_those_of_the_whole_until_they_are_let_go() -> None:
    layer, x = (
        layers.DDF(16, rng=0),
        np.random.default_rng(2).standard_normal((1, 16, 24, 30)).astype(np.float32),
    )
    whole, state = layer(x).data, layer.state_dict().keys()
    layers.hold_averages(layer, x)
    assert layer(x).data.tobytes() == whole.tobytes()
    assert layer.state_dict().keys() == state
    top = layer(x[:, :, :13]).data[:, :, :12]
    assert top.tobytes() == whole[:, :, :12].tobytes()
    with pytest.raises(ValueError, match=r"DDF: the averages that are held are those of \(1, 16\)"):
        layer(np.concatenate([x, x]))
    layers.hold_averages(layer)
    other = layer(x[:, :, :13]).data[:, :, :12]
    assert not np.array_equal(other, whole[:, :, :12])


@pytest.mark.slow
def test_features_of_a_ddf_resnet_by_tiles() -> None:
    network, x = ddf_resnet50(rng=0).eval(), _image(256, 320)
    layers.hold_averages(network, x)

    def features(image: Any) -> Any:
        return network.features(image)[2]

    whole = features(x).data
    halo = autodiff.halo(features, (1, 3, 64, 96))
    out = dyn.tiles.apply(features, (x,), np.full_like(whole, np.nan), (9, 13), halo=halo)
    assert out.tobytes() == whole.tobytes()


def test_the_reach_of_a_resnet_is_that_of_its_layers() -> None:
    """Of ResNet-50 with the stride in the 3 x 3 convolutions, an output of the last stage sees 427 pixels."""
    network = resnet50(rng=0).eval()
    ((rows, columns),) = autodiff.halo(lambda x: network.features(x)[-1], (1, 3, 64, 96))
    assert rows == columns and rows.step == 32
    size, step = 1, 1
    kernels = [
        (7, 2),
        (3, 2),
        *[(3, 2 if stage and not block else 1) for stage, n in enumerate((3, 4, 6, 3)) for block in range(n)],
    ]
    for kernel, stride in kernels:
        size, step = size + (kernel - 1) * step, step * stride
    assert rows.before + rows.after + 1 == size
