"""Of what a call is a part: a tile has the bits of the whole if it adds up the same terms together.

How many channels are added up together depends, in some kernels, on how much of an image fits into the memory
that they may use. Those kernels ask here for the arrays of the whole call, and add up as many as it would.
Others go one of several ways that add up in another order: they go that of the whole.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

_now = threading.local()


class WholeCall(NamedTuple):
    """Arrays and parameters of a call, as forms take them; but arrays have no pixels from beyond a border.

    Of the arrays shapes and dtypes are looked at, and nothing else.
    """

    arrays: tuple[Any, ...]
    params: Mapping[str, Any]


@contextmanager
def part_of(call: WholeCall | None) -> Iterator[None]:
    """The call in the block is a part of this one; None: it is none."""
    before = getattr(_now, "call", None)
    _now.call = call
    try:
        yield
    finally:
        _now.call = before


def whole_of(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arrays of the whole call, if that of a form on these is a part of one, or else these."""
    call = getattr(_now, "call", None)
    return arrays if call is None else call.arrays


def whole_params(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same for parameters: where a part has a single output, a stride means nothing, and is 1."""
    call = getattr(_now, "call", None)
    return params if call is None else call.params
