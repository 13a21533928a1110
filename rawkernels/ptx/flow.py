"""Basic blocks and loops of a kernel: where counters go, and what tells the rounds of a loop apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .parse import Instruction, Kernel, Label, PtxError

_ENDS = ("bra", "ret", "exit")


@dataclass(frozen=True)
class Flow:
    """The control flow of a kernel.

    Attributes
    ----------
    starts : dict
        Of the index in the kernel's body of a first instruction, its basic block.
    blocks : tuple of tuple of Instruction
        The instructions of each.
    loops : tuple of int
        Of each, the innermost loop that it is in; 0 is the whole kernel.
    headers : dict
        Of a block that every round of a loop begins with, that loop.
    parents : tuple of int
        Of each loop, the one around it.
    """

    starts: dict[int, int]
    blocks: tuple[tuple[Instruction, ...], ...]
    loops: tuple[int, ...]
    headers: dict[int, int]
    parents: tuple[int, ...]


def flow(kernel: Kernel) -> Flow:
    """The basic blocks of a kernel and their loops.

    Raises
    ------
    PtxError
        Where a loop has more than one entrance: its rounds could not be told apart.
    """
    starts, blocks, names = _cut(kernel)
    after = _successors(blocks, names)
    order = _reverse_postorder(after)
    above = _dominators(after, order)
    bodies: dict[int, set[int]] = {}
    place = {block: position for position, block in enumerate(order)}
    for block in order:
        for target in after[block]:
            if place[target] > place[block]:
                continue
            if target not in set(_chain(above, block)):
                raise PtxError(
                    f"{kernel.name}: a loop with more than one entrance is unknown to the backend ptx"
                )
            bodies.setdefault(target, {target}).update(_body(after, target, block))
    headers = sorted(bodies, key=lambda header: -len(bodies[header]))
    numbers = {header: number for number, header in enumerate(headers, 1)}

    def innermost(block: int, but: int = -1) -> int:
        # From the smallest loop to the largest.
        return next((numbers[h] for h in reversed(headers) if block in bodies[h] and h != but), 0)

    return Flow(
        {start: block for block, start in enumerate(starts)},
        tuple(blocks),
        tuple(innermost(block) for block in range(len(blocks))),
        numbers,
        (0, *(innermost(header, header) for header in headers)),
    )


def _cut(kernel: Kernel) -> tuple[list[int], list[tuple[Instruction, ...]], dict[str, int]]:
    """First instructions, blocks, and the block that each label stands before."""
    starts: list[int] = []
    blocks: list[list[Instruction]] = []
    names: dict[str, int] = {}
    fresh = True
    for index, item in enumerate(kernel.body):
        if isinstance(item, Label):
            names[item.name] = len(blocks)
            fresh = True
            continue
        if fresh:
            starts.append(index)
            blocks.append([])
        blocks[-1].append(item)
        fresh = item.opcode.split(".")[0] in _ENDS
    return starts, [tuple(block) for block in blocks], names


def _successors(blocks: Sequence[tuple[Instruction, ...]], names: dict[str, int]) -> list[list[int]]:
    after: list[list[int]] = []
    for number, block in enumerate(blocks):
        last, found = block[-1], []
        base = last.opcode.split(".")[0]
        if base == "bra":
            found.append(names[str(last.operands[0]).lstrip("$")])
        if base not in _ENDS or last.guard:
            found.append(number + 1)
        after.append([target for target in found if target < len(blocks)])
    return after


def _reverse_postorder(after: list[list[int]]) -> list[int]:
    """The blocks that can be reached, each before those it leads to, but for the ways back."""
    seen, order = {0}, []
    stack: list[tuple[int, Iterator[int]]] = [(0, iter(after[0]))]
    while stack:
        block, rest = stack[-1]
        target = next((target for target in rest if target not in seen), None)
        if target is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(target)
            stack.append((target, iter(after[target])))
    return order[::-1]


def _dominators(after: list[list[int]], order: list[int]) -> dict[int, int]:
    """Of each block the last one that all ways to it pass."""
    place = {block: position for position, block in enumerate(order)}
    before: dict[int, list[int]] = {block: [] for block in order}
    for block in order:
        for target in after[block]:
            before[target].append(block)
    above = {order[0]: order[0]}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            known = [other for other in before[block] if other in above]
            found = known[0]
            for other in known[1:]:
                a, b = found, other
                while a != b:
                    a, b = (above[a], b) if place[a] > place[b] else (a, above[b])
                found = a
            if above.get(block) != found:
                above[block], changed = found, True
    return above


def _chain(above: dict[int, int], block: int) -> Iterator[int]:
    """A block and all that are on every way to it."""
    yield block
    while above[block] != block:
        block = above[block]
        yield block


def _body(after: list[list[int]], header: int, last: int) -> set[int]:
    """The blocks from which one comes to `last`, and so back to the header, without passing the header."""
    before: dict[int, list[int]] = {}
    for block, targets in enumerate(after):
        for target in targets:
            before.setdefault(target, []).append(block)
    body, waiting = {header}, [last]
    while waiting:
        block = waiting.pop()
        if block not in body:
            body.add(block)
            waiting += before.get(block, [])
    return body
