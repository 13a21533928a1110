"""Photographs as their users have them: which axis is what, rows in bands, pixels beyond the border.

What is said here serves `dynarray.images` and `dynarray.kernels`. Both take arrays of NumPy and CuPy, and
what follows their use: objects whose type offers ``__dynarray_operator__(operator)``, a function to be called
in place of the operator, as the Variables of the tape do. NumPy's functions act on these.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import numpy as np

from rawkernels.launch import module_of

from ._check import check_choice
from ._dispatch import library_of
from ._operator import OPERATORS
from .typing import Border

BORDERS = get_args(Border)
BAND = 64 << 20  # bytes of temporary arrays that a band of rows may take, unless one row takes more


def is_followed(array: Any) -> bool:
    """Whether something records how the array is used, so that it must be used as a whole."""
    return hasattr(type(array), "__dynarray_operator__")


def values_of(array: Any) -> Any:
    """The plain array."""
    return array.data if is_followed(array) else array


def functions_of(array: Any, *others: Any) -> Any:
    """The module whose functions act on arrays and numbers; NumPy's hand on what is followed."""
    return np if any(map(is_followed, (array, *others))) else module_of(array)


def library_of_values(array: Any) -> Any:
    """The module that makes arrays which may stand beside this one."""
    return module_of(values_of(array))


def call(operator: str, arrays: tuple[Any, ...], **params: Any) -> Any:
    """What the operator makes of the arrays, by the function of those that are followed."""
    record = OPERATORS[operator]
    for array in arrays:
        if is_followed(array):
            return type(array).__dynarray_operator__(record)(*arrays, **params)
    return record(arrays, **params)


def check_array(name: str, argument: str, array: Any, kinds: str = "biuf") -> Any:
    """An array of real numbers, of a library that is known; `kinds` are those of dtypes."""
    plain = values_of(array)
    if library_of(plain) is None:
        kind = type(array)
        own = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
        raise TypeError(f"{name}: {argument} must be a numpy.ndarray or cupy.ndarray, got {own}")
    dtype = plain.dtype
    if dtype.name == "bool" and "b" not in kinds:
        raise TypeError(
            f"{name}: {argument} has dtype bool, and a mask has nothing between its two values; "
            f"give {argument}.astype(float)"
        )
    if (dtype.kind not in kinds or dtype.itemsize > 8) and dtype.name != "bfloat16":
        raise TypeError(f"{name}: {argument} must hold real numbers of at most 64 bits, got dtype {dtype}")
    return array


def check_libraries(name: str, arrays: dict[str, Any]) -> None:
    """All arrays of one library."""
    (first_name, first), *others = arrays.items()
    for own_name, array in others:
        if library_of(values_of(array)) != library_of(values_of(first)):
            raise TypeError(
                f"{name}: {own_name} is an array of {library_of(values_of(array))}, "
                f"but {first_name} one of {library_of(values_of(first))}"
            )


def floating(*arrays: Any) -> np.dtype:
    """The dtype in which arrays are computed with: float64 where there are integers, and 32 bits at least."""
    dtypes = [values_of(array).dtype for array in arrays]
    widened = [
        np.float32 if d.name in ("float16", "bfloat16") else np.float64 if d.kind in "biu" else d
        for d in dtypes
    ]
    return np.result_type(np.float32, *widened)


def cast(array: Any, dtype: np.dtype) -> Any:
    """The array in a dtype, itself where it has it."""
    return array if array.dtype == dtype else array.astype(dtype)


_COMMON = {"HWC": -1, "CHW": 0, "NHW": None, "NHWC": -1, "NCHW": 1}  # and the axis of channels that says so


class Layout(NamedTuple):
    """How the axes of a photograph were understood: their symbols in order, out of N, C, H and W."""

    symbols: str
    shape: tuple[int, ...]
    channel_axis: Any

    @property
    def sizes(self) -> dict[str, int]:
        """The extent of each of N, C, H and W; 1 for those that are not there."""
        return {"N": 1, "C": 1, **dict(zip(self.symbols, self.shape))}

    def named(self, argument: str) -> str:
        """What was understood, and what else could have been meant."""
        text = f"{argument} of shape {self.shape} was read as ({', '.join(self.symbols)})"
        if len(self.symbols) > 2:
            text += f" by channel_axis={self.channel_axis}"
        meant = [
            f"channel_axis={axis} for ({', '.join(symbols)})"
            for symbols, axis in _COMMON.items()
            if len(symbols) == len(self.symbols) and symbols != self.symbols
        ]
        return text + (f"; give {' or '.join(meant)}" if meant else "")

    def planes(self, photo: Any) -> Any:
        """The photograph as (N, C, H, W), a view."""
        photo = photo.transpose([self.symbols.index(s) for s in "NCHW" if s in self.symbols])
        index = [slice(None) if s in self.symbols else None for s in "NCHW"]
        return photo[tuple(index)]

    def back(self, planes: Any) -> Any:
        """What is (N, C, H, W) with the axes of the photograph."""
        planes = planes[tuple(slice(None) if s in self.symbols else 0 for s in "NCHW")]
        order = [s for s in "NCHW" if s in self.symbols]
        return planes.transpose([order.index(s) for s in self.symbols])


