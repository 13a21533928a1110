"""How much memory tiles take, as images grow: ``python -m benchmarks.tiles``. It writes a results file.

Each size runs in a process of its own, on arrays in files of HDF5: what is measured is what the process
holds, and not how much of the files the system keeps, as it would be with memory maps.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import dynarray as dyn

from .harness.device import device_of
from .harness.machine import Bystanders, describe, today
from .report import pages

CHANNELS, TILE = 4, 512
SIZES = (1024, 2048, 4096, 6144)
QUICK = 64, (256, 512)  # tile and sizes


def stored(file: Any, name: str, shape: tuple[int, ...], tile: int) -> Any:
    """An array in a file of HDF5, which reads and writes it in chunks and keeps next to nothing in memory."""
    chunks = (*shape[:-2], *(min(size, tile // 2) for size in shape[-2:]))
    return file.create_dataset(name, shape, np.float32, chunks=chunks)


def call(folder: Path, size: int, kind: str, tile: int) -> None:
    """One pass of `ddf` over a square image."""
    shape, rng = (1, CHANNELS, size, size), np.random.default_rng(0)
    with h5py.File(folder / "arrays.h5", "w") as file:
        x = stored(file, "x", shape, tile)
        spatial = stored(file, "spatial", (1, 1, 3, 3, size, size), tile)
        for row, column in product(range(0, size, tile), repeat=2):  # as many numbers at a time as a tile has
            part = ..., slice(row, row + tile), slice(column, column + tile)
            x[part] = rng.standard_normal((1, CHANNELS, tile, tile), np.float32)
            spatial[part] = rng.standard_normal((1, 1, 3, 3, tile, tile), np.float32)
        arrays = x, rng.standard_normal((1, CHANNELS, 3, 3), np.float32), spatial
        out = stored(file, "out", shape, tile)
        if kind == "apply":
            dyn.tiles.apply(dyn.ddf, arrays, out, tile)
        else:
            outs = out, np.empty_like(arrays[1]), stored(file, "grad", spatial.shape, tile)
            dyn.tiles.gradient(dyn.ddf, arrays, x, outs, tile)


def child(size: int, kind: str, tile: int) -> None:
    """Print what a pass takes, beyond what the process held after a small one."""
    dyn.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        call(Path(folder), tile // 4, kind, tile // 4)
    start = time.perf_counter()
    before = forget_peak()
    with tempfile.TemporaryDirectory() as folder:
        call(Path(folder), size, kind, tile)
    row = {"size": size, "kind": kind, "seconds": round(time.perf_counter() - start, 3)}
    print(json.dumps({**row, "image_bytes": 4 * CHANNELS * size * size, "peak_extra_bytes": peak() - before}))


def forget_peak() -> int:
    """What this process holds now; Linux begins anew to look for the most."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most memory that this process held since `forget_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure(sizes: Sequence[int], tile: int) -> list[dict[str, Any]]:
    """A row for each size and pass."""
    rows = []
    for kind in ("apply", "gradient"):
        for size in sizes:
            command = [sys.executable, "-m", "benchmarks.tiles", "--child", kind, str(size), str(tile)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout))
            megabytes = (rows[-1][key] / 2**20 for key in ("image_bytes", "peak_extra_bytes"))
            print(f"{kind:8} {size:6} px  image %.0f MB  peak %.0f MB" % tuple(megabytes), flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiles", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small images: shows that it runs")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/tiles-cpu-<date>.json")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        kind, size, tile = arguments.child
        child(int(size), kind, int(tile))
        return
    tile, sizes = QUICK if arguments.quick else (TILE, SIZES)
    bystanders = Bystanders()
    head = {"kind": "tiles", "quick": arguments.quick, "backend": "cpu", **describe(device_of("cpu"))}
    rows = measure(sizes, tile)
    result = {
        **head,
        "tile": tile,
        "channels": CHANNELS,
        "busy_cores_of_others": bystanders.cores(),
        "rows": rows,
    }
    output = arguments.output or pages.RESULTS / f"tiles-cpu-{today()}.json"
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
