"""What runs of every kind share: a results file, saved after each row, that goes on where it was left."""

from collections.abc import Callable, Sequence
from typing import Any

from ..cases.case import Case, Work
from . import floor
from .device import Device
from .machine import Bystanders, describe

SCHEMA = 2
Result = dict[str, Any]
Say = Callable[[str], None]
Save = Callable[[Result], None]

# In these a file may differ from what another run left, and that goes on all the same.
_MAY_DIFFER = ("date", "complete", "cores_busy_elsewhere", "floor", "rows")


def begin(kind: str, device: Device, **settings: Any) -> Result:
    """A results file without rows; `settings` say what is measured, and how."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        **describe(device),
        "complete": False,
        "cores_busy_elsewhere": None,
        **settings,
        "rows": [],
    }


def measure(
    begun: Result,
    earlier: Result | None,
    cases: Sequence[Case],
    row: Callable[[Case, Result], dict[str, Any]],
    device: Device,
    say: Say,
    save: Save,
) -> Result:
    """The file with a row for each case; `save` gets it after each.

    If `earlier` is what an interrupted run of the same kind left, its rows are kept. Where the file has a
    place for the floor, that is measured ahead of the rows of each operator.
    """
    result, disturbed, bystanders = begun, 0.0, Bystanders()
    if earlier is not None and not earlier["complete"] and _alike(earlier, begun):
        say(f"going on after {len(earlier['rows'])} rows measured earlier")
        result, disturbed = earlier, earlier["cores_busy_elsewhere"] or 0.0
    done, operator = {each["title"] for each in result["rows"]}, None
    for case in cases:
        if case.title not in done:
            if case.operator != operator and "floor" in result:
                say("floor: copying, reading, matrix product")
                raise_floor(result, floor.measure(device, result["threads"], quick=result["quick"]))
            operator = case.operator
            say(case.title)
            result["rows"].append(row(case, result))
            result["cores_busy_elsewhere"] = max(disturbed, bystanders.cores() or 0.0)
            save(result)
            device.release()
    result["complete"] = True
    save(result)
    return result


def raise_floor(result: Result, limits: floor.Floor) -> None:
    """Keep the best of what memory and arithmetic have done, and tell the share of it that each row has.

    Of a machine that was slow just when it was measured, everything would look better than it is.
    """
    before = floor.Floor(**(result["floor"] or limits._asdict()))
    best = floor.Floor(*map(max, limits, before))
    result["floor"] = best._asdict()
    for measured in (each for row in result["rows"] for each in row.get("passes", {}).values()):
        measured["floor_ms"] = best.ms(Work(*(measured[name] for name in Work._fields)))
        measured["of_floor"] = measured["floor_ms"] / measured["ms"]


def _alike(earlier: Result, new: Result) -> bool:
    return all(earlier.get(name) == value for name, value in new.items() if name not in _MAY_DIFFER)


def named(case: Case) -> dict[str, Any]:
    """What a row says of the call."""
    return {
        "title": case.title,
        "operator": case.operator,
        "dtype": case.dtype,
        "shapes": {name: list(shape) for name, shape in case.shapes.items()},
        "params": {
            name: list(value.shape) if hasattr(value, "shape") else value
            for name, value in case.params.items()
        },
    }
