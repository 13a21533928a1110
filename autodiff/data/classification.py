"""Images with one label each: CIFAR-10, and folders as those of ImageNet."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..files import FileError
from ._mat import field, read_mat
from ._reading import PathLike, Samples, content_of, folder_of, lines_of, naming
from .images import read_image

CIFAR_BYTES = 1 + 3 * 32 * 32
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGES = {".jpeg", ".jpg", ".png", ".ppm", ".bmp"}


class Labelled(NamedTuple):
    """Images (N, 3, H, W) of uint8, and their labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


def read_cifar10(path: PathLike) -> Labelled:
    """Read a file of the binary version of CIFAR-10, such as ``data_batch_1.bin``.

    Parameters
    ----------
    path : path
        For each image, a byte that is its label and 3072 that are its red, green and blue pixels.

    Returns
    -------
    Labelled
        ``images`` (N, 3, 32, 32), uint8, and ``labels`` (N,), int64, from 0 to 9.

    Raises
    ------
    FileError
        If the file is empty, cut short, or has a label over 9.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from autodiff.data import read_cifar10
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "data_batch_1.bin")
    ...     _ = path.write_bytes(bytes([7]) + bytes(3072))
    ...     read_cifar10(path).labels.tolist()
    [7]
    """
    with naming(path):
        content = np.frombuffer(content_of(path), np.uint8)
        if not content.size or content.size % CIFAR_BYTES:
            raise FileError(
                f"has {content.size:,} bytes: no file of CIFAR-10, whose images take {CIFAR_BYTES:,} each"
            )
        rows = content.reshape(-1, CIFAR_BYTES)
        labels = rows[:, 0].astype(np.int64)
        if labels.max() > 9:
            raise FileError(f"has label {labels.max()}: no file of CIFAR-10")
        return Labelled(rows[:, 1:].reshape(-1, 3, 32, 32).copy(), labels)


class CIFAR10(Samples):
    """The binary version of CIFAR-10.

    Parameters
    ----------
    root : path
        The folder ``cifar-10-batches-bin``.
    train : bool
        The five files of training images (``data_batch_1.bin``, ...), or that of test images.

    Attributes
    ----------
    images, labels : array
        All of them: (N, 3, 32, 32) of uint8, and (N,).
    classes : tuple of str
        What the labels mean.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from autodiff.data import CIFAR10
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "test_batch.bin").write_bytes(bytes([3]) + bytes(3072))
    ...     samples = CIFAR10(folder, train=False)
    >>> samples[0]["image"].shape, samples.classes[samples[0]["label"]]
    ((3, 32, 32), 'cat')
    """

    def __init__(self, root: PathLike, *, train: bool = True) -> None:
        names = [f"data_batch_{number}.bin" for number in range(1, 6)] if train else ["test_batch.bin"]
        parts = [read_cifar10(Path(root, name)) for name in names]
        self.images = np.concatenate([part.images for part in parts])
        self.labels = np.concatenate([part.labels for part in parts])
        self.classes = CIFAR_CLASSES
        super().__init__([str(number) for number in range(len(self.labels))], self._sample)

    def _sample(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}


class ImageFolder(Samples):
    """Images in one folder for each class, as ImageNet's training images lie.

    Parameters
    ----------
    root : path
        Has a folder for each class, such as ``n01440764``, with images in it or below it. The labels count
        the folders in the order of their names; images follow in the order of theirs.

    Attributes
    ----------
    classes : list of str
        The names of the folders.
    labels : array of int64, (N,)
        Of all images.

    Raises
    ------
    FileNotFoundError
        If there is no folder, or none with images.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from autodiff.data import ImageFolder
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         pathlib.Path(folder, name).mkdir()
    ...         _ = pathlib.Path(folder, name, "1.ppm").write_bytes(b"P6 2 1 255 abcdef")
    ...     samples = ImageFolder(folder)
    ...     print(samples.classes, samples.names, samples[1]["label"], samples[1]["image"].shape)
    ['cat', 'dog'] ['cat/1.ppm', 'dog/1.ppm'] 1 (3, 1, 2)
    """

    def __init__(self, root: PathLike) -> None:
        folder = folder_of(root)
        self.classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        if not self.classes:
            raise FileNotFoundError(f"{folder}: has no folders, of which each would be a class")
        self.paths: list[Path] = []
        labels = []
        for label, name in enumerate(self.classes):
            found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in IMAGES)
            if not found:
                raise FileNotFoundError(f"{folder / name}: has no images")
            self.paths += found
            labels += [label] * len(found)
        self.labels = np.array(labels, np.int64)
        super().__init__([path.relative_to(folder).as_posix() for path in self.paths], self._sample)

    def _sample(self, index: int) -> dict[str, Any]:
        return {"image": read_image(self.paths[index]), "label": int(self.labels[index])}


