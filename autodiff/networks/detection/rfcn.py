"""R-FCN: a detector whose score maps know which part of an object they look for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ... import functions as F
from ..._state import to_numpy
from ...functions._common import library, plain
from ...layers import Conv2d, DynamicSamplingConv
from ...layers.module import generator
from ...metrics import Detections
from .boxes import clip_boxes, decode_boxes, encode_boxes, suppressed
from .detector import Detector, box_losses, fixed, predictor
from .targets import hardest, match_proposals, of_images

# Of Wu et al.: 3 regions an axis, one position apart, 24 outputs, and a 1 x 1 convolution to 256 channels.
# They say neither how many channels the feature branch has nor how large the kernels of the branches are.
# With as many channels as the features, 1024, and 3 x 3, the branch of the kernels alone would have 229
# million parameters, several times those of the network; with these it has 6.5 million.
SAMPLING = {
    "out_channels": 24,
    "samples": 3,
    "sample_stride": 1,
    "post_channels": 256,
    "features": 256,
    "branch_kernel": 1,
}
SPREAD = (0.1, 0.1, 0.2, 0.2)  # of codes of boxes: what public implementations divide them by


class RFCN(Detector):
    """R-FCN (Dai et al., NeurIPS 2016), with a dynamic sampling convolution before its heads if wanted.

    Two 1 x 1 convolutions make maps of scores: for each class, and for the four numbers of a box, ``bins²``,
    one for each place in a region. Of each region each bin reads its own map (`dynarray.ps_roi_pool`), and
    the mean over the bins is what they voted. Boxes are the same for all classes.

    Parameters
    ----------
    backbone : Module
        As for `Detector`.
    classes : int
        Without the background.
    strides : sequence of int
        As for `Detector`. With several maps, the heads are shared, and a region is read from the one whose
        cells fit its size (Lin et al., CVPR 2017).
    bins : int
        Of a region, along each axis.
    width : int, optional
        If given, a 1 x 1 convolution to so many channels and a ReLU come first.
    sampling : dict, optional
        If given, a `DynamicSamplingConv` looks at the features (Wu et al., ECCV 2018), and what it makes of
        them goes beside them into the heads. Its parameters; by default, with {}, those of `SAMPLING`.
    cells : float
        With several maps: a region of so many cells a side and more, up to twice as many, is read from a map:
        with 14, one of 224 pixels from that of stride 16.
    frozen_norm : bool
        As for `Detector`.
    rng, dtype
        As for `Conv2d`.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.networks import RFCN, SmallBackbone
    >>> network = RFCN(SmallBackbone((4, 8), rng=0), 20, strides=(4,), bins=3, width=8, rng=1)
    >>> image, regions = np.zeros((1, 3, 32, 48), np.float32), np.array([[0, 0, 9, 9], [8, 8, 39, 23]])
    >>> [array.shape for array in network(image, regions.astype(np.float32), np.array([0, 0]))]
    [(2, 21), (2, 4)]
    """

    def __init__(
        self,
        backbone: Any,
        classes: int,
        *,
        strides: Sequence[int] = (16,),
        bins: int = 7,
        width: int | None = 1024,
        sampling: Mapping[str, Any] | None = None,
        cells: float = 14.0,
        frozen_norm: bool = False,
        rng: Any = None,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(backbone, strides, frozen_norm)
        options: dict[str, Any] = {"rng": generator(rng), "dtype": dtype}
        self.classes, self.bins, self.cells = classes, bins, cells
        channels = self.channels
        self.reduce = self.sampling = None
        if width is not None:
            self.reduce, channels = Conv2d(channels, width, 1, **options), width
        if sampling is not None:
            chosen = {**SAMPLING, **sampling}
            self.sampling = DynamicSamplingConv(channels, **chosen, **options)
            channels += chosen["post_channels"] or chosen["out_channels"]
        self.score_maps = predictor(channels, (classes + 1) * bins * bins, **options)
        self.box_maps = predictor(channels, 4 * bins * bins, **options)

    def features(self, x: Any) -> list:
        """What the heads see.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images, in the dtype of the parameters.

        Returns
        -------
        list of Variable, (N, channels, h, w)
            From fine to coarse.
        """
        found = []
        for features in self.maps(x):
            seen = features if self.reduce is None else F.relu(self.reduce(features))
            if self.sampling is not None:
                seen = F.concatenate([seen, F.relu(self.sampling(seen))], axis=1)
            found.append(seen)
        return found

    def forward(self, x: Any, regions: Any, batch_index: Any) -> tuple[Any, Any]:
        """What the regions of images are.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images.
        regions : array, (R, 4)
            Boxes in pixels of the images.
        batch_index : array of int, (R,)
            The image of each.

        Returns
        -------
        scores : array, (R, classes + 1)
            Logarithms of probabilities up to a constant, of the background first.
        codes : array, (R, 4)
            How each region has to be moved and scaled: see `decode_boxes`, with the spread `SPREAD`.
        """
        levels, xp = self.levels(regions), library(plain(x))
        found, places = [], []
        for level, features in enumerate(self.features(x)):
            rows = np.flatnonzero(levels == level)
            if len(rows) or len(self.strides) == 1:
                here = regions[xp.asarray(rows)], batch_index[xp.asarray(rows)]
                maps = (self.score_maps(features), self.box_maps(features))
                found.append([self._votes(each, *here, self.strides[level]) for each in maps])
                places.append(rows)
        scores, codes = (parts[0] if len(parts) == 1 else F.concatenate(parts) for parts in zip(*found))
        if len(found) == 1:
            return scores, codes
        order = xp.asarray(np.argsort(np.concatenate(places)))
        return scores[order], codes[order]

    def _votes(self, maps: Any, regions: Any, batch_index: Any, stride: int) -> Any:
        pooled = F.ps_roi_pool(maps, regions, batch_index, self.bins, spatial_scale=1 / stride)
        return F.mean(pooled, (2, 3))

    def levels(self, regions: Any) -> np.ndarray:
        """The map that each region is read from: a region twice as large from the next coarser one.

        Parameters
        ----------
        regions : array, (R, 4)
            Boxes in pixels of the images.

        Returns
        -------
        array of int64, (R,)
            Places in `strides`, from 0 on.
        """
        regions = np.asarray(to_numpy(plain(regions)), np.float64)
        size = np.sqrt(np.maximum((regions[:, 2:] - regions[:, :2] + 1).prod(1), 1e-9))
        level = np.floor(np.log2(size / (self.cells * self.strides[0]) + 1e-9))
        return level.clip(0, len(self.strides) - 1).astype(np.int64)

    def targets(
        self, proposals: Sequence[Any], boxes: Sequence[Any], labels: Sequence[Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What is learned from.

        The objects themselves are among the regions, as in the public implementations.

        Parameters
        ----------
        proposals : sequence of array, (R, 4)
            The regions of each image.
        boxes, labels : sequence of array, (M, 4) and (M,)
            The objects of each image and their classes, from 0 on.

        Returns
        -------
        regions : array of float32, (S, 4)
            Those of all images.
        batch_index : array of int64, (S,)
            The image of each.
        classes : array of int64, (S,)
            The class of each: 0 for the background, ``label + 1`` for objects.
        codes : array of float32, (S, 4)
            How each has to be moved and scaled to become its object; 0 for the background.
        """
        parts, classes, codes = [], [], []
        for found, objects, kinds in zip(proposals, boxes, labels):
            objects = np.asarray(to_numpy(plain(objects)), np.float32).reshape(-1, 4)
            parts.append(np.concatenate([to_numpy(plain(found)), objects]).astype(np.float32))
            own, matched = match_proposals(parts[-1], objects, to_numpy(kinds))
            classes.append(own)
            codes.append(np.zeros((len(own), 4), np.float32))
            rows = own > 0
            codes[-1][rows] = encode_boxes(objects[matched[rows]], parts[-1][rows], SPREAD)
        regions, index = of_images(parts)
        return regions, index, np.concatenate(classes), np.concatenate(codes)

    def loss(
        self,
        x: Any,
        proposals: Sequence[Any],
        boxes: Sequence[Any],
        labels: Sequence[Any],
        *,
        mined: int = 128,
    ) -> Any:
        """How far classes and boxes are from what they should be, on the hardest regions of each image.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images.
        proposals : sequence of array, (R, 4)
            The regions of each image, from `RPN.propose`.
        boxes, labels : sequence of array, (M, 4) and (M,)
            The objects of each image and their classes, from 0 on.
        mined : int
            Online hard example mining: of an image, learn from so many regions of the largest loss.

        Returns
        -------
        number
            The mean over these of cross entropy and, for objects, smooth L1 of the four codes; 0 if there is
            no region.
        """
        regions, index, classes, codes = self.targets(proposals, boxes, labels)
        xp = library(plain(x))
        scores, moved = self(x, xp.asarray(regions), xp.asarray(index))
        each = region_losses(scores, moved, classes, codes)
        hard = hardest(to_numpy(plain(each)), index, mined)
        return F.sum(each[xp.asarray(hard)]) * each.dtype.type(1 / max(len(hard), 1))

    def detect(
        self,
        x: Any,
        proposals: Sequence[Any],
        *,
        least: float = 0.05,
        overlap: float = 0.3,
        most: int = 100,
    ) -> list[Detections]:
        """What is where in images. No tape records it.

        Parameters
        ----------
        x : array, (N, in_channels, H, W)
            The images.
        proposals : sequence of array, (R, 4)
            The regions of each image, from `RPN.propose`.
        least : float
            Probability below which nothing is reported.
        overlap : float
            Of two of one class that overlap by more the one of the lower score goes.
        most : int
            Of an image.

        Returns
        -------
        list of Detections
            Of each image boxes (n, 4), scores (n,) and labels (n,), from 0 on, best first, in pixels of x; as
            `autodiff.metrics.mean_average_precision` takes them.
        """
        xp, size = library(plain(x)), tuple(x.shape[2:])
        regions, index = of_images([to_numpy(plain(part)) for part in proposals])
        with fixed(self):
            scores, codes = self(plain(x), xp.asarray(regions), xp.asarray(index))
        chances = to_numpy(plain(F.softmax(scores, 1)))
        boxes = clip_boxes(decode_boxes(to_numpy(plain(codes)), regions, SPREAD), (size[0], size[1]))
        images = [np.flatnonzero(index == image) for image in range(len(proposals))]
        return [_detections(boxes[rows], chances[rows], least, overlap, most) for rows in images]


