"""What region proposals and R-FCN have in common: a backbone, its frozen statistics, the loss of boxes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ... import functions as F
from ..._graph import State, state
from ...functions._common import library
from ...functions.losses import huber
from ...layers import BatchNorm2d, Conv2d, Module


class Detector(Module):
    """A network over maps of features, one or several sizes of them.

    Parameters
    ----------
    backbone : Module
        Its ``features(x)`` gives a list of maps, from fine to coarse, with ``channels`` channels each: such
        as `DilatedResNet`, `SmallBackbone` and `FPN`.
    strides : sequence of int
        Of the last maps of the backbone: pixels of the image for each of their cells. There are as many as
        the detector looks at.
    frozen_norm : bool
        Whether batch normalisation in the backbone keeps its running averages in training too: statistics of
        one or two images are none.
    """

    def __init__(self, backbone: Any, strides: Sequence[int], frozen_norm: bool) -> None:
        name = type(self).__name__
        if not 0 < len(strides) <= len(backbone.channels):
            raise ValueError(
                f"{name}: strides must be those of 1 to {len(backbone.channels)} maps, got {strides}"
            )
        channels = set(backbone.channels[-len(strides) :])
        if len(channels) > 1:
            raise ValueError(
                f"{name}: the maps of the backbone must have one number of channels, got {channels}; see FPN"
            )
        (self.channels,) = channels
        self.backbone, self.strides, self.frozen_norm = backbone, tuple(strides), frozen_norm

    def train(self, mode: bool = True) -> "Module":
        """Set this module and its parts to training mode, but for statistics that are frozen."""
        super().train(mode)
        for _, module in self.backbone.modules():
            if self.frozen_norm and isinstance(module, BatchNorm2d):
                module.training = False
        return self

    def maps(self, x: Any) -> list:
        """The maps of features that it looks at.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        list of Variable, (N, channels, h, w)
            From fine to coarse.
        """
        return list(self.backbone.features(x)[-len(self.strides) :])


def predictor(in_channels: int, out_channels: int, *, rng: Any, dtype: Any) -> Conv2d:
    """A 1 x 1 convolution whose outputs begin near 0: weights of standard deviation 0.01, no bias.

    As the public implementations have it, so that all classes and anchors begin alike.
    """
    made = Conv2d(in_channels, out_channels, 1, rng=rng, dtype=dtype)
    made.weight.data *= made.weight.dtype.type(0.01 / np.sqrt(2 / in_channels))
    for bias in (made.bias,) if made.bias is not None else ():
        bias.data[...] = 0
    return made


def box_losses(codes: Any, targets: Any, beta: float = 1.0) -> Any:
    """Smooth L1 of the four numbers of each box, added up: (R, 4) and (R, 4) -> (R,)."""
    targets = library(F.stop_gradient(codes)).asarray(targets, codes.dtype)
    return F.sum(huber(codes - targets, beta), 1)


@contextmanager
def fixed(network: Module) -> Iterator[None]:
    """In the block a network is in evaluation mode, and no tape records what is computed."""
    training, token = network.training, state.set(State())
    network.eval()
    try:
        yield
    finally:
        network.train(training)
        state.reset(token)
