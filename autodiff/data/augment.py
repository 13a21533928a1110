"""Augmentations of samples: what is done to an image is done to its labels, flow and boxes.

A sample is a dict. ``image`` and ``second`` (3, H, W) are interpolated; ``labels``, ``valid`` and ``depth``
(H, W) are taken from the nearest pixel; ``flow`` (2, H, W) is moved with the pixels, and its vectors are
mirrored and scaled; of ``boxes`` (n, 4), ``(xmin, ymin, xmax, ymax)`` with both ends part of the box, those
that are left keep their ``box_labels`` and ``difficult``; boxes of integers become float32, as one that was
scaled ends between pixels. Other entries stay as they are. No sample is changed: a new one is returned. What
is random comes from a `numpy.random.Generator`, so that a seed gives the same again.
"""

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import functions as F

IMAGES = ("image", "second")
PLANES = ("labels", "valid", "depth")
BOXES = ("boxes", "box_labels", "difficult")
Sample = dict[str, Any]


def size_of(sample: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of all that a sample has.

    Parameters
    ----------
    sample : dict
        As described above.

    Returns
    -------
    tuple of int
        ``(H, W)``.

    Raises
    ------
    ValueError
        If the sizes of its entries differ.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.data import augment
    >>> augment.size_of({"image": np.zeros((3, 4, 5)), "labels": np.zeros((4, 5), np.uint8)})
    (4, 5)
    """
    sizes = {key: tuple(sample[key].shape[-2:]) for key in (*IMAGES, *PLANES, "flow") if key in sample}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"augment: the entries of a sample must have one height and width, got {sizes}")
    return next(iter(sizes.values()))


def _pair(function: str, name: str, value: Any, least: int | None = None) -> tuple[int, int]:
    """Two ints, for rows and columns."""
    try:
        rows, columns = value
        pair = operator.index(rows), operator.index(columns)
    except (TypeError, ValueError):
        raise TypeError(
            f"augment.{function}: {name} must be two ints, for rows and columns, got {value!r}"
        ) from None
    if least is not None and min(pair) < least:
        raise ValueError(f"augment.{function}: {name} must be at least {least} x {least}, got {value}")
    return pair


def _boxes(sample: Mapping[str, Any]) -> np.ndarray:
    """The boxes of a sample, of a type that fractions and negative numbers fit."""
    boxes = np.asarray(sample["boxes"])
    boxes = boxes if boxes.dtype.kind == "f" else boxes.astype(np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"augment: boxes must have shape (n, 4), got {boxes.shape}")
    return boxes


def mirror(sample: Mapping[str, Any]) -> Sample:
    """A sample with left and right exchanged.

    Parameters
    ----------
    sample : dict
        As described above.

    Returns
    -------
    dict
        The mirrored sample; flow along x has the other sign.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.data import augment
    >>> sample = {"image": np.arange(3).reshape(1, 1, 3), "boxes": np.array([[0.0, 0, 1, 0]])}
    >>> found = augment.mirror(sample)
    >>> found["image"].tolist(), found["boxes"].tolist()
    ([[[2, 1, 0]]], [[1.0, 0.0, 2.0, 0.0]])
    """
    _, width = size_of(sample)
    found = dict(sample)
    for key in (*IMAGES, *PLANES, "flow"):
        if key in sample:
            found[key] = np.ascontiguousarray(sample[key][..., ::-1])
    if "flow" in sample:
        found["flow"][0] *= -1
    if "boxes" in sample:
        xmin, ymin, xmax, ymax = _boxes(sample).T
        found["boxes"] = np.stack([width - 1 - xmax, ymin, width - 1 - xmin, ymax], axis=1)
    return found


def resize(sample: Mapping[str, Any], size: tuple[int, int]) -> Sample:
    """A sample of another size.

    Images are interpolated bilinearly, as `autodiff.functions.resize` does. So is flow, unless the sample
    says where it is valid: then it is taken from the nearest pixel, as labels are, so that no value that is
    unknown is mixed with others. Its vectors grow with the image.

    Parameters
    ----------
    sample : dict
        As described above.
    size : (int, int)
        The new height and width.

    Returns
    -------
    dict
        The resized sample.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.data import augment
    >>> found = augment.resize({"flow": np.ones((2, 2, 2)), "labels": np.array([[1, 2], [3, 4]])}, (2, 4))
    >>> found["labels"].tolist(), found["flow"][:, 0, 0].tolist()
    ([[1, 1, 2, 2], [3, 3, 4, 4]], [2.0, 1.0])
    """
    height, width = size_of(sample)
    size = _pair("resize", "size", size, 1)
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in ((size[0], height), (size[1], width))
    )
    scales = size[1] / width, size[0] / height  # along x and y
    found = dict(sample)
    for key in IMAGES:
        if key in sample:
            found[key] = F.resize(sample[key][None], size)[0]
    for key in PLANES:
        if key in sample:
            found[key] = sample[key][rows[:, None], columns]
    if "flow" in sample:
        flow = sample["flow"]
        flow = flow[:, rows[:, None], columns] if "valid" in sample else F.resize(flow[None], size)[0]
        found["flow"] = flow * np.array(scales, flow.dtype)[:, None, None]
    if "boxes" in sample:
        boxes = _boxes(sample)
        boxes = boxes + np.array([0, 0, 1, 1], boxes.dtype)
        boxes = boxes * np.array(scales * 2, boxes.dtype)
        found["boxes"] = boxes - np.array([0, 0, 1, 1], boxes.dtype)
    return found


def crop(
    sample: Mapping[str, Any],
    place: tuple[int, int],
    size: tuple[int, int],
    *,
    fill: Any = 0,
    ignore: int = 255,
) -> Sample:
    """A part of a sample; where it leaves the image, there is nothing.

    Parameters
    ----------
    sample : dict
        As described above.
    place : (int, int)
        The first row and column, which may be negative.
    size : (int, int)
        Height and width of the part.
    fill : number, or three
        What images have outside: such as the mean of a data set, one value for each channel. Images of
        integers have it rounded.
    ignore : int
        What labels have outside, a value of their type: those of the data sets are uint8, which has no -1.
        Flow and depth are 0 there, and nothing is valid.

    Returns
    -------
    dict
        The part. Boxes whose centre is outside are left out, with their labels; others are cut.

    Raises
    ------
    TypeError, ValueError
        If `place` or `size` are not two ints, or `fill` or `ignore` do not fit the types of the sample.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.data import augment
    >>> augment.crop({"labels": np.array([[1, 2], [3, 4]])}, (1, 1), (1, 2))["labels"].tolist()
    [[4, 255]]
    """
    whole, place, size = size_of(sample), _pair("crop", "place", place), _pair("crop", "size", size, 1)
    # What lies inside: of the image, and of the part.
    low = [max(at, 0) for at in place]
    high = [max(min(at + length, limit), first) for at, length, limit, first in zip(place, size, whole, low)]
    inside = tuple(slice(a, b) for a, b in zip(low, high))
    target = tuple(slice(a - at, b - at) for a, b, at in zip(low, high, place))
    found = dict(sample)
    outside = {"image": fill, "second": fill, "labels": ignore}
    for key in (*IMAGES, *PLANES, "flow"):
        if key in sample:
            array = sample[key]
            part = np.empty((*array.shape[:-2], *size), array.dtype)
            if tuple(b - a for a, b in zip(low, high)) != size:
                part[...] = _fitting(key, outside.get(key, 0), part)
            if high[0] > low[0] and high[1] > low[1]:
                part[..., target[0], target[1]] = array[..., inside[0], inside[1]]
            found[key] = part
    if "boxes" in sample:
        found |= _cut(sample, place, size)
    return found


def _fitting(key: str, value: Any, part: np.ndarray) -> np.ndarray:
    """What an entry has outside of the image, of its type."""
    values = np.asarray(value)
    if values.ndim > 1 or (values.ndim and part.shape[:-2] != values.shape):
        raise ValueError(f"augment.crop: fill must be a number, or one for each channel, got {value!r}")
    if part.dtype.kind in "biu":
        values = np.rint(values)
        limits = np.iinfo(np.uint8 if part.dtype.kind == "b" else part.dtype)
        highest = 1 if part.dtype.kind == "b" else limits.max
        if not ((values >= limits.min) & (values <= highest)).all():
            what = "ignore" if key == "labels" else "fill"
            raise ValueError(f"augment.crop: {key} of {part.dtype} cannot be {value!r} outside; see `{what}`")
    return (values[:, None, None] if values.ndim else values).astype(part.dtype)


def _cut(sample: Mapping[str, Any], place: tuple[int, int], size: tuple[int, int]) -> Sample:
    """The boxes in a part of an image, and what belongs to them."""
    boxes = _boxes(sample)
    boxes = boxes - np.array([place[1], place[0]] * 2, boxes.dtype)
    limit = np.array([size[1], size[0]]) - 1
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    kept = ((centre >= 0) & (centre <= limit)).all(1)
    boxes[:, :2] = boxes[:, :2].clip(0, limit)
    boxes[:, 2:] = boxes[:, 2:].clip(0, limit)
    return {"boxes": boxes[kept], **{key: sample[key][kept] for key in BOXES[1:] if key in sample}}


def random_mirror(sample: Mapping[str, Any], rng: np.random.Generator) -> Sample:
    """`mirror`, of one sample in two.

    Parameters
    ----------
    sample : dict
        As described above.
    rng : Generator
        Where the random number comes from.

    Returns
    -------
    dict
        The sample, mirrored or not.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.data import augment
    >>> rng = np.random.default_rng(0)
    >>> [augment.random_mirror({"labels": np.array([[1, 2]])}, rng)["labels"].tolist() for _ in range(3)]
    [[[1, 2]], [[2, 1]], [[2, 1]]]
    """
    return mirror(sample) if rng.random() < 0.5 else dict(sample)


def random_scale(
    sample: Mapping[str, Any], rng: np.random.Generator, low: float = 0.5, high: float = 2.0
) -> Sample:
    """`resize` by a factor between two, 0.5 and 2 in the papers on segmentation.

    Parameters
    ----------
    sample : dict
        As described above.
    rng : Generator
        Where the random number comes from.
    low, high : float
        The factor is drawn evenly from between them.

    Returns
    -------
    dict
        The resized sample.

    Raises
    ------
    ValueError
        If not ``0 < low <= high``.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.data import augment
    >>> sample = {"labels": np.zeros((100, 200), np.uint8)}
    >>> augment.random_scale(sample, np.random.default_rng(0), 0.5, 2.0)["labels"].shape
    (146, 291)
    """
    if not 0 < low <= high:
        raise ValueError(f"augment.random_scale: needs 0 < low <= high, got {low} and {high}")
    factor = rng.uniform(low, high)
    height, width = size_of(sample)
    return resize(sample, (max(round(height * factor), 1), max(round(width * factor), 1)))


def random_crop(
    sample: Mapping[str, Any],
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    fill: Any = 0,
    ignore: int = 255,
) -> Sample:
    """`crop` to a size, at a random place. An axis that is shorter is filled up at its end.

    Parameters
    ----------
    sample : dict
        As described above.
    rng : Generator
        Where the random numbers come from.
    size : (int, int)
        Height and width of the part.
    fill, ignore
        As for `crop`.

    Returns
    -------
    dict
        The part.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.data import augment
    >>> sample = {"labels": np.arange(12).reshape(2, 6)}
    >>> augment.random_crop(sample, np.random.default_rng(0), (3, 2))["labels"].tolist()
    [[4, 5], [10, 11], [255, 255]]
    """
    size = _pair("random_crop", "size", size, 1)
    place = tuple(int(rng.integers(0, max(have - want, 0) + 1)) for have, want in zip(size_of(sample), size))
    return crop(sample, (place[0], place[1]), size, fill=fill, ignore=ignore)


def random_resized_crop(
    sample: Mapping[str, Any],
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Sample:
    """A random part of random size and shape, brought to one size: as networks for ImageNet are trained.

    Parameters
    ----------
    sample : dict
        As described above.
    rng : Generator
        Where the random numbers come from.
    size : (int, int)
        Height and width of the result.
    area : (float, float)
        The share of the image is drawn evenly from between these.
    ratio : (float, float)
        Of width to height, whose logarithm is drawn evenly from between those of these. What does not fit is
        drawn again, ten times; then the whole image is taken.

    Returns
    -------
    dict
        The part.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.data import augment
    >>> sample = {"image": np.zeros((3, 40, 60), np.uint8)}
    >>> augment.random_resized_crop(sample, np.random.default_rng(0), (16, 24))["image"].shape
    (3, 16, 24)
    """
    size, (height, width) = _pair("random_resized_crop", "size", size, 1), size_of(sample)
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        shape = np.exp(rng.uniform(*np.log(ratio)))
        wide, high = round(np.sqrt(pixels * shape)), round(np.sqrt(pixels / shape))
        if 0 < wide <= width and 0 < high <= height:
            place = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
            return resize(crop(sample, place, (high, wide)), size)
    return resize(sample, size)


def random_colors(
    sample: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    factor: tuple[float, float] = (0.5, 2.0),
    gamma: tuple[float, float] = (0.7, 1.5),
    contrast: tuple[float, float] = (-0.8, 0.4),
    brightness: float = 0.2,
    noise: float = 0.04,
) -> Sample:
    """Other colours, the same for both images of a pair, and noise of their own.

    With values v from 0 to 1: ``v = clip(v * f_c)**g`` with a factor for each channel c, then ``v = clip((v -
    1/2) * (1 + a) + 1/2 + b + s * n)`` with normal noise n.

    Parameters
    ----------
    sample : dict
        As described above; images of uint8, or of floats from 0 to 1.
    rng : Generator
        Where the random numbers come from.
    factor, gamma, contrast : (float, float)
        f, g and a are drawn evenly from between these. By default the ranges are those of FlowNet
        (Dosovitskiy et al., ICCV 2015).
    brightness : float
        Standard deviation of b.
    noise : float
        s is drawn evenly from between 0 and this.

    Returns
    -------
    dict
        The sample, with images of float32 from 0 to 1.

    Raises
    ------
    TypeError
        For images of other integers than uint8.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.data import augment
    >>> sample = {"image": np.full((3, 1, 1), 51, np.uint8)}
    >>> still = {"factor": (2, 2), "gamma": (1, 1), "contrast": (0, 0), "brightness": 0, "noise": 0}
    >>> augment.random_colors(sample, np.random.default_rng(0), **still)["image"].ravel()
    array([0.4, 0.4, 0.4], dtype=float32)
    """
    found = dict(sample)
    factors = rng.uniform(*factor, 3).astype(np.float32)
    power, slope = rng.uniform(*gamma), 1 + rng.uniform(*contrast)
    shift, strength = brightness * rng.standard_normal(), rng.uniform(0, noise)
    for key in IMAGES:
        if key in sample:
            values = _unit(key, sample[key]) * factors[: len(sample[key]), None, None]
            values = values.clip(0, 1) ** np.float32(power)
            values = (values - np.float32(0.5)) * np.float32(slope) + np.float32(0.5 + shift)
            values += np.float32(strength) * rng.standard_normal(values.shape, dtype=np.float32)
            found[key] = values.clip(0, 1)
    return found


def _unit(key: str, image: np.ndarray) -> np.ndarray:
    """As float32 from 0 to 1."""
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255
    if image.dtype.kind != "f":
        raise TypeError(f"augment.random_colors: {key} must be of uint8 or floats, got {image.dtype}")
    return image.astype(np.float32, copy=False)
