"""From counts to a time: what a GPU can do, and which of its limits a launch would meet first.

The times rank kernels and name what to mend first; they are estimates, and no measurement stands behind them.
A launch is given the largest of what its parts would take, each at its best:

- memory: the sectors that the launch touches, each once, at the bandwidth of the memory;
- L2: those that each block touches, each once a block, at the bandwidth of the L2 cache, atomics twice;
- load/store: sectors of all requests at four a cycle, requests and shared wavefronts at one, on each SM;
- issue: instructions of warps at four a cycle on each SM, those of slower units at their rate;
- latency: for each wave of resident blocks, the time of one warp, whose arithmetic waits for itself and whose
  loads wait for memory, some at a time.

Load/store and issue take the SM with the most blocks: with 144 blocks on 132 SMs twice what one block takes.
Where that leaves a quarter of the places for blocks empty, or more, these three are "too few blocks".
No launch takes less than the shortest kernel does, and memory gives a share of its bandwidth only.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, NamedTuple

from rawkernels.ptx.counting import SECTOR, WARP


class Gpu(NamedTuple):
    """Memory and SMs as on the data sheet; clock under load and bandwidth of the L2 cache are assumptions."""

    name: str
    memory_bytes_s: float
    sms: int = 132
    clock_hz: float = 1.7e9
    l2_bytes_s: float = 5.5e12


GPUS = (Gpu("H100", 3.35e12), Gpu("H200", 4.8e12))

# An SM of compute capability 9.0; registers are given out by the quarter of an SM that a warp belongs to.
_QUARTERS, _WARPS_OF_A_QUARTER, _REGISTERS_OF_A_QUARTER, _REGISTER_UNIT = 4, 16, 16384, 256
_MOST_BLOCKS, _SHARED_BYTES, _SHARED_UNIT, _SHARED_RESERVED = 32, 228 * 1024, 128, 1024

_COPY = 0.9  # the share of the bandwidth that a copy reaches
_LAUNCH_S = 2e-6  # the shortest kernel
_ARITHMETIC_CYCLES = 2  # of a warp alone, per instruction: a latency of 4, and pairs that need not wait
_L1_CYCLES, _MEMORY_CYCLES = 35, 600
_LOADS_IN_FLIGHT = 4  # of a warp

# Of one instruction of PTX, by class: how many of the machine are issued, and how many cycles a unit of a
# quarter of an SM is busy with them. Quotients of integers, floating ones and roots are whole programs.
_ISSUED = {"move": 0, "integer64": 2, "division": 20, "division64": 80, "special": 8}
_BUSY = {
    "integer": ("integer", 2),
    "integer64": ("integer", 4),
    "comparison": ("integer", 2),
    "division": ("integer", 34),
    "division64": ("integer", 140),
    "conversion": ("slow", 2),
    "special": ("slow", 10),
    "float64": ("float64", 2),
    "warp": ("load/store", 4),
}


def resident_blocks(registers: int, threads: int, shared_bytes: int) -> int:
    """Blocks that an SM holds at once."""
    warps = ceil(threads / WARP)
    per_warp = ceil(registers * WARP / _REGISTER_UNIT) * _REGISTER_UNIT
    quarter = min(_WARPS_OF_A_QUARTER, _REGISTERS_OF_A_QUARTER // per_warp)
    shared = ceil(shared_bytes / _SHARED_UNIT) * _SHARED_UNIT + _SHARED_RESERVED
    return min(_QUARTERS * quarter // warps, _MOST_BLOCKS, _SHARED_BYTES // shared)


def occupancy(registers: int, threads: int, shared_bytes: int) -> float:
    """Warps that an SM holds at once, of those that it could."""
    warps = resident_blocks(registers, threads, shared_bytes) * ceil(threads / WARP)
    return warps / (_QUARTERS * _WARPS_OF_A_QUARTER)


def times(row: Mapping[str, Any], gpu: Gpu) -> dict[str, float]:
    """Seconds that one launch of a row of the table takes in each respect."""
    launches, blocks = row["launches"], row["blocks"]
    counts = row["counts"]
    # Seconds for a cycle of all blocks and launches: those of the SM that has most.
    of_an_sm = ceil(blocks / gpu.sms) / blocks / launches / gpu.clock_hz
    requests = sum(counts[kind]["requests"] for kind in ("read", "written", "updated"))
    sectors = sum(counts[kind]["sectors"] for kind in ("read", "written", "updated"))
    once_a_block = counts["block_sectors"]
    transfers = once_a_block["read"] + once_a_block["written"] + 2 * once_a_block["updated"]
    issued = sum(_ISSUED.get(name, 1) * count for name, count in counts["issued"].items())
    busy = {"issue": float(issued)}
    for name, count in counts["issued"].items():
        unit, cycles = _BUSY.get(name, ("", 0))
        busy[unit] = busy.get(unit, 0) + cycles * count
    resident = resident_blocks(row["registers"], row["threads"], row["shared_bytes"])
    waves = ceil(blocks / (gpu.sms * resident))
    warps = launches * blocks * ceil(row["threads"] / WARP)
    missed = min(1.0, once_a_block["read"] / max(1, counts["read"]["sectors"]))
    wait = _L1_CYCLES + missed * (_MEMORY_CYCLES - _L1_CYCLES)
    alone = issued * _ARITHMETIC_CYCLES + counts["read"]["requests"] * wait / _LOADS_IN_FLIGHT
    return {
        "memory": counts["sectors_once"] * SECTOR / launches / (_COPY * gpu.memory_bytes_s),
        "L2": transfers * SECTOR / launches / gpu.l2_bytes_s,
        "load/store": (max(requests, sectors / 4) + counts["shared"]["wavefronts"]) * of_an_sm,
        "issue": max(busy.values()) / _QUARTERS * of_an_sm,
        "latency": waves * alone / warps / gpu.clock_hz,
    }


def estimate(row: Mapping[str, Any], gpu: Gpu) -> dict[str, Any]:
    """Microseconds of all launches of a row, and what bounds them."""
    parts = times(row, gpu)
    bound = max(parts, key=lambda name: parts[name])
    idle = 1 - row["blocks"] / (gpu.sms * ceil(row["blocks"] / gpu.sms))
    few = idle >= 0.25 and bound not in ("memory", "L2")
    microseconds = row["launches"] * (_LAUNCH_S + parts[bound]) * 1e6
    return {"us": float(f"{microseconds:.4g}"), "bound": "too few blocks" if few else bound}