class ImageNetValidation(Samples):
    """The validation images of ImageNet (ILSVRC 2012), which lie in one folder, with their labels.

    Parameters
    ----------
    root : path
        The folder with ``ILSVRC2012_val_00000001.JPEG``, ...
    devkit : path
        The folder ``ILSVRC2012_devkit_t12``, with ``data/meta.mat`` and
        ``data/ILSVRC2012_validation_ground_truth.txt``.

    Attributes
    ----------
    classes : list of str
        WordNet's identifiers of the classes in order, such as ``n01440764``: as the folders of the training
        images, so that labels are those of `ImageFolder`.
    labels : array of int64, (N,)
        Of all images.

    Raises
    ------
    FileError
        If the list has not one line for each image, or a number that is no class.

    Examples
    --------
    >>> import numpy as np, pathlib, tempfile
    >>> from scipy.io import savemat
    >>> from autodiff.data import ImageNetValidation
    >>> kind = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("num_children", "f8")]
    >>> synsets = np.array([(1, "n02119789", 0), (2, "n01440764", 0)], kind)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     images, devkit = pathlib.Path(folder, "images"), pathlib.Path(folder, "devkit")
    ...     images.mkdir()
    ...     (images / "ILSVRC2012_val_00000001.JPEG").touch()
    ...     (devkit / "data").mkdir(parents=True)
    ...     savemat(devkit / "data" / "meta.mat", {"synsets": synsets})
    ...     _ = (devkit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("1")
    ...     samples = ImageNetValidation(images, devkit)
    >>> samples.classes, samples.labels.tolist()
    (['n01440764', 'n02119789'], [1])
    """

    def __init__(self, root: PathLike, devkit: PathLike) -> None:
        self.paths = sorted(path for path in folder_of(root).iterdir() if path.suffix.lower() in IMAGES)
        folder = folder_of(devkit, "data")
        names = _wordnet(folder / "meta.mat")
        self.classes = sorted(names.values())
        listed = folder / "ILSVRC2012_validation_ground_truth.txt"
        lines = lines_of(listed)
        with naming(listed):
            if len(lines) != len(self.paths):
                raise FileError(f"has {len(lines):,} lines, but there are {len(self.paths):,} images")
            wrong = [line for line in lines if not line.isdigit() or int(line[:9]) not in names]
            if wrong:
                raise FileError(f"has the line {wrong[0]!r:.50}, which is no class")
        places = {name: label for label, name in enumerate(self.classes)}
        self.labels = np.array([places[names[int(line)]] for line in lines], np.int64)
        super().__init__([path.name for path in self.paths], self._sample)

    def _sample(self, index: int) -> dict[str, Any]:
        return {"image": read_image(self.paths[index]), "label": int(self.labels[index])}


def _wordnet(path: Path) -> dict[int, str]:
    """The identifiers of the classes by the numbers that ImageNet gave them."""
    synsets = read_mat(path, "synsets")
    with naming(path):
        numbers, names, children = (
            field(synsets, key).ravel() for key in ("ILSVRC2012_ID", "WNID", "num_children")
        )
        try:
            found = {
                int(np.ravel(number)[0]): str(np.ravel(name)[0])
                for number, name, below in zip(numbers, names, children)
                if int(np.ravel(below)[0]) == 0  # others are groups of classes
            }
        except (ValueError, TypeError, IndexError):
            raise FileError("has classes without number or name") from None
        if len(set(found.values())) != len(found):
            raise FileError("gives a name twice")
        return found
