"""Data sets of optical flow: FlyingChairs, Sintel, KITTI."""

from pathlib import Path
from typing import Any

import numpy as np

from ..files import FileError
from ._reading import PathLike, Samples, folder_of, lines_of, naming
from .images import read_image
from .optical import read_flo, read_kitti_flow
from .png import read_png

PARTS = {"train": "1", "val": "2"}


class FlyingChairs(Samples):
    """FlyingChairs (Dosovitskiy et al., ICCV 2015): pairs of images, and how the second differs.

    Parameters
    ----------
    root : path
        The folder ``FlyingChairs_release``, with ``data/00001_img1.ppm``, ``_img2.ppm``, ``_flow.flo``, ...
    part : {"train", "val", "all"}
        Which of them, by the authors' list of as many lines as pairs, with 1 for training and 2 for
        validation.
    split : path, optional
        That list; by default ``FlyingChairs_train_val.txt`` in the folder, or in the one above it.

    Raises
    ------
    FileNotFoundError
        If the folder has no flows.
    ValueError
        If `part` is none of the three.
    FileError
        If the list does not fit the pairs.

    Notes
    -----
    A sample has ``image`` and ``second`` (3, H, W), uint8, and ``flow`` (2, H, W), float32: the pixel at p of
    the first image is at p + flow of the second.

    Examples
    --------
    >>> import pathlib, struct, tempfile
    >>> from autodiff.data import FlyingChairs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = pathlib.Path(folder, "data")
    ...     data.mkdir()
    ...     for image in ("img1", "img2"):
    ...         _ = (data / f"00001_{image}.ppm").write_bytes(b"P6 1 1 255 abc")
    ...     _ = (data / "00001_flow.flo").write_bytes(b"PIEH" + struct.pack("<2i2f", 1, 1, 0.5, 2))
    ...     (sample,) = FlyingChairs(folder, "all")
    >>> sample["image"].shape, sample["flow"].ravel().tolist()
    ((3, 1, 1), [0.5, 2.0])
    """

    def __init__(self, root: PathLike, part: str = "train", *, split: PathLike | None = None) -> None:
        self.folder = folder_of(root, "data")
        names = sorted(path.name.removesuffix("_flow.flo") for path in self.folder.glob("*_flow.flo"))
        if not names:
            raise FileNotFoundError(f"{self.folder}: has no files *_flow.flo")
        if part != "all":
            if part not in PARTS:
                raise ValueError(f"FlyingChairs: part must be one of train, val, all, got {part!r}")
            chosen = _listed(Path(root), split)
            marks = lines_of(chosen)
            if len(marks) != len(names) or not set(marks) <= set(PARTS.values()):
                raise FileError(f"{chosen}: should have {len(names)} lines of 1 or 2, one for each pair")
            names = [name for name, mark in zip(names, marks) if mark == PARTS[part]]
        super().__init__(names, self._sample)

    def _sample(self, index: int) -> dict[str, Any]:
        start = str(self.folder / self.names[index])
        path = Path(f"{start}_flow.flo")
        return _sample(Path(f"{start}_img1.ppm"), Path(f"{start}_img2.ppm"), path, read_flo(path))


def _listed(root: Path, split: PathLike | None) -> Path:
    if split is not None:
        return Path(split)
    places = [folder / "FlyingChairs_train_val.txt" for folder in (root, root.parent)]
    found = [place for place in places if place.is_file()]
    if not found:
        raise FileNotFoundError(f"{places[0]}: is not there; give it as split, or ask for part='all'")
    return found[0]


def _sample(first: Path, second: Path, path: Path, flow: np.ndarray) -> dict[str, Any]:
    """Two images and their flow, all of one size."""
    one, two = read_image(first), read_image(second)
    for where, size in ((second, two.shape[1:]), (path, flow.shape[1:])):
        with naming(where):
            if size != one.shape[1:]:
                raise FileError(f"has {size} pixels, but {first.name} has {one.shape[1:]}")
    return {"image": one, "second": two, "flow": flow}


