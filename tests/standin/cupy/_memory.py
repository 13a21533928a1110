"""Memory of the devices: blocks from a pool that asks the device only for what it has not got."""

import threading
from typing import Any, ClassVar

import numpy as np

from . import _streams

ALIGNMENT = 512
DEVICE_BYTES = 2 << 30


class MemoryHook:
    """Is told, while entered, what the pool asks of the device."""

    name = "MemoryHook"
    active: ClassVar[list["MemoryHook"]] = []

    def alloc_preprocess(self, **kwargs: Any) -> None:
        """Before the device is asked; `device_id` and `mem_size` are given."""

    def __enter__(self) -> "MemoryHook":
        self.active.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.active.remove(self)


class MemoryPool:
    """Blocks that were given back, by device, stream and size; each serves requests of its own size."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._free: dict[tuple[int, int, int], list[np.ndarray]] = {}
        self._total = {0: 0, 1: 0}
        self._used = {0: 0, 1: 0}
        self.enabled = True

    def free_all_blocks(self, stream: Any = None) -> None:
        """Give what nobody uses back to the device."""
        with self._lock:
            for (device, _, size), blocks in self._free.items():
                self._total[device] -= size * len(blocks)
            self._free.clear()

    def total_bytes(self) -> int:
        """Bytes that were taken from the current device."""
        return self._total[_streams.current_device()]

    def used_bytes(self) -> int:
        """Those of them that arrays lie in."""
        return self._used[_streams.current_device()]

    def taken(self, device: int) -> int:
        """Bytes taken from a device."""
        return self._total[device]

    def take(self, key: tuple[int, int, int]) -> np.ndarray:
        """Memory for a block."""
        device, _, size = key
        with self._lock:
            self._used[device] += size
            blocks = self._free.get(key)
            if blocks:
                return blocks.pop()
            for hook in tuple(MemoryHook.active):
                hook.alloc_preprocess(device_id=device, mem_size=size)
            if self._total[device] + size > DEVICE_BYTES:
                raise MemoryError(f"the stand-in for CuPy has {DEVICE_BYTES} bytes on each device")
            self._total[device] += size
            return np.empty(size + ALIGNMENT, np.uint8)

    def give(self, key: tuple[int, int, int], memory: np.ndarray) -> None:
        """Take memory back."""
        with self._lock:
            self._used[key[0]] -= key[2]
            if self.enabled:
                self._free.setdefault(key, []).append(memory)
            else:
                self._total[key[0]] -= key[2]


_pool = MemoryPool()


def get_default_memory_pool() -> MemoryPool:
    """The pool that all arrays come from."""
    return _pool


def set_allocator(allocator: Any = None) -> None:
    """None: every array is an allocation of its own. Nothing else is known here."""
    if allocator is not None:
        raise NotImplementedError("the stand-in for CuPy knows its own allocator and none")
    _pool.enabled = False


class Block:
    """Memory of one device that arrays and their views share; when the last is gone, it is the pool's."""

    __slots__ = ("_key", "_memory", "bytes", "device")

    def __init__(self, size: int) -> None:
        self.device = _streams.current_device()
        rounded = -(-size // ALIGNMENT) * ALIGNMENT
        self._key = (self.device, _streams.current().ptr, rounded)
        self._memory = _pool.take(self._key)
        start = -self._memory.ctypes.data % ALIGNMENT
        self.bytes = self._memory[start : start + size]
        self.bytes[...] = 255  # all bits set is a NaN

    def __del__(self) -> None:
        if hasattr(self, "_memory"):
            _pool.give(self._key, self._memory)


class MemoryPointer:
    """Where an array begins."""

    def __init__(self, block: Block, values: np.ndarray) -> None:
        self._block, self._values = block, values

    @property
    def ptr(self) -> int:
        """The address; 0 of nothing."""
        return self._values.ctypes.data if self._values.size else 0

    @property
    def device_id(self) -> int:
        """Whose memory it is."""
        return self._block.device

    def copy_from_device_async(self, src: "MemoryPointer", size: int, stream: Any = None) -> None:
        """Copy bytes from another place of the device."""
        target, source = (_bytes_from(each._block, each.ptr, size) for each in (self, src))
        _streams.enqueue(lambda: np.copyto(target, source), stream)


def _bytes_from(block: Block, address: int, size: int) -> np.ndarray:
    start = address - block.bytes.ctypes.data
    if start + size > block.bytes.size:
        raise ValueError("a copy reaches past the end of its memory")
    return block.bytes[start : start + size]
