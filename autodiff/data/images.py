"""Photographs, and the formats of the netpbm family that data sets keep them and depths in."""

import io
import re

import numpy as np

from ..files import FileError
from ._reading import PathLike, check_size, content_of, naming
from .png import SIGNATURE, decode

# Bits and kind of a PNG file: what needs no palette, and what Pillow would cut to 8 bits.
PLAIN = (b"\x08\x00", b"\x08\x02", b"\x10\x00", b"\x10\x02", b"\x10\x04", b"\x10\x06")
# A number of the header, after spaces and comments.
TOKEN = re.compile(rb"(?:\s|#[^\n]*\n)*([^\s#]+)")


def read_ppm(path: PathLike) -> np.ndarray:
    """Read a binary PPM or PGM file (``P6``, ``P5``), such as the images of FlyingChairs.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    array of uint8 or uint16, (3, H, W) or (H, W)
        As many bits as the largest value of the file needs; not scaled.

    Raises
    ------
    FileError
        If the file is damaged, cut short, too long, or of another kind.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from autodiff.data import read_ppm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "a.ppm")
    ...     _ = path.write_bytes(b"P6 2 1 255 abcdef")
    ...     read_ppm(path).tolist()
    [[[97, 100]], [[98, 101]], [[99, 102]]]
    """
    with naming(path):
        return _decode_ppm(content_of(path))


def _decode_ppm(content: bytes) -> np.ndarray:
    if content[:2] not in (b"P5", b"P6"):
        raise FileError("is no binary PPM or PGM file")
    numbers, at = [], 2
    for _ in range(3):
        found = TOKEN.match(content, at)
        if found is None or not found[1].isdigit() or len(found[1]) > 9:
            raise FileError("has a damaged header")
        numbers.append(int(found[1]))
        at = found.end()
    width, height, largest = numbers
    check_size(width, height)
    if not 1 <= largest <= 65535 or not content[at : at + 1].isspace():
        raise FileError("has a damaged header")
    dtype = np.dtype(np.uint8 if largest < 256 else ">u2")
    channels = 3 if content[:2] == b"P6" else 1
    values = _whole(content[at + 1 :], dtype, height * width * channels).astype(dtype.newbyteorder("="))
    if values.max() > largest:
        raise FileError(f"has values of {values.max()}, over its largest, {largest}")
    values = values.reshape(height, width, channels)
    return values[..., 0].copy() if channels == 1 else np.ascontiguousarray(np.moveaxis(values, -1, 0))


def _whole(content: bytes, dtype: np.dtype, count: int) -> np.ndarray:
    """The values, if there are as many as there should be."""
    expected = count * dtype.itemsize
    if len(content) != expected:
        what = "is cut short" if len(content) < expected else "is too long"
        raise FileError(f"{what}: should have {expected:,} bytes after its header, and has {len(content):,}")
    return np.frombuffer(content, dtype)


def read_pfm(path: PathLike) -> np.ndarray:
    """Read a PFM file (``PF`` or ``Pf``), such as the disparities of Middlebury.

    Parameters
    ----------
    path : path
        The file. Its rows go from the bottom to the top, and the sign of its scale says the byte order.

    Returns
    -------
    array of float32, (3, H, W) or (H, W)
        From the top to the bottom. The scale itself is not applied, as its meaning is open; infinity stands
        for "unknown" in Middlebury's files.

    Raises
    ------
    FileError
        If the file is damaged, cut short, too long, or of another kind.

    Examples
    --------
    >>> import numpy as np, pathlib, tempfile
    >>> from autodiff.data import read_pfm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "a.pfm")
    ...     _ = path.write_bytes(b"Pf 1 2 -1.0 " + np.array([1, 2], "<f4").tobytes())
    ...     read_pfm(path).tolist()
    [[2.0], [1.0]]
    """
    with naming(path):
        content = content_of(path)
        found = re.match(rb"(PF|Pf)\s+(\d{1,9})\s+(\d{1,9})\s+([-+.\deE]{1,30})\s", content)
        if found is None:
            raise FileError("is no PFM file")
        width, height = int(found[2]), int(found[3])
        check_size(width, height)
        try:
            scale = float(found[4])
        except ValueError:
            scale = 0.0
        if not 0 < abs(scale) < float("inf"):
            raise FileError(f"has the scale {found[4]!r}")
        channels = 3 if found[1] == b"PF" else 1
        order = np.dtype("<f4" if scale < 0 else ">f4")
        values = _whole(content[found.end() :], order, height * width * channels).astype(np.float32)
        values = values.reshape(height, width, channels)[::-1]
        return values[..., 0].copy() if channels == 1 else np.ascontiguousarray(np.moveaxis(values, -1, 0))


def read_image(path: PathLike) -> np.ndarray:
    """Read a photograph: JPEG, PNG or PPM, as RGB of 8 bits.

    Parameters
    ----------
    path : path
        The file. What is in it decides, not how its name ends: some images of ImageNet are PNG files called
        JPEG.

    Returns
    -------
    array of uint8, (3, H, W)
        Grey images have three equal channels; palettes are resolved, alpha is left out. The orientation that
        a camera noted is not applied, as in the data sets' labels.

    Raises
    ------
    FileError
        If the file is no image, damaged, or cut short.
    ImportError
        If it takes Pillow to read it, and Pillow is not installed (extra ``data``).

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from autodiff.data import read_image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "a.ppm")
    ...     _ = path.write_bytes(b"P5 2 1 255 ab")
    ...     read_image(path).shape
    (3, 1, 2)
    """
    with naming(path):
        content = content_of(path)
        if content[:2] in (b"P5", b"P6"):
            found = _decode_ppm(content)
        elif content.startswith(SIGNATURE) and content[24:26] in PLAIN and not _is_interlaced(content):
            found = decode(content)
        else:
            found = _by_pillow(content)
        if found.dtype != np.uint8:
            raise FileError("has 16 bits a channel: read_png and read_ppm keep them")
        return found if found.ndim == 3 else np.repeat(found[None], 3, axis=0)


def _is_interlaced(content: bytes) -> bool:
    """Of 8 bits a channel: Pillow reads it without loss, and `decode` does not."""
    return content[24:25] == b"\x08" and content[28:29] == b"\x01"


def _by_pillow(content: bytes) -> np.ndarray:
    if not content:
        raise FileError("is empty")
    try:
        from PIL import Image
    except ImportError:
        install = "pip install 'dynamic-filters[data]'"
        raise ImportError(f"read_image needs Pillow for this file: {install}") from None
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG", "BMP", "GIF"]) as image:
            check_size(*image.size)
            return np.ascontiguousarray(np.moveaxis(np.asarray(image.convert("RGB")), -1, 0))
    except FileError:
        raise
    except Exception as error:  # its decoders raise OSError, SyntaxError, struct.error and others
        raise FileError(f"is no image that can be read: {error}") from None
