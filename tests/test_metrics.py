"""Metrics: worked by hand, as known packages compute them, and where nothing is left to be measured."""

import math

import numpy as np
import pytest

from autodiff import Variable, metrics
from autodiff.metrics import Detections, Truth

# ---- segmentation


def test_intersection_over_union_by_hand():
    target = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8)
    found = np.array([[0, 1, 1, 1], [2, 0, 7, 0]])
    # class 0: 1 of {3 pixels}; class 1: 2 of 3; class 2: 1 of 2; class 3 occurs in neither
    assert metrics.mean_iou(found, target, 4, ignore=255) == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)
    assert metrics.pixel_accuracy(found, target, ignore=255) == pytest.approx(4 / 6)
    confusion = metrics.Confusion(4, ignore=255)
    for rows in (slice(0, 1), slice(1, 2)):
        confusion.add(found[rows], target[rows])
    assert confusion.counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(confusion.iou, [1 / 3, 2 / 3, 1 / 2, np.nan])
    assert confusion.mean_iou == metrics.mean_iou(found, target, 4, ignore=255)
    assert confusion.pixel_accuracy == pytest.approx(4 / 6)
    assert confusion.mean_accuracy == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)


def test_segmentation_is_that_of_scikit_learn(rng):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed (extra: examples)")
    target, found = rng.integers(0, 6, (2, 3, 40, 50))
    assert metrics.mean_iou(found, target, 6) == pytest.approx(
        sklearn.jaccard_score(target.ravel(), found.ravel(), average="macro"), rel=1e-12
    )
    assert metrics.pixel_accuracy(found, target) == sklearn.accuracy_score(target.ravel(), found.ravel())
    confusion = metrics.Confusion(6)
    confusion.add(found, target)
    np.testing.assert_array_equal(confusion.counts, sklearn.confusion_matrix(target.ravel(), found.ravel()))
    assert confusion.mean_accuracy == pytest.approx(
        sklearn.balanced_accuracy_score(target.ravel(), found.ravel()), rel=1e-12
    )


def test_segmentation_of_nothing_and_wrong_labels():
    nothing = np.full((2, 2), 255)
    assert math.isnan(metrics.mean_iou(nothing, nothing, 3, ignore=255))
    assert math.isnan(metrics.pixel_accuracy(nothing, nothing, ignore=255))
    assert math.isnan(metrics.mean_iou(np.zeros((0, 4), int), np.zeros((0, 4), int), 3))
    assert math.isnan(metrics.Confusion(2).mean_accuracy)
    ones = np.ones((2, 2), int)
    assert metrics.mean_iou(ones > 0, ones, 2) == 1
    for found, target, error, message in [
        (nothing, ones, ValueError, "prediction has label 255, of 3 classes"),
        (ones, nothing, ValueError, "target has label 255"),
        (-ones, ones, ValueError, "prediction has label -1"),
        (ones, ones[0], ValueError, r"one shape, got \(2, 2\) and \(2,\)"),
        (ones * 0.5, ones, TypeError, "prediction must be integers, got float64; of scores, take the argmax"),
        (ones, ones * 1j, TypeError, "target must be an array of real numbers"),
    ]:
        with pytest.raises(error, match=message):
            metrics.mean_iou(found, target, 3)
    with pytest.raises(TypeError, match="classes must be an int"):
        metrics.Confusion(2.0)
    with pytest.raises(ValueError, match="classes must be at least 1"):
        metrics.Confusion(0)


# ---- classification


def test_top_k_by_hand():
    scores = np.array([[5.0, 4, 3, 2], [2, 3, 4, 5], [1, 2, 3, 0], [0, 0, 9, 1]])
    target = np.array([0, 1, 0, 2])
    # Their places: 1, 3, 3, 1.
    assert [metrics.top_k_accuracy(scores, target, k) for k in (1, 2, 3, 4)] == [0.5, 0.5, 1, 1]
    assert metrics.top_k_accuracy(Variable(scores), target) == 0.5


def test_top_k_is_that_of_scikit_learn(rng):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed (extra: examples)")
    scores, target = rng.standard_normal((200, 9)), rng.integers(0, 9, 200)
    for k in (1, 2, 5, 8):
        expected = sklearn.top_k_accuracy_score(target, scores, k=k, labels=range(9))
        assert metrics.top_k_accuracy(scores, target, k) == pytest.approx(expected, rel=1e-12)


