"""Memory of large arrays, which the next ones get when nobody holds it any more.

The system fills fresh memory with zeros before it is written to, which takes longer than many a kernel, and
leaves them in the caches, where stores past the caches find them in their way. Allocators give large arrays
back to the system at once, so each call would pay for that. Here memory that is let go is marked as free: the
system takes it when it is short of memory, and what it has not taken until then goes into the next array.
"""

import mmap
import sys

import numpy as np

LARGE_BYTES = 32 * 1024 * 1024  # from where on the C library always gives memory back at once
PAGE = 2 * 1024 * 1024  # a large page
LEFT_BYTES = 192 * 1024 * 1024  # in all; beyond that, what was let go first is given back
_MOST_TOO_LARGE = 4  # times what is asked for: pages that are not written to stay free
AVAILABLE = sys.platform == "linux" and hasattr(mmap, "MADV_FREE") and hasattr(mmap, "MADV_HUGEPAGE")


def large_array(size: int) -> np.ndarray:
    """So many bytes with any values, from the beginning of a large page on."""
    memory = _Memory(size, _left)
    return np.asarray(memory)[memory.start : memory.start + size]


class _Left:
    """Memory that was let go, under its address, in the order in which it was.

    Arrays are let go in any thread and between any two instructions, this class's own among them, so each
    step is one operation of a dict; and while the interpreter ends, so all that it takes is kept here.
    """

    def __init__(self, most: int) -> None:
        self._pages: dict[int, mmap.mmap] = {}
        self._most, self._free = most, getattr(mmap, "MADV_FREE", 0)

    def leave(self, address: int, pages: mmap.mmap) -> None:
        """Mark memory as free, and keep it for the next array."""
        if len(pages) > self._most:
            return
        try:
            pages.madvise(self._free)
        except OSError:  # an old system
            return
        self._pages[address] = pages
        while self.size() > self._most:
            self._forget_first()

    def take(self, size: int) -> mmap.mmap | None:
        """The smallest memory that an array of so many bytes fits into, of several the last let go."""
        fits = [
            (len(pages), -number, address)
            for number, (address, pages) in enumerate(list(self._pages.items()))
            if size <= len(pages) <= _MOST_TOO_LARGE * size
        ]
        for _, _, address in sorted(fits):
            pages = self._pages.pop(address, None)
            if pages is not None:
                return pages
        return None

    def size(self) -> int:
        """Bytes in all."""
        return sum(map(len, list(self._pages.values())))

    def give_back(self) -> None:
        """Give everything back to the system."""
        while self._pages:
            self._forget_first()

    def _forget_first(self) -> None:
        for address in list(self._pages)[:1]:
            self._pages.pop(address, None)


_left = _Left(LEFT_BYTES)


class _Memory:
    """The base of arrays: it dies with the last of them, and leaves the memory to the next."""

    __slots__ = ("__array_interface__", "_address", "_left", "_pages", "start")

    def __init__(self, size: int, left: _Left) -> None:
        room = -(-size // PAGE) * PAGE + PAGE
        kept = left.take(room)
        self._left, self._pages = left, kept or _mapped(room, left)
        self.__array_interface__ = np.frombuffer(self._pages, np.uint8).__array_interface__
        self._address = self.__array_interface__["data"][0]
        self.start = -self._address % PAGE
        if kept is None:
            _ask_for_large_pages(self._pages, self.start, size)

    def __del__(self) -> None:
        if hasattr(self, "_address"):
            self._left.leave(self._address, self._pages)


def _mapped(size: int, left: _Left) -> mmap.mmap:
    """Fresh memory."""
    arguments = -1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    try:
        return mmap.mmap(*arguments)
    except OSError:
        left.give_back()
    try:
        return mmap.mmap(*arguments)
    except OSError as error:
        raise MemoryError(f"no memory for an array of {size} bytes") from error


def _ask_for_large_pages(pages: mmap.mmap, start: int, size: int) -> None:
    """Of those that an array fills: the last would be more memory than it needs."""
    try:
        pages.madvise(mmap.MADV_HUGEPAGE, start, size // PAGE * PAGE)
    except OSError:  # a system without
        pass
