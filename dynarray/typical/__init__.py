"""Small calls that go every way through the kernels of an operator, one module a family.

`dynarray.warm_up` makes them, so that whatever later calls need is compiled. `CALLS` names, for each
operator, what its kernels are chosen or specialised by on any backend: which arrays are given, the
parameters, and sizes where a way is only taken from some size on. It need not name dtypes, which gradients
are wanted, or numbers that are not finite: each call is made with all of these.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class TypicalCall(NamedTuple):
    """The shapes of the arrays that are given, the parameters, and of some arrays how far numbers lie apart.

    `spread` is the distance of the largest number from the smallest, where a way is taken by that.
    """

    shapes: Mapping[str, tuple[int, ...]]
    params: Mapping[str, Any] = {}
    spread: Mapping[str, float] = {}