def test_equal_scores_and_nan_do_not_help():
    same = np.zeros((5, 3), np.float16)
    for order in (same, same[:, ::-1]):
        assert metrics.top_k_accuracy(order, np.arange(5) % 3, 2) == 0
    assert metrics.top_k_accuracy(same, np.arange(5) % 3, 3) == 1
    with_nan = np.array([[np.nan, 1, 0], [2, np.nan, 0]])
    assert metrics.top_k_accuracy(with_nan, np.array([0, 0]), 1) == 0
    assert metrics.top_k_accuracy(with_nan, np.array([0, 0]), 3) == 0.5
    assert math.isnan(metrics.top_k_accuracy(np.zeros((0, 3)), np.zeros(0, int)))


@pytest.mark.parametrize(
    ("scores", "target", "k", "message"),
    [
        (np.zeros((2, 3)), np.array([0, 3]), 1, "target has label 3, of 3 classes"),
        (np.zeros((2, 3)), np.array([0, -1]), 1, "target has label -1"),
        (np.zeros((2, 3)), np.array([0]), 1, r"got \(2, 3\) and \(1,\)"),
        (np.zeros(3), np.array(0), 1, r"scores must have shape \(N, C\)"),
        (np.zeros((2, 3)), np.array([0, 1]), 4, "k must be at most the number of classes, 3, got 4"),
        (np.zeros((2, 3)), np.array([0, 1]), 0, "k must be at least 1"),
    ],
)
def test_wrong_scores(scores, target, k, message):
    with pytest.raises(ValueError, match=message):
        metrics.top_k_accuracy(scores, target, k)


# ---- flow


def test_flow_by_hand():
    target = np.zeros((1, 2, 2, 2))
    target[0, 0] = [[0, 10], [100, 3]]
    found = target.copy()
    found[0, 1] = [[3, 3.5], [4, 5.1]]
    # Lengths 3, 3.5, 4 and 5.1; of 0, 35 %, 4 % and 170 %. The first is not over 3, the third not over 5 %.
    assert metrics.end_point_error(found, target) == pytest.approx(15.6 / 4)
    assert metrics.flow_outliers(found, target) == 0.5
    valid = np.array([[[1, 1], [1, 0]]], np.uint8)
    assert metrics.end_point_error(found, target, valid) == pytest.approx(10.5 / 3)
    assert metrics.flow_outliers(found, target, valid) == pytest.approx(1 / 3)
    assert metrics.end_point_error(found[0].astype(np.float16), target[0]) == pytest.approx(3.9, rel=1e-3)


def test_flow_that_is_not_there():
    target = np.zeros((2, 3, 3), np.float32)
    found = target + np.float32(np.nan)
    for function in (metrics.end_point_error, metrics.flow_outliers):
        assert math.isnan(function(found, target))
        assert math.isnan(function(target, target, np.zeros((3, 3))))
        assert math.isnan(function(target[:, :0], target[:, :0]))
        mask = np.zeros((3, 3), bool)
        mask[1, 1] = True
        found[:, 1, 1] = 1
        assert function(found, target, mask) in (0, pytest.approx(2**0.5))
        with pytest.raises(ValueError, match=r"\(\.\.\., 2, H, W\)"):
            function(target[:1], target[:1])
        with pytest.raises(ValueError, match=r"valid must have shape .* = \(3, 3\), got \(2, 3, 3\)"):
            function(target, target, target)
        found[:, 1, 1] = np.nan


# ---- detection


def test_average_precision_by_hand():
    # Right, wrong, right, wrong, right of 4: precisions 1, 1/2, 2/3, 2/4, 3/5 at recalls 1, 1, 2, 2, 3 of 4.
    scores, correct = [0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, False, True]
    assert metrics.average_precision(scores, correct, 4) == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)
    # At 0, 0.1, 0.2: 1; at 0.3, 0.4, 0.5: 2/3; at 0.6, 0.7: 3/5; above: 0.
    assert metrics.average_precision(scores, correct, 4, rule="2007") == pytest.approx((3 + 2 + 1.2) / 11)
    # Precision may rise: 0, 1/2, 2/3 at recalls 0, 1/2, 1 counts as 2/3 throughout.
    assert metrics.average_precision([3, 2, 1], [False, True, True]) == pytest.approx(2 / 3)
    assert metrics.average_precision([3, 2, 1], [False, True, True], rule="2007") == pytest.approx(2 / 3)


