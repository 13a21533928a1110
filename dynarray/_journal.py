"""What has been done of a job that may be killed: one line a tile, in a file beside the output.

The first line says which job it is. A line is written in one piece, after the tile's output, with a digest of
it. A tile is done if and only if its line is there, whole, and what the output holds is of that digest: so
that an output that was replaced, or lost what was written to it, is made anew. Sums over tiles lie in a
second file, which is replaced whole and names the tiles that are in it.
"""

import hashlib
import json
import mmap
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # where there is none, nobody is kept out
    fcntl = None  # type: ignore[assignment]


def fingerprint(values: Iterable[Any]) -> str:
    """A digest of arrays, with their shapes and dtypes, and of anything else by its `repr`."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Mapping):
            value = fingerprint(item for pair in value.items() for item in pair)
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            host = np.ascontiguousarray(value.get() if hasattr(value, "get") else value)
            digest.update(repr((host.shape, host.dtype.str)).encode())
            digest.update(host.reshape(-1).view(np.uint8).data)
        else:
            digest.update(repr(value).encode())
        digest.update(b"\0")
    return digest.hexdigest()


class Journal:
    """The tiles of a job that are done, in a block; without a path it remembers nothing.

    Parameters
    ----------
    path : path, optional
        The file. One that is there must be of the same job, and in use by nobody else.
    caller : str
        For messages.
    job : mapping
        What makes it this job: JSON.
    """

    def __init__(self, path: Path | None, caller: str, job: Mapping[str, Any]) -> None:
        self.path, self.caller, self.header = path, caller, json.dumps({"job": job})
        self.said: dict[int, Any] = {}  # by tile, the digests of what was written
        self._handle = -1

    def __enter__(self) -> "Journal":
        if self.path is not None:
            self._handle = self._opened(self.path)
            try:
                self._read(self.path)
            except BaseException:
                os.close(self._handle)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.path is not None:
            os.close(self._handle)

    def _opened(self, path: Path) -> int:
        """The file, for this job alone until it is closed."""
        while True:
            handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                if fcntl is not None:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise RuntimeError(
                    f"{self.caller}: {path} is in use: another call writes to this output"
                ) from None
            except OSError:
                pass  # a file system that knows of no locks
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
            os.close(handle)  # that of a job that was finished in the meantime

    def _read(self, path: Path) -> None:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last end of line was cut off
        if lines:
            found = _json(lines[0]).get("job")
            if not isinstance(found, dict):
                raise ValueError(f"{self.caller}: {path} is no journal; delete it to begin anew")
            self._check(found, json.loads(self.header)["job"])
            for line in map(_json, lines[1:]):  # what is damaged counts as not done
                if isinstance(line.get("tile"), int):
                    self.said[line["tile"]] = line.get("wrote")
            os.truncate(self._handle, sum(len(line) + 1 for line in lines))
        else:
            os.truncate(self._handle, 0)
            self._sums.unlink(missing_ok=True)
            self._append(self.header)

    def _check(self, found: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        changed = [key for key in {**job, **found} if found.get(key) != job.get(key)]
        if changed:
            key = changed[0]
            raise ValueError(
                f"{self.caller}: {self.path} is the journal of another job: {key} was {found.get(key)!r} and "
                f"is now {job.get(key)!r}; delete the journal to begin anew"
            )

    @property
    def _sums(self) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + ".sums.npz")

    def _append(self, line: str) -> None:
        os.write(self._handle, line.encode() + b"\n")
        os.fsync(self._handle)

    def digest(self, part: Any) -> str:
        """Of a part of an output that is written."""
        return "" if self.path is None else fingerprint([part])

    def add(self, tile: int, wrote: Mapping[str, str]) -> None:
        """A tile is done: its parts of the outputs, of these digests, are where they belong."""
        if self.path is not None:
            self._append(json.dumps({"tile": tile, "wrote": wrote}))

    def holds(self, tile: int, parts: Mapping[str, Callable[[], Any]]) -> bool:
        """Whether a tile is done, and outputs hold what it wrote: all of these parts, which are read."""
        said = self.said.get(tile)
        if not isinstance(said, dict) or said.keys() != parts.keys():
            return False
        try:
            return all(fingerprint([read()]) == said[name] for name, read in parts.items())
        except (TypeError, AttributeError):  # an output that cannot be read
            return False

    def load_sums(self, sums: Sequence[Any]) -> int:
        """Take over the sums so far; returns how many tiles, the first ones, are in them."""
        if self.path is None or not sums:
            return 0
        if not self._sums.exists():
            if self.said:
                raise ValueError(
                    f"{self.path} names tiles that are done, but {self._sums.name}, the sums over "
                    "them, is gone: delete the journal to begin anew"
                )
            return 0
        try:
            with np.load(self._sums) as found:
                loaded, tiles = [found[f"sum{i}"] for i in range(len(sums))], int(found["tiles"])
                same = str(found["job"]) == fingerprint([self.header])
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
            same = False
        if not same or any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(loaded, sums)):
            raise ValueError(
                f"{self.caller}: {self._sums} is damaged, or holds sums of another job: delete {self.path} "
                "to begin anew"
            )
        for array, value in zip(sums, loaded):
            array[...] = value
        self.said = {tile: wrote for tile, wrote in self.said.items() if tile < tiles}  # or it is older
        return tiles

    def save_sums(self, sums: Sequence[Any], tiles: int) -> None:
        """Keep the sums over so many tiles, the first ones."""
        if self.path is None or not len(sums):
            return
        partial = self._sums.with_name(self._sums.name + ".tmp")
        with open(partial, "wb") as file:
            named: dict[str, Any] = {f"sum{i}": array for i, array in enumerate(sums)}
            np.savez(file, tiles=np.asarray(tiles), job=np.asarray(fingerprint([self.header])), **named)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._sums)

    def finish(self) -> None:
        """The job is done: the next one begins anew."""
        if self.path is not None:
            self._sums.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)


def _json(line: bytes) -> dict[str, Any]:
    """What a line says; nothing, if it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def beside(array: Any) -> Path | None:
    """Where the journal of an output lies that is in a file; None for one in memory."""
    if name := getattr(array, "filename", None):  # a memmap
        return Path(f"{os.fspath(name)}.tiles")
    file = getattr(getattr(array, "file", None), "filename", None)  # an HDF5 dataset
    if file:
        return Path(f"{file}{str(array.name).replace('/', '.')}.tiles")
    store = getattr(array, "store", None)  # zarr, version 3 and 2
    root = getattr(store, "root", None) or getattr(store, "path", None)
    if root and os.path.exists(root):  # and not somewhere in a network
        name = str(getattr(array, "path", "")).strip("/").replace("/", ".")
        return Path(f"{os.fspath(root)}{'.' + name if name else ''}.tiles")
    return None


def flush(array: Any) -> None:
    """Hand what was written over to the operating system."""
    handle = getattr(array, "file", array)  # of an HDF5 dataset
    if callable(action := getattr(handle, "flush", None)):
        action()


def overlap(one: Any, other: Any) -> bool:
    """Whether two arrays hold the same elements, in memory or in a file; what nobody can say does not."""
    arrays = isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
    if one is other or (arrays and np.may_share_memory(one, other)):
        return True
    first, second = _place(one), _place(other)
    same = first[0] is not None and first[0] == second[0]
    return same and max(first[1], second[1]) < min(first[2], second[2])


def _place(array: Any) -> tuple[Path | None, int, int]:
    """In which file an array lies, and which bytes of it, if that is known."""
    path = beside(array)
    mapped = getattr(array, "_mmap", None)
    if path is None or mapped is None:
        return path and path.absolute(), 0, 1
    first = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY  # of the file, at this address:
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    low, high = (place - address + first for place in np.lib.array_utils.byte_bounds(array))
    return path.absolute(), low, high
