"""FlowNets: optical flow by networks that contract two images, and expand what they found."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .. import functions as F
from ..functions._common import library
from ..layers import Conv2d, ConvTranspose2d, DynamicSamplingConv, Module
from ..layers.module import generator
from ..variable import plain

SLOPE = 0.1  # of the leaky ReLU
CHANNELS = 64, 128, 256, 512, 512, 1024  # at 1/2 to 1/64 of the size of the images
EXPANDED = 64, 128, 256, 512  # of what comes from below, at 1/4 to 1/32
PLACEMENTS = "beside", "in place"
SAMPLING = {"out_channels": 24, "samples": 7, "sample_stride": 2, "post_channels": 128}
FLOW_UNIT = 20.0  # pixels: the networks work on flows of about one
# Of the errors from coarse to fine, in the published training.
SCALE_WEIGHTS = 0.32, 0.08, 0.02, 0.01, 0.005


class Contraction(Module):
    """The second half of the way down: a convolution at 1/8 of the size, and two at each size below.

    Parameters
    ----------
    in_channels : int
        At 1/8 of the size.
    channels : sequence of int
        At 1/8 of the size, 1/16, and so on.
    **options
        ``rng`` and ``dtype``, as for `Conv2d`.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], **options: Any) -> None:
        self.first = Conv2d(in_channels, channels[0], 3, **options)
        pairs = list(pairwise(channels))
        self.halving = [Conv2d(above, below, 3, stride=2, **options) for above, below in pairs]
        self.following = [Conv2d(below, below, 3, **options) for _, below in pairs]

    def forward(self, x: Any) -> list:
        """x (N, in_channels, H, W) to what is seen at each size, from fine to coarse."""
        seen = [_convolved(self.first, x)]
        for halve, follow in zip(self.halving, self.following):
            seen.append(_convolved(follow, _convolved(halve, seen[-1])))
        return seen


class Refinement(Module):
    """The way up: flows from coarse to fine, each from what was seen, what comes from below, and its flow.

    Parameters
    ----------
    seen : sequence of int
        Channels of what was seen, from fine to coarse.
    expanded : sequence of int
        Channels that come from the next coarser size: one fewer.
    **options
        ``rng`` and ``dtype``, as for `Conv2d`.
    """

    def __init__(self, seen: Sequence[int], expanded: Sequence[int], **options: Any) -> None:
        if len(expanded) != len(seen) - 1:
            raise ValueError(
                f"FlowNet: expanded must have {len(seen) - 1} numbers of channels, got {len(expanded)}"
            )
        up: dict[str, Any] = {"stride": 2, "padding": 1, **options}
        below, self.expand, self.raise_flow = seen[-1], [], []
        self.flow = [Conv2d(below, 2, 3, **options)]
        for channels, wide in zip(reversed(seen[:-1]), reversed(expanded)):
            self.expand.append(ConvTranspose2d(below, wide, 4, **up))
            self.raise_flow.append(ConvTranspose2d(2, 2, 4, **up))
            below = channels + wide + 2
            self.flow.append(Conv2d(below, 2, 3, **options))

    def forward(self, seen: Sequence[Any]) -> list:
        """`seen` from fine to coarse, each half the size of the one before; flows from coarse to fine."""
        below = seen[-1]
        flows = [self.flow[0](below)]
        steps = zip(reversed(seen[:-1]), self.expand, self.raise_flow, self.flow[1:])
        for finer, expand, raise_flow, flow in steps:
            wide = F.leaky_relu(expand(below), SLOPE)
            below = F.concatenate([finer, wide, raise_flow(flows[-1])], axis=1)
            flows.append(flow(below))
        return flows


