"""A photograph of 12 million pixels, each with a kernel of its own: ``python -m benchmarks.photographs``.

Bytes (3000, 4000, 3), filtered with six kernels of 15 x 15 pixels that are mixed at each pixel, into bytes:
by `dynarray.images.filter`, by SciPy and by PyTorch as one writes it there. Each runs in a process of its
own, of which the peak of resident memory is read, with the inputs in it. Ours computes in float64, as it does
for bytes; the others in float32, which is less work. SciPy, which has one thread, takes so long that one
channel is timed, and the time of three is three times that.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .harness.device import Cpu
from .harness.machine import ROOT, Bystanders, describe, today, usable_cores
from .report.table import plain

KIND, SIZE, QUICK, KERNEL, KERNELS = "photograph", (3000, 4000), (60, 80), 15, 6
_MEASURE = "import sys; from benchmarks.photographs import measure; measure(*sys.argv[1:])"
Inputs = tuple[np.ndarray, np.ndarray, np.ndarray]


def inputs(height: int, width: int) -> Inputs:
    """Photograph, kernels and mixture."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (height, width, 3), np.uint8)
    kernels = rng.random((KERNELS, KERNEL, KERNEL), np.float32)
    kernels /= kernels.sum(axis=(1, 2), keepdims=True)
    mixture = rng.random((KERNELS, height, width), np.float32)
    mixture /= KERNELS / 2
    return photo, kernels, mixture


def ours(photo: np.ndarray, kernels: np.ndarray, mixture: np.ndarray, channels: int = 3) -> np.ndarray:
    """In bands of rows, in float64; all channels, for they share the kernel of a pixel."""
    import dynarray as dyn

    dyn.set_num_threads(usable_cores())
    return dyn.images.filter(photo, kernels, mixture)


def of_scipy(photo: np.ndarray, kernels: np.ndarray, mixture: np.ndarray, channels: int = 3) -> np.ndarray:
    """Each channel correlated with each kernel, in float32, and added up."""
    from scipy.ndimage import correlate

    result = np.zeros_like(photo)
    for c in range(channels):
        channel = photo[..., c].astype(np.float32)
        total = np.zeros_like(channel)
        for kernel, share in zip(kernels, mixture):
            total += share * correlate(channel, kernel, mode="mirror")
        result[..., c] = np.clip(np.rint(total), 0, 255)
    return result


def of_torch(photo: np.ndarray, kernels: np.ndarray, mixture: np.ndarray, channels: int = 3) -> np.ndarray:
    """Each channel convolved with all kernels at once, in float32, and added up."""
    import torch

    torch.set_num_threads(usable_cores())
    weight, shares = torch.from_numpy(kernels)[:, None], torch.from_numpy(mixture)
    result = np.zeros_like(photo)
    for c in range(channels):
        channel = torch.from_numpy(photo[..., c].astype(np.float32))[None, None]
        around = torch.nn.functional.pad(channel, (KERNEL // 2,) * 4, mode="reflect")
        total = torch.nn.functional.conv2d(around, weight)[0].mul_(shares).sum(0)
        result[..., c] = total.round_().clip_(0, 255).numpy()
    return result


class Method(NamedTuple):
    """What is timed: `function`, for so many channels of a large photograph, `runs` times."""

    function: Callable[..., np.ndarray]
    channels: int = 3
    runs: int = 3


METHODS = {
    "dynarray.images.filter": Method(ours),
    "scipy.ndimage": Method(of_scipy, channels=1, runs=1),
    "PyTorch, eager": Method(of_torch),
}


def measure(title: str, height: str, width: str) -> None:
    """Print seconds of the fastest run, the peak of memory, and some of the result."""
    given, (function, channels, runs) = inputs(int(height), int(width)), METHODS[title]
    function(*(array[..., :40, :40] if array is not given[0] else array[:40, :40] for array in given))
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        result = function(*given, channels)
        seconds.append(time.perf_counter() - start)
    status = Path("/proc/self/status").read_text()
    (peak,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    row = {"seconds": 3 / channels * min(seconds), "runs": runs, "channels": channels}
    print(json.dumps({**row, "peak_bytes": 1024 * peak, "part": result[:9, -9:, :channels].tolist()}))


def run(quick: bool, methods: Sequence[str]) -> dict[str, Any]:
    """Measure all methods that are installed; their results differ by one at most, where sums are rounded."""
    others, rows, first = Bystanders(), [], None
    size = QUICK if quick else SIZE
    for method in methods:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, method, *map(str, size)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{method}: {done.stderr}")
        row = json.loads(done.stdout)
        part = np.array(row.pop("part"))
        first = part if first is None else first
        if abs(part - first[..., : part.shape[-1]]).max() > 1:
            raise AssertionError(f"{method} gives another photograph than {methods[0]}")
        rows.append({"title": method, "dtype": "uint8", **row})
    return {
        "kind": KIND,
        "quick": quick,
        "backend": "cpu",
        **describe(Cpu()),
        "threads": usable_cores(),
        "cores_busy_elsewhere": others.cores(),
        "size": size,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Seconds and peaks."""
    header, rows = ["method", "seconds", "peak memory, GB"], []
    for row in result["rows"]:
        note = "" if row["channels"] == 3 else f" ({row['channels']} of 3 channels timed)"
        rows.append([row["title"] + note, f"{row['seconds']:.2f}", f"{row['peak_bytes'] / 1e9:.2f}"])
    return header, rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny one: shows that everything runs")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/photograph-cpu-<date>.json")
    arguments = parser.parse_args(argv)
    there = [name for name in METHODS if name != "PyTorch, eager" or find_spec("torch")]
    result = run(arguments.quick, there)
    print(plain(*table(result)))
    output = arguments.output or ROOT / "benchmarks" / "results" / f"{KIND}-cpu-{today()}.json"
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