class Sintel(Samples):
    """MPI Sintel (Butler et al., ECCV 2012): consecutive frames of an animated film.

    Parameters
    ----------
    root : path
        With ``training/clean/alley_1/frame_0001.png``, ..., ``training/flow/alley_1/frame_0001.flo``, and, if
        it is there, ``training/invalid``.
    rendering : {"clean", "final"}
        Without or with blur, fog and the like.

    Raises
    ------
    FileNotFoundError
        If the folder has no flows.
    ValueError
        If `rendering` is none of the two.

    Notes
    -----
    A sample has ``image``, ``second``, ``flow``, and ``valid`` (H, W), bool: everywhere, except where
    ``invalid`` says that the flow is not known.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from autodiff.data import Sintel
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("clean/alley_1/frame_0001.png", "clean/alley_1/frame_0002.png"):
    ...         path = pathlib.Path(folder, "training", name)
    ...         path.parent.mkdir(parents=True, exist_ok=True)
    ...         path.touch()
    ...     flows = pathlib.Path(folder, "training/flow/alley_1")
    ...     flows.mkdir(parents=True)
    ...     (flows / "frame_0001.flo").touch()
    ...     samples = Sintel(folder)
    >>> samples.names  # files are read when a sample is asked for
    ['alley_1/frame_0001']
    """

    def __init__(self, root: PathLike, rendering: str = "clean") -> None:
        if rendering not in ("clean", "final"):
            raise ValueError(f"Sintel: rendering must be one of clean, final, got {rendering!r}")
        self.frames = folder_of(root, "training", rendering)
        self.flows = folder_of(root, "training", "flow")
        self.invalid = self.flows.parent / "invalid"
        found = sorted(path.relative_to(self.flows).with_suffix("") for path in self.flows.glob("*/*.flo"))
        if not found:
            raise FileNotFoundError(f"{self.flows}: has no folders with .flo files")
        super().__init__([path.as_posix() for path in found], self._sample)

    def _sample(self, index: int) -> dict[str, Any]:
        scene, _, frame = self.names[index].rpartition("/")
        try:
            following = f"frame_{int(frame.removeprefix('frame_')) + 1:04d}"
        except ValueError:
            raise FileError(
                f"{self.flows / self.names[index]}.flo: is not called frame_0001 or the like"
            ) from None
        path = self.flows / scene / f"{frame}.flo"
        first, second = (self.frames / scene / f"{name}.png" for name in (frame, following))
        sample = _sample(first, second, path, read_flo(path))
        valid = np.ones(sample["flow"].shape[1:], bool)
        mask = self.invalid / scene / f"{frame}.png"
        if self.invalid.is_dir():
            unknown = read_png(mask)
            with naming(mask):
                if unknown.shape != valid.shape:
                    raise FileError(f"has {unknown.shape} pixels, but the flow has {valid.shape}")
            valid = unknown == 0
        return {**sample, "valid": valid}


class KITTIFlow(Samples):
    """KITTI's optical flow, of 2015 or 2012: pairs of street scenes, with flow where a laser measured it.

    Parameters
    ----------
    root : path
        With ``training/image_2`` (2015) or ``training/colored_0`` (2012) and ``training/flow_occ``.
    occluded : bool
        Also pixels that leave the image (``flow_occ``), or only those that do not (``flow_noc``).

    Raises
    ------
    FileNotFoundError
        If the folder has no images or no flows.

    Notes
    -----
    A sample has ``image``, ``second``, ``flow``, which is 0 where it is unknown, and ``valid`` (H, W), bool.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from autodiff.data import KITTIFlow
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("image_2/000000_10.png", "image_2/000000_11.png", "flow_occ/000000_10.png"):
    ...         path = pathlib.Path(folder, "training", name)
    ...         path.parent.mkdir(parents=True, exist_ok=True)
    ...         path.touch()
    ...     samples = KITTIFlow(folder)
    >>> samples.names  # files are read when a sample is asked for
    ['000000']
    """

    def __init__(self, root: PathLike, *, occluded: bool = True) -> None:
        self.flows = folder_of(root, "training", "flow_occ" if occluded else "flow_noc")
        places = [self.flows.parent / name for name in ("image_2", "colored_0")]
        found = [place for place in places if place.is_dir()]
        if not found:
            raise FileNotFoundError(f"{places[0]}: there is no such folder, nor {places[1].name}")
        self.frames = found[0]
        names = sorted(path.name.removesuffix("_10.png") for path in self.flows.glob("*_10.png"))
        if not names:
            raise FileNotFoundError(f"{self.flows}: has no files *_10.png")
        super().__init__(names, self._sample)

    def _sample(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        path = self.flows / f"{name}_10.png"
        flow, valid = read_kitti_flow(path)
        sample = _sample(self.frames / f"{name}_10.png", self.frames / f"{name}_11.png", path, flow)
        return {**sample, "valid": valid}