class FlowNet(Module):
    """What `FlowNetS` and `FlowNetC` have in common."""

    refinement: Refinement

    def __init__(
        self, in_channels: int, seen_together: int, channels: Sequence[int], options: dict[str, Any]
    ) -> None:
        self.in_channels, self.levels = in_channels, len(channels)
        self.conv1 = Conv2d(seen_together, channels[0], 7, stride=2, **options)
        self.conv2 = Conv2d(channels[0], channels[1], 5, stride=2, **options)

    def check(self, images: Any) -> None:
        """Refuse images that cannot be halved so often.

        Parameters
        ----------
        images : array, (N, in_channels, H, W)
            The two images, channel after channel.

        Raises
        ------
        ValueError
            If they have another shape, or H or W is no multiple of ``2**levels``.
        """
        step, shape = 1 << self.levels, tuple(images.shape)
        if len(shape) != 4 or shape[1] != self.in_channels or any(length % step for length in shape[2:]):
            raise ValueError(
                f"{type(self).__name__}: images must have shape (N, {self.in_channels}, H, W), H and W "
                f"multiples of {step}, got {shape}; `predict` takes any size"
            )

    def flows(self, seen: Sequence[Any]) -> list:
        """The flows that the refinement finds.

        Parameters
        ----------
        seen : sequence of Variable, (N, channels, h, w)
            What was seen on the way down, from fine to coarse.

        Returns
        -------
        list of Variable, (N, 2, h, w)
            In pixels of the images, from coarse to fine.
        """
        return [flow * flow.dtype.type(FLOW_UNIT) for flow in self.refinement(seen)]

    def predict(self, images: Any) -> np.ndarray:
        """The flow of images of any size, at their size, without gradients.

        Parameters
        ----------
        images : array, (N, in_channels, H, W)
            The two images, channel after channel.

        Returns
        -------
        array, (N, 2, H, W)
            Displacements along x and y, in pixels.
        """
        images, step = plain(images), 1 << self.levels
        size = images.shape[2:]
        fitting = tuple(step * math.ceil(length / step) for length in size)
        flow = plain(self(F.resize(images, fitting))[-1])
        scale = flow.dtype.type(size[1] / fitting[1]), flow.dtype.type(size[0] / fitting[0])
        flow = plain(F.resize(flow, size))
        flow[:, 0] *= scale[0]
        flow[:, 1] *= scale[1]
        return flow


