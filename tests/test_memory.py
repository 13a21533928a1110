"""Extra memory of the CPU kernels: at most 32 MB and 5 % of inputs and outputs."""

import subprocess
import sys
from pathlib import Path

import pytest
from _calls import heavy_calls
from conftest import Backend, backend_params

HEAVY = heavy_calls()


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
@pytest.mark.parametrize("case", HEAVY)
def test_extra_memory(backend: Backend, case: str) -> None:
    measured = measure(case)
    for direction in ("forward", "backward"):
        extra, arrays = measured[direction]
        assert arrays > 80e6
        assert extra <= 32e6 + 0.05 * arrays, (
            f"{case} {direction}: {extra / 1e6:.1f} MB beside {arrays / 1e6:.0f} MB"
        )


@pytest.mark.slow
@pytest.mark.parametrize("backend", backend_params("cpu"), indirect=True)
def test_wasted_memory_is_seen(backend: Backend) -> None:
    extra, arrays = measure("ddf", waste=True)["forward"]
    assert extra > 60e6  # the copy of x alone is 67 MB
    assert extra > 32e6 + 0.05 * arrays


def measure(case: str, waste: bool = False) -> dict[str, tuple[float, float]]:
    """Bytes beyond inputs and outputs at the peak, and bytes of inputs and outputs: see `_memory.py`."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from /proc, which this system does not have")
    script = Path(__file__).with_name("_memory.py")
    arguments = [sys.executable, str(script), case, str(int(waste))]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=script.parent.parent, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {direction: (float(extra), float(arrays)) for direction, extra, arrays in lines}
