"""Ten thousand calls of each operator leave the resident set where it was."""

import pytest
from _processes import output_of
from conftest import backend_params

from dynarray import OPERATORS

# Per operator a process would pay for imports and compilers each time: one process does them in turn.
SCRIPT = """
import gc, sys
from conftest import Backend
from _contract import OPERATORS, full_call
from _memory import status

backend, calls, kept = Backend(sys.argv[1]), int(sys.argv[2]), []

def work(operator, call, needs, number):
    for _ in range(number):
        output, saved = operator.run(call.arrays, call.params)
        operator.gradients(call.grad_output, saved, needs)
        if sys.argv[3] == "leaking":
            kept.append(bytearray(200))

with backend.use():
    for name in sys.argv[4:] or OPERATORS:
        operator = OPERATORS[name]
        # The smallest images: the arrays are not what this is about.
        call = full_call(operator, 1, N=1, H=3, W=2).astype("float32")
        needs = (True,) * len(call.arrays)
        work(operator, call, needs, calls // 5)  # caches fill
        gc.collect()
        before = status("VmRSS")
        work(operator, call, needs, calls)
        gc.collect()
        print(name, status("VmRSS") - before)
"""
ALLOWED = 1_000_000  # what is left of one call, were it 100 bytes, would come to as much
# On the host a call takes a hundred times as long and copies its arrays: there one would leave 10 kB.
CALLS = {"cpu": 10_000, "host": 100}


def growth(backend: str, how: str, *names: str) -> dict[str, int]:
    """Bytes that the resident set grew by, per operator."""
    lines = output_of(SCRIPT, backend, str(CALLS[backend]), how, *names, timeout=280).splitlines()
    return {name: int(size) for name, size in (line.split() for line in lines)}


@pytest.mark.slow
@pytest.mark.parametrize("name", backend_params(*CALLS))
def test_memory_is_steady(name: str) -> None:
    grown = growth(name, "sound")
    assert set(grown) == set(OPERATORS)
    assert max(grown.values()) < ALLOWED, grown


@pytest.mark.slow
@pytest.mark.parametrize("name", backend_params("cpu"))
def test_two_hundred_bytes_left_by_each_call_are_seen(name: str) -> None:
    (grown,) = growth(name, "leaking", "involution").values()
    assert grown > ALLOWED
