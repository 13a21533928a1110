"""RPN, R-FCN and feature pyramids: against definitions written out here; published sizes; what is fixed."""

import math
from typing import Any

import numpy as np
import pytest
from test_detection import decoded, drawn_boxes, kept, naive_anchor_labels, overlap

from autodiff import Tape
from autodiff import functions as F
from autodiff.check import check_gradients
from autodiff.layers import CARAFE, Conv2d, DDFUp, Module
from autodiff.networks import FPN, RFCN, RPN, DilatedResNet, SmallBackbone, detection
from autodiff.networks.detection import anchor_boxes
from autodiff.networks.detection.detector import fixed


class Given(Module):
    """A backbone whose features are the image itself, and its means at half the size, and so on."""

    def __init__(self, *channels: int) -> None:
        self.channels = channels

    def features(self, x: Any) -> list:
        return [x if not level else F.avg_pool2d(x, 1 << level) for level in range(len(self.channels))]


def images(rng: np.random.Generator, count: int, channels: int, size: tuple[int, int]) -> np.ndarray:
    return rng.normal(size=(count, channels, *size))


# RPN


def proposer(rng: np.random.Generator, **options: Any) -> RPN:
    given = {"strides": (1,), "sizes": ((4, 8),), "ratios": (0.5, 2), "width": 6, **options}
    network = RPN(Given(*(3,) * len(given["strides"])), rng=rng, dtype=np.float64, **given)
    for layer in (network.objectness, network.shifts):
        layer.weight.data *= 50  # so that scores differ, and boxes move
    return network


def naive_anchors(network: RPN, x: np.ndarray) -> list[tuple[int, int, float, np.ndarray, np.ndarray]]:
    """Image, map, logit, code and anchor of each, one after the other."""
    found = []
    for level, features in enumerate(network.maps(x)):
        hidden = np.maximum(network.hidden(features).data, 0)
        logits, shifts = network.objectness(hidden).data, network.shifts(hidden).data
        for image in range(len(x)):
            every = iter(
                anchor_boxes(features.shape[2:], network.strides[level], network.sizes[level], (0.5, 2))
            )
            for row in range(features.shape[2]):
                for column in range(features.shape[3]):
                    for a in range(4):
                        code = shifts[image, 4 * a : 4 * a + 4, row, column]
                        found.append((image, level, logits[image, a, row, column], code, next(every)))
    return found


def test_rpn_gives_each_anchor_its_own_score_and_code(rng):
    network, x = proposer(rng), images(rng, 2, 3, (5, 6))
    (logits,), (codes,), (anchors,) = network(x)
    every = naive_anchors(network, x)
    np.testing.assert_allclose(logits.data.ravel(), [each[2] for each in every])
    np.testing.assert_allclose(codes.data.reshape(-1, 4), [each[3] for each in every])
    np.testing.assert_array_equal(np.tile(anchors, (2, 1)), [each[4] for each in every])


def test_loss_of_proposals_is_that_of_the_publication(rng):
    network, x = proposer(rng), images(rng, 2, 3, (10, 15))
    boxes = [drawn_boxes(rng, 3, (10, 15)), drawn_boxes(rng, 0)]
    state = network.rng.bit_generator.state
    found = network.loss(x, boxes, count=20)
    network.rng.bit_generator.state = state
    every, total, number = naive_anchors(network, x), 0.0, 0
    for image in range(2):
        own = [each for each in every if each[0] == image]
        labels = naive_anchor_labels(np.array([each[4] for each in own]), boxes[image], (10, 15))
        for k in detection.sample_labels(labels, 20, 0.5, network.rng):
            _, _, logit, code, anchor = own[k]
            chance = 1 / (1 + math.exp(-logit))
            total -= math.log(chance if labels[k] else 1 - chance)
            number += 1
            if labels[k]:
                box = max(boxes[image], key=lambda box: overlap(anchor.astype(float), box)).astype(float)
                for got, want in zip(decoded_to(box, anchor.astype(float)), code):
                    total += 4.5 * (got - want) ** 2 if abs(got - want) < 1 / 9 else abs(got - want) - 1 / 18
    assert number > 20
    assert float(found.data) == pytest.approx(total / number)


def decoded_to(box: np.ndarray, anchor: np.ndarray) -> tuple[float, ...]:
    """The code of a box."""
    (w, h), (wide, high) = ((each[2] - each[0] + 1, each[3] - each[1] + 1) for each in (box, anchor))
    x, y = ((box[k] + box[k + 2] - anchor[k] - anchor[k + 2]) / 2 for k in (0, 1))
    return x / wide, y / high, math.log(w / wide), math.log(h / high)


