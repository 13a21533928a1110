"""Composites of operators on lines, from those on planes of one row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OnALine:
    """A composite whose output has no axis of rows; some of its arrays get zeros in front, as the forms do.

    Attributes
    ----------
    composite : callable
        The composite on planes.
    zeros : dict
        For places among the arrays, the axis along which as many zeros are put in front.
    """

    composite: Callable[..., Any]
    zeros: Mapping[int, int] = field(default_factory=dict)

    def __call__(self, functions: Any, *arrays: Any, **params: Any) -> Any:
        given = list(arrays)
        for place, axis in self.zeros.items():
            array = given[place]
            given[place] = functions.pad(
                array, [(array.shape[i] if i == axis else 0, 0) for i in range(array.ndim)]
            )
        y = self.composite(functions, *given, **params)
        return functions.reshape(y, (*y.shape[:-2], y.shape[-1]))
