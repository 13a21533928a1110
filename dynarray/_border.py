"""The parameter `border`: what it may be, and whether a window needs more than zeros outside of its image."""

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
    if border == "constant" or 0 in (*shape[:2], *window.outputs):
        return None
    _refuse_empty(operator, border, window.space.image, window.image)
    outside: Outside | None = load("dynarray._outside").look_outside(
        operator, border, window, shape, by_output, once
    )
    return outside


def check_samples(
    operator: str, border: Any, symbols: tuple[str, ...], shape: tuple[int, ...], points: int
) -> str:
    """The word for what is outside of an image (N, C, ...) that is read at so many points."""
    word = check_choice(operator, "border", border, get_args(Border))
    if word != "constant" and 0 not in (*shape[:2], points):
        _refuse_empty(operator, word, symbols, shape[2:])
    return word


def _refuse_empty(operator: str, border: str, symbols: tuple[str, ...], image: tuple[int, ...]) -> None:
    for symbol, size in zip(symbols, image):
        if not size:
            raise ValueError(
                f"{operator}: x has {symbol} = 0, and border={border!r} no pixel to put outside of it"
            )
