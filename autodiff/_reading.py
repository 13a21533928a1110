"""How a Variable is read, as a number or in print: no tape follows any of it."""

from typing import Any

from ._graph import recording


class Readable:
    """What a Variable offers for reading.

    ``v.item()``, formatting, printing, comparisons and ``bool(v)`` only read, and always work. While a tape
    records, ``float(v)``, ``int(v)``, ``math.exp(v)`` and ``array[i] = v`` are errors: it would lose it.
    """

    __slots__ = ()
    data: Any
    name: str | None

    value = property(
        lambda self: self.data, doc="The plain array, any shape, a dtype of floats: another name for `data`."
    )
    shape = property(lambda self: self.data.shape, doc="The shape of the array, a tuple of int.")
    dtype = property(lambda self: self.data.dtype, doc="The dtype of the array, of floats.")
    ndim = property(lambda self: self.data.ndim, doc="The number of axes.")
    size = property(lambda self: self.data.size, doc="The number of elements.")

    def item(self) -> float:
        """The number that an array of one element holds, for reading: a tape does not follow it.

        Returns
        -------
        float
            A number of Python.

        Raises
        ------
        ValueError
            If there are more elements, or none.
        """
        return self.data.item()

    def tolist(self) -> Any:
        """The numbers as nested lists, for reading: a tape does not follow them.

        Returns
        -------
        list or float
            Nested as the axes are; without axes the number itself.
        """
        return self.data.tolist()

    def __len__(self) -> int:
        return len(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return self._number(float)

    def __int__(self) -> int:
        return self._number(int)

    def _number(self, kind: type) -> Any:
        if recording():
            raise TypeError(
                f"{kind.__name__}() of a Variable while a tape records, which would lose it: stay with "
                "functions of autodiff (F.stack instead of storing into an array); .item() reads the number"
            )
        return kind(self.data)

    def __format__(self, form: str) -> str:
        return format(self.data.item() if self.data.size == 1 else self.data, form) if form else str(self)

    def __str__(self) -> str:
        return repr(self) if self.data.ndim else str(self.data)

    def __repr__(self) -> str:
        label = f"{self.name!r}, " if self.name else ""
        return f"Variable({label}shape {self.data.shape}, {self.data.dtype})"
