"""Types for annotations: arrays, and what the parameters of several operators take."""

from typing import Any, Literal, Protocol, SupportsIndex, TypeVar


class Array(Protocol):
    """What NumPy's and CuPy's arrays have in common, and lists and numbers have not."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of its axes."""

    @property
    def ndim(self) -> int:
        """Number of its axes."""

    @property
    def dtype(self) -> Any:
        """Type of its elements."""

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any, /) -> Any:
        """NumPy's functions act on it."""


# NumPy in, NumPy out; CuPy in, CuPy out: all arrays of a call are of one kind.
ArrayT = TypeVar("ArrayT", bound=Array)

# An int, or one for each axis, (y, x).
Pair = SupportsIndex | tuple[SupportsIndex, SupportsIndex] | list[int]

# Which gradients are wanted; None: all of them.
Needs = tuple[bool, ...] | list[bool] | None

# What is outside an image, in NumPy's words: zeros, or pixels of the image.
Border = Literal["constant", "reflect", "symmetric", "edge", "wrap"]

Backend = Literal["reference", "cpu", "host", "ptx", "cuda"]
