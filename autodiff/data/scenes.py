"""Scenes: ADE20K's classes of pixels, and the depths of NYU."""

from pathlib import Path
from typing import Any

import numpy as np

from ..files import FileError
from ._mat import read_mat
from ._reading import PathLike, Samples, folder_of, naming
from .images import read_image
from .png import read_png
from .voc import check_labels

ADE_CLASSES = 150
# What each dataset of the file has for an image, as MATLAB's axes are turned around.
NYU = {"images": (3, 640, 480), "depths": (640, 480), "labels": (640, 480)}


class ADE20K(Samples):
    """The scene parsing benchmark of ADE20K (Zhou et al., CVPR 2017).

    Parameters
    ----------
    root : path
        The folder ``ADEChallengeData2016``, with ``images/training``, ``annotations/training``, ...
    split : {"training", "validation"}
        Which of them.

    Raises
    ------
    FileNotFoundError
        If the folder has no images.
    ValueError
        If `split` is none of the two.

    Notes
    -----
    A sample has ``image`` (3, H, W) and ``labels`` (H, W), uint8: 1 to 150 for the classes of the benchmark,
    and 0 for everything else, which does not count.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from autodiff.data import ADE20K
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("images/training/ADE_train_1.jpg", "annotations/training/ADE_train_1.png"):
    ...         path = pathlib.Path(folder, name)
    ...         path.parent.mkdir(parents=True)
    ...         path.touch()
    ...     samples = ADE20K(folder)
    >>> samples.names  # files are read when a sample is asked for
    ['ADE_train_1']
    """

    def __init__(self, root: PathLike, split: str = "training") -> None:
        if split not in ("training", "validation"):
            raise ValueError(f"ADE20K: split must be one of training, validation, got {split!r}")
        self.images = folder_of(root, "images", split)
        self.annotations = folder_of(root, "annotations", split)
        names = sorted(path.stem for path in self.images.glob("*.jpg"))
        if not names:
            raise FileNotFoundError(f"{self.images}: has no files *.jpg")
        super().__init__(names, self._sample)

    def _sample(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        image, path = read_image(self.images / f"{name}.jpg"), self.annotations / f"{name}.png"
        labels = read_png(path)
        with naming(path):
            check_labels(labels, image, ADE_CLASSES, None)
        return {"image": image, "labels": labels}


class NYUDepth(Samples):
    """The labelled images of NYU Depth V2 (Silberman et al., ECCV 2012), with their depths.

    Parameters
    ----------
    path : path
        The file ``nyu_depth_v2_labeled.mat``, which is HDF5. It is read by h5py (extra ``data``), an image at
        a time.
    split : {"train", "test", "all"}
        Which of them, by the file `splits`.
    splits : path, optional
        The file ``splits.mat``; by default beside `path`.

    Raises
    ------
    ValueError
        If `split` is none of the three.
    FileError
        If a file is not what it should be.

    Notes
    -----
    A sample has ``image`` (3, 480, 640), uint8, ``depth`` (480, 640), float32, in metres, and ``labels``
    (480, 640), uint16, 0 for "unlabelled".

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import h5py
    >>> from autodiff.data import NYUDepth
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "nyu_depth_v2_labeled.mat")
    ...     with h5py.File(path, "w") as file:  # columns first, as MATLAB has them
    ...         _ = file.create_dataset("images", (1, 3, 640, 480), "u1")
    ...         _ = file.create_dataset("depths", (1, 640, 480), "f4")
    ...         _ = file.create_dataset("labels", (1, 640, 480), "u2")
    ...     (sample,) = NYUDepth(path, "all")
    >>> sample["image"].shape, sample["depth"].shape
    ((3, 480, 640), (480, 640))
    """

    def __init__(self, path: PathLike, split: str = "train", *, splits: PathLike | None = None) -> None:
        self.path = Path(path)
        with naming(path), self._open() as file:
            counts = {name: self._count(file, name) for name in NYU}
            if len(set(counts.values())) != 1:
                raise FileError(f"has not as many images as depths and labels: {counts}")
        count = counts["images"]
        self.numbers = np.arange(count)
        if split != "all":
            if split not in ("train", "test"):
                raise ValueError(f"NYUDepth: split must be one of train, test, all, got {split!r}")
            chosen = Path(splits) if splits is not None else self.path.parent / "splits.mat"
            numbers = read_mat(chosen, f"{split}Ndxs").ravel()
            with naming(chosen):
                if numbers.dtype.kind not in "iuf" or not ((numbers >= 1) & (numbers <= count)).all():
                    raise FileError(f"has numbers of images that are not 1 to {count}")
            self.numbers = numbers.astype(np.int64) - 1
        super().__init__([str(number) for number in self.numbers], self._sample)

    def _open(self) -> Any:
        try:
            import h5py
        except ImportError:
            raise ImportError("NYUDepth needs h5py: pip install 'dynamic-filters[data]'") from None
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: there is no such file")
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise FileError(f"is no HDF5 file, or damaged: {error}") from None

    def _count(self, file: Any, name: str) -> int:
        found = file.get(name)
        shape = tuple(getattr(found, "shape", None) or ())
        if shape[1:] != NYU[name] or found.dtype.kind not in "uf":
            raise FileError(f"has no {name} of shape (N, {', '.join(map(str, NYU[name]))})")
        return int(shape[0])

    def _sample(self, index: int) -> dict[str, Any]:
        number = int(self.numbers[index])
        with naming(self.path), self._open() as file:
            try:
                image, depth, labels = (file[name][number] for name in NYU)
            except (OSError, KeyError, ValueError) as error:
                raise FileError(f"is damaged at image {number}: {error}") from None
        turned = (np.ascontiguousarray(np.swapaxes(array, -1, -2)) for array in (image, depth, labels))
        return dict(zip(("image", "depth", "labels"), turned))
