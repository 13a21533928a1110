"""The parameter `border`: whether a call needs more than zeros outside of its image."""

from math import prod
from typing import TYPE_CHECKING, Any, get_args

from ._check import check_choice
from ._geometry import Window
from ._operator import load
from .typing import Border

if TYPE_CHECKING:
    from ._outside import Outside


def find_outside(
    operator: str,
    border: Any,
    window: Window,
    shape: tuple[int, ...],
    *,
    by_output: int,
    once: int | None = None,
) -> "Outside | None":
    """What a window reads outside of an image of this shape, (N, C, H, W); None if that is zeros alone.

    The image is the first array of the forms. `by_output` is the place of the one whose last axes are those
    of the output, and `once` that of a summand.
    """
    check_choice(operator, "border", border, get_args(Border))
    if border == "constant" or not prod(shape[:2]) or not prod(window.outputs):
        return None
    for symbol, size, padding in zip(window.space.image, window.image, window.padding):
        if not size and padding:
            raise ValueError(
                f"{operator}: x has {symbol} = 0, and border={border!r} no pixel to put outside of it"
            )
    outside: Outside | None = load("dynarray._outside").look_outside(
        operator, border, window, shape, by_output, once
    )
    return outside
