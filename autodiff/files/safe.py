"""The safetensors format, which holds names and numbers and nothing that could run.

A file is the length of its header (8 bytes, little-endian), the header, and the bytes of the arrays one after
the other. The header is JSON: ``{name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}}``,
and under ``__metadata__`` strings by name. That is all, so it is read here, with NumPy and the standard
library: no size that a file claims is believed before it has been compared with the size of the file.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dynarray._dispatch import is_masked
from rawkernels.store import replaced

from .._state import to_numpy
from ._errors import MAX_AXES, FileError, PathLike, check_booleans, named_dtype, read_exactly

CODES = {
    "C64": "complex64",
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
METADATA = "__metadata__"
# Room for 100,000 arrays. The format's own library reads ten times that, but a file that needs it is damaged
# or hostile, and to read its header would take a minute and two gigabytes.
MAX_HEADER = 10_000_000


class Entry(NamedTuple):
    """What the header says about one array: its dtype and shape, and which bytes of the data it is."""

    dtype: Any
    shape: tuple[int, ...]
    begin: int
    end: int


class Contents(NamedTuple):
    """The arrays of a file by name, and its metadata."""

    arrays: dict[str, Any]
    metadata: dict[str, str]


def save(path: PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays to a safetensors file, in one piece or not at all.

    Parameters
    ----------
    path : path
        Is replaced once the new contents are complete and on the disk: whatever happens meanwhile, it holds
        the old contents or the new. Its permissions stay as they were, and a link still leads to it.
    arrays : mapping of str to array
        NumPy or CuPy arrays, such as ``network.state_dict()``.
    metadata : mapping of str to str, optional
        Kept beside the arrays.

    Raises
    ------
    TypeError, ValueError
        If something is no array, or one that the format does not know; a masked array would lose its mask.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from autodiff import files
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files.save(f"{folder}/model.safetensors", {"weight": np.arange(3.0)}, {"made by": "me"})
    ...     files.load(f"{folder}/model.safetensors")
    Contents(arrays={'weight': array([0., 1., 2.])}, metadata={'made by': 'me'})
    """
    host = {name: _little_endian(name, array) for name, array in arrays.items()}
    header = _header(host, metadata or {})
    with replaced(Path(path)) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in _order(host):
            file.write(host[name].reshape(-1).view(np.uint8).data)


def load(path: PathLike, accept: Callable[[dict[str, Entry], dict[str, str]], Any] | None = None) -> Contents:
    """Read a safetensors file into NumPy arrays.

    Parameters
    ----------
    path : path
        The file.
    accept : callable, optional
        Is given the entries of the header and the metadata before any array is read, and raises if it does
        not want them: a file of the wrong network then costs neither time nor memory.

    Returns
    -------
    Contents
        ``arrays`` by name, with the shapes and dtypes of the file, and ``metadata``, text by name.

    Raises
    ------
    FileError
        If the file is damaged, cut short, or holds something else than arrays.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from autodiff import files
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files.save(f"{folder}/weights.safetensors", {"w": np.arange(3.0)})
    ...     files.load(f"{folder}/weights.safetensors").arrays
    {'w': array([0., 1., 2.])}
    """
    with open(path, "rb") as file:
        try:
            entries, metadata, start = _read_header(file, os.fstat(file.fileno()).st_size)
            if accept:
                accept(entries, metadata)
            return Contents({name: _read(file, start, name, e) for name, e in entries.items()}, metadata)
        except FileError as error:
            raise FileError(f"{os.fspath(path)}: {error}") from None


def load_module(path: PathLike, module: Any) -> None:
    """Give a network the parameters and buffers that a file holds; unless all of them agree, nothing changes.

    Parameters
    ----------
    path : path
        Was written by ``save(path, network.state_dict())``.
    module : Module
        A network of the same architecture.

    Raises
    ------
    FileError
        If the file is damaged, or its arrays are not those of the network.

    Examples
    --------
    >>> import tempfile
    >>> from autodiff import files
    >>> from autodiff.layers import Linear
    >>> layer, other = Linear(2, 1, rng=0), Linear(2, 1, rng=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     files.save(f"{folder}/layer.safetensors", layer.state_dict())
    ...     files.load_module(f"{folder}/layer.safetensors", other)
    >>> bool((layer.weight.data == other.weight.data).all())
    True
    """

    def accept(entries: dict[str, Entry], metadata: dict[str, str]) -> None:
        faults = module.state_faults(entries)
        if faults:
            raise FileError(f"is not of this {type(module).__name__}:\n  " + "\n  ".join(faults))

    module.load_state_dict(load(path, accept).arrays)


