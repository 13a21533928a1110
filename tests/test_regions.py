"""`roi_align`, `ps_roi_pool` and `nms`: special boxes, identities, and what the definitions say of edges."""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from _calls._call import LARGE_IMAGES
from conftest import Backend, backend_params

import autodiff
import dynarray as dyn
from autodiff import functions as F

NOWHERE = np.nan, np.inf, -np.inf
on_cpu = pytest.mark.parametrize("backend", backend_params("reference", "cpu", "host"), indirect=True)


def called(backend: Backend, name: str, x: np.ndarray, boxes: Any, output: Any, **params: Any) -> np.ndarray:
    """The output for boxes of the first image."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    images = backend.array(np.zeros(len(boxes), np.int32))
    function = getattr(dyn, name)
    return backend.numpy(function(backend.array(x), backend.array(boxes), images, output, **params))


def gradient(backend: Backend, name: str, x: Any, boxes: Any, output: Any, **params: Any) -> np.ndarray:
    """The gradient of the sum of the outputs."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    images = backend.array(np.zeros(len(boxes), np.int32))
    ones = np.ones_like(called(backend, name, x, boxes, output, **params))
    backward = getattr(dyn, f"{name}_backward")
    arrays = map(backend.array, (ones, x, boxes))
    return backend.numpy(backward(*arrays, images, output, **params).x)


def test_a_linear_image_is_read_at_the_centres_of_bins(backend: Backend) -> None:
    """Means of a linear function over symmetric samples; pixel centres lie half a pixel inside."""
    rows, columns = np.mgrid[:12, :14]
    x = (2.0 * rows - 3.0 * columns)[None, None]
    box, bins = (2.5, 1.5, 11.0, 9.75), (3, 4)
    for ratio in (0, 1, 2, 3):
        y = called(backend, "roi_align", x, box, bins, sampling_ratio=ratio)
        centres = [
            start - 0.5 + (np.arange(number) + 0.5) * (end - start) / number
            for start, end, number in ((box[1], box[3], bins[0]), (box[0], box[2], bins[1]))
        ]
        expected = 2 * centres[0][:, None] - 3 * centres[1]
        np.testing.assert_allclose(y[0, 0], expected, rtol=1e-12, err_msg=f"sampling_ratio={ratio}")


def test_without_half_a_pixel_boxes_are_at_least_one_pixel(backend: Backend) -> None:
    x = np.arange(30.0).reshape(1, 1, 5, 6)
    empty = (2.0, 1.0, 2.0, 1.0)
    y = called(backend, "roi_align", x, empty, 1, sampling_ratio=1, aligned=False)
    np.testing.assert_allclose(y.item(), 1.5 * 6 + 2.5)
    assert called(backend, "roi_align", x, empty, 1, aligned=True).item() == 0


def test_samples_near_the_border(backend: Backend) -> None:
    """From a pixel before the first one to one behind the last they are at the nearest place; then 0."""
    x = np.array([[[[1.0, 5.0]]]])

    def sample(at: float) -> float:
        box = (at, -0.5, at, 0.5)  # of no width: all of its samples are there
        params = {"sampling_ratio": 1, "aligned": False}
        # At least a pixel wide, so that the middle lies half a pixel further.
        return called(backend, "roi_align", x, np.subtract(box, (0.5, 0, 0.5, 0)), 1, **params).item()

    assert [sample(at) for at in (-1.25, -1.0, -0.5, 0.0, 0.25, 1.0, 1.5, 2.0, 2.25)] == [
        *(0.0, 1.0, 1.0, 1.0, 2.0, 5.0, 5.0, 5.0, 0.0)
    ]


