"""A tape as a table: what was called on what, and what waits for the backward pass."""

import html
from collections.abc import Iterable
from typing import Any

from .function import Step


class ShownSteps:
    """What shows the steps that it holds: how many as itself, each as a table."""

    steps: list[Step]

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {total(self.steps)}"

    def _repr_html_(self) -> str:
        return preformatted(table(self.steps))

    def show(self) -> None:
        """Print the recorded steps: shapes, and what each saves for the backward pass, with its bytes."""
        print(table(self.steps))


class Shown:
    """What is shown in a notebook as it is printed."""

    def _repr_html_(self) -> str:
        return preformatted(str(self))


def preformatted(text: str) -> str:
    """Text as it is, for a notebook."""
    return f"<pre>{html.escape(text)}</pre>"


HEADINGS = ("step", "function", "arguments", "result", "bytes saved", "saved")


def table(steps: list[Step]) -> str:
    """One line per step, and the bytes of all arrays saved, each counted once.

    Results of steps are called #0, #1, ...; other Variables a, b, ... in the order in which they appear.
    """
    names: dict[Any, str] = {}
    leaves = 0
    rows: list[tuple[str, ...]] = [HEADINGS]
    for number, step in enumerate(steps):
        for node in step.inputs:
            if node is not None and node not in names:
                names[node] = _letters(leaves)
                leaves += 1
        arguments = [
            _shaped("" if node is None else names[node], shape)
            for node, shape in zip(step.inputs, step.shapes)
        ]
        names[step] = f"#{number}"
        kept = [(name, array) for name, array, _ in step.saved or () if hasattr(array, "nbytes")]
        size = sum(array.nbytes for _, array in kept)
        result = _shaped(f"#{number}", step.output_shape)
        saved = ", ".join(name for name, _ in kept)
        rows.append((str(number), step.function.name, ", ".join(arguments), result, f"{size:,}", saved))
    return "\n".join([*_aligned(rows), total(steps)])


def total(steps: list[Step]) -> str:
    """How many steps keep how much, each array counted once."""
    distinct = {id(array): array.nbytes for array in _arrays(steps)}
    steps_text, arrays_text = _plural(len(steps), "step"), _plural(len(distinct), "array")
    verb = "keeps" if len(steps) == 1 else "keep"
    return f"{steps_text} {verb} {sum(distinct.values()):,} bytes in {arrays_text}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _arrays(steps: Iterable[Step]) -> Iterable[Any]:
    return (array for step in steps for _, array, _ in step.saved or () if hasattr(array, "nbytes"))


def _letters(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    head, tail = divmod(number, 26)
    return (_letters(head - 1) if head else "") + chr(ord("a") + tail)


def _shaped(name: str, shape: tuple[int, ...]) -> str:
    """A name and a shape; numbers, which have neither, are constants."""
    return f"{name} {tuple(shape)}" if name else f"constant {tuple(shape)}" if shape else "constant"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    right = (0, 4)
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
