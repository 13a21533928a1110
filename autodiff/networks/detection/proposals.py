"""RPN: a network that proposes regions where objects may be, of whatever class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import functions as F
from ..._state import to_numpy
from ...functions._common import library, plain
from ...layers import Conv2d
from ...layers.module import generator
from .boxes import anchor_boxes, clip_boxes, decode_boxes, encode_boxes, suppressed
from .detector import Detector, box_losses, fixed, predictor
from .targets import match_anchors, sample_labels

# Where smooth L1 turns linear, for proposals: the public implementations have sigma = 3, which is 1/sigma².
BETA = 1 / 9


class RPN(Detector):
    """Region proposal network (Ren et al., "Faster R-CNN", NeurIPS 2015).

    A 3 x 3 convolution, and two of 1 x 1: for each anchor of each cell one says whether it is an object, one
    how the anchor has to be moved and scaled to become its box. `loss` trains it, `propose` uses it.

    Parameters
    ----------
    backbone, strides
        As for `Detector`.
    sizes : sequence of sequences of float
        Of the anchors on each map, in pixels; as many on each.
    ratios : sequence of float
        Of the anchors, of height to width.
    width : int
        Channels between the convolutions.
    frozen_norm : bool
        As for `Detector`.
    rng, dtype
        As for `Conv2d`. `rng` also draws the anchors that are learned from, and is kept in checkpoints.

    Raises
    ------
    ValueError
        If there are not `sizes` for each map, or not as many on each.

    Notes
    -----
    Where two numbers a cell and anchor were published, for a softmax over object and background, this has
    their difference, and the same loss.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import RPN, SmallBackbone
    >>> network = RPN(SmallBackbone((4, 8), rng=0), strides=(4,), sizes=((8, 16),), width=8, rng=1)
    >>> (found,) = network.eval().propose(np.zeros((1, 3, 24, 32), np.float32), most=3)
    >>> found.shape
    (3, 4)
    """

    def __init__(
        self,
        backbone: Any,
        *,
        strides: Sequence[int] = (16,),
        sizes: Sequence[Sequence[float]] = ((128, 256, 512),),
        ratios: Sequence[float] = (0.5, 1, 2),
        width: int = 512,
        frozen_norm: bool = False,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(backbone, strides, frozen_norm)
        if len(sizes) != len(strides) or len(set(map(len, sizes))) != 1:
            raise ValueError(f"RPN: sizes must be as many on each of the {len(strides)} maps, got {sizes!r}")
        rng = generator(rng)
        options: dict[str, Any] = {"rng": rng, "dtype": dtype}
        self.sizes, self.ratios = tuple(map(tuple, sizes)), tuple(ratios)
        anchors = len(self.sizes[0]) * len(self.ratios)
        self.hidden = Conv2d(self.channels, width, 3, **options)
        self.objectness = predictor(width, anchors, **options)
        self.shifts = predictor(width, 4 * anchors, **options)
        self.rng = rng.spawn(1)[0]  # its own, whatever else is made with the caller's

    def forward(self, x: Any) -> tuple[list, list, list]:
        """What the anchors of images may be.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        logits : list of Variable, (N, K)
            Of each map: whether its K anchors are objects.
        codes : list of Variable, (N, K, 4)
            How each anchor has to be moved and scaled: see `decode_boxes`.
        anchors : list of array, (K, 4)
            The anchors, in pixels.
        """
        logits, codes, anchors = [], [], []
        for number, features in enumerate(self.maps(x)):
            hidden = F.relu(self.hidden(features))
            n, _, *size = features.shape
            logits.append(F.transpose(self.objectness(hidden), (0, 2, 3, 1)).reshape((n, -1)))
            moves = self.shifts(hidden).reshape((n, -1, 4, *size))
            codes.append(F.transpose(moves, (0, 3, 4, 1, 2)).reshape((n, -1, 4)))
            stride, sizes = self.strides[number], self.sizes[number]
            anchors.append(anchor_boxes((size[0], size[1]), stride, sizes, self.ratios))
        return logits, codes, anchors

    def loss(self, x: Any, boxes: Sequence[Any], *, count: int = 256, share: float = 0.5) -> Any:
        """How far objectness and boxes are from what they should be, on a random sample of the anchors.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images.
        boxes : sequence of array, (M, 4)
            The objects of each image.
        count : int
            Anchors of an image in the sample.
        share : float
            Of objects among them, at most.

        Returns
        -------
        number
            Mean cross entropy of the sample, and smooth L1 of the codes of its objects, over the size of the
            sample too: both weigh as much as in the public implementations.
        """
        logits, codes, anchors = self(x)
        every = np.concatenate(anchors)
        picked, truth, targets, rows = [], [], [], []
        for image, objects in enumerate(boxes):
            objects = np.asarray(to_numpy(plain(objects)), np.float32).reshape(-1, 4)
            labels, matched = match_anchors(every, objects, tuple(x.shape[2:]))
            chosen = sample_labels(labels, count, share, self.rng)
            found = chosen[labels[chosen] > 0]
            picked.append(chosen + image * len(every))
            truth.append(labels[chosen])
            rows.append(found + image * len(every))
            targets.append(encode_boxes(objects[matched[found]], every[found]))
        xp = library(plain(x))
        z = F.concatenate(logits, axis=1).reshape((-1,))[xp.asarray(np.concatenate(picked))]
        sign = xp.asarray(1 - 2 * np.concatenate(truth), z.dtype)
        # Cross entropy of two classes: log(1 + exp(-z)) for objects, log(1 + exp(z)) for the background.
        total = F.sum(F.softplus(z * sign))
        moved = F.concatenate(codes, axis=1).reshape((-1, 4))[xp.asarray(np.concatenate(rows))]
        total = total + F.sum(box_losses(moved, np.concatenate(targets), BETA))
        return total * total.dtype.type(1 / max(z.size, 1))

    def propose(
        self, x: Any, *, most: int = 300, before: int = 6000, overlap: float = 0.7, least: float = 1.0
    ) -> list:
        """Regions in which there may be an object, best first. No tape records it.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images.
        most : int
            Of an image.
        before : int
            Of each map the anchors of the highest scores that are looked at.
        overlap : float
            Of two that overlap by more the one of the lower score goes.
        least : float
            Regions that are less wide or high are left out, in pixels.

        Returns
        -------
        list of array, (R, 4)
            The regions of each image, within it.
        """
        with fixed(self):
            logits, codes, anchors = self(plain(x))
        return [
            self._best(
                [
                    self._map_best(plain(z)[image], plain(t)[image], base, tuple(x.shape[2:]), before, least)
                    for z, t, base in zip(logits, codes, anchors)
                ],
                overlap,
                most,
            )
            for image in range(x.shape[0])
        ]

    @staticmethod
    def _map_best(
        logits: Any, codes: Any, anchors: Any, size: tuple, before: int, least: float
    ) -> tuple[Any, Any]:
        """The boxes and logits of the best anchors of a map."""
        xp = library(logits)
        order = xp.argsort(-logits, kind="stable")[:before]
        boxes = clip_boxes(decode_boxes(codes[order], xp.asarray(anchors)[order]), (size[0], size[1]))
        kept = (boxes[:, 2:] - boxes[:, :2] + 1 >= least).all(1)
        return boxes[kept], logits[order][kept]

    @staticmethod
    def _best(found: list, overlap: float, most: int) -> Any:
        """The best of all maps. Suppressed on each map by itself, as pyramids are in public."""
        xp = library(found[0][0])
        kept = [suppressed(boxes, logits, overlap)[:most] for boxes, logits in found]
        boxes = xp.concatenate([each[0][rows] for each, rows in zip(found, kept)])
        logits = xp.concatenate([each[1][rows] for each, rows in zip(found, kept)])
        return boxes[xp.argsort(-logits, kind="stable")[:most]]