@pytest.mark.parametrize("strides", [(1,), (1, 2)])
def test_proposals_are_the_best_boxes_of_the_anchors(rng, strides):
    network = proposer(rng, strides=strides, sizes=((4, 8), (6, 9))[: len(strides)])
    x = images(rng, 2, 3, (10, 16))
    found = network.propose(x, most=7, before=60, overlap=0.6, least=3)
    for image in range(2):
        chosen = []
        for level in range(len(strides)):
            own = [each for each in naive_anchors(network, x) if each[:2] == (image, level)]
            own = sorted(own, key=lambda each: -each[2])[:60]
            boxes = [decoded(code, anchor.astype(float)) for _, _, _, code, anchor in own]
            boxes = [[max(a, 0), max(b, 0), min(c, 15), min(d, 9)] for a, b, c, d in boxes]
            boxes = [[min(a, 15), min(b, 9), max(c, 0), max(d, 0)] for a, b, c, d in boxes]
            large = [k for k, b in enumerate(boxes) if min(b[2] - b[0], b[3] - b[1]) + 1 >= 3]
            boxes, scores = np.array(boxes)[large], np.array([each[2] for each in own])[large]
            chosen += [(scores[k], boxes[k]) for k in kept(boxes, scores, 0.6)]
        expected = [box for _, box in sorted(chosen, key=lambda each: -each[0])][:7]
        assert len(expected) > 3
        np.testing.assert_allclose(found[image], expected, atol=1e-6)


def test_what_is_fixed_is_on_no_tape_and_goes_on_training_afterwards(rng):
    network = RPN(SmallBackbone((4, 4), rng=rng), strides=(4,), sizes=((8,),), width=4, rng=rng).train()
    x = images(rng, 1, 3, (16, 16)).astype(np.float32)
    before = network.state_dict()
    with Tape() as tape:
        network.propose(x)
        assert not tape.steps
        assert all(np.array_equal(value, before[name]) for name, value in network.state_dict().items())
        assert network.training and all(module.training for _, module in network.modules())
        network(x)
        assert tape.steps
    with fixed(network), Tape() as inside:
        network(x)
    assert inside.steps


def test_anchors_have_one_number_on_all_maps():
    with pytest.raises(ValueError, match="sizes must be as many"):
        RPN(Given(3, 3), strides=(4, 8), sizes=((8,), (8, 16)))
    with pytest.raises(ValueError, match="one number of channels"):
        RPN(Given(3, 4), strides=(4, 8), sizes=((8,), (8,)))
    with pytest.raises(ValueError, match="strides"):
        RFCN(Given(3), 2, strides=(4, 8))


# R-FCN


def votes(maps: np.ndarray, region: np.ndarray, bins: int, stride: int) -> np.ndarray:
    """What the bins of a region say on average: each reads its own map."""
    high, wide = maps.shape[1:]
    x0, y0 = (math.floor(value + 0.5) / stride for value in region[:2])
    x1, y1 = ((math.floor(value + 0.5) + 1) / stride for value in region[2:])
    h, w = max(y1 - y0, 0.1) / bins, max(x1 - x0, 0.1) / bins
    outputs = len(maps) // bins**2
    total = np.zeros(outputs)
    for o in range(outputs):
        for i in range(bins):
            for j in range(bins):
                rows = range(max(math.floor(y0 + i * h), 0), min(math.ceil(y0 + (i + 1) * h), high))
                columns = range(max(math.floor(x0 + j * w), 0), min(math.ceil(x0 + (j + 1) * w), wide))
                seen = [maps[(o * bins + i) * bins + j, row, column] for row in rows for column in columns]
                total[o] += np.mean(seen) if seen else 0
    return total / bins**2


@pytest.mark.parametrize("sampling", [None, {"out_channels": 2, "post_channels": 4, "features": 3}])
@pytest.mark.parametrize("strides", [(4,), (4, 8)])
def test_regions_get_the_votes_of_their_bins_on_the_map_of_their_size(rng, strides, sampling):
    network = RFCN(
        Given(*(3,) * len(strides)), 2, strides=strides, bins=3, width=5, cells=4, sampling=sampling, rng=rng,
        dtype=np.float64,
    )  # fmt: skip
    x, index = images(rng, 2, 3, (10, 14)), rng.integers(0, 2, 9)
    regions = drawn_boxes(rng, 9).astype(np.float64)
    scores, codes = network(x, regions, index)
    for row, (region, image) in enumerate(zip(regions, index)):
        size = math.sqrt((region[2] - region[0] + 1) * (region[3] - region[1] + 1))
        level = min(int(size >= 32), len(strides) - 1)
        seen = np.maximum(network.reduce(network.maps(x)[level]).data, 0)
        if sampling is not None:
            seen = np.concatenate([seen, np.maximum(network.sampling(seen).data, 0)], axis=1)
        for found, layer in ((scores, network.score_maps), (codes, network.box_maps)):
            maps = np.einsum("oc,chw->ohw", layer.weight.data[:, :, 0, 0], seen[image])
            maps += layer.bias.data[:, None, None]
            np.testing.assert_allclose(found.data[row], votes(maps, region, 3, strides[level]), atol=1e-12)


