"""What all readers do: name the file in an error, and believe no size before it was compared."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, overload

from ..files import FileError

PathLike = str | os.PathLike[str]
# Larger images than any camera's; what claims more is damaged or hostile.
MAX_PIXELS = 2**28


@contextmanager
def naming(path: PathLike) -> Iterator[None]:
    """Puts the name of the file before what is wrong with it."""
    try:
        yield
    except FileError as error:
        raise FileError(f"{os.fspath(path)}: {error}") from None


def content_of(path: PathLike) -> bytes:
    """All bytes of a file."""
    return Path(path).read_bytes()


def check_size(width: int, height: int) -> None:
    """Whether an image may have this size."""
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise FileError(f"would be an image of {width} x {height} pixels")


def lines_of(path: PathLike) -> list[str]:
    """The lines of a text, without spaces around them and without empty ones."""
    try:
        text = content_of(path).decode()
    except UnicodeDecodeError:
        raise FileError(f"{os.fspath(path)}: is no text") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def folder_of(path: PathLike, *parts: str) -> Path:
    """A folder that must be there."""
    folder = Path(path, *parts)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder")
    return folder


def _read_chosen(read: Callable[[int], dict[str, Any]], chosen: range, index: int) -> dict[str, Any]:
    return read(chosen[index])


class Samples(Sequence):
    """A sequence of samples, each read when it is asked for.

    Parameters
    ----------
    names : sequence of str
        What the samples are called.
    read : callable
        Makes a sample of its index.
    """

    def __init__(self, names: Sequence[str], read: Callable[[int], dict[str, Any]]) -> None:
        self.names, self._read = list(names), read

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> "Samples": ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            return Samples([self.names[i] for i in chosen], partial(_read_chosen, self._read, chosen))
        return self._read(range(len(self))[index])

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {len(self)} samples"
