"""Feature pyramids: maps of several sizes that all know what the coarsest one knows."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ... import functions as F
from ...layers import CARAFE, Conv2d, DDFUp, Module
from ...layers.module import generator

UPSAMPLERS: dict[str, Callable[..., Module] | None] = {"nearest": None, "carafe": CARAFE, "ddf": DDFUp}


class FPN(Module):
    """Feature pyramid network (Lin et al., CVPR 2017), with an upsampler of choice.

    From coarse to fine, ``P_l = conv3x3(M_l)`` with ``M_l = conv1x1(C_l) + upsample(M_(l+1))``. It is a
    backbone itself, with maps of one number of channels.

    Parameters
    ----------
    backbone : Module
        Its ``features(x)`` gives a list of maps C_l, from fine to coarse, each half the size of the one
        before, with ``channels`` channels each.
    width : int
        Channels of all P_l.
    levels : int
        How many of the coarsest maps take part; 4 of a ResNet are P2 to P5.
    upsample : {"nearest", "carafe", "ddf"}
        Each step is by a layer of its own: pixels repeated, or `CARAFE`, or `DDFUp`, with their defaults.
    rng, dtype
        As for `Conv2d`.

    Raises
    ------
    ValueError
        If `upsample` is none of the three, or the backbone has not so many maps.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import FPN, SmallBackbone
    >>> pyramid = FPN(SmallBackbone((4, 8, 16), rng=0), 6, levels=2, upsample="ddf", rng=1)
    >>> [each.shape for each in pyramid.features(np.zeros((1, 3, 30, 40), np.float32))]
    [(1, 6, 8, 10), (1, 6, 4, 5)]
    """

    def __init__(
        self,
        backbone: Any,
        width: int = 256,
        *,
        levels: int = 4,
        upsample: str = "nearest",
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        if upsample not in UPSAMPLERS:
            raise ValueError(f"FPN: upsample must be one of {', '.join(UPSAMPLERS)}, got {upsample!r}")
        if not 0 < levels <= len(backbone.channels):
            raise ValueError(f"FPN: levels must be from 1 to {len(backbone.channels)}, got {levels}")
        options: dict[str, Any] = {"rng": generator(rng), "dtype": dtype}
        self.backbone, self.channels = backbone, (width,) * levels
        self.lateral = [Conv2d(channels, width, 1, **options) for channels in backbone.channels[-levels:]]
        self.smooth = [Conv2d(width, width, 3, **options) for _ in range(levels)]
        make = UPSAMPLERS[upsample]
        self.upsample = None if make is None else [make(width, **options) for _ in range(levels - 1)]

    def features(self, x: Any) -> list:
        """The maps P_l of images.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        list of Variable, (N, width, h, w)
            From fine to coarse.
        """
        seen = self.backbone.features(x)[-len(self.lateral) :]
        merged = [self.lateral[-1](seen[-1])]
        for level in reversed(range(len(seen) - 1)):
            fine, coarse = self.lateral[level](seen[level]), merged[0]
            raised = F.upsample_nearest(coarse, 2) if self.upsample is None else self.upsample[level](coarse)
            # Twice the size, or one row or column more where the finer map has an odd number of them.
            merged.insert(0, fine + raised[:, :, : fine.shape[2], : fine.shape[3]])
        return [smooth(each) for smooth, each in zip(self.smooth, merged)]

    def forward(self, x: Any) -> list:
        """As `features`.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images.

        Returns
        -------
        list of Variable, (N, width, h, w)
            From fine to coarse.
        """
        return self.features(x)
