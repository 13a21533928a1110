"""A small FlowNetS, with a dynamic sampling convolution at the third convolution, or a plain one as large."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from autodiff.layers import Conv2d, LeakyReLU, Sequential
from autodiff.networks import FlowNetS, multi_scale_error
from autodiff.networks.flownet import SCALE_WEIGHTS, SLOPE

CHANNELS = 16, 32, 48, 64  # at 1/2 to 1/16 of the size; the paper has 64, 128, 256, 512, and two more
EXPANDED = 16, 24  # of what comes from the next coarser size, at 1/4 and 1/8
# The paper's: 7 x 7 regions, 2 positions apart, 24 outputs, a 1 x 1 convolution to half of the third one's
# channels there, and to as many as it has here. What makes kernels and attention are 1 x 1 convolutions.
SAMPLING = {"samples": 7, "sample_stride": 2, "out_channels": 24, "post_channels": 48, "branch_kernel": 1}


class Variant(NamedTuple):
    """What is at the third convolution beside `SAMPLING`, or other than that; None: nothing."""

    name: str
    sampling: Mapping[str, Any] | None = None
    placement: str = "beside"  # as for `autodiff.networks.FlowNetS`
    plain: bool = False  # whether a convolution stands where the layer would


def make(variant: Variant, seed: int) -> FlowNetS:
    """Two gray images (N, 2, H, W) to flows in pixels, at 1/16, 1/8 and 1/4 of their size."""
    rng = np.random.default_rng(seed)
    sampling = None if variant.sampling is None else {**SAMPLING, **variant.sampling}
    network = FlowNetS(
        CHANNELS, EXPANDED, in_channels=2, sampling=sampling, placement=variant.placement, rng=rng
    )
    if variant.plain:
        network.sampling = wide_convolution(network.sampling.num_parameters, rng)
    for last in network.refinement.flow:
        last.weight.data *= last.weight.dtype.type(0.05)  # begin close to no motion
    return network


def wide_convolution(parameters: int, rng: np.random.Generator) -> Sequential:
    """A 5 x 5 convolution and a 1 x 1 convolution, with about so many parameters together.

    Its place, its inputs and its outputs are those of the sampling layer; all that is free is its width.
    """
    inputs, outputs = CHANNELS[1], SAMPLING["post_channels"]
    width = round((parameters - outputs) / (25 * inputs + 1 + outputs))
    wide = Conv2d(inputs, width, 5, stride=2, rng=rng)
    return Sequential(wide, LeakyReLU(SLOPE), Conv2d(width, outputs, 1, rng=rng))


def loss_of(flows: list, truth: np.ndarray) -> Any:
    """End-point errors at every size, weighed as FlowNet's are at these sizes."""
    return multi_scale_error(flows, truth, weights=SCALE_WEIGHTS[-len(flows) :])


def predict(network: FlowNetS, images: np.ndarray, batch: int = 20) -> np.ndarray:
    """The flow (N, 2, H, W) at the size of the images; a network that has broken says that nothing moves."""
    parts = [network.predict(images[start : start + batch]) for start in range(0, len(images), batch)]
    flow = np.concatenate(parts)
    return np.where(np.isfinite(flow), flow, np.float32(0))
