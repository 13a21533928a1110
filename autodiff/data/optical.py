"""Files of optical flow: those of Middlebury, FlyingChairs and Sintel, and those of KITTI."""

import struct
from typing import NamedTuple

import numpy as np

from ..files import FileError
from ._reading import PathLike, check_size, content_of, naming
from .png import decode

FLO_TAG = b"PIEH"  # the float 202021.25


class Flow(NamedTuple):
    """A field of vectors (2, H, W) along x and y in pixels, and where it is known, (H, W)."""

    flow: np.ndarray
    valid: np.ndarray


def read_flo(path: PathLike) -> np.ndarray:
    """Read a ``.flo`` file: optical flow as of Middlebury, FlyingChairs and Sintel.

    Parameters
    ----------
    path : path
        ``PIEH``, width and height as 32-bit integers, and for each pixel, row by row, two floats.

    Returns
    -------
    array of float32, (2, H, W)
        Along x and y, in pixels. Middlebury writes values over 1e9 where the flow is unknown.

    Raises
    ------
    FileError
        If the file is cut short, too long, or of another kind.

    Examples
    --------
    >>> import pathlib, struct, tempfile
    >>> from autodiff.data import read_flo
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "a.flo")
    ...     _ = path.write_bytes(b"PIEH" + struct.pack("<2i4f", 2, 1, 1, 2, 3, 4))
    ...     read_flo(path).tolist()
    [[[1.0, 3.0]], [[2.0, 4.0]]]
    """
    with naming(path):
        content = content_of(path)
        if content[:4] != FLO_TAG:
            raise FileError("is no .flo file: it does not begin with PIEH")
        if len(content) < 12:
            raise FileError("is cut short")
        width, height = struct.unpack_from("<ii", content, 4)
        check_size(width, height)
        expected = 12 + 8 * width * height
        if len(content) != expected:
            what = "is cut short" if len(content) < expected else "is too long"
            raise FileError(
                f"{what}: {width} x {height} vectors take {expected:,} bytes, not {len(content):,}"
            )
        values = np.frombuffer(content, "<f4", offset=12).astype(np.float32)
        return np.ascontiguousarray(np.moveaxis(values.reshape(height, width, 2), -1, 0))


def read_kitti_flow(path: PathLike) -> Flow:
    """Read a flow file of KITTI: a PNG file of 16 bits a channel.

    Along x the flow is ``(R - 2**15)/64`` pixels, along y ``(G - 2**15)/64``; where B is 0, it is unknown.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    Flow
        ``flow`` (2, H, W), float32, 0 where it is unknown, and ``valid`` (H, W), bool.

    Raises
    ------
    FileError
        If the file is damaged, cut short, or has not three channels of 16 bits.

    Examples
    --------
    >>> import pathlib, struct, tempfile, zlib
    >>> from autodiff.data import read_kitti_flow
    >>> def chunk(name, data):
    ...     return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    >>> header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    >>> row = zlib.compress(struct.pack(">B3H", 0, 2**15 + 32, 2**15 - 64, 1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "000000_10.png")
    ...     content = bytes([137]) + b"PNG" + bytes([13, 10, 26, 10]) + header
    ...     _ = path.write_bytes(content + chunk(b"IDAT", row) + chunk(b"IEND", b""))
    ...     read_kitti_flow(path).flow.ravel().tolist()
    [0.5, -1.0]
    """
    with naming(path):
        image = decode(content_of(path))
        if image.dtype != np.uint16 or image.shape[0] != 3 or image.ndim != 3:
            raise FileError(f"is no flow of KITTI's: {image.shape} {image.dtype}, not 3 channels of 16 bits")
        valid = image[2] != 0
        flow = (image[:2].astype(np.float32) - 2**15) / 64
        return Flow(np.where(valid, flow, np.float32(0)), valid)
