"""The time below which no kernel can go, from what memory and arithmetic were just measured to do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ..cases.case import Work
from .device import Cuda, Device
from .measure import Call


class Floor(NamedTuple):
    """Of copying, bytes read plus bytes written; of reading; operations of a float32 product: per second.

    A copy may read and write at the same time, so that what mostly reads goes at less than its rate.
    """

    bytes_per_s: float
    read_bytes_per_s: float
    flops_per_s: float

    def ms(self, work: Work) -> float:
        """The longest of the times to move the bytes, to read those that are read, to do the operations."""
        moving, reading = work.bytes / self.bytes_per_s, work.read / self.read_bytes_per_s
        return 1e3 * max(moving, reading, work.flops / self.flops_per_s)


def measure(device: Device, threads: int, *, quick: bool = False) -> Floor:
    """The best of many copies, sums and products, so that nothing measured later looks better than it is."""
    repeats = 3 if quick else 25
    copy_bytes = 1 << 22 if quick else max(1 << 28, 4 * device.cache_bytes())
    side = 256 if quick else (8192 if isinstance(device, Cuda) else 2048)
    with ThreadPoolExecutor(threads) as pool, device.blas_threads(threads):
        if isinstance(device, Cuda):
            copied = 2 * copy_bytes / _best(device, _cuda_copy(device, copy_bytes), repeats)
            read = copied  # one bus for both
        else:
            copied = 2 * copy_bytes / _best(device, _cpu_copy(copy_bytes, threads, pool), repeats)
            read = copy_bytes / _best(device, _cpu_sum(copy_bytes, threads, pool), repeats)
        product_ms = _best(device, _product(device.library, side), repeats)
    # What a copy reads, half of what it moves, can be read.
    return Floor(1e3 * copied, 1e3 * max(read, copied / 2), 2e3 * side**3 / product_ms)


def _best(device: Device, call: Call, repeats: int) -> float:
    clock = device.clock()
    clock.times(call, 0, 2)
    return min(clock.times(call, 0, repeats))


def _cpu_copy(size: int, threads: int, pool: ThreadPoolExecutor) -> Call:
    """One contiguous part per thread; copying releases the interpreter lock."""
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    return _in_parts(lambda part: np.copyto(target[part], source[part]), size, threads, pool)


def _cpu_sum(size: int, threads: int, pool: ThreadPoolExecutor) -> Call:
    """As `_cpu_copy`, and nothing is written."""
    source = np.ones(size // 4, np.float32)
    return _in_parts(lambda part: source[part].sum(), size // 4, threads, pool)


def _in_parts(work: Callable[[slice], Any], size: int, threads: int, pool: ThreadPoolExecutor) -> Call:
    edges = [size * part // threads for part in range(threads + 1)]
    parts = [slice(*edges[part : part + 2]) for part in range(threads)]

    def call(_: int) -> None:
        for _done in pool.map(work, parts):
            pass

    return call


def _cuda_copy(device: Cuda, size: int) -> Call:
    cupy = device.library
    source, target = cupy.ones(size, cupy.uint8), cupy.empty(size, cupy.uint8)
    return lambda _: target.data.copy_from_device_async(source.data, size, cupy.cuda.get_current_stream())


def _product(library: Any, side: int) -> Call:
    left, right = (library.ones((side, side), np.float32) for _ in range(2))
    result = library.empty((side, side), np.float32)
    product: Callable = library.matmul
    return lambda _: product(left, right, out=result)