def test_recalls_are_fractions():
    """3 of 10 reach recall 0.3, though 0.1 + 0.1 + 0.1 is more than 0.3."""
    assert metrics.average_precision([3, 2, 1], [True] * 3, 10, rule="2007") == pytest.approx(4 / 11)
    assert metrics.average_precision(np.arange(7), [True] * 7, 10, rule="2007") == pytest.approx(8 / 11)


@pytest.mark.parametrize("positives", [None, 90])
def test_average_precision_from_the_curve_of_scikit_learn(rng, positives):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed (extra: examples)")
    scores, correct = rng.standard_normal(120), rng.random(120) < 0.5
    precision, recall, _ = sklearn.precision_recall_curve(correct, scores)
    recall = recall * correct.sum() / (positives or correct.sum())
    # From recall 0 up, the best precision from there on; the curve ends with a point that no list has.
    precision, recall = precision[-2::-1], recall[-2::-1]
    best = np.maximum.accumulate(precision[::-1])[::-1]
    expected = (np.diff(recall, prepend=0) * best).sum()
    assert metrics.average_precision(scores, correct, positives) == pytest.approx(expected, rel=1e-12)
    eleven = [max(precision[recall >= t - 1e-9], default=0) for t in np.linspace(0, 1, 11)]
    found = metrics.average_precision(scores, correct, positives, rule="2007")
    assert found == pytest.approx(np.mean(eleven), rel=1e-12)


def test_equal_scores_stay_in_order():
    assert metrics.average_precision([1, 1], [True, False]) == 1
    assert metrics.average_precision([1, 1], [False, True]) == 0.5


def test_lists_of_nothing():
    assert metrics.average_precision([], [], 3) == 0
    assert metrics.average_precision([], [], 3, rule="2007") == 0
    assert math.isnan(metrics.average_precision([], []))
    assert math.isnan(metrics.average_precision([0.5], [False], 0))


def test_boxes_have_both_ends():
    assert metrics.box_iou([(1, 1, 1, 1)], [(1, 1, 2, 2)]).tolist() == [[0.25]]
    assert metrics.box_iou([(5, 5, 3, 9)], [(5, 5, 3, 9)]).tolist() == [[0]]
    assert metrics.box_iou([], [(1, 1, 2, 2)]).shape == (0, 1)


def test_detections_are_matched_as_the_development_kit_does():
    truth = [
        Truth([(0, 0, 9, 9), (20, 0, 29, 9), (40, 0, 49, 9)], [0, 0, 0], [False, False, True]),
        Truth([(0, 0, 9, 9), (30, 30, 39, 39)], [0, 1]),
        Truth([], []),
    ]
    found = [
        # Right; the same object again, wrong; half of the second object, right; the difficult one twice.
        Detections(
            [(0, 0, 9, 9), (0, 0, 9, 8), (20, 0, 29, 4), (40, 0, 49, 9), (40, 0, 49, 8)],
            [0.9, 0.8, 0.7, 0.95, 0.94],
            [0] * 5,
        ),
        # Less than half, wrong; another class, right.
        Detections([(0, 0, 9, 3), (30, 30, 39, 39)], [0.6, 0.5], [0, 1]),
        Detections([(0, 0, 5, 5)], [0.99], [2]),
    ]
    # Of 3 objects: right at 0.9, wrong at 0.8, right at 0.7, wrong at 0.6.
    expected = (1 + 2 / 3) / 3
    assert metrics.detection_average_precision(found, truth, 0) == pytest.approx(expected)
    assert metrics.detection_average_precision(found, truth, 1) == 1
    assert math.isnan(metrics.detection_average_precision(found, truth, 2))
    assert metrics.mean_average_precision(found, truth, 3) == pytest.approx((expected + 1) / 2)
    # 0, 0.1, 0.2, 0.3: 1; 0.4, 0.5, 0.6: 2/3.
    assert metrics.detection_average_precision(found, truth, 0, rule="2007") == pytest.approx(6 / 11)
    assert metrics.detection_average_precision(found, truth, 0, threshold=0.4) == pytest.approx(
        (1 + 3 / 4 + 3 / 4) / 3
    )


