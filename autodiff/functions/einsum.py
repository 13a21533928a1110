"""Sums of products over named axes.

The gradient of one operand is a sum of products too: of the gradient and the other operands, with the axes
named as before. That holds if every axis of an operand is also one of the output or of another operand, so
axes that are not are dealt with first: an axis named twice is reduced to its diagonal, one that is named
nowhere else is summed, and one of length 1 that stands for a longer one is dropped.
"""

from typing import Any

import numpy as np

from ..function import differentiable
from ._arguments import array
from ._common import accumulator, library
from .indexing import getitem
from .shapes import reshape, sum

# Names for the axes behind an ellipsis.
_ANONYMOUS = "αβγδεζηθικλμνξοπρστυφχψω"


def einsum(subscripts: str, *operands: Any) -> Any:
    """Sum of products over named axes; see `numpy.einsum`.

    Parameters
    ----------
    subscripts : str
        A letter for each axis of each operand, and of the output: ``"nij,njk->nik"``. An ellipsis stands for
        all axes that are not named. Without ``->`` the output has the letters that occur once, sorted.
    *operands : array
        The factors, of any shapes and dtypes.

    Returns
    -------
    array
        With an axis for each letter of the output, and the dtype that NumPy gives it.

    Raises
    ------
    TypeError
        If `subscripts` is no string.
    ValueError
        If it does not fit the operands.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import functions as F
    >>> F.einsum("ij,j->i", np.array([[1.0, 2.0], [3.0, 4.0]]), np.ones(2))
    array([3., 7.])
    """
    if not isinstance(subscripts, str):
        raise TypeError(f"einsum: subscripts must be a string, got {subscripts!r}")
    operands = tuple(array("einsum", f"operands[{i}]", x) for i, x in enumerate(operands))
    names, output = _parse(subscripts, operands)
    sizes = _sizes(subscripts, names, operands)
    reduced = list(operands)
    for i, letters in enumerate(names):
        reduced[i], names[i] = _distinct(reduced[i], letters)
        reduced[i], names[i] = _unstretched(reduced[i], names[i], sizes)
    for i, letters in enumerate(names):
        elsewhere = set(output).union(*(other for j, other in enumerate(names) if j != i))
        alone = tuple(axis for axis, letter in enumerate(letters) if letter not in elsewhere)
        if alone:
            reduced[i] = sum(reduced[i], alone)
            names[i] = "".join(letter for letter in letters if letter in elsewhere)
    return _product(*reduced, names=tuple(names), output=output)


def _gradients(g: Any, s: Any, needs: tuple[bool, ...]) -> list:
    grads = []
    for i, needed in enumerate(needs):
        others = [j for j in range(len(needs)) if j != i]
        named = (s.output_names, *(s.names[j] for j in others))
        factors = (g, *(s.operands[j] for j in others))
        grads.append(_product(*factors, names=named, output=s.names[i]) if needed else None)
    return grads


@differentiable("*operands", joint=("operands", _gradients))
def _einsum(*operands: Any, names: tuple[str, ...], output_names: str) -> Any:
    text, xp = f"{','.join(names)}->{output_names}", library(operands[0])
    dtype = np.result_type(*operands)
    kind = accumulator(dtype)
    if kind is None:
        return xp.einsum(text, *operands, optimize=True)
    return xp.einsum(text, *(x.astype(kind) for x in operands), optimize=True).astype(dtype)


def _product(*operands: Any, names: tuple[str, ...], output: str) -> Any:
    # NumPy takes Latin letters only.
    letters = dict.fromkeys("".join(names))
    latin = {old: _LATIN[i] for i, old in enumerate(letters)}
    renamed = tuple("".join(latin[letter] for letter in name) for name in names)
    return _einsum(*operands, names=renamed, output_names="".join(latin[letter] for letter in output))


_LATIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _parse(subscripts: str, operands: tuple) -> tuple[list[str], str]:
    """The letters of the operands and of the output, the axes behind an ellipsis named too."""
    text = subscripts.replace(" ", "")
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(operands):
        raise ValueError(
            f"einsum: subscripts {subscripts!r} names {len(parts)} operands, got {len(operands)}"
        )
    hidden = [x.ndim - len(part.replace("...", "")) for part, x in zip(parts, operands)]
    for part, x, extra in zip(parts, operands, hidden):
        if extra < 0 or (extra and "..." not in part) or part.count("...") > 1:
            raise ValueError(f"einsum: subscripts {part!r} do not fit an operand of shape {tuple(x.shape)}")
    most = max((extra for part, extra in zip(parts, hidden) if "..." in part), default=0)
    anonymous = _ANONYMOUS[:most]
    names = [part.replace("...", anonymous[most - extra :]) for part, extra in zip(parts, hidden)]
    joined = "".join(part.replace("...", "") for part in parts)
    if not arrow:
        right = "..." + "".join(sorted(letter for letter in set(joined) if joined.count(letter) == 1))
    output = right.replace("...", anonymous)
    wrong = [letter for letter in joined + right.replace("...", "") if letter not in _LATIN]
    unknown = [letter for letter in output if letter not in "".join(names) or output.count(letter) > 1]
    if wrong or unknown:
        raise ValueError(
            f"einsum: subscripts {subscripts!r} has {(wrong or unknown)[0]!r} where it must not be"
        )
    return names, output


def _sizes(subscripts: str, names: list[str], operands: tuple) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for letters, x in zip(names, operands):
        for letter, size in zip(letters, x.shape):
            if sizes.get(letter, 1) == 1:
                sizes[letter] = size
            elif size not in (1, sizes[letter]):
                both = f"{sizes[letter]} and {size}"
                raise ValueError(f"einsum: subscripts {subscripts!r}: axis {letter!r} has the lengths {both}")
    return sizes


def _distinct(x: Any, letters: str) -> tuple[Any, str]:
    """The diagonal along axes of one name."""
    for letter in letters:
        axes = [axis for axis, other in enumerate(letters) if other == letter]
        if len(axes) > 1:
            first, second = axes[:2]
            if x.shape[first] != x.shape[second]:
                raise ValueError(f"einsum: axes {letter!r} of an operand have shape {tuple(x.shape)}")
            index: list[Any] = [slice(None)] * x.ndim
            places = library(x).arange(x.shape[first])
            # Axes next to each other stay where they are; others come first.
            index[first] = index[second] = places
            rest = letters[:first] + letters[first + 1 : second] + letters[second + 1 :]
            where = first if second == first + 1 else 0
            return _distinct(getitem(x, tuple(index)), rest[:where] + letter + rest[where:])
    return x, letters


def _unstretched(x: Any, letters: str, sizes: dict[str, int]) -> tuple[Any, str]:
    """Without the axes of length 1 that stand for longer ones."""
    kept = [axis for axis, letter in enumerate(letters) if x.shape[axis] == sizes[letter]]
    if len(kept) == x.ndim:
        return x, letters
    return reshape(x, tuple(x.shape[axis] for axis in kept)), "".join(letters[axis] for axis in kept)