def test_special_boxes(backend: Backend) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 7, 8))
    none = [(3.0, 3.0, 3.0, 5.0), (5.0, 2.0, 3.0, 4.0), (20.0, 20.0, 30.0, 30.0), (-9.0, -9.0, -3.0, -3.0)]
    assert not called(backend, "roi_align", x, none, 2).any()
    assert not gradient(backend, "roi_align", x, none, 2).any()
    outside = none[2:]
    assert not called(backend, "ps_roi_pool", x, outside, 1).any()
    # Inverted boxes are one pixel and a tenth of one for R-FCN; with a number of samples read backwards.
    box, back = (1.0, 2.0, 6.0, 5.5), (6.0, 5.5, 1.0, 2.0)
    forwards = called(backend, "roi_align", x, box, (2, 3), sampling_ratio=2)
    backwards = called(backend, "roi_align", x, back, (2, 3), sampling_ratio=2)
    np.testing.assert_allclose(backwards, forwards[..., ::-1, ::-1], rtol=1e-12)
    tiny = (3.5, 2.5, 3.5 + 1e-9, 2.5 + 1e-9)
    np.testing.assert_allclose(called(backend, "roi_align", x, tiny, 1)[0, :, 0, 0], x[0, :, 2, 3])
    # Of no extent: all samples of all bins are at one place, here a pixel before the first column.
    point = (-0.5, 0.5, -0.5, 0.5)
    y = called(backend, "roi_align", x, point, (2, 3), sampling_ratio=3)[0]
    np.testing.assert_allclose(y, np.broadcast_to(x[0, :, :1, :1], y.shape), rtol=1e-12)
    # What a huge box has inside the image is samples about a pixel apart, few of many.
    huge = (-1e9, -1e9, 1e9, 1e9)
    y = called(backend, "roi_align", np.ones((1, 1, 7, 8)), huge, 1)
    assert 0 < y.item() < 1e-15
    np.testing.assert_allclose(called(backend, "ps_roi_pool", x, huge, 1)[0, :, 0, 0], x[0].mean((1, 2)))


@pytest.mark.parametrize("value", NOWHERE)
@pytest.mark.parametrize("place", range(4))
def test_boxes_that_lie_nowhere_are_nan_and_have_no_gradient(
    backend: Backend, place: int, value: float
) -> None:
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 6))
    box = np.array([1.0, 1.0, 4.0, 5.0])
    box[place] = value
    for name, params in (("roi_align", {}), ("roi_align", {"aligned": False}), ("ps_roi_pool", {})):
        assert np.isnan(called(backend, name, x, box, 2, **params)).all()
        assert not gradient(backend, name, x, box, 2, **params).any()


def test_boxes_that_end_beside_a_pixel(backend: Backend) -> None:
    """A number before or behind a whole one, and before the image: what is read there is theirs alone."""
    x = np.random.default_rng(5).standard_normal((1, 3, 6, 7))
    params = {"sampling_ratio": 2, "aligned": False}
    for place in (-1.0, 0.0, 1.0, 5.0, 6.0):
        for at in (np.nextafter(place, -9), place, np.nextafter(place, 9)):
            for box in ((at, at, at, at), (at - 2e-16, at - 1, at, at), (at, at, at + 1, at + 1e-300)):
                y = called(backend, "roi_align", x, box, 2, **params)
                with dyn.use_backend("reference"):
                    right = called(Backend("reference"), "roi_align", x, box, 2, **params)
                np.testing.assert_allclose(y, right, rtol=1e-12, atol=1e-14, err_msg=f"{box}")


