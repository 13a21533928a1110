"""The networks of segmentation.py: one DSNet, five ways to join what knows where with what knows what."""

from typing import Any

import numpy as np
from _scenes import CLASSES

from autodiff import functions as F
from autodiff.layers import ASPP, CGDS, Conv2d, DeformConv, FilterNorm, Module
from autodiff.layers.deform import raised
from autodiff.networks import DSNet, SmallBackbone, summary

METHODS = ("plain", "deformable v1", "deformable v2", "dynamic filter", "CGDS")
# Channels of the backbone at 1/2, 1/4 and 1/8 of the size of the image; the first are the low-level features.
STAGES = (16, 32, 64)
STEP = 2  # pixels of the image from one low-level feature to the next
WIDTH = 24  # channels of the guide, of what CGDS samples, and before the classes
DILATIONS = (1, 2, 3)  # of ASPP, on the coarsest features


class Head(Module):
    """CGDS with something else in the place of its sampling: M = conv(low), S = sample(M, G), and G.

    Parameters
    ----------
    sample : Module
        ``sample(M)``, or ``sample(M, G)`` if it is `guided`; `channels` in and out.
    channels : int
        Of M and of S.
    guided : bool
        Whether it sees the guide.
    rng : Generator
        For the initial weights.
    """

    def __init__(
        self, sample: Module, channels: int, *, guided: bool = False, rng: np.random.Generator
    ) -> None:
        self.modify = Conv2d(STAGES[0], channels, 3, rng=rng)
        self.sample, self.guided = sample, guided
        self.out_channels = 2 * channels + WIDTH

    def forward(self, low: Any, guide: Any) -> Any:
        """low (N, STAGES[0], H, W), guide (N, WIDTH, h, w) -> (N, 2*channels + WIDTH, H, W)."""
        modified = self.modify(low)
        guide = raised(guide, modified.shape[2:])
        sampled = self.sample(modified, guide) if self.guided else self.sample(modified)
        return F.concatenate([modified, sampled, guide], axis=1)


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


def head(method: str, channels: int, rng: np.random.Generator) -> Module:
    """The head of one of the METHODS."""
    if method == "CGDS":
        return CGDS(STAGES[0], WIDTH, channels, rng=rng)
    if method == "dynamic filter":
        return Head(DynamicFilter(channels, rng), channels, guided=True, rng=rng)
    if method == "plain":
        return Head(Conv2d(channels, channels, 3, rng=rng), channels, rng=rng)
    modulated = {"deformable v1": False, "deformable v2": True}[method]
    return Head(DeformConv(channels, channels, modulated=modulated, rng=rng), channels, rng=rng)


def network(method: str, channels: int, seed: int) -> DSNet:
    """A DSNet with this head."""
    rng = np.random.default_rng(seed)
    return DSNet(
        SmallBackbone(STAGES, rng=rng),
        CLASSES,
        low_stage=0,
        width=WIDTH,
        dilations=DILATIONS,
        head=head(method, channels, rng),
        rng=rng,
    )


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
        source = raised(made.context(features[-1]), source.shape[2:])
    offset = F.stop_gradient(layer.predict(source)[0])
    n, _, _, _, _, h, w = offset.shape
    taps = np.stack(np.mgrid[-1:2, -1:2]).transpose(1, 2, 0)[:, :, :, None, None]
    return (STEP * (np.mgrid[:h, :w] + taps + offset)).reshape(n, 9, 2, h, w)