class FlowNetS(FlowNet):
    """FlowNetSimple (Dosovitskiy et al., ICCV 2015): two images as channels of one input.

    Strided convolutions contract the input, transposed convolutions expand it again, beside what was seen on
    the way down, and a flow is predicted at every size from the coarsest on.

    Parameters
    ----------
    channels : tuple of int
        At 1/2, 1/4, ... of the size of the images, at least three.
    expanded : tuple of int
        What comes from the next coarser size, at 1/4, 1/8, ...: two fewer.
    in_channels : int
        Of both images together.
    sampling : dict, optional
        A dynamic sampling convolution (Wu et al., ECCV 2018) at the third convolution: parameters for
        `DynamicSamplingConv`, beside its stride. By default they are the paper's: 7 regions an axis,
        2 positions apart, 24 outputs, and a 1 x 1 convolution to 128 channels.
    placement : {"beside", "in place"}
        The paper says "inserted". Either its output joins that of the third convolution and that of the
        transposed convolutions at 1/8 of the size, as the same paper does for detection; or it takes the
        place of the third convolution.
    rng, dtype
        As for `Conv2d`.

    Raises
    ------
    ValueError
        If `placement` is none of the two.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import FlowNetS
    >>> network = FlowNetS((8, 8, 8, 16), (8, 8), rng=0)
    >>> [flow.shape for flow in network(np.zeros((1, 6, 32, 48), np.float32))]
    [(1, 2, 2, 3), (1, 2, 4, 6), (1, 2, 8, 12)]
    """

    def __init__(
        self,
        channels: Sequence[int] = CHANNELS,
        expanded: Sequence[int] = EXPANDED,
        *,
        in_channels: int = 6,
        sampling: Mapping[str, Any] | None = None,
        placement: str = "beside",
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        if placement not in PLACEMENTS:
            raise ValueError(f"FlowNetS: placement must be one of {PLACEMENTS}, got {placement!r}")
        options: dict[str, Any] = {"rng": generator(rng), "dtype": dtype}
        super().__init__(in_channels, in_channels, channels, options)
        two, three = channels[1:3]
        self.conv3 = self.sampling = None
        if sampling is None or placement == "beside":
            self.conv3 = Conv2d(two, three, 5, stride=2, **options)
        else:
            three = 0
        sampled = 0
        if sampling is not None:
            chosen = {**SAMPLING, **sampling}
            self.sampling = DynamicSamplingConv(two, stride=2, **chosen, **options)
            sampled = chosen["post_channels"] or chosen["out_channels"]
        self.contraction = Contraction(three + sampled, channels[2:], **options)
        self.beside = bool(three and sampled)
        seen = (two, channels[2] + (sampled if self.beside else 0), *channels[3:])
        self.refinement = Refinement(seen, expanded, **options)

    def forward(self, images: Any) -> list:
        """Find the flow between two images.

        Parameters
        ----------
        images : array, (N, in_channels, H, W)
            The two images, channel after channel, in the dtype of the parameters; H and W as for `check`.

        Returns
        -------
        list of Variable, (N, 2, h, w)
            Flows in pixels of the images, from coarse to fine; the last has a quarter of their height and
            width.
        """
        self.check(images)
        second = _convolved(self.conv2, _convolved(self.conv1, images))
        thirds = [_convolved(layer, second) for layer in (self.conv3, self.sampling) if layer is not None]
        seen = self.contraction(thirds[0] if len(thirds) == 1 else F.concatenate(thirds, axis=1))
        if self.beside:
            seen[0] = F.concatenate([seen[0], thirds[1]], axis=1)
        return self.flows([second, *seen])


class FlowNetC(FlowNet):
    """FlowNetCorr (Dosovitskiy et al., ICCV 2015): what is seen of each image is compared first.

    Both images pass the same three convolutions. Of what comes out, each pixel of the first image is compared
    with those around its place in the second (`dynarray.correlation2d`); beside these maps go 32 channels of
    the first image, and from there on it is as `FlowNetS`.

    Parameters
    ----------
    channels, expanded, in_channels
        As for `FlowNetS`.
    redirected : int
        Channels of the first image that pass by the comparison.
    max_displacement, step : int
        Of the comparison, in pixels at 1/8 of the size.
    rng, dtype
        As for `Conv2d`.

    Raises
    ------
    ValueError
        If `in_channels` is odd.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import FlowNetC
    >>> network = FlowNetC((8, 8, 8, 16), (8, 8), max_displacement=2, step=1, rng=0)
    >>> [flow.shape for flow in network(np.zeros((1, 6, 32, 48), np.float32))]
    [(1, 2, 2, 3), (1, 2, 4, 6), (1, 2, 8, 12)]
    """

    def __init__(
        self,
        channels: Sequence[int] = CHANNELS,
        expanded: Sequence[int] = EXPANDED,
        *,
        in_channels: int = 6,
        redirected: int = 32,
        max_displacement: int = 20,
        step: int = 2,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        if in_channels % 2:
            raise ValueError(f"FlowNetC: in_channels must be those of two images, got {in_channels}")
        options: dict[str, Any] = {"rng": generator(rng), "dtype": dtype}
        super().__init__(in_channels, in_channels // 2, channels, options)
        self.compared = {"max_displacement": max_displacement, "step": step}
        two, three = channels[1:3]
        self.conv3 = Conv2d(two, three, 5, stride=2, **options)
        self.redirect = Conv2d(three, redirected, 1, **options)
        maps = (2 * (max_displacement // step) + 1) ** 2
        self.contraction = Contraction(maps + redirected, channels[2:], **options)
        self.refinement = Refinement((two, three, *channels[3:]), expanded, **options)

    def forward(self, images: Any) -> list:
        """As that of `FlowNetS`.

        Parameters
        ----------
        images : array, (N, in_channels, H, W)
            The two images, channel after channel.

        Returns
        -------
        list of Variable, (N, 2, h, w)
            Flows in pixels of the images, from coarse to fine.
        """
        self.check(images)
        half = self.in_channels // 2
        both = images[:, :half], images[:, half:]
        second = [_convolved(self.conv2, _convolved(self.conv1, x)) for x in both]
        one, two = (_convolved(self.conv3, x) for x in second)
        maps = F.leaky_relu(F.correlation2d(one, two, **self.compared), SLOPE)
        seen = self.contraction(F.concatenate([_convolved(self.redirect, one), maps], axis=1))
        return self.flows([second[0], *seen])


def flownet_thin(**options: Any) -> FlowNetS:
    """FlowNetS with 3/8 of the channels (Ilg et al., "FlowNet 2.0", CVPR 2017, who write it FlowNet-s).

    Parameters
    ----------
    **options
        As for `FlowNetS`, but for its channels.

    Returns
    -------
    FlowNetS
        Images (N, 6, H, W) -> list of flows (N, 2, h, w), from coarse to fine.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import flownet_thin
    >>> flows = flownet_thin(rng=0)(np.zeros((1, 6, 64, 64), np.float32))
    >>> flows[-1].shape
    (1, 2, 16, 16)
    """
    return FlowNetS(*(tuple(3 * c // 8 for c in each) for each in (CHANNELS, EXPANDED)), **options)


def multi_scale_error(
    flows: Sequence[Any],
    truth: Any,
    valid: Any = None,
    *,
    weights: Sequence[float] = SCALE_WEIGHTS,
) -> Any:
    """The loss that FlowNets are trained with: end-point errors at every size, added up.

    ``sum_s weights[s] * sum_p |flows[s] - truth_s| / FLOW_UNIT / N``, where ``truth_s`` is the mean of the
    true flow over each pixel of that size.

    Parameters
    ----------
    flows : sequence of array, (N, 2, h, w)
        From coarse to fine, in pixels; each size divides that of `truth`.
    truth : array, (N, 2, H, W)
        The true flow.
    valid : array, (N, H, W), optional
        Where it is known: not 0. Elsewhere it may be anything; means are over what is known, and a pixel of
        which a part is known counts as much as that part.
    weights : sequence of float
        Of the sizes; by default those of the published training, in which a coarse pixel weighs more.

    Returns
    -------
    number
        On the tape, if `flows` are.

    Raises
    ------
    ValueError
        If there are not as many `weights` as `flows`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import multi_scale_error
    >>> truth = np.zeros((1, 2, 4, 4))
    >>> float(multi_scale_error([truth[..., :2, :2] + 20.0, truth], truth, weights=(0.5, 1)))
    2.8284271247461903
    """
    truth, total = plain(truth), 0.0
    if len(flows) != len(weights):
        raise ValueError(
            f"multi_scale_error: weights must be one for each of {len(flows)} flows, got {weights}"
        )
    xp = library(truth)
    known = xp.ones_like(truth[:, 0]) if valid is None else (plain(valid) != 0).astype(truth.dtype)
    truth = xp.where(known[:, None] != 0, truth, truth.dtype.type(0))
    for flow, weight in zip(flows, weights):
        share = _means(known[:, None], flow.shape[2:])
        target = _means(truth, flow.shape[2:]) / xp.where(share == 0, share.dtype.type(1), share)
        error = F.end_point_error(flow, target.astype(flow.dtype), share[:, 0].astype(flow.dtype))
        total = total + error * (weight * float(share.sum()) / FLOW_UNIT / len(truth))
    return total


def _means(array: Any, size: Sequence[int]) -> Any:
    """Means over blocks, (N, C, H, W) to (N, C, *size)."""
    n, channels, *whole = array.shape
    if any(length % parts for length, parts in zip(whole, size)):
        raise ValueError(f"multi_scale_error: the size of a flow, {tuple(size)}, must divide {tuple(whole)}")
    blocks = (n, channels, size[0], whole[0] // size[0], size[1], whole[1] // size[1])
    return array.reshape(blocks).mean((3, 5))


def _convolved(layer: Module, x: Any) -> Any:
    return F.leaky_relu(layer(x), SLOPE)
