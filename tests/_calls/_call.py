"""One call in words: shapes, parameters, and what becomes of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

from dynarray._geometry import LINE, PLANE, check_window
from dynarray.typing import Border

Pick = Callable[[Sequence], Any]
Shape = tuple[int, ...]


class Case(NamedTuple):
    """One valid call: the shape of each array (None where it is left out) and the parameters.

    Arrays named in `ranges` hold values between these limits; the others may hold any number.
    """

    shapes: Mapping[str, tuple[int, ...] | None]
    params: Mapping[str, Any]
    ranges: Mapping[str, tuple[float, float]] = {}


def windows(image: Sequence[int], kernel: Sequence[int], params: Mapping[str, Any]) -> tuple[int, ...]:
    """The number of outputs along each axis."""
    space = PLANE if len(image) == 2 else LINE
    sizes = dict(zip((*space.image, *space.kernel), (*image, *kernel), strict=True))
    steps = {name: params[name] for name in ("stride", "dilation", "padding", "upsample") if name in params}
    return check_window("cases", "the kernel", sizes, space, **steps).outputs


def with_border(cases: Callable[..., Case]) -> Callable[..., Case]:
    """The same cases, each with a word for what is outside the image: of an empty one nothing but zeros."""

    def cases_with_border(pick: Pick, **fixed: int) -> Case:
        case = cases(pick, **fixed)
        shape = case.shapes["x"] or ()
        border = pick(get_args(Border) if all(shape[2:]) else ("constant",))
        return case._replace(params={**case.params, "border": border})

    return cases_with_border


def on_a_line(
    cases: Callable[..., Case], rows: Mapping[str, Callable[[Shape], Shape]]
) -> Callable[..., Case]:
    """Cases of an operator on lines, from those on images of one row with kernels of one row.

    `rows` takes the axes of y out of the shapes of some arrays; y goes from pairs. A line is as long as an
    image has pixels.
    """

    def cases_of_lines(pick: Pick, **fixed: int) -> Case:
        if "H" in fixed:
            fixed["W"] *= fixed["H"]
        case = cases(pick, **{**fixed, "H": 1, "kh": 1})
        shapes = {
            name: rows[name](shape) if name in rows and shape else shape
            for name, shape in case.shapes.items()
        }
        params = {name: p[1] if isinstance(p, tuple) else p for name, p in case.params.items()}
        return Case(shapes, params, case.ranges)

    return cases_of_lines


def without(*axes: int) -> Callable[[Shape], Shape]:
    """A shape with these axes taken out."""
    return lambda shape: tuple(n for axis, n in enumerate(shape) if axis not in axes)


class Good(NamedTuple):
    """A valid call with every array, and the shape of its output: what bad calls change."""

    shapes: dict[str, tuple[int, ...]]
    params: dict[str, Any]
    output: tuple[int, ...]


class Bad(NamedTuple):
    """A good call with other arguments, the exception, and words of its message.

    Of an array a tuple is the shape; anything else, and any value of a parameter, is given as it is.
    """

    operator: str
    changes: dict[str, Any]
    error: type[Exception]
    words: tuple[str, ...]


def bad_borders(*operators: str) -> list[Bad]:
    """A word that is no border, for each: what other libraries call one, or another kind of thing."""
    words = ("zeros", "mirror", "nearest", "grid-wrap", "REFLECT", None, 0)
    return [
        Bad(operator, {"border": word}, ValueError, ("border", "'constant'", "'wrap'", f"got {word!r}"))
        for operator, word in zip(operators, words)
    ]


# A batch of images of more than 2**31 elements, and strides with which its outputs are a few pixels each.
LARGE_IMAGES = (513, 1, 2048, 2049)
LARGE_STRIDE = (2048 - 3, 2049 - 3)


class Large(NamedTuple):
    """A call on `LARGE_IMAGES`: the shapes of the other arrays, and the parameters.

    `on_host` says whether the CUDA kernels can run on the CPU without a copy of the images. `values` makes
    what an array is to hold of whole numbers from 1 to 8.
    """

    shapes: dict[str, tuple[int, ...]]
    params: dict[str, Any]
    on_host: bool = True
    values: Mapping[str, Callable] = {}


class Heavy(NamedTuple):
    """A call whose extra memory is measured, and a small one that compiles the same kernels."""

    operator: str
    shapes: dict[str, tuple[int, ...]]
    params: dict[str, Any]
    small: dict[str, tuple[int, ...]]
    small_params: dict[str, Any]