def check_layout(name: str, argument: str, photo: Any, channel_axis: Any) -> Layout:
    """The layout of a photograph by the axis of its channels."""
    shape = tuple(photo.shape)
    understood = "(H, W), (H, W, C) or (N, H, W, C), with the channels where channel_axis says"
    if channel_axis is not None and (
        isinstance(channel_axis, bool) or not isinstance(channel_axis, int | np.integer)
    ):
        raise TypeError(f"{name}: channel_axis must be an int or None, got {channel_axis!r}")
    grey = channel_axis is None or (len(shape) == 2 and channel_axis == -1)
    if grey and len(shape) in (2, 3):
        return Layout("NHW"[-len(shape) :], shape, channel_axis)
    if channel_axis is None or len(shape) not in (3, 4):
        also = ""
        if len(shape) == 4:
            also = "; four axes hold channels: channel_axis=-1 for (N, H, W, C), 1 for (N, C, H, W)"
        elif len(shape) == 2:
            also = "; two axes are (H, W), without channels: leave channel_axis out"
        raise ValueError(
            f"{name}: {argument} must have shape {understood}; got {shape} and "
            f"channel_axis={channel_axis}{also}"
        )
    if not -len(shape) <= channel_axis < len(shape):
        raise ValueError(
            f"{name}: channel_axis must be one of the {len(shape)} axes of {argument}, whose shape is "
            f"{shape}; got {channel_axis}"
        )
    symbols = list("NHW"[-(len(shape) - 1) :])
    symbols.insert(int(channel_axis) % len(shape), "C")
    return Layout("".join(symbols), shape, channel_axis)


class Margin(NamedTuple):
    """What a kernel reads around a picture: so many rows before and behind, and columns; and the border."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    border: str

    def around(self, planes: Any, rows: slice, dtype: Any) -> Any:
        """Rows of plain (N, C, H, W) with the margin, in `dtype`: no more is read, or copied, than this."""
        xp = module_of(planes)
        n, c, height, width = planes.shape
        (above, below), (left, right) = self.rows, self.columns
        wanted = rows.stop - rows.start + above + below
        out = xp.empty((n, c, wanted, left + width + right), dtype)
        sources = _sources(height, self.rows, self.border)[rows.start : rows.start + wanted]
        inside = np.flatnonzero(sources >= 0)
        first, stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        out[:, :, :first] = 0
        out[:, :, stop:] = 0
        target = out[:, :, first:stop]
        if first < stop:
            target[:, :, :, left : left + width] = _taken(planes, sources[first:stop], 2)
        beside = _sources(width, self.columns, self.border)
        sides = (slice(0, left), beside[:left]), (slice(left + width, None), beside[left + width :])
        for place, source in sides:
            if self.border == "constant" or not width:
                target[:, :, :, place] = 0
            elif len(source):
                target[:, :, :, place] = _taken(target, left + source, 3)
        return out

    def whole(self, planes: Any, dtype: Any) -> Any:
        """All of (N, C, H, W) with the margin, in `dtype`, also of what is followed."""
        if not is_followed(planes):
            return self.around(planes, slice(0, planes.shape[2]), dtype)
        pad: Any = np.pad  # that of what is followed
        return pad(planes, ((0, 0), (0, 0), self.rows, self.columns), self.border).astype(dtype)


def _sources(size: int, margin: tuple[int, int], border: str) -> np.ndarray:
    """The index that each place along an axis with its margins reads; -1 for zero."""
    places = np.arange(size)
    if border == "constant" or not size:
        return np.pad(places, margin, constant_values=-1)
    around: np.ndarray = np.pad(places, margin, border)  # type: ignore[call-overload]
    return around


def _taken(array: Any, sources: np.ndarray, axis: int) -> Any:
    """The elements at `sources` along an axis, a view where they follow each other."""
    first, last = int(sources[0]), int(sources[-1])
    if last - first + 1 == len(sources) and (np.diff(sources) == 1).all():
        return array[(slice(None),) * axis + (slice(first, last + 1),)]
    xp = module_of(array)
    return xp.take(array, xp.asarray(sources), axis)


def check_border(name: str, border: Any) -> str:
    """One of `numpy.pad`'s names."""
    return check_choice(name, "border", border, BORDERS)


def bands(rows: int, bytes_of_row: int) -> Iterator[slice]:
    """Slices of rows, in order, whose temporary arrays take `BAND` bytes at most."""
    step = max(1, BAND // max(1, bytes_of_row))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


class Sink:
    """Where results go: rounded half to even and clipped, if the photograph has integers."""

    def __init__(self, name: str, argument: str, photo: Any) -> None:
        self.name, self.argument, self.xp, self.dtype = name, argument, module_of(photo), photo.dtype
        self.limits: tuple[float, float] | None = None
        self.lost: Any = False
        if photo.dtype.kind in "iu":
            info = np.iinfo(photo.dtype)
            high = float(info.max)
            # The largest integers of 64 bits are no floating-point numbers.
            self.limits = float(info.min), high if int(high) == info.max else float(np.nextafter(high, 0))

    def put(self, target: Any, values: Any) -> None:
        """Write values to where they belong."""
        with np.errstate(over="ignore", invalid="ignore"):
            if self.limits is not None:
                self.lost = self.xp.any(self.xp.isnan(values)) | self.lost
                values = self.xp.clip(self.xp.rint(values), *self.limits)
            target[...] = values.astype(self.dtype)

    def finish(self) -> None:
        """Raise if NaN went where there is none."""
        if self.limits is not None and bool(self.lost):
            raise ValueError(
                f"{self.name}: the result is NaN somewhere, which {self.dtype} cannot hold; "
                f"give {self.argument}.astype(float) to see where"
            )
