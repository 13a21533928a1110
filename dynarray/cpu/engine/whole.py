"""Of what a call is a part: a tile has the bits of the whole if it adds up the same terms together.

How many channels are added up together depends, in some kernels, on how much of an image fits into the memory
that they may use. Those kernels ask here for the arrays of the whole call, and add up as many as it would.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_now = threading.local()


@contextmanager
def part_of(arrays: tuple[Any, ...] | None) -> Iterator[None]:
    """The call in the block is a part of one on these arrays, as forms take them; None: it is none.

    Of the arrays shapes and dtypes are looked at, and nothing else.
    """
    before = getattr(_now, "arrays", None)
    _now.arrays = arrays
    try:
        yield
    finally:
        _now.arrays = before


def whole_of(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arrays of the whole call, if that of a form on these is a part of one, or else these."""
    return getattr(_now, "arrays", None) or arrays
