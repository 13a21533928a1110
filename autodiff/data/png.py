"""PNG files with all their bits: 16 per channel, and palette indices rather than colours.

A file is a signature and chunks: a length, four letters, that many bytes, and a checksum. ``IHDR`` says size
and kind; the ``IDAT`` chunks together are, packed by zlib, the rows, each after the number of its filter: the
difference to the pixel on the left, above, to their mean, or to the one of three that is nearest to left +
above - above left (Paeth). See the PNG specification, ISO/IEC 15948.
"""

import struct
import zlib
from typing import NamedTuple

import numpy as np

from ..files import FileError
from ._reading import PathLike, check_size, content_of, naming

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by kind: grey, RGB, palette, grey and alpha, RGB and alpha
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# zlib packs nothing more than this: what claims more is cut short.
MOST_PACKED = 1032


class Header(NamedTuple):
    """Size and kind of an image."""

    width: int
    height: int
    depth: int
    kind: int
    packing: int
    filters: int
    interlace: int


def read_png(path: PathLike) -> np.ndarray:
    """Read a PNG file as it is, without loss of bits.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    array of uint8 or uint16, (H, W) or (C, H, W)
        Grey values, or (C, H, W) with C = 2 for grey and alpha, 3 for RGB, 4 for RGB and alpha. Of an image
        with a palette, the indices, which are the labels where PASCAL VOC and others keep labels. Values of
        less than 8 bits are not scaled.

    Raises
    ------
    FileError
        If the file is damaged, cut short, no PNG file, or interlaced.

    Examples
    --------
    >>> import pathlib, tempfile, zlib
    >>> from autodiff.data import read_png
    >>> def chunk(name, data):
    ...     return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
    >>> header = (2).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([16, 0, 0, 0, 0])
    >>> rows = zlib.compress(bytes([0, 1, 2, 255, 255]))
    >>> content = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "a.png")
    ...     _ = path.write_bytes(bytes([137]) + b"PNG" + bytes([13, 10, 26, 10]) + content)
    ...     read_png(path)
    array([[  258, 65535]], dtype=uint16)
    """
    with naming(path):
        return decode(content_of(path))


def decode(content: bytes) -> np.ndarray:
    """The image that the content of a PNG file is."""
    if not content.startswith(SIGNATURE):
        raise FileError("is no PNG file")
    header, packed = _chunks(content)
    row = (header.width * CHANNELS[header.kind] * header.depth + 7) // 8
    expected = header.height * (1 + row)
    if expected > MOST_PACKED * len(packed) + 64:
        raise FileError(
            f"is cut short: {header.width} x {header.height} pixels do not fit {len(packed):,} bytes"
        )
    rows = np.frombuffer(_unpacked(packed, expected), np.uint8).reshape(header.height, 1 + row)
    step = max(CHANNELS[header.kind] * header.depth // 8, 1)
    return _pixels(_unfiltered(rows[:, 0], rows[:, 1:], step), header)


def _chunks(content: bytes) -> tuple[Header, bytes]:
    at, header, data, palette = len(SIGNATURE), None, [], False
    while True:
        if at + 12 > len(content):
            raise FileError("is cut short")
        length, name = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if end > len(content):
            raise FileError(f"is cut short in its chunk {name!r}")
        body = content[at + 8 : end - 4]
        if zlib.crc32(content[at + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            raise FileError(f"is damaged in its chunk {name!r}")
        at = end
        if (header is None) != (name == b"IHDR"):
            raise FileError("does not begin with one header")
        if name == b"IHDR":
            header = _header(body)
        elif name == b"IDAT":
            data.append(body)
        elif name == b"PLTE":
            palette = True
        elif name == b"IEND":
            break
        elif name[:1].isupper():
            raise FileError(f"has a chunk {name!r}, which is not known")
    if header is None or not data or (header.kind == 3 and not palette):
        raise FileError("has no pixels, or no palette")
    return header, b"".join(data)


def _header(body: bytes) -> Header:
    if len(body) != 13:
        raise FileError("has a damaged header")
    header = Header(*struct.unpack(">IIBBBBB", body))
    check_size(header.width, header.height)
    if header.depth not in DEPTHS.get(header.kind, ()) or header.packing or header.filters:
        raise FileError(f"has pixels of an unknown kind, {header.kind} of {header.depth} bits")
    if header.interlace:
        raise FileError("is interlaced, which is not read")
    return header


def _unpacked(packed: bytes, expected: int) -> bytes:
    worker = zlib.decompressobj()
    try:
        found = worker.decompress(packed, expected + 1)
    except zlib.error as error:
        raise FileError(f"has damaged pixels: {error}") from None
    if len(found) != expected or not worker.eof:
        raise FileError(f"has pixels of {len(found):,} bytes or more, but should have {expected:,}")
    return found


def _unfiltered(filters: np.ndarray, rows: np.ndarray, step: int) -> np.ndarray:
    """The bytes of the rows, each computed from those `step` before it, above it, and above those.

    These are known for all pixels of a diagonal once the two diagonals before it are: so the pixels of one
    diagonal are computed at once. A diagonal has a pixel of each row, row r at r + 1; outside of the image it
    is 0, as the specification wants.
    """
    if filters.max(initial=0) > 4:
        raise FileError(f"has a row of filter {filters.max()}")
    height, width = rows.shape[0], -(-rows.shape[1] // step)
    padded = np.zeros((height, width * step), np.uint8)
    padded[:, : rows.shape[1]] = rows
    pixels = padded.reshape(height, width, step)
    kinds = [np.flatnonzero(filters == kind) for kind in range(5)]
    second = last_one = np.zeros((height + 1, step), np.int16)
    for diagonal in range(height + width - 1):
        first, last = max(0, diagonal - width + 1), min(height - 1, diagonal)
        here = np.arange(first, last + 1)
        left, above = last_one[first + 1 : last + 2], last_one[first : last + 1]
        corner = second[first : last + 1]
        guess = np.zeros(left.shape, np.int16)
        for kind, of_kind in enumerate(kinds[1:], 1):
            low, high = np.searchsorted(of_kind, (first, last + 1))
            if low < high:
                rows_of_kind = of_kind[low:high] - first
                guess[rows_of_kind] = _guess(kind, *(part[rows_of_kind] for part in (left, above, corner)))
        found = (pixels[here, diagonal - here] + guess) & 255
        pixels[here, diagonal - here] = found
        second, last_one = last_one, np.zeros_like(last_one)
        last_one[first + 1 : last + 2] = found
    return padded[:, : rows.shape[1]]


def _guess(kind: int, left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """What a filter takes for a byte."""
    if kind == 1:
        return left
    if kind == 2:
        return above
    if kind == 3:
        return (left + above) // 2
    guess = left + above - corner
    to_left, to_above, to_corner = (abs(guess - part) for part in (left, above, corner))
    nearest = np.where(to_above <= to_corner, above, corner)
    return np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest)


def _pixels(content: np.ndarray, header: Header) -> np.ndarray:
    """The image that the bytes of its rows are."""
    channels = CHANNELS[header.kind]
    values: np.ndarray
    if header.depth == 16:
        values = np.ascontiguousarray(content).view(">u2").astype(np.uint16)
    elif header.depth == 8:
        values = content
    else:
        bits = np.unpackbits(content, axis=1)[:, : header.width * header.depth]
        weights = (1 << np.arange(header.depth)[::-1]).astype(np.uint8)
        values = bits.reshape(header.height, header.width, header.depth) @ weights
    values = values.reshape(header.height, header.width, channels)
    return np.ascontiguousarray(values[..., 0] if channels == 1 else np.moveaxis(values, -1, 0))
