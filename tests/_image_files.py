"""Writes image files by the description of their formats, for the tests of readers."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(name: bytes, data: bytes) -> bytes:
    """Length, name, data, checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def paeth(a: int, b: int, c: int) -> int:
    """The specification's predictor: of left, above and above left."""
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    if pa <= pb and pa <= pc:
        return a
    return b if pb <= pc else c


def filtered(row: Sequence[int], above: Sequence[int], kind: int, step: int) -> bytes:
    """A row after its filter, byte by byte."""
    found = []
    for index, value in enumerate(row):
        a = row[index - step] if index >= step else 0
        b = above[index]
        c = above[index - step] if index >= step else 0
        guess = (0, a, b, (a + b) // 2, paeth(a, b, c))[kind]
        found.append((value - guess) % 256)
    return bytes([kind, *found])


def png_bytes(
    values: np.ndarray,
    depth: int = 8,
    kind: int = 0,
    filters: Sequence[int] = (0,),
    parts: int = 1,
    **changes: int,
) -> bytes:
    """A PNG file of values (H, W, C); its rows take turns with the filters."""
    height, width, channels = values.shape
    assert channels == CHANNELS[kind]
    bits = (values.astype(int)[..., None] >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1).tolist()
    step = max(channels * depth // 8, 1)
    above = [0] * len(rows[0])
    packed = b""
    for index, row in enumerate(rows):
        packed += filtered(row, above, filters[index % len(filters)], step)
        above = row
    header = {
        "width": width,
        "height": height,
        "depth": depth,
        "kind": kind,
        "packing": 0,
        "filter": 0,
        "interlace": 0,
    }
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", *(header | changes).values())) + chunk(b"tEXt", b"a\0b")
    if kind == 3:
        body += chunk(b"PLTE", bytes(range(256)) * 3)
    data = zlib.compress(packed)
    size = -(-len(data) // parts)
    body += b"".join(chunk(b"IDAT", data[at : at + size]) for at in range(0, len(data), size))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def ppm_bytes(image: np.ndarray) -> bytes:
    """A binary PPM file of an image (3, H, W), or PGM of (H, W)."""
    letter, planes = (b"P6", image) if image.ndim == 3 else (b"P5", image[None])
    height, width = planes.shape[1:]
    largest, code = (255, "u1") if image.dtype == np.uint8 else (65535, ">u2")
    header = letter + f"\n# a comment\n{width} {height}\n{largest}\n".encode()
    return header + np.moveaxis(planes, 0, -1).astype(code).tobytes()


def flo_bytes(flow: np.ndarray) -> bytes:
    """A .flo file of vectors (2, H, W)."""
    content = struct.pack("<f2i", 202021.25, flow.shape[2], flow.shape[1])
    for y in range(flow.shape[1]):
        for x in range(flow.shape[2]):
            content += struct.pack("<2f", flow[0, y, x], flow[1, y, x])
    return content


def kitti_bytes(flow: np.ndarray, valid: np.ndarray) -> bytes:
    """A flow file of KITTI: 16 bits, (value * 64 + 2**15), and whether it is valid."""
    coded = np.rint(flow * 64 + 2**15)
    values = np.stack([*coded, valid], axis=-1)
    return png_bytes(values, 16, 2, (0, 1, 2, 3, 4))


def write(path: Path, content: bytes) -> Path:
    """A file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
