"""PASCAL VOC: segmentation and detection, as the development kit's folders have them."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..files import FileError
from ._mat import field, read_mat
from ._reading import PathLike, Samples, content_of, folder_of, lines_of, naming
from .images import read_image
from .png import read_png

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
VOID = 255  # the borders of objects, which do not count


class VOCSegmentation(Samples):
    """Images of PASCAL VOC and the class of each pixel.

    Parameters
    ----------
    root : path
        Such as ``VOCdevkit/VOC2012``, with ``JPEGImages``, ``SegmentationClass`` and ``ImageSets``.
    split : str
        A list in ``ImageSets/Segmentation``: train, val, trainval or test.

    Attributes
    ----------
    names : list of str
        Of the images.

    Notes
    -----
    A sample has ``image`` (3, H, W) and ``labels`` (H, W), uint8: 0 for the background, 1 to 20 for
    `VOC_CLASSES`, 255 for borders. Reading one raises `FileError` if it is damaged, if a label is none of
    these, or if the sizes of image and labels differ.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from autodiff.data import VOCSegmentation
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = pathlib.Path(folder)
    ...     for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
    ...         (root / name).mkdir(parents=True)
    ...     _ = (root / "ImageSets/Segmentation/val.txt").write_text("2007_000033")
    ...     samples = VOCSegmentation(root, "val")
    >>> samples.names  # files are read when a sample is asked for
    ['2007_000033']
    """

    def __init__(self, root: PathLike, split: str = "train") -> None:
        self.root = folder_of(root)
        folder_of(root, "JPEGImages")
        folder_of(root, "SegmentationClass")
        names = lines_of(Path(root, "ImageSets", "Segmentation", f"{split}.txt"))
        super().__init__(names, self._sample)

    def _sample(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        image = read_image(self.root / "JPEGImages" / f"{name}.jpg")
        path = self.root / "SegmentationClass" / f"{name}.png"
        labels = read_png(path)
        with naming(path):
            check_labels(labels, image, len(VOC_CLASSES), VOID)
        return {"image": image, "labels": labels}


def check_labels(labels: np.ndarray, image: np.ndarray, largest: int, void: int | None) -> None:
    """Whether these can be the labels of that image."""
    if labels.shape != image.shape[1:] or labels.dtype != np.uint8:
        raise FileError(
            f"has labels of shape {labels.shape}, {labels.dtype}, for an image of {image.shape[1:]}"
        )
    wrong = labels[(labels > largest) & (labels != (largest if void is None else void))]
    if wrong.size:
        raise FileError(f"has label {wrong[0]}, which is no class")


class SBDSegmentation(Samples):
    """More images of PASCAL VOC with the class of each pixel: SBD (Hariharan et al., ICCV 2011).

    Parameters
    ----------
    root : path
        The folder ``benchmark_RELEASE/dataset``, with ``img``, ``cls``, ``train.txt`` and ``val.txt``.
    split : str
        Which list. "train_noval", without the images of VOC's own validation, is a list that others made.

    Notes
    -----
    A sample is as of `VOCSegmentation`; SBD has no borders.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from autodiff.data import SBDSegmentation
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = pathlib.Path(folder)
    ...     (root / "img").mkdir()
    ...     (root / "cls").mkdir()
    ...     _ = (root / "train.txt").write_text("2008_000003")
    ...     samples = SBDSegmentation(root)
    >>> samples.names  # files are read when a sample is asked for
    ['2008_000003']
    """

    def __init__(self, root: PathLike, split: str = "train") -> None:
        self.root = folder_of(root)
        folder_of(root, "img")
        folder_of(root, "cls")
        super().__init__(lines_of(Path(root, f"{split}.txt")), self._sample)

    def _sample(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        image = read_image(self.root / "img" / f"{name}.jpg")
        path = self.root / "cls" / f"{name}.mat"
        found = read_mat(path, "GTcls")
        with naming(path):
            labels = np.ascontiguousarray(field(found, "Segmentation").flat[0])
            check_labels(labels, image, len(VOC_CLASSES), VOID)
        return {"image": image, "labels": labels}


class VOCDetection(Samples):
    """Images of PASCAL VOC and the boxes of their objects.

    Parameters
    ----------
    root : path
        Such as ``VOCdevkit/VOC2012``, with ``JPEGImages``, ``Annotations`` and ``ImageSets``.
    split : str
        A list in ``ImageSets/Main``: train, val, trainval or test.

    Notes
    -----
    A sample has ``image`` (3, H, W), ``boxes`` (n, 4), float32, ``(xmin, ymin, xmax, ymax)`` with pixels
    counted from 0 (in the files, from 1) and both ends part of the box, ``box_labels`` (n,), int64, 0 to 19
    for `VOC_CLASSES`, and ``difficult`` (n,), bool: what `autodiff.metrics.mean_average_precision` takes.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from autodiff.data import VOCDetection
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = pathlib.Path(folder)
    ...     for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
    ...         (root / name).mkdir(parents=True)
    ...     _ = (root / "ImageSets/Main/val.txt").write_text("2008_000002")
    ...     samples = VOCDetection(root, "val")
    >>> samples.names  # files are read when a sample is asked for
    ['2008_000002']
    """

    def __init__(self, root: PathLike, split: str = "train") -> None:
        self.root = folder_of(root)
        folder_of(root, "JPEGImages")
        folder_of(root, "Annotations")
        # The lists of single classes have a second column.
        names = [line.split()[0] for line in lines_of(Path(root, "ImageSets", "Main", f"{split}.txt"))]
        super().__init__(names, self._sample)

    def _sample(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        image = read_image(self.root / "JPEGImages" / f"{name}.jpg")
        path = self.root / "Annotations" / f"{name}.xml"
        with naming(path):
            return {"image": image, **_annotation(content_of(path), image.shape[1:])}


def _annotation(content: bytes, size: tuple[int, ...]) -> dict[str, Any]:
    if b"<!" in content:
        # Definitions of entities are what makes small XML files large.
        raise FileError("has XML declarations, which no annotation needs")
    try:
        tree = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # LookupError: its encoding
        raise FileError(f"is no XML: {error}") from None
    if tree.tag != "annotation":
        raise FileError(f"is no annotation of PASCAL VOC, but a {tree.tag!r:.50}")
    if (stated := tree.find("size")) is not None:
        there = (_number(stated, "height"), _number(stated, "width"))
        if there != size and there != (0, 0):  # some annotations have zeros
            raise FileError(f"is of an image of {there}, but the image has {size}")
    boxes, labels, difficult = [], [], []
    for item in tree.iterfind("object"):
        name, frame = (item.findtext("name") or "").strip(), item.find("bndbox")
        if name not in VOC_CLASSES:
            raise FileError(f"has an object {name!r:.50}, which is no class")
        if frame is None:
            raise FileError(f"has an object {name!r} without a box")
        box = [_number(frame, side) - 1 for side in ("xmin", "ymin", "xmax", "ymax")]
        if box[0] > box[2] or box[1] > box[3]:
            raise FileError(f"has an object {name!r} whose box ends before it begins")
        boxes.append(box)
        labels.append(VOC_CLASSES.index(name))
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "box_labels": np.array(labels, np.int64),
        "difficult": np.array(difficult, bool),
    }


def _number(element: ElementTree.Element, name: str) -> float:
    """A number of an element; some boxes have fractions."""
    try:
        value = float(element.findtext(name) or "")
    except ValueError:
        raise FileError(f"has no number {name!r}") from None
    if not abs(value) < 1e6:
        raise FileError(f"has the number {value} as {name!r}")
    return value