def test_gradients_of_the_heads_are_those_of_the_loss(rng):
    network = RFCN(Given(2), 2, strides=(4,), bins=2, width=3, rng=rng, dtype=np.float64)
    x, boxes, labels = (
        images(rng, 2, 2, (5, 6)),
        [drawn_boxes(rng, 2, (20, 24)) for _ in "ab"],
        [[0, 1], [1, 1]],
    )
    proposals = [drawn_boxes(rng, 6, (20, 24)) for _ in "ab"]
    weights = [layer.weight.data for layer in (network.reduce, network.score_maps, network.box_maps)]

    def loss(x: Any, reduce: Any, score_maps: Any, box_maps: Any) -> Any:
        network.reduce.weight, network.score_maps.weight, network.box_maps.weight = (
            reduce,
            score_maps,
            box_maps,
        )
        return network.loss(x, proposals, boxes, labels, mined=5)

    check_gradients(loss, x, *weights, verbose=False, rtol=1e-6)


def test_the_loss_is_the_mean_of_the_hardest_regions_with_the_objects_among_them(rng):
    network = RFCN(Given(3), 2, strides=(4,), bins=2, width=None, rng=rng, dtype=np.float64)
    x, boxes = images(rng, 2, 3, (10, 14)), [drawn_boxes(rng, 2), drawn_boxes(rng, 0)]
    proposals, labels = [drawn_boxes(rng, 9), drawn_boxes(rng, 4)], [np.array([1, 0]), np.array([], int)]
    found, each = network.loss(x, proposals, boxes, labels, mined=6), []
    for image in range(2):
        regions = np.concatenate([proposals[image], boxes[image]]).astype(float)
        scores, codes = (o.data for o in network(x, regions.astype(np.float32), np.full(len(regions), image)))
        losses = []
        for region, score, code in zip(regions, scores, codes):
            overlaps = [overlap(region, box) for box in boxes[image]]
            k = int(np.argmax(overlaps)) if overlaps else 0
            own = labels[image][k] + 1 if max(overlaps, default=0) >= 0.5 else 0
            losses.append(math.log(np.exp(score).sum()) - score[own])
            if own:
                want = np.array(decoded_to(boxes[image][k].astype(float), region)) / (0.1, 0.1, 0.2, 0.2)
                losses[-1] += sum(d * d / 2 if d < 1 else d - 0.5 for d in abs(code - want))
        each += sorted(losses)[-6:]
    assert len(each) == 10
    assert float(found.data) == pytest.approx(np.mean(each), rel=1e-6)
    assert float(network.loss(x, [drawn_boxes(rng, 0)] * 2, [drawn_boxes(rng, 0)] * 2, [[], []]).data) == 0


def test_detections_are_what_is_left_of_each_class(rng):
    network = RFCN(Given(3), 3, strides=(1,), bins=2, width=None, rng=rng, dtype=np.float64)
    network.score_maps.weight.data *= 100
    network.box_maps.weight.data *= 30
    x, proposals = images(rng, 2, 3, (20, 28)), [drawn_boxes(rng, 12, (20, 28)), drawn_boxes(rng, 0)]
    found = network.detect(x, proposals, least=0.2, overlap=0.4, most=9)
    scores, codes = (o.data for o in network(x, proposals[0], np.zeros(12, int)))
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    boxes = [
        decoded(code, region, (0.1, 0.1, 0.2, 0.2)) for code, region in zip(codes, proposals[0].astype(float))
    ]
    boxes = np.clip(boxes, 0, [27, 19, 27, 19])
    expected = []
    for label in range(3):
        own = np.flatnonzero(chances[:, label + 1] >= 0.2)
        rows = own[kept(boxes[own], chances[own, label + 1], 0.4)]
        expected += [(chances[row, label + 1], label, tuple(boxes[row])) for row in rows]
    expected = sorted(expected, key=lambda each: -each[0])[:9]
    assert len({label for _, label, _ in expected}) > 1
    np.testing.assert_allclose(found[0].scores, [each[0] for each in expected])
    assert found[0].labels.tolist() == [each[1] for each in expected]
    np.testing.assert_allclose(found[0].boxes, [each[2] for each in expected], atol=1e-9)
    assert [len(part) for part in found[1]] == [0, 0, 0]


def test_frozen_statistics_stay_in_training(rng):
    network = RFCN(
        SmallBackbone((4, 4), rng=rng), 2, strides=(4,), bins=2, width=4, frozen_norm=True, rng=rng
    )
    before = network.state_dict()
    network.train()
    network.loss(images(rng, 1, 3, (16, 16)).astype(np.float32), [drawn_boxes(rng, 4, (16, 16))], [[]], [[]])
    after = network.state_dict()
    assert network.training and all(np.array_equal(before[name], after[name]) for name in before)


