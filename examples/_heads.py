"""The networks of segmentation.py: one DSNet, eight ways to join what knows where with what knows what."""

from typing import Any

import numpy as np
from _scenes import CLASSES

from autodiff import functions as F
from autodiff.layers import ASPP, Conv2d, DeformConv, FilterNorm, Module
from autodiff.layers.deform import raised
from autodiff.networks import DSNet, GuidedHead, SmallBackbone, dsnet_variant, summary

METHODS = (
    *("plain", "deformable v1", "deformable v2", "image filter", "dynamic filter"),
    *("deformable v2 on ASPP", "non-local guide", "CGDS"),
)
# Channels of the backbone at 1/2, 1/4 and 1/8 of the size of the image; the first are the low-level features.
STAGES = (16, 32, 64)
STEP = 2  # pixels of the image from one low-level feature to the next
WIDTH = 24  # channels of the guide, of what CGDS samples, and before the classes
DILATIONS = (1, 2, 3)  # of ASPP, on the coarsest features


class DynamicFilter(Module):
    """A 3 x 3 filter for each pixel, made from the guide, for all channels, then a 1 x 1 convolution.

    The guide says how to weigh the neighbours on the regular grid, where that of CGDS says which pixels to
    take.
    """

    def __init__(self, channels: int, rng: np.random.Generator) -> None:
        self.generate = Conv2d(WIDTH, 9, 3, rng=rng)
        self.norm = FilterNorm(3, nonlinearity="linear")
        self.mix = Conv2d(channels, channels, 1, rng=rng)

    def forward(self, x: Any, guide: Any) -> Any:
        """x (N, channels, H, W), guide (N, WIDTH, H, W) -> (N, channels, H, W)."""
        return self.mix(F.local_filter2d(x, self.norm(self.generate(guide))))

    def multiply_adds(self, x: Any, output: Any) -> int:
        """Of the filter: one per tap."""
        return 9 * output.size


def network(method: str, channels: int, seed: int) -> DSNet:
    """A DSNet whose S is made by one of the METHODS."""
    rng = np.random.default_rng(seed)
    backbone = SmallBackbone(STAGES, rng=rng)
    given: dict[str, Any] = {"low_stage": 0, "width": WIDTH, "dilations": DILATIONS, "rng": rng}
    if method != "dynamic filter":
        return dsnet_variant(method, backbone, CLASSES, channels=channels, **given)
    sample = DynamicFilter(channels, rng)
    head = GuidedHead(sample, STAGES[0], channels, WIDTH, guided=True, rng=rng)
    return DSNet(backbone, CLASSES, head=head, **given)


def cost(made: Module, size: int) -> tuple[int, int]:
    """Parameters, and multiply-adds for one image of size x size pixels."""
    table = summary(made, (1, 3, size, size))
    return table.parameters, table.multiply_adds


def widths(size: int) -> dict[str, int]:
    """For each method, how many channels of M and S cost as much as WIDTH do in CGDS, or barely less."""
    budget = cost(network("CGDS", WIDTH, 0), size)[1]
    found = {}
    for method in METHODS:
        channels = WIDTH
        while cost(network(method, channels + 1, 0), size)[1] <= budget:
            channels += 1
        while cost(network(method, channels, 0), size)[1] > budget:
            channels -= 1
        found[method] = channels
    return found


class Coarse(Module):
    """Backbone and context of a DSNet, with classes made from the context alone: to train them beforehand."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.backbone = SmallBackbone(STAGES, rng=rng)
        self.context = ASPP(STAGES[-1], WIDTH, DILATIONS, rng=rng)
        self.classify = Conv2d(WIDTH, CLASSES, 1, rng=rng)

    def forward(self, x: Any) -> Any:
        """x (N, 3, H, W) -> (N, CLASSES, H, W)."""
        return F.resize(self.classify(self.context(self.backbone.features(x)[-1])), x.shape[2:])


def sampled_points(made: DSNet, images: Any) -> Any:
    """Where the head of a network samples for each low-level position: (N, 9, 2, h, w), pixels of the image.

    None for a head that samples the regular grid.
    """
    layer = made.head.sample
    if not isinstance(layer, DeformConv):
        return None
    features = made.backbone.features(images)
    source = made.head.modify(features[made.low_stage])
    if layer.guided:
        source = raised(made.guide(features), source.shape[2:])
    offset = F.stop_gradient(layer.predict(source)[0])
    n, _, _, _, _, h, w = offset.shape
    taps = np.stack(np.mgrid[-1:2, -1:2]).transpose(1, 2, 0)[:, :, :, None, None]
    return (STEP * (np.mgrid[:h, :w] + taps + offset)).reshape(n, 9, 2, h, w)
