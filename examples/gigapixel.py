"""A picture larger than memory: filtered in tiles and in chunks, and what that takes of memory, over time.

The picture lies in a file of zarr, bytes in chunks, and so does what becomes of it. Two ways lead there:

- tiles: a network with a dynamic filter, `dyn.tiles.apply(network, ...)`, which reads as far beyond each tile
  as `autodiff.halo` says. The averages that make its filters are those of a smaller copy.
- dask: a blur that grows from left to right, `dyn.images.filter(photo, kernels, mixture)` on arrays of dask,
  by two workers, which may take less memory than the largest picture has bytes.

Squares of several sizes, each in processes of its own; the smallest is compared with one call.

    python examples/gigapixel.py                    # up to 16,384 x 16,384 pixels
    python examples/gigapixel.py --size 32768       # more than 10^9 pixels, 2 x 3.2 GB on disk

It needs zarr (pip install zarr) and the extra dask.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from _record import record

import autodiff
import dynarray as dyn
from autodiff.layers import DDF, Conv2d, Module, ReLU, Sequential, hold_averages

WAYS = ("tiles", "dask")
SIGMAS = (0.5, 1.0, 1.5, 2.0)  # of the blurs that are mixed
LIMIT = "512 MB"  # for each of two workers: they pause at 80 % of it, and are ended at 95 %


class Scaled:
    """A picture of bytes (H, W, C) as float32 (1, C, H, W) from 0 to 1, read and written in parts."""

    dtype = np.dtype(np.float32)

    def __init__(self, stored: Any) -> None:
        self.stored = stored
        self.shape = (1, stored.shape[2], *stored.shape[:2])
        self.ndim = 4

    def __getitem__(self, index: Any) -> np.ndarray:
        part = np.asarray(self.stored[index[-2], index[-1]])
        return np.ascontiguousarray(part.transpose(2, 0, 1)[None], np.float32) / np.float32(255)

    def __setitem__(self, index: Any, part: np.ndarray) -> None:
        rounded = np.rint(np.clip(part[0], 0, 1) * 255).astype(np.uint8)
        self.stored[index[-2], index[-1]] = rounded.transpose(1, 2, 0)


def create(path: Path, size: int, chunk: int) -> Any:
    """A picture on disk without anything in it."""
    return zarr.create_array(
        store=path, shape=(size, size, 3), chunks=(chunk, chunk, 3), dtype="uint8", overwrite=True
    )


def paint(stored: Any, chunk: int) -> None:
    """Rings and noise, a chunk at a time."""
    size, rng = stored.shape[0], np.random.default_rng(0)
    phase = np.arange(256)[:, None] * (2 * np.pi / 256) + (0, 2, 4)
    colours = (127 + 90 * np.sin(phase)).astype(np.uint8)
    noise = rng.integers(-30, 31, (chunk, chunk, 1), np.int8).astype(np.uint8)  # bytes go round: no overflow
    for row, column in product(range(0, size, chunk), repeat=2):
        places = (np.arange(first, min(first + chunk, size), dtype=np.float32) for first in (row, column))
        y, x = (place / size - np.float32(0.4) for place in places)
        rings = colours[(2400 * np.hypot(y[:, None], x)).astype(np.uint8)]
        rings += np.roll(noise, row + 7 * column)[: len(y), : len(x)]
        stored[row : row + chunk, column : column + chunk] = rings


def small_network(photo: Any) -> Module:
    """Convolutions around a dynamic filter whose averages are those of a smaller copy of the picture."""
    rng = np.random.default_rng(0)
    network = Sequential(Conv2d(3, 8, 3, rng=rng), ReLU(), DDF(8, 3, rng=rng), Conv2d(8, 3, 3, rng=rng))
    step = max(1, photo.shape[0] // 512)
    copy = np.asarray(photo[::step, ::step]).transpose(2, 0, 1)[None].astype(np.float32) / 255
    return hold_averages(network.eval(), np.ascontiguousarray(copy))


def by_tiles(photo: Any, out: Any, tile: int) -> None:
    """The network, tile by tile."""
    network = small_network(photo)
    halo = autodiff.halo(network, (1, 3, 22, 26))
    dyn.tiles.apply(network, (Scaled(photo),), Scaled(out), tile, halo=halo, journal=False)


def blurs(size: int, columns: Any) -> tuple[np.ndarray, Any]:
    """Kernels of several widths, and how much of each there is: NumPy's or dask's, as `columns` are."""
    reach = np.arange(-6, 7)
    bells = [np.exp(-(reach**2) / (2 * sigma**2)) for sigma in SIGMAS]
    kernels = np.stack([np.outer(bell, bell) / bell.sum() ** 2 for bell in bells]).astype(np.float32)
    place = columns / size * (len(SIGMAS) - 1)
    numbers = np.arange(len(SIGMAS), dtype=np.float32)[:, None, None]
    return kernels, np.maximum(1 - abs(place - numbers), 0)


def by_dask(photo: Any, out: Any, tile: int) -> None:
    """The blur, chunk by chunk, by the workers that there are.

    A row of chunks is written before the next one is begun: a chunk waits in memory until all that lie around
    it are done, and of a whole picture two rows would wait.
    """
    import dask.array as da

    size = photo.shape[0]
    columns = da.arange(size, chunks=tile, dtype=np.float32)
    rows = da.zeros((size, 1), chunks=(tile, 1), dtype=np.float32)
    lazy = da.from_array(photo, chunks=(tile, tile, 3))
    y = dyn.images.filter(lazy, *blurs(size, rows + columns))
    for first, row in zip(range(0, size, tile), range(y.numblocks[0])):
        rows = slice(first, min(first + tile, size))
        da.store(y.blocks[row], out, regions=(rows, slice(None), slice(None)), lock=False)


@contextmanager
def workers(way: str) -> Iterator[list[int]]:
    """Those who do the work, as numbers of their processes: this one, or two workers of dask."""
    if way == "tiles":
        yield [os.getpid()]
        return
    from dask.distributed import Client, LocalCluster

    limits: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": LIMIT}
    with (
        LocalCluster(dashboard_address=None, silence_logs="ERROR", **limits) as cluster,
        Client(cluster) as client,
    ):
        yield list(client.run(os.getpid).values())


def difference(way: str, photo: Any, out: Any) -> int:
    """How far the result is from that of one call, at most, of 255."""
    whole, size = np.asarray(photo), photo.shape[0]
    if way == "tiles":
        target = np.empty_like(whole)
        Scaled(target)[..., :, :] = small_network(whole)(Scaled(whole)[..., :, :]).data
    else:
        columns = np.broadcast_to(np.arange(size, dtype=np.float32), (size, size))
        target = dyn.images.filter(whole, *blurs(size, columns))
    return int(np.abs(np.asarray(out).astype(int) - target).max())


class Memory:
    """MB that processes hold beyond what they held when the block began: over time, and the most."""

    def __init__(self, processes: Sequence[int]) -> None:
        self.processes = processes
        self.samples: list[tuple[float, float]] = []  # seconds, MB; of a thread beside the block
        self.most = 0.0

    def held(self, field: str = "VmRSS") -> float:
        """By all of them together."""
        paths = [Path(f"/proc/{process}/status") for process in self.processes]
        lines = [line.split() for path in paths for line in path.read_text().splitlines()]
        return sum(int(line[1]) for line in lines if line[0] == f"{field}:") / 1000

    def __enter__(self) -> "Memory":
        for process in self.processes:  # the system looks for the most from here on
            Path(f"/proc/{process}/clear_refs").write_text("5")
        self.begin, self.first, self.done = time.perf_counter(), self.held(), threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while True:
            self.samples.append((time.perf_counter() - self.begin, self.held() - self.first))
            if self.done.wait(0.02):
                return

    def __exit__(self, *_: object) -> None:
        self.most = self.held("VmHWM") - self.first  # of each its own most, at whatever time
        self.done.set()
        self.thread.join()


def child(way: str, size: int, tile: int, compared: bool) -> None:
    """One way and one size: print what it took, after a small picture by which all is compiled."""
    run = by_tiles if way == "tiles" else by_dask
    with tempfile.TemporaryDirectory() as folder, workers(way) as processes:
        for name, extent in (("small", 2 * tile), ("picture", size)):
            photo, out = (create(Path(folder, f"{name}-{k}"), extent, tile) for k in ("in", "out"))
            paint(photo, tile)
            with Memory(processes) as memory:
                run(photo, out, tile)
        apart = difference(way, photo, out) if compared else None
    samples = memory.samples[:: max(1, len(memory.samples) // 500)]
    found = {"samples": samples, "seconds": memory.samples[-1][0], "most": memory.most, "first": memory.first}
    print(json.dumps({"way": way, "size": size, "apart": apart, **found}))


def measure(sizes: Sequence[int], tile: int, kept: Path | None) -> list[dict[str, Any]]:
    """Every way and size, each in a process of its own; what is in the file that is kept is there already.

    glibc's `malloc` keeps what threads free, up to 64 MB for each of them, unless it is told to hand back
    what is large at once. Dask tells its workers so too.
    """
    found = json.loads(kept.read_text()) if kept is not None and kept.exists() else []
    told = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    for way, size in product(WAYS, sizes):
        if any((each["way"], each["size"]) == (way, size) for each in found):
            continue
        command = [sys.executable, __file__, "--child", way, str(size), str(tile), str(int(size == sizes[0]))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=told)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        if kept is not None:
            kept.write_text(json.dumps(found))
    return found


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """The most memory against the size of the picture, and memory over time for the largest one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    sizes, times = figure.subplots(1, 2)
    megabytes = sorted({3e-6 * each["size"] ** 2 for each in found})
    sizes.loglog(megabytes, megabytes, "k:", label="the picture itself")
    for number, way in enumerate(WAYS):
        own = sorted((each for each in found if each["way"] == way), key=lambda each: each["size"])
        style = {"color": f"C{number}", "label": f"by {way}"}
        sizes.loglog(megabytes, [each["most"] for each in own], "o-", **style)
        seconds, held = np.array(own[-1]["samples"]).T
        times.plot(seconds, held, lw=0.7, **style)
    sizes.set(title="Most memory", xlabel="size of the picture, MB", ylabel="beyond that before, MB")
    largest = f"The largest, {megabytes[-1]:,.0f} MB"
    times.set(title=largest, xlabel="time, s", ylabel="beyond that before, MB")
    sizes.set_xticks(megabytes, [f"{each:.0f}" for each in megabytes])
    sizes.set_yticks([10, 100, 1000], ["10", "100", "1000"])
    sizes.minorticks_off()
    sizes.legend()
    times.legend(loc="lower right")
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=16384, help="rows and columns of the largest picture")
    parser.add_argument("--quick", action="store_true", help="small pictures, to see that it works")
    parser.add_argument("--output", type=Path, default=Path("gigapixel.png"))
    parser.add_argument("--full", action="store_true", help="write the table for the documentation too")
    parser.add_argument("--kept", type=Path, help="a file of what was measured, from which it goes on")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        way, *numbers = options.child
        child(way, *map(int, numbers))  # type: ignore[arg-type]
        return
    tile = 128 if options.quick else 1024
    sizes = (300, 600) if options.quick else tuple(options.size // k for k in (8, 4, 2, 1))
    found = measure(sizes, tile, options.kept)
    columns = (
        "way",
        "pixels",
        "picture, MB",
        "memory before, MB",
        "at most beyond it, MB",
        "seconds",
        "million pixels/s",
        "from one call",
    )
    rows = []
    for each in found:
        pixels, seconds = each["size"] ** 2, each["seconds"]
        apart = "" if each["apart"] is None else f"{each['apart']} of 255"
        row = [each["way"], f"{each['size']:,} x {each['size']:,}", f"{3e-6 * pixels:.1f}"]
        row += [f"{each['first']:.0f}", f"{each['most']:.0f}"]
        rows.append([*row, f"{seconds:.1f}", f"{pixels / seconds / 1e6:.1f}", apart])
    for row in (columns, *rows):
        print("  ".join(f"{cell:>21}" for cell in row))
    draw(found, options.output)
    print(f"drawn: {options.output}")
    if options.full:
        record("gigapixel", {"Memory": (columns, rows)}, tile=tile, workers=2, limit_of_each=LIMIT)


if __name__ == "__main__":
    main()