@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
@pytest.mark.parametrize("room", [1, 1000, 5000, 40_000])
def test_images_are_packed_in_parts(backend: Backend, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one channel of an image, of some channels, of some images; and boxes that are far between."""
    from dynarray.cpu.regions import plan

    monkeypatch.setattr(plan, "REGION_BYTES", room)
    rng = np.random.default_rng(6)
    x, images = rng.standard_normal((3, 70, 9, 10)), np.array([2, 0, 2, 1, 0, 2])
    boxes = rng.uniform(-1, 10, (6, 4))
    for some in (slice(0, 6), slice(0, 2)):
        given = boxes[some], images[some], (2, 3)
        y = dyn.roi_align(x, *given, sampling_ratio=2)
        grad = dyn.roi_align_backward(np.cos(y), x, *given, sampling_ratio=2).x
        with dyn.use_backend("reference"):
            right = dyn.roi_align(x, *given, sampling_ratio=2)
            right_grad = dyn.roi_align_backward(np.cos(y), x, *given, sampling_ratio=2).x
        np.testing.assert_allclose(y, right, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(grad, right_grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
@pytest.mark.parametrize(("channels", "ratio"), [(1, 0), (1, 3), (3, 0), (3, 1), (10, 0), (14, 3), (40, 1)])
def test_regions_of_few_channels_or_samples_are_read_in_planes(
    backend: Backend, channels: int, ratio: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels of a row beside each other, with gaps between them, twice, from right to left, and none."""
    from dynarray.cpu.regions import forms

    monkeypatch.delattr(forms, "make_parts")
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2, channels, 50, 41))
    boxes = rng.uniform(-9, 60, (20, 4))
    boxes[0], boxes[1], boxes[2, 3] = (0, 0, 41, 50), (3, 3, 3, 3), np.nan
    x[rng.random(x.shape) < 0.02], x[rng.random(x.shape) < 0.02] = np.inf, -np.inf
    given = boxes, rng.integers(0, 2, 20), (2, 3)
    y = dyn.roi_align(x, *given, sampling_ratio=ratio)
    grad = rng.standard_normal(y.shape)
    mine = dyn.roi_align_backward(grad, x, *given, sampling_ratio=ratio).x
    with dyn.use_backend("reference"), np.errstate(invalid="ignore"):
        right = dyn.roi_align(x, *given, sampling_ratio=ratio)
        right_grad = dyn.roi_align_backward(grad, x, *given, sampling_ratio=ratio).x
    assert not np.isfinite(right).all()
    np.testing.assert_allclose(y, right, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(mine, right_grad, rtol=1e-12, atol=1e-14)


def test_position_sensitive_bins(backend: Backend) -> None:
    """Each bin by its definition, in plain loops."""
    rng = np.random.default_rng(1)
    x, (high, wide), scale = rng.standard_normal((1, 12, 9, 10)), (2, 3), 0.5
    boxes = rng.uniform(-3, 20, (8, 4))
    boxes[0] = 0.5, 1.5, 12.5, 10.5  # halves are rounded away from zero
    expected = np.zeros((8, 2, high, wide))
    for r, o, i, j in np.ndindex(*expected.shape):
        ranges = []
        for low, high_end, bin_, bins, extent in (
            (boxes[r, 1], boxes[r, 3], i, high, 9),
            (boxes[r, 0], boxes[r, 2], j, wide, 10),
        ):
            begin, end = (np.sign(v) * np.floor(abs(v) + 0.5) for v in (low, high_end))
            begin, end = begin * scale, (end + 1) * scale
            size = max(end - begin, 0.1) / bins
            first, stop = np.floor(begin + bin_ * size), np.ceil(begin + (bin_ + 1) * size)
            ranges.append(slice(int(np.clip(first, 0, extent)), int(np.clip(stop, 0, extent))))
        pixels = x[0, (o * high + i) * wide + j, ranges[0], ranges[1]]
        expected[r, o, i, j] = pixels.mean() if pixels.size else 0
    y = called(backend, "ps_roi_pool", x, boxes, (high, wide), spatial_scale=scale)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [3, 7, 8, 9, 40])
