"""What has been done of a job that may be killed: one line a tile, in a file beside the output.

The first line says which job it is. A line is written in one piece, after the tile's output, so that a tile
is done if and only if its line is there, whole. Sums over tiles lie in a second file, which is replaced whole
and names the tiles that are in it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def fingerprint(values: Iterable[Any]) -> str:
    """A digest of arrays, with their shapes and dtypes, and of anything else by its `repr`."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Mapping):
            value = fingerprint(item for pair in value.items() for item in pair)
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            host = np.ascontiguousarray(value.get() if hasattr(value, "get") else value)
            digest.update(repr((host.shape, host.dtype.str)).encode())
            digest.update(host.tobytes())
        else:
            digest.update(repr(value).encode())
        digest.update(b"\0")
    return digest.hexdigest()


class Journal:
    """The tiles of a job that are done; without a path it remembers nothing.

    Parameters
    ----------
    path : path, optional
        The file. One that is there must be of the same job.
    caller : str
        For messages.
    job : mapping
        What makes it this job: JSON.
    """

    def __init__(self, path: Path | None, caller: str, job: Mapping[str, Any]) -> None:
        self.path, self.done = path, set[int]()
        if path is None:
            return
        header = json.dumps({"job": job})
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        whole = lines[:-1]  # what follows the last end of line was cut off
        if whole:
            self._check(caller, json.loads(whole[0])["job"], json.loads(header)["job"])
            self.done = {json.loads(line)["tile"] for line in whole[1:]}
            os.truncate(path, sum(len(line) + 1 for line in whole))
        else:
            path.write_bytes(b"")
            self._sums.unlink(missing_ok=True)
            self._append(header)

    def _check(self, caller: str, found: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        changed = [key for key in {**job, **found} if found.get(key) != job.get(key)]
        if changed:
            key = changed[0]
            raise ValueError(
                f"{caller}: {self.path} is the journal of another job: {key} was {found.get(key)!r} and is "
                f"now {job.get(key)!r}; delete the journal to begin anew"
            )

    @property
    def _sums(self) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + ".sums.npz")

    def _append(self, line: str) -> None:
        assert self.path is not None
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(handle, line.encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)

    def add(self, tile: int) -> None:
        """A tile is done: its output is where it belongs."""
        self.done.add(tile)
        if self.path is not None:
            self._append(json.dumps({"tile": tile}))

    def load_sums(self, sums: Sequence[Any]) -> int:
        """Take over the sums so far; returns how many tiles, the first ones, are in them."""
        if self.path is None or not sums:
            return 0
        if not self._sums.exists():
            if self.done:
                raise ValueError(
                    f"{self.path} names tiles that are done, but {self._sums.name}, the sums over "
                    "them, is gone: delete the journal to begin anew"
                )
            return 0
        with np.load(self._sums) as found:
            for i, array in enumerate(sums):
                array[...] = found[f"sum{i}"]
            return int(found["tiles"])

    def save_sums(self, sums: Sequence[Any], tiles: int) -> None:
        """Keep the sums over so many tiles, the first ones."""
        if self.path is None or not len(sums):
            return
        partial = self._sums.with_name(self._sums.name + ".tmp")
        with open(partial, "wb") as file:
            named: dict[str, Any] = {f"sum{i}": array for i, array in enumerate(sums)}
            np.savez(file, tiles=np.asarray(tiles), **named)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._sums)

    def finish(self) -> None:
        """The job is done: the next one begins anew."""
        if self.path is not None:
            self._sums.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)


def beside(array: Any) -> Path | None:
    """Where the journal of an output lies that is in a file; None for one in memory."""
    if name := getattr(array, "filename", None):  # a memmap
        return Path(f"{os.fspath(name)}.tiles")
    file = getattr(getattr(array, "file", None), "filename", None)  # an HDF5 dataset
    if file:
        return Path(f"{file}{str(array.name).replace('/', '.')}.tiles")
    store = getattr(array, "store", None)  # zarr, version 3 and 2
    root = getattr(store, "root", None) or getattr(store, "path", None)
    if root:
        name = str(getattr(array, "path", "")).strip("/").replace("/", ".")
        return Path(f"{os.fspath(root)}{'.' + name if name else ''}.tiles")
    return None


def flush(array: Any) -> None:
    """Hand what was written over to the operating system."""
    handle = getattr(array, "file", array)  # of an HDF5 dataset
    if callable(action := getattr(handle, "flush", None)):
        action()
