"""The time below which no kernel can go, from what memory and arithmetic were just measured to do."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ..cases.case import Work
from .device import Cuda, Device
from .measure import Call


class Floor(NamedTuple):
    """Copy bandwidth (bytes read plus bytes written) and rate of a float32 matrix product, per second."""

    bytes_per_s: float
    flops_per_s: float

    def ms(self, work: Work) -> float:
        """The larger of the time to move the bytes and the time to do the operations."""
        return 1e3 * max(work.bytes / self.bytes_per_s, work.flops / self.flops_per_s)


def measure(device: Device, threads: int, *, quick: bool = False) -> Floor:
    """The best of many copies and matrix products, so that nothing measured later looks better than it is."""
    repeats = 3 if quick else 25
    copy_bytes = 1 << 22 if quick else max(1 << 28, 4 * device.cache_bytes())
    side = 256 if quick else (8192 if isinstance(device, Cuda) else 2048)
    with ThreadPoolExecutor(threads) as pool, device.blas_threads(threads):
        copy = (
            _cuda_copy(device, copy_bytes)
            if isinstance(device, Cuda)
            else _cpu_copy(copy_bytes, threads, pool)
        )
        copy_ms = _best(device, copy, repeats)
        product_ms = _best(device, _product(device.library, side), repeats)
    return Floor(2 * copy_bytes / copy_ms * 1e3, 2 * side**3 / product_ms * 1e3)


def _best(device: Device, call: Call, repeats: int) -> float:
    clock = device.clock()
    clock.times(call, 0, 2)
    return min(clock.times(call, 0, repeats))


def _cpu_copy(size: int, threads: int, pool: ThreadPoolExecutor) -> Call:
    """One contiguous part per thread; copying releases the interpreter lock."""
    source, target = np.ones(size, np.uint8), np.empty(size, np.uint8)
    edges = [size * part // threads for part in range(threads + 1)]
    parts = [slice(*edges[part : part + 2]) for part in range(threads)]

    def copy(_: int) -> None:
        for _done in pool.map(lambda part: np.copyto(target[part], source[part]), parts):
            pass

    return copy


def _cuda_copy(device: Cuda, size: int) -> Call:
    cupy = device.library
    source, target = cupy.ones(size, cupy.uint8), cupy.empty(size, cupy.uint8)
    return lambda _: target.data.copy_from_device_async(source.data, size, cupy.cuda.get_current_stream())


def _product(library: Any, side: int) -> Call:
    left, right = (library.ones((side, side), np.float32) for _ in range(2))
    result = library.empty((side, side), np.float32)
    product: Callable = library.matmul
    return lambda _: product(left, right, out=result)
