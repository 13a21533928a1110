"""What a results file says about where it was measured. No host name, no paths."""

import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .device import Cuda, Device

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("numpy", "scipy", "numba", "torch", "torchvision", "cupy-cuda12x", "cupy-cuda13x")


def describe(device: Device) -> dict[str, Any]:
    """Machine, versions, commit and date."""
    return {
        "date": now(),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": _uncommitted(),
        "machine": {
            "cpu": _cpu_model(),
            "cores": usable_cores(),
            "last_level_cache_bytes": device.cache_bytes(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": f"{platform.system()} {platform.machine()}",
            "gpu": _gpu(device),
        },
        "versions": {"python": platform.python_version(), **_versions()},
    }


def now() -> str:
    """Date and time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def today() -> str:
    """The date, UTC."""
    return now()[:10]


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class Bystanders:
    """How much other processes disturbed what was measured, from the making of this object to now."""

    def __init__(self) -> None:
        self._start = self._reading()

    def cores(self) -> float | None:
        """Cores that others kept busy, on average; None where the system does not tell."""
        now = self._reading()
        if now is None or self._start is None:
            return None
        busy, ours, wall = (after - before for after, before in zip(now, self._start, strict=True))
        return round(max(0.0, busy - ours) / wall, 3)

    @staticmethod
    def _reading() -> tuple[float, float, float] | None:
        """Seconds all cores were busy, seconds of ours and of our finished children, and the time."""
        try:
            ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return None
        idle = ticks[3] + ticks[4]
        return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4]), time.monotonic()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    """Model name; family and model number too, since cloud machines often call themselves just the vendor."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    detail = [f"{name} {fields[name]}" for name in ("cpu family", "model") if name in fields]
    return f"{fields['model name']} ({', '.join(detail)})" if detail else fields["model name"]


def _gpu(device: Device) -> str | None:
    if not isinstance(device, Cuda):
        return None
    runtime = device.library.cuda.runtime
    properties = runtime.getDeviceProperties(device.library.cuda.Device().id)
    driver = runtime.driverGetVersion()
    name = f"{properties['name'].decode()}, sm_{properties['major']}{properties['minor']}"
    return f"{name}, CUDA driver {driver // 1000}.{driver % 1000 // 10}"


def _uncommitted() -> bool | None:
    """Whether the code that was measured differs from the commit."""
    status = _git(
        "status", "--porcelain", "--", "dynarray", "rawkernels", "benchmarks", ":!benchmarks/results"
    )
    return None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