# ---------------------------------------------------------------------------------------------------------
# Writing


def _little_endian(name: str, array: Any) -> np.ndarray:
    """The array as the file wants it: in C order, little-endian, in host memory."""
    if not isinstance(name, str) or name == METADATA:
        raise ValueError(f"save: {name!r} cannot be the name of an array")
    if not hasattr(array, "dtype") or not hasattr(array, "strides"):
        raise TypeError(f"save: {name} must be an array, got {type(array).__name__}")
    if is_masked(array):
        raise TypeError(
            f"save: {name} is a masked array, and a file has no masks: take filled(), or data and mask"
        )
    if array.dtype.name not in CODES.values():
        raise TypeError(f"save: {name} has dtype {array.dtype}, which the format does not know")
    array = np.asarray(to_numpy(array), order="C")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _order(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Large elements first, so that every array begins at a multiple of the size of its elements."""
    return sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))


def _header(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    codes = {name: code for code, name in CODES.items()}
    if not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise TypeError("save: metadata must be strings by strings")
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    begin = 0
    for name in _order(arrays):
        array = arrays[name]
        end = begin + array.nbytes
        header[name] = {
            "dtype": codes[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)  # the data then begin at a multiple of 8 bytes


# ---------------------------------------------------------------------------------------------------------
# Reading


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Entry], dict[str, str], int]:
    """The entries and the metadata, all checked, and where in the file the data begin."""
    start = file.read(8)
    if len(start) < 8:
        raise FileError(f"is too short to be a safetensors file ({size} bytes)")
    length = int.from_bytes(start, "little")
    if length > MAX_HEADER:
        raise FileError(f"its header would be {length:,} bytes long: no safetensors file")
    text = file.read(length)
    if len(text) < length:
        raise FileError(f"is cut short: its header should be {length:,} bytes long, {len(text):,} are there")
    header = _parse(text)
    metadata = header.pop(METADATA, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError("its metadata must be strings")
    entries = {name: _entry(name, description) for name, description in header.items()}
    _check_layout(entries, size - 8 - length)
    return entries, metadata, 8 + length


def _parse(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            raise FileError("its header gives a name twice")
        return members

    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except FileError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileError(f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise FileError("its header is not a JSON object")
    return header


def _entry(name: str, description: Any) -> Entry:
    if not isinstance(description, dict) or set(description) != {"dtype", "shape", "data_offsets"}:
        raise FileError(f"{name!r} must have dtype, shape and data_offsets")
    dtype = _dtype(name, description["dtype"])
    shape, offsets = description["shape"], description["data_offsets"]
    if not _are_sizes(shape) or len(shape) > MAX_AXES:
        raise FileError(f"{name!r} has no valid shape")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise FileError(f"{name!r} has no valid data_offsets")
    # NumPy refuses sizes whose product without the zeros does not fit an index.
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 2**63:
        raise FileError(f"{name!r} has no valid shape: too large")
    begin, end = offsets
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise FileError(f"{name!r}, {tuple(shape)} {dtype}, takes {needed:,} bytes, but has {end - begin:,}")
    return Entry(dtype, tuple(shape), begin, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _dtype(name: str, code: Any) -> np.dtype:
    if not isinstance(code, str) or code not in CODES:
        raise FileError(f"{name!r} has dtype {code!r}; known are {', '.join(CODES)}")
    return named_dtype(repr(name), CODES[code])


def _check_layout(entries: Mapping[str, Entry], size: int) -> None:
    """The arrays must follow each other and fill the data: no gap to hide in, no byte used twice."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            what = "overlaps" if entry.begin < position else "leaves a gap after"
            raise FileError(f"{name!r} {what} the array before it")
        position = entry.end
    if position != size:
        what = "is cut short" if position > size else "has more than its arrays"
        raise FileError(f"{what}: they take {position:,} bytes, {size:,} are there")


def _read(file: BinaryIO, start: int, name: str, entry: Entry) -> np.ndarray:
    array = np.empty(entry.shape, entry.dtype)
    file.seek(start + entry.begin)
    read_exactly(file, array, repr(name))
    check_booleans(array.reshape(-1), repr(name))
    return array if sys.byteorder == "little" else array.byteswap(inplace=True)