def test_a_detection_belongs_to_the_box_that_it_overlaps_most():
    """Also if that box was found before: VOC does not look for the next best."""
    truth = [Truth([(0, 0, 9, 9), (2, 0, 11, 9)], [0, 0])]
    found = [Detections([(0, 0, 9, 9), (0, 0, 10, 9)], [0.9, 0.8], [0, 0])]
    assert metrics.detection_average_precision(found, truth, 0) == 0.5


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.average_precision([np.nan], [True]), ValueError, "scores must not be NaN"),
        (
            lambda: metrics.average_precision([1.0], [True], 0),
            ValueError,
            "1 entries are correct, of 0 positives",
        ),
        (lambda: metrics.average_precision([1.0], [True, False]), ValueError, r"shape \(D,\)"),
        (lambda: metrics.average_precision([1.0], [1]), TypeError, "correct must be booleans"),
        (
            lambda: metrics.average_precision([1.0], [True], rule="2010"),
            ValueError,
            "rule must be one of 2007, 2012",
        ),
        (
            lambda: metrics.box_iou([(0, 0, 1)], []),
            ValueError,
            r"first must have shape \(n, 4\), got \(1, 3\)",
        ),
        (lambda: metrics.box_iou([(0, 0, 1, np.inf)], []), ValueError, "first must be finite"),
        (lambda: metrics.mean_average_precision([], [([], [])], 2), ValueError, "of 0 images and truth of 1"),
        (
            lambda: metrics.mean_average_precision([([(0, 0, 1, 1)], [1.0, 2.0], [0])], [([], [])], 2),
            ValueError,
            r"image 0 has 1 boxes, but other values of shape \(2,\)",
        ),
        (
            lambda: metrics.mean_average_precision([([], [], [])], [([(0, 0, 1, 1)], [2])], 2),
            ValueError,
            "image 0 has a label that is none of 2 classes",
        ),
        (
            lambda: metrics.mean_average_precision([], [], 2, threshold=0),
            ValueError,
            "threshold must be over 0",
        ),
    ],
)
def test_wrong_detections(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_no_images_give_nan():
    assert math.isnan(metrics.mean_average_precision([], [], 2))
    assert math.isnan(metrics.detection_average_precision([], [], 0))


# ---- images


def test_signal_to_noise_by_hand():
    target = np.zeros((2, 5), np.uint8)
    found = target + 255
    assert metrics.psnr(found, target) == pytest.approx(0)
    found[...] = 0
    found[0, 0] = 255  # a tenth of the pixels
    assert metrics.psnr(found, target) == pytest.approx(10)
    assert metrics.psnr(target, target) == math.inf
    assert metrics.psnr(np.float16([0.5]), np.float16([0.25]), data_range=1) == pytest.approx(
        10 * math.log10(16)
    )


def test_structural_similarity_by_hand():
    """Two images that are constant have variance 0: of the formula only the means are left."""
    found, target = np.full((9, 9), 0.5), np.full((9, 9), 0.25)
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    assert metrics.ssim(found, target, data_range=1) == pytest.approx(expected, rel=1e-9)
    assert metrics.ssim(
        np.full((11, 11), 0.5), np.full((11, 11), 0.25), data_range=1, gaussian=True
    ) == pytest.approx(expected, rel=1e-9)
    # One window: means 4 and 5, variances and covariance of 0..8 and of twice that less 3, with ddof 1.
    x = np.arange(9.0).reshape(3, 3)
    y = 2 * x - 3
    expected = (2 * 4 * 5 + 0.01) * (2 * 15 + 0.09) / ((16 + 25 + 0.01) * (7.5 + 30 + 0.09))
    assert metrics.ssim(x, y, data_range=10, window=3) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_images_are_measured_as_by_scikit_image(rng, dtype):
    skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed (extra: examples)")
    integers = np.dtype(dtype).kind != "f"
    low = -200 if dtype == "int16" else 0
    draw = rng.integers(low, 255, (2, 3, 30, 41)) if integers else rng.random((2, 3, 30, 41))
    found, target = draw.astype(dtype)
    options = {} if integers else {"data_range": 1.0}
    rel = 1e-4 if dtype == "float32" else 1e-9
    theirs = {"data_range": 65535 if dtype == "int16" else 255 if integers else 1.0}
    assert metrics.psnr(found, target, **options) == pytest.approx(
        skimage.peak_signal_noise_ratio(target, found, **options), rel=rel
    )
    assert metrics.ssim(found, target, **options) == pytest.approx(
        skimage.structural_similarity(target, found, channel_axis=0, **theirs), rel=rel
    )
    assert metrics.ssim(found, target, window=11, **options) == pytest.approx(
        skimage.structural_similarity(target, found, channel_axis=0, win_size=11, **theirs), rel=rel
    )
    gauss = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert metrics.ssim(found, target, gaussian=True, **options) == pytest.approx(
        skimage.structural_similarity(target, found, channel_axis=0, **gauss, **theirs), rel=rel
    )


def test_images_that_are_none_or_wrong():
    x = np.zeros((8, 8))
    assert math.isnan(metrics.psnr(np.zeros((0, 3)), np.zeros((0, 3)), data_range=1))
    assert math.isnan(metrics.ssim(np.zeros((0, 8, 8)), np.zeros((0, 8, 8)), data_range=1))
    assert math.isnan(metrics.psnr(x * np.nan, x, data_range=1))
    assert math.isnan(metrics.ssim(x * np.nan, x, data_range=1))
    for function in (metrics.psnr, metrics.ssim):
        with pytest.raises(ValueError, match="data_range must be given for float64 and float64"):
            function(x, x)
        with pytest.raises(ValueError, match="data_range must be given for uint8 and int16"):
            function(x.astype("u1"), x.astype("i2"))
        with pytest.raises(ValueError, match="data_range must be positive, got -1"):
            function(x, x, data_range=-1)
        with pytest.raises(ValueError, match=r"one shape, got \(8, 8\) and \(8,\)"):
            function(x, x[0], data_range=1)
        with pytest.raises(TypeError, match="prediction must be an array of real numbers, got complex128"):
            function(x * 1j, x, data_range=1)
    with pytest.raises(ValueError, match=r"H, W >= 7, got \(6, 8\)"):
        metrics.ssim(x[:6], x[:6], data_range=1)
    with pytest.raises(ValueError, match="window must be odd, got 4"):
        metrics.ssim(x, x, data_range=1, window=4)


def test_inputs_are_left_as_they_are_and_may_lie_anyhow(rng):
    x = rng.random((2, 12, 13))
    y = rng.random((2, 12, 13))
    x.flags.writeable = y.flags.writeable = False
    before = x.copy()
    for turn in (lambda a: a, lambda a: np.asfortranarray(a), lambda a: a[::1][:, ::-1][:, ::-1]):
        assert metrics.ssim(turn(x), turn(y), data_range=1) == metrics.ssim(x, y, data_range=1)
        assert metrics.end_point_error(turn(x), turn(y)) == metrics.end_point_error(x, y)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("ignore", [[0, 255], "255", 255.0, math.nan, True])
def test_one_label_is_ignored_and_it_is_an_int(ignore):
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    for measure in (
        lambda: metrics.mean_iou(labels, labels, 2, ignore=ignore),
        lambda: metrics.pixel_accuracy(labels, labels, ignore=ignore),
        lambda: metrics.Confusion(2, ignore=ignore),
    ):
        with pytest.raises(TypeError, match=r"(Confusion|pixel_accuracy): ignore must be an int, got"):
            measure()
    # NumPy's are as good as Python's, and none of another type's range is in the way.
    assert metrics.pixel_accuracy(labels, labels, ignore=np.uint8(1)) == 1
    assert metrics.mean_iou(labels, labels, 2, ignore=-1) == 1


def test_a_single_pixel_without_axes():
    assert metrics.mean_iou(1, 1, 2) == 1 == metrics.pixel_accuracy(1, 1)
    assert math.isnan(metrics.mean_iou(0, 1, 2, ignore=1))


@pytest.mark.parametrize("found", [{"boxes": [], "scores": [], "labels": []}, ([], []), np.zeros((3, 4))])
def test_what_is_no_detection_is_named(found):
    there = [Truth([(0, 0, 1, 1)], [0])]
    with pytest.raises(TypeError, match=r"detections must be .* \(boxes, scores, labels\) of each image"):
        metrics.mean_average_precision([found], there, 1)
    with pytest.raises(TypeError, match=r"truth must be .* \(boxes, labels, difficult\) of each image"):
        metrics.mean_average_precision([Detections([], [], [])], [{"boxes": []}], 1)
    with pytest.raises(TypeError, match="detection_average_precision: label must be an int, got 'cat'"):
        metrics.detection_average_precision([Detections([], [], [])], there, "cat")