def test_position_sensitive_bins_beside_each_other(backend: Backend, width: int, dtype: str) -> None:
    """Fewer and more than fill a block, shorter and longer than vectors, at all places of a row."""
    rng = np.random.default_rng(width)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-14}
    for outputs, bins in ((1, 1), (1, (2, 3)), (3, (2, 3)), (5, (1, 7)), (2, (3, 8)), (9, (2, 1))):
        x = rng.standard_normal((2, outputs * int(np.prod(np.broadcast_to(bins, 2))), 6, width)).astype(dtype)
        corners = rng.uniform(-2, [width, 6], (12, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(0, [width, 6], (12, 2))], axis=1)
        boxes[0], boxes[1], boxes[2, 3] = (0, 0, width - 1, 5), (-99, -99, 999, 999), np.nan
        # Beside each bin is a pixel whose product with 0 would be seen.
        x[0, :, 0, 0], x[1, :, 3, width // 2] = np.inf, np.nan
        given = boxes, rng.integers(0, 2, 12), bins
        y = dyn.ps_roi_pool(x, *given)
        grad = rng.standard_normal(y.shape).astype(dtype)
        mine = dyn.ps_roi_pool_backward(grad, x, *given).x
        with dyn.use_backend("reference"):
            right, right_grad = dyn.ps_roi_pool(x, *given), dyn.ps_roi_pool_backward(grad, x, *given).x
        np.testing.assert_allclose(y, right, **tolerance)
        np.testing.assert_allclose(mine, right_grad, **tolerance)


@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
def test_position_sensitive_gradients_end_with_the_image(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even 0 is added beyond: it would turn the sign of what is there."""
    from dynarray.cpu.regions import forms

    x, box, memory = np.ones((1, 3, 4, 9)), np.array([[0.0, 0.0, 8.0, 3.0]]), np.full(256, -0.0)
    own = memory[64 : 64 + x.size]
    monkeypatch.setattr(forms, "empty", lambda shape, dtype: own.reshape(shape))
    dyn.ps_roi_pool_backward(np.ones((1, 3, 1, 1)), x, box, np.array([0]), 1)
    np.testing.assert_allclose(own, 1 / 36)
    assert np.signbit(memory[:64]).all() and np.signbit(memory[64 + x.size :]).all()


@on_cpu
@pytest.mark.parametrize("image", [-1, 2])
def test_regions_of_no_image_are_refused(backend: Backend, image: int) -> None:
    x, boxes = np.ones((2, 4, 5, 5)), np.ones((2, 4))
    for name in ("roi_align", "ps_roi_pool"):
        with pytest.raises(ValueError, match=f"^{name}: batch_index .* N = 2, got {image} at 1"):
            getattr(dyn, name)(x, boxes, np.array([0, image]), 2)


@pytest.mark.parametrize("backend", backend_params("cuda"), indirect=True)
def test_regions_of_no_image_are_nan_on_a_gpu(backend: Backend) -> None:
    x, boxes = backend.array(np.ones((2, 4, 5, 5))), backend.array(np.array([[0.0, 0.0, 3.0, 3.0]] * 3))
    for name in ("roi_align", "ps_roi_pool"):
        images = backend.array(np.array([0, 2, -1]))
        y = getattr(dyn, name)(x, boxes, images, 2)
        values = backend.numpy(y)
        assert np.isfinite(values[0]).all() and np.isnan(values[1:]).all()
        grad = backend.numpy(getattr(dyn, f"{name}_backward")(y * 0 + 1, x, boxes, images, 2).x)
        assert np.isfinite(grad).all() and grad.any()


def test_boxes_of_float32_and_small_integers(backend: Backend) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 5, 8, 9)).astype(np.float32)
    boxes = rng.uniform(0, 8, (6, 4)).astype(np.float32)
    images = np.array([1, 0, 1, 1, 0, 0], np.uint8)
    for name in ("roi_align", "ps_roi_pool"):
        bins = 2 if name == "roi_align" else 1
        narrow, wide = (
            backend.numpy(
                getattr(dyn, name)(
                    backend.array(x), backend.array(b), backend.array(i), bins, spatial_scale=0.75
                )
            )
            for b, i in ((boxes, images), (boxes.astype(np.float64), images.astype(np.int64)))
        )
        assert narrow.dtype == np.float32
        np.testing.assert_allclose(narrow, wide, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
def test_more_elements_than_an_int_can_count(backend: Backend) -> None:
    try:
        x = np.zeros(LARGE_IMAGES, np.float32)
    except MemoryError:
        pytest.skip("this system grants no 8.6 GB of memory that nobody will use")
    last, (height, width) = len(x) - 1, LARGE_IMAGES[2:]
    x[last, 0, -6:, -6:] = np.random.default_rng(4).standard_normal((6, 6))
    boxes = np.array([[width - 6, height - 7, width - 1, height - 1]], float)
    for name, bins in (("roi_align", 3), ("ps_roi_pool", 1)):
        y = getattr(dyn, name)(x, boxes, np.array([last]), bins)
        assert y.any()
        with dyn.use_backend("reference"):
            alone = getattr(dyn, name)(x[last:], boxes, np.array([0]), bins)
        np.testing.assert_allclose(y, alone, rtol=1e-5, atol=1e-6)


def test_on_the_tape_boxes_are_constants() -> None:
    x = np.random.default_rng(3).standard_normal((1, 4, 6, 6))
    boxes, images = np.array([[0.5, 1.0, 4.0, 5.0]]), np.array([0])

    def loss(x: Any) -> Any:
        return F.sum(F.square(F.roi_align(x, boxes, images, 2))) + F.sum(F.ps_roi_pool(x, boxes, images, 2))

    autodiff.check_gradients(loss, x, verbose=False)
    with pytest.raises(TypeError, match="roi_align: boxes must not be a Variable"):
        F.roi_align(x, autodiff.Variable(boxes), images, 2)


def test_there_is_no_halo() -> None:
    x, boxes = np.ones((1, 4, 6, 6)), np.ones((1, 4))
    for name in ("roi_align", "ps_roi_pool"):
        params = {"boxes": boxes, "batch_index": np.array([0]), "output_size": 2}
        with pytest.raises(TypeError, match=f"^{name}: .* no halo"):
            dyn.OPERATORS[name].halo(params, (x,))


# Non-maximum suppression.


def drawn_boxes(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of whole pixels, whose overlaps are often round numbers, and scores, many of them equal."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 12, (number, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 9, (number, 2))], axis=1)
    return boxes.astype(np.float64), rng.integers(0, 20, number) / 4.0


def kept_by_hand(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> Iterator[int]:
    """Box by box, pair by pair."""
    rest = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    while rest:
        best, *rest = rest
        yield best
        x0, y0, x1, y1 = boxes[best]

        def overlap(i: int, x0: float = x0, y0: float = y0, x1: float = x1, y1: float = y1) -> float:
            left, top, right, bottom = boxes[i]
            shared = max(0, min(x1, right) - max(x0, left)) * max(0, min(y1, bottom) - max(y0, top))
            union = (x1 - x0) * (y1 - y0) + (right - left) * (bottom - top) - shared
            return shared / union if union else 0.0

        rest = [i for i in rest if not overlap(i) > threshold]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("number", [0, 1, 40, 300])
def test_nms_by_hand(backend: Backend, number: int, dtype: str) -> None:
    for threshold in (0.0, 0.25, 0.5, 1.0):
        boxes, scores = drawn_boxes(number, number)
        arrays = (backend.array(each.astype(dtype)) for each in (boxes, scores))
        kept = backend.numpy(dyn.nms(*arrays, threshold))
        assert kept.dtype == np.int64
        assert kept.tolist() == list(kept_by_hand(boxes, scores, threshold))


def test_nms_of_nan(backend: Backend) -> None:
    """A box with NaN overlaps none, and a score that is NaN is the highest."""
    boxes = np.array([[0.0, 0.0, 4.0, 4.0]] * 5)
    boxes[1, 2] = np.nan
    scores = np.array([0.5, 0.9, np.inf, np.nan, 0.1])
    kept = backend.numpy(dyn.nms(backend.array(boxes), backend.array(scores), 0.5))
    assert kept.tolist() == [3, 1]


def test_nms_refuses(backend: Backend) -> None:
    boxes, scores = backend.array(np.ones((3, 4))), backend.array(np.ones(3))
    for arguments, words in (
        ((boxes[:, :3], scores, 0.5), "boxes must have shape"),
        ((boxes, scores[:2], 0.5), "scores must have shape"),
        ((boxes, [1.0] * 3, 0.5), "scores must be"),
        ((boxes, scores.astype("float32"), 0.5), "scores has dtype float32"),
        ((boxes, scores, "0.5"), "iou_threshold must be a real number"),
        ((boxes, scores, float("nan")), "iou_threshold must be finite"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^nms: {words}"):
            dyn.nms(*arguments)


@pytest.mark.parametrize("name", ["roi_align", "ps_roi_pool"])
def test_the_next_call_has_boxes_of_its_own(name: str) -> None:
    """What was found of a call is kept for others like it: its arrays are not."""
    operator, rng = dyn.OPERATORS[name], np.random.default_rng(5)
    operator._passed.clear()
    x = rng.standard_normal((2, 4, 9, 9))
    for turn in range(3):
        boxes, images = rng.uniform(0, 9, (5, 4)), np.arange(5) % 2
        boxes[:, 2:] += boxes[:, :2]
        given = {"boxes": boxes, "batch_index": images, "output_size": (2, 2)}
        given["spatial_scale"] = 1 / (1 + turn % 2)
        with dyn.use_backend("reference"):
            expected = operator.run((x,), given)[0]
        np.testing.assert_allclose(operator.run((x,), given)[0], expected, rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match=f"^{name}: batch_index must be at least 0 and less than N = 2"):
            operator.run((x,), {**given, "batch_index": images + 1})
        with pytest.raises(ValueError, match=f"^{name}: boxes must have"):
            operator.run((x,), {**given, "boxes": boxes[:, :3]})
        kept = weakref.ref(boxes)
        del boxes, given
        assert kept() is None
