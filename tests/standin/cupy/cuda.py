"""`cupy.cuda`: streams and memory, and what the runtime says of the devices that are played here."""

from types import SimpleNamespace
from typing import Any

from ._memory import MemoryHook, MemoryPointer, MemoryPool, set_allocator
from ._streams import (
    DEVICES,
    CUDARuntimeError,
    Device,
    Event,
    Graph,
    Stream,
    current_device,
    get_current_stream,
    get_elapsed_time,
)

__all__ = [
    "Device",
    "Event",
    "Graph",
    "MemoryHook",
    "MemoryPointer",
    "MemoryPool",
    "Stream",
    "get_current_stream",
    "get_elapsed_time",
    "nvrtc",
    "runtime",
    "set_allocator",
]


def _driver_version() -> int:
    return 13000


def _runtime_version() -> int:
    return 13000


def _count() -> int:
    return DEVICES


def _properties(device: int) -> dict[str, Any]:
    return {
        "name": b"stand-in for a GPU",
        "totalGlobalMem": Device(device).mem_info[1],
        "multiProcessorCount": 132,
        "major": 9,
        "minor": 0,
    }


def _nvrtc_version() -> tuple[int, int]:
    return 13, 0


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    cudaDevAttrL2CacheSize=38,
    driverGetVersion=_driver_version,
    getDevice=current_device,
    getDeviceCount=_count,
    getDeviceProperties=_properties,
    runtimeGetVersion=_runtime_version,
)
nvrtc = SimpleNamespace(getVersion=_nvrtc_version)