def region_losses(scores: Any, moved: Any, classes: np.ndarray, codes: np.ndarray) -> Any:
    """Of each region: cross entropy of its class, and smooth L1 of its box if it is an object.

    Parameters
    ----------
    scores, moved : array, (R, K + 1) and (R, 4)
        What the network says.
    classes, codes : array, (R,) and (R, 4)
        What should be: 0 for the background.

    Returns
    -------
    array, (R,)
        Both added up, with the same weight.

    Examples
    --------
    Two classes and the background, of which nothing is known; a box that is one off in each number:

    >>> import numpy as np
    >>> from autodiff.networks.detection import region_losses
    >>> found, classes = np.ones((2, 4)), np.array([0, 2])
    >>> region_losses(np.zeros((2, 3)), found, classes, np.zeros((2, 4))).round(2)
    array([1.1, 3.1])
    """
    xp = library(plain(scores))
    picked = F.log_softmax(scores, 1)[xp.arange(len(classes)), xp.asarray(classes)]
    return xp.asarray(classes > 0, scores.dtype) * box_losses(moved, codes) - picked


def _detections(
    boxes: np.ndarray, chances: np.ndarray, least: float, overlap: float, most: int
) -> Detections:
    """Of one image, class by class."""
    rows, labels = [], []
    for label in range(chances.shape[1] - 1):
        own = np.flatnonzero(chances[:, label + 1] >= least)
        kept = own[suppressed(boxes[own], chances[own, label + 1], overlap)]
        rows.append(kept)
        labels.append(np.full(len(kept), label))
    every, kinds = np.concatenate(rows), np.concatenate(labels)
    scores = chances[every, kinds + 1]
    order = np.argsort(-scores, kind="stable")[:most]
    return Detections(boxes[every[order]], scores[order], kinds[order])
