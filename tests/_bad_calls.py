"""Calls that must be refused, and the words that their messages must hold.

Written from the definitions of the operators, not from what the code says: each message names the operator
and the argument, and says what was expected (a shape in symbols, with numbers where other arguments give
them) and what was given. Each family has its own rows in `_calls`; here are those that all operators share.
"""

import numpy as np
from _calls import families, family
from _calls._call import Bad

from dynarray import OPERATORS

GOOD = {name: family(operator).GOOD[name] for name, operator in OPERATORS.items()}
SYMBOLS = {name: family(operator).SYMBOLS[name] for name, operator in OPERATORS.items()}


def _of_every_array() -> list[Bad]:
    rows = []
    for operator, (shapes, _, _) in GOOD.items():
        first = next(iter(shapes))
        for name, shape in shapes.items():
            symbols, single, higher = SYMBOLS[operator][name], np.ones(shape, np.float32), (1, *shape)
            rows += [
                Bad(operator, {name: [1.0]}, TypeError, (name, "array", "[1.0]" if not shape else "list")),
                Bad(operator, {name: higher}, ValueError, (name, "shape", f"({symbols})", str(higher))),
            ]
            if len(shapes) > 1:
                other = name if name != first else list(shapes)[1]  # the first is what others are held to
                rows.append(Bad(operator, {name: single}, TypeError, (other, "dtype", "float32", "float64")))
    return rows


def _of_every_operator() -> list[Bad]:
    rows = []
    for operator, (shapes, _, output) in GOOD.items():
        first, *_ = shapes
        wrong = (*output[:-1], output[-1] + 1)
        needs = (True,) if len(shapes) > 1 else (True, False)
        rows += [
            Bad(operator, {"strides": 2}, TypeError, ("strides",)),
            Bad(operator, {first: None}, TypeError, (first, "array", "NoneType")),
            Bad(operator, {"grad_output": wrong}, ValueError, ("grad_output", str(output), str(wrong))),
            Bad(operator, {"grad_output": None}, TypeError, ("grad_output", "array", "NoneType")),
            Bad(operator, {"needs": needs}, ValueError, ("needs", "bool", *shapes, str(needs))),
        ]
    return rows


BAD = [*_of_every_array(), *_of_every_operator(), *(bad for each in families().values() for bad in each.BAD)]
