"""A small FlowNetS, whose third convolution may be a dynamic sampling convolution."""

from typing import Any, NamedTuple

import numpy as np

from autodiff import functions as F
from autodiff.layers import Conv2d, ConvTranspose2d, DynamicSamplingConv, Module

CHANNELS = 16, 32, 48, 64  # at 1/2, 1/4, 1/8 and 1/16 of the size
SLOPE = 0.1  # of the leaky ReLU, as in FlowNetS
PYRAMID = (0.5, 0.7, 1.0)  # weight of the error at 1/16, 1/8 and 1/4 of the size


class Variant(NamedTuple):
    """What takes the place of the third convolution: ``sampling`` is given to `DynamicSamplingConv`."""

    name: str
    sampling: dict[str, Any] | None = None


class FlowNet(Module):
    """Two images (N, 2, H, W) to their flow at 1/16, 1/8 and 1/4 of the size; H and W are multiples of 16.

    Dosovitskiy et al., "FlowNet", ICCV 2015: the images are channels of one input, strided convolutions
    contract it, transposed convolutions expand it again, beside what was seen on the way down, and a flow is
    predicted at every size. There are fewer layers and channels than in the paper, and gray images.
    """

    def __init__(self, variant: Variant, rng: np.random.Generator) -> None:
        one, two, three, four = CHANNELS
        self.conv1 = Conv2d(2, one, 7, stride=2, rng=rng)
        self.conv2 = Conv2d(one, two, 5, stride=2, rng=rng)
        if variant.sampling is None:
            self.conv3: Module = Conv2d(two, three, 5, stride=2, rng=rng)
        else:
            self.conv3 = DynamicSamplingConv(
                two, 24, stride=2, post_channels=three, branch_kernel=1, rng=rng, **variant.sampling
            )
        self.conv3_1 = Conv2d(three, three, 3, rng=rng)
        self.conv4 = Conv2d(three, four, 3, stride=2, rng=rng)
        self.conv4_1 = Conv2d(four, four, 3, rng=rng)
        self.flow4 = Conv2d(four, 2, 3, rng=rng)
        self.up3 = ConvTranspose2d(four, three // 2, 4, stride=2, padding=1, rng=rng)
        self.flow3 = Conv2d(three + three // 2 + 2, 2, 3, rng=rng)
        self.up2 = ConvTranspose2d(three + three // 2 + 2, two // 2, 4, stride=2, padding=1, rng=rng)
        self.flow2 = Conv2d(two + two // 2 + 2, 2, 3, rng=rng)
        for last in (self.flow4, self.flow3, self.flow2):
            last.weight.data *= 0.1  # begin close to no motion
            last.bias.data *= 0

    def forward(self, images: Any) -> list:
        """From coarse to fine, in pixels of the images."""
        seen1 = F.leaky_relu(self.conv1(images), SLOPE)
        seen2 = F.leaky_relu(self.conv2(seen1), SLOPE)
        seen3 = F.leaky_relu(self.conv3_1(F.leaky_relu(self.conv3(seen2), SLOPE)), SLOPE)
        seen4 = F.leaky_relu(self.conv4_1(F.leaky_relu(self.conv4(seen3), SLOPE)), SLOPE)
        flow4 = self.flow4(seen4)
        wide3 = self._beside(seen3, self.up3(seen4), flow4)
        flow3 = self.flow3(wide3)
        flow2 = self.flow2(self._beside(seen2, self.up2(wide3), flow3))
        return [flow4, flow3, flow2]

    def _beside(self, seen: Any, expanded: Any, flow: Any) -> Any:
        """What was seen at this size, what comes from the size below, and the flow found there."""
        size = seen.shape[2:]
        return F.concatenate([seen, F.leaky_relu(expanded, SLOPE), F.resize(flow, size)], axis=1)


def loss_of(flows: list, truth: np.ndarray) -> Any:
    """End-point errors at every size, against the mean of the true flow over each of its pixels."""
    total = 0
    for flow, weight in zip(flows, PYRAMID, strict=True):
        n, _, high, wide = flow.shape
        blocks = truth.reshape(n, 2, high, truth.shape[2] // high, wide, truth.shape[3] // wide)
        total += F.end_point_error(flow, blocks.mean((3, 5))) * weight
    return total


def predict(network: FlowNet, images: np.ndarray, batch: int = 20) -> np.ndarray:
    """The flow (N, 2, H, W) at the size of the images."""
    size = images.shape[2:]
    parts = [images[start : start + batch] for start in range(0, len(images), batch)]
    return np.concatenate([F.stop_gradient(F.resize(network(part)[-1], size)) for part in parts])