def test_published_sizes_of_r_fcn():
    """7 x 7 x 21 score maps and 7 x 7 x 4 of boxes, of 1024 channels, or 256 more of dynamic sampling."""
    plain, sampled = (RFCN(Given(2048), 20, sampling=each, rng=0) for each in (None, {}))
    assert plain.reduce.weight.shape == (1024, 2048, 1, 1)
    assert plain.score_maps.weight.shape == (1029, 1024, 1, 1) and plain.box_maps.weight.shape[0] == 196
    assert sampled.score_maps.weight.shape == (1029, 1280, 1, 1)
    layer = sampled.sampling
    assert layer.params["samples"] == 3 and layer.params["sample_stride"] == (1, 1)
    assert layer.out_channels == 24 and layer.post.weight.shape == (256, 24, 1, 1)
    assert layer.kernel.weight.shape == (24 * (256 + 9), 1024, 1, 1)


def test_a_resnet_without_its_last_stage_is_a_backbone_for_proposals():
    backbone = DilatedResNet((1, 1, 1), rng=0)
    assert backbone.channels == (256, 512, 1024)
    maps = backbone.eval().features(np.zeros((1, 3, 33, 48), np.float32))
    assert [each.shape[1:] for each in maps] == [(256, 9, 12), (512, 5, 6), (1024, 3, 3)]


# Feature pyramids


@pytest.mark.parametrize(("layer", "count"), [(CARAFE, 74_148), (DDFUp, 560_368)])
def test_published_parameters_of_upsamplers(layer, count):
    assert layer(256, rng=0).num_parameters == count


def test_pyramids_differ_by_their_upsamplers_alone():
    counts = {}
    for name in ("nearest", "carafe", "ddf"):
        pyramid = FPN(Given(256, 512, 1024, 2048), upsample=name, rng=0)
        assert pyramid.channels == (256,) * 4
        counts[name] = pyramid.num_parameters
    lateral, smooth = 256 * (256 + 512 + 1024 + 2048) + 4 * 256, 4 * (256 * 256 * 9 + 256)
    assert counts["nearest"] == lateral + smooth
    assert counts["carafe"] - counts["nearest"] == 3 * 74_148
    assert counts["ddf"] - counts["nearest"] == 3 * 560_368
    with pytest.raises(ValueError, match="upsample"):
        FPN(Given(3), upsample="bilinear")


class Odd(Given):
    """Sizes that are not halves, as strides make them of an odd number of pixels."""

    def features(self, x: Any) -> list:
        return [x, x[:, :, ::2, ::2], x[:, :, ::4, ::4]]


@pytest.mark.parametrize("name", ["nearest", "carafe", "ddf"])
def test_a_pyramid_adds_what_comes_from_above(rng, name):
    pyramid = FPN(Odd(3, 3, 3), 4, levels=3, upsample=name, rng=rng, dtype=np.float64)
    x = images(rng, 2, 3, (7, 9))
    merged: list[Any] = []
    for level in (2, 1, 0):
        layer: Conv2d = pyramid.lateral[level]
        seen = x[:, :, :: 1 << level, :: 1 << level]
        own = np.einsum("oc,nchw->nohw", layer.weight.data[:, :, 0, 0], seen) + layer.bias.data[:, None, None]
        if merged:
            above = merged[0]
            raised = (
                above.repeat(2, 2).repeat(2, 3) if name == "nearest" else pyramid.upsample[level](above).data
            )
            own = own + raised[:, :, : own.shape[2], : own.shape[3]]
        merged.insert(0, own)
    for found, smooth, each in zip(pyramid.features(x), pyramid.smooth, merged):
        np.testing.assert_allclose(found.data, smooth(each).data, rtol=1e-10, atol=1e-12)


def test_every_parameter_of_a_detector_on_a_pyramid_has_a_gradient(rng):
    pyramid = FPN(SmallBackbone((4, 4, 6), rng=rng), 4, levels=2, upsample="ddf", rng=rng)
    network = RFCN(pyramid, 3, strides=(4, 8), bins=2, width=None, cells=2, sampling={"features": 3}, rng=rng)
    x = images(rng, 2, 3, (24, 24)).astype(np.float32)
    boxes = [np.array([[2, 2, 9, 9], [1, 1, 20, 20]], np.float32)] * 2
    with Tape() as tape:
        loss = network.loss(x, boxes, boxes, [[0, 1], [2, 1]])
    names = network.named_parameters()
    for name, grad in zip(names, tape.gradient(loss, list(names.values()))):
        assert np.isfinite(grad).all(), name
