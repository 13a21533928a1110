"""Files of MATLAB: those up to version 7, by SciPy; those of version 7.3 are HDF5."""

import io
import struct
import zlib
from typing import Any

import numpy as np

from ..files import FileError
from ._reading import PathLike, content_of, naming

# The files of data sets that are read here have some kilobytes, packed and unpacked.
MOST_BYTES, MOST_UNPACKED = 2**22, 2**26
# SciPy reads an array in an array by a call in a call, for which there is no room without end.
MOST_DEPTH = 32
MATRIX, PACKED = 14, 15  # kinds of elements


def read_mat(path: PathLike, name: str) -> Any:
    """A variable of a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    with naming(path):
        content = content_of(path)
        if len(content) > MOST_BYTES:
            raise FileError(f"has {len(content):,} bytes, more than any file of this kind")
        if content[:6] != b"MATLAB":
            raise FileError("is no MATLAB file of version 5 to 7")
        try:
            _check_elements(content)
            found = loadmat(io.BytesIO(content), variable_names=[name])
        except FileError:
            raise
        except MemoryError:
            raise FileError("is damaged: it needs more memory than there is") from None
        except (MatReadError, ValueError, TypeError, KeyError, IndexError, OSError, EOFError) as error:
            raise FileError(f"is damaged: {error}") from None
        except (NotImplementedError, AttributeError, OverflowError, zlib.error) as error:
            raise FileError(f"is damaged, or of another version: {error}") from None
        if name not in found:
            raise FileError(f"has no variable {name!r}")
        return found[name]


def _check_elements(content: bytes) -> None:
    """Whether the arrays of a file are whole, and neither too large nor nested too deep.

    An element is its kind, the number of its bytes, and these, filled up to a multiple of 8. A short one has
    its number of bytes in the upper half of its kind, and at most 4. An array is an element of elements.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise FileError("is no MATLAB file of version 5 to 7: it has no byte order")
    if struct.unpack_from(f"{order}H", content, 124)[0] >> 8 == 2:
        raise FileError("is of version 7.3, which is HDF5 and not read here")
    room, at = MOST_UNPACKED, 128
    while at < len(content):
        kind, begin, end = _element(content, at, len(content), order)
        if kind == MATRIX:
            _check_nested(content, begin, end, order)
        elif kind == PACKED:
            worker = zlib.decompressobj()
            unpacked = worker.decompress(content[begin:end], room + 1)
            room -= len(unpacked)
            if room < 0:
                raise FileError(f"is damaged: it would unpack to more than {MOST_UNPACKED:,} bytes")
            kind, inner, stop = _element(unpacked, 0, len(unpacked), order)
            if kind == MATRIX:
                _check_nested(unpacked, inner, stop, order)
        at = end


def _check_nested(content: bytes, begin: int, end: int, order: str, depth: int = 1) -> None:
    if depth > MOST_DEPTH:
        raise FileError(f"is damaged: its arrays are nested more than {MOST_DEPTH} deep")
    at = begin
    while at < end:
        kind, first, last = _element(content, at, end, order)
        if kind == MATRIX:
            _check_nested(content, first, last, order, depth + 1)
        at = max(at + 8, last + (begin - last) % 8)


def _element(content: bytes, at: int, limit: int, order: str) -> tuple[int, int, int]:
    """The kind of an element, and where its bytes begin and end."""
    if at + 8 > limit:
        raise FileError("is damaged or cut short: it ends in an element")
    kind, count = struct.unpack_from(f"{order}II", content, at)
    begin = at + 8
    if kind >> 16:
        kind, count, begin = kind & 0xFFFF, kind >> 16, at + 4
    if begin + count > limit:
        raise FileError("is damaged or cut short: it ends in an element")
    return kind, begin, begin + count


def field(array: Any, name: str) -> np.ndarray:
    """A field of a structure, or of an array of structures."""
    if array.dtype.names is None or name not in array.dtype.names or not array.size:
        raise FileError(f"has no field {name!r}")
    return array[name]
