"""The soak, in short and in full, and that it reports each kind of fault."""

import json
import os
import re
import signal
import sys
from typing import Any

import pytest
from soak import Settings, soak

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted, which Linux alone allows"),
    pytest.mark.timeout(0),  # a process that does nothing is reported by the soak itself
]
FULL = float(os.environ.get("DYNARRAY_SOAK_SECONDS", 1800))


def words(found: dict[str, Any]) -> str:
    """All of it, to be read."""
    return json.dumps(found, indent=1).replace("\\n", "\n")


@pytest.mark.slow
def test_a_short_soak_finds_nothing_wrong() -> None:
    found = soak(20)
    assert not found["wrong"], words(found)
    events = found["events"]
    assert events["process ended by itself"] and events["folders looked at"], words(found)


# What is said of each fault.
FAULTS = {
    "a_wrong_number": "number: ",
    "an_entry_of_another_kernel": "(number|error|a process ended)",
    "a_file_left_behind": r"left behind: \['files/\.",
    "a_hang": r"a hang: .* from a process that goes on[\s\S]*_soak_faults.py[\s\S]* in call",
    "a_child_that_nobody_waits_for": "end: a child is left",
    "a_process_that_outlives_its_parent": "a hang: .* from a process that its parent left",
    "a_file_written_in_place": "(file|array)",
    "a_crash": f"a process ended with -{signal.SIGABRT:d}",
    "an_error": r"a process ended with 1, [\s\S]*LookupError: planted",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported(fault: str) -> None:
    alone = fault not in ("an_entry_of_another_kernel", "a_file_written_in_place")  # or others must find it
    seconds, at_once = (1, 1) if alone else (600, 3)
    found = soak(seconds, settings=Settings(fault, 10, at_once, killed=0, round_seconds=1, damage_after=1000))
    assert any(re.match(FAULTS[fault], what) for what in found["wrong"]), words(found)


@pytest.mark.long
def test_half_an_hour_of_soak_finds_nothing_wrong() -> None:
    found = soak(FULL, seed=1)
    assert not found["wrong"], words(found)
    print(words(found))
