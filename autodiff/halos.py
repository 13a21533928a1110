"""What an output of a network reads of its inputs: the reaches of its functions, followed through a call.

The call runs once, on zeros. Each function that it makes adds its own reach to what its arguments reach;
where paths meet, the union is kept. What has no reach, because it reads the whole image, is refused by name,
and so is every function of which nothing is known: a halo that is too small would be silently wrong.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

import dynarray
from dynarray._check import check_pair
from dynarray._halo import ONE, Reach
from dynarray._parts import owners

from ._graph import State, state
from .functions._common import normal_axes, plain
from .layers.module import Module
from .variable import Variable


class NoHalo(Exception):
    """What a function reads is not known, or everything. Functions add words of their own to a ValueError."""


Reaches = dict[int, tuple[Reach, ...]]  # by the number of the input


class _Places(NamedTuple):
    """Which axes of an array are those of the image, and what it reads of the inputs at each place."""

    axes: tuple[int, ...]
    reaches: Reaches


class _Call(NamedTuple):
    """A call of a function, as it is heard."""

    name: str
    args: tuple[Any, ...]
    params: Mapping[str, Any]
    shape: tuple[int, ...]
    known: list[_Places | None]  # of each argument

    @property
    def first(self) -> _Places:
        """Of the first argument, which is the image."""
        if self.known[0] is None:
            raise NoHalo("its first argument is no image, and another one is")
        return self.known[0]


def halo(function: Callable[..., Any], *shapes: tuple[int, ...]) -> tuple[tuple[Reach, ...], ...]:
    """What an output of a function reads of each of its inputs, for `dynarray.tiles`.

    Parameters
    ----------
    function : callable
        A network, a method of one, or any function of Variables that returns one image.
    *shapes : tuple of int
        The shape of each input: images (N, C, H, W), or lines (N, C, L). H and W may be small, but must
        differ from each other and from what else there is in the shapes on the way, and be multiples of all
        strides.

    Returns
    -------
    tuple
        For each input, a `dynarray.tiles.Reach` for each axis of the image: how many rows and columns an
        output reads before and after its own place, and the step between outputs.

    Raises
    ------
    ValueError
        Naming function and layer, where there is no halo: what is averaged over the whole image (global
        pooling, statistics of a batch or of an image), sampling at places that the inputs say, and functions
        of which nothing is known. `layers.hold_averages` gives a network the averages that it would make.
        Conditions of `where` are taken to be those of the same place.

    Examples
    --------
    >>> import autodiff
    >>> from autodiff.layers import Conv2d, MaxPool2d, Sequential
    >>> network = Sequential(Conv2d(3, 8, 5, rng=0), MaxPool2d(2), Conv2d(8, 8, 3, rng=0))
    >>> (rows, columns), = autodiff.halo(network, (1, 3, 22, 26))
    >>> rows.before, rows.after, rows.step
    (4, 5, 2)
    """
    ears = _Ears(function)
    inputs = [Variable(np.zeros(shape, ears.dtype)) for shape in shapes]
    for number, (variable, shape) in enumerate(zip(inputs, shapes)):
        axes = tuple(range(2, len(shape)))
        ears.known[variable.node] = _Places(axes, {number: (ONE,) * len(axes)})
    with ears.watching():
        token = state.set(State((), ears))
        try:
            output = function(*inputs)
        except NoHalo as problem:
            raise ValueError(str(problem)) from None
        finally:
            state.reset(token)
    found = ears.known.get(output.node) if isinstance(output, Variable) else None
    if found is None or found.axes != tuple(range(len(output.shape) - len(found.axes), len(output.shape))):
        raise ValueError(
            "halo: the output must be one image that follows from the inputs, rows and columns last"
        )
    return tuple(found.reaches.get(i, (ONE,) * len(found.axes)) for i in range(len(inputs)))


class _Ears:
    """Hears the functions that a call makes, and knows what each result reads."""

    def __init__(self, function: Any) -> None:
        self.networks = [owner for owner in owners(function) if isinstance(owner, Module)]
        parameters = (p for network in self.networks for p in network.named_parameters().values())
        self.dtype = next((p.dtype for p in parameters), np.dtype(np.float32))
        self.known: dict[Any, _Places] = {}
        self.path: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Know which module a call comes from."""
        watched = [each for network in self.networks for each in network.modules()]
        for path, module in watched:
            self._watch(path, module)
        try:
            yield
        finally:
            for _, module in watched:
                vars(module).pop("forward", None)

    def _watch(self, path: str, module: Module) -> None:
        original = module.forward

        def forward(*args: Any, **params: Any) -> Any:
            self.path.append(f"{path} ({type(module).__name__})" if path else type(module).__name__)
            output = original(*args, **params)
            self.path.pop()
            return output

        module.forward = forward  # type: ignore[method-assign]

    def __call__(self, name: str, args: Any, params: Mapping[str, Any], result: Variable) -> None:
        known = [self.known.get(arg.node) if isinstance(arg, Variable) else None for arg in args]
        if not any(known):
            return
        call = _Call(name, tuple(args), params, tuple(result.shape), known)
        try:
            self.known[result.node] = _rule(name)(call)
        except (NoHalo, ValueError) as problem:
            where = f", in {self.path[-1]}" if self.path else ""
            raise NoHalo(f"halo: {name}{where}: {problem}") from None


def _rule(name: str) -> Callable[[_Call], _Places]:
    if name in dynarray.OPERATORS:
        return _operator
    for names, rule in _RULES.items():
        if name in names.split():
            return rule
    raise NoHalo("nothing is known of what it reads")


def _merged(many: list[Reaches]) -> Reaches:
    """What some of them read together."""
    found: Reaches = {}
    for reaches in many:
        for number, reach in reaches.items():
            found[number] = tuple(map(Reach.union, found[number], reach)) if number in found else reach
    return found


def _through(places: _Places, outer: tuple[Reach, ...]) -> Reaches:
    """What a function reads that reads images so."""
    return {number: tuple(o.of(i) for o, i in zip(outer, inner)) for number, inner in places.reaches.items()}


def _elementwise(call: _Call) -> _Places:
    """The same place of each argument, which broadcast."""
    ndim, axes = len(call.shape), set[tuple[int, ...]]()
    for places, arg in zip(call.known, call.args):
        shape = tuple(getattr(arg, "shape", ()))
        if places is not None:
            axes.add(tuple(axis + ndim - len(shape) for axis in places.axes))
    if len(axes) > 1:
        raise NoHalo("rows and columns are other axes of one argument than of another")
    (own,) = axes
    for places, arg in zip(call.known, call.args):
        shape = tuple(getattr(arg, "shape", ()))
        extents = (shape[axis - ndim] if axis - ndim >= -len(shape) else 1 for axis in own)
        condition = call.name == "where" and arg is call.args[0]
        if places is None and any(extent > 1 for extent in extents) and not condition:
            raise NoHalo("an array of the size of the image is part of the function, and no input of it")
    return _Places(own, _merged([places.reaches for places in call.known if places is not None]))


def _along(call: _Call) -> _Places:
    """Along some axes, which must not be rows or columns."""
    places, ndim = call.first, len(call.args[0].shape)
    given = call.params.get("axis", call.params.get("axes"))
    over = tuple(range(ndim)) if given is None else normal_axes(given, ndim)
    if set(over) & set(places.axes):
        raise NoHalo(
            "it reads the whole image, so that there is no halo; evaluation mode gives batch normalisation "
            "its statistics, `layers.hold_averages` gives dynamic filters their averages"
        )
    if len(call.shape) == ndim:
        return places
    return _Places(tuple(axis - sum(gone < axis for gone in over) for axis in places.axes), places.reaches)


def _reshape(call: _Call) -> _Places:
    """Axes stay where as many elements lie before and after them; a row may take in what follows it."""
    places, before, after = call.first, tuple(call.args[0].shape), call.shape
    found, scales = list[int](), list[int]()
    for axis in places.axes:
        lead, size = int(np.prod(before[:axis])), before[axis]
        starts = [i for i in range(len(after)) if int(np.prod(after[:i])) == lead and after[i] % size == 0]
        starts = [i for i in starts if after[i] > 1 or size == 1]
        if not starts or not size:
            raise NoHalo(f"from {before} to {after} its axis {axis}, of the image, is torn apart")
        found.append(starts[0])
        scales.append(after[starts[0]] // size)
    ends = [axis + 1 for axis in places.axes]
    for end, axis, scale in zip(ends, places.axes, scales):
        taken = int(np.prod(before[end : end + 1])) if scale > 1 else 1
        if scale > 1 and (taken != scale or end in places.axes):
            raise NoHalo(f"from {before} to {after} its axis {axis}, of the image, takes in another")
    return _Places(tuple(found), _through(places, tuple(Reach(0, 0, 1, scale) for scale in scales)))


def _broadcast(call: _Call) -> _Places:
    places, before = call.first, tuple(call.args[0].shape)
    ahead = len(call.shape) - len(before)
    if any(call.shape[axis + ahead] != before[axis] for axis in places.axes):
        raise NoHalo("rows or columns are repeated")
    return _Places(tuple(axis + ahead for axis in places.axes), places.reaches)


def _transpose(call: _Call) -> _Places:
    places, ndim = call.first, len(call.shape)
    order = call.params.get("axes")
    order = range(ndim)[::-1] if order is None else [axis % ndim for axis in order]
    return _Places(tuple(list(order).index(axis) for axis in places.axes), places.reaches)


def _concatenate(call: _Call) -> _Places:
    places = _elementwise(call._replace(shape=tuple(call.args[0].shape)))
    if call.params["axis"] % len(call.shape) in places.axes:
        raise NoHalo("images are put beside each other")
    return places


def _getitem(call: _Call) -> _Places:
    """Whole rows and columns of some channels."""
    places, index = call.first, call.params["index"]
    index = index if isinstance(index, tuple) else (index,)
    if not all(isinstance(each, int | slice) for each in index):
        raise NoHalo("of indices only numbers and slices are understood")
    gone = 0
    axes = list(places.axes)
    for axis, each in enumerate(index):
        if axis in places.axes and each != slice(None):
            raise NoHalo("it takes a part of the image")
        if isinstance(each, int):
            gone += 1
            axes = [own - (own > axis - gone + 1) for own in axes]
    return _Places(tuple(axes), places.reaches)


def _window(kernel: Any, stride: Any, dilation: Any, padding: Any) -> tuple[Reach, ...]:
    steps = zip(kernel, stride, dilation, padding)
    return tuple(Reach(p, d * (k - 1) - p, s, 1, 2 * p - d * (k - 1) - 1) for k, s, d, p in steps)


def _conv2d(call: _Call) -> _Places:
    places, weight = call.first, call.args[1]
    if any(call.known[1:]):
        raise NoHalo("its kernel follows from the image")
    options = (check_pair("halo", name, call.params[name], 0) for name in ("stride", "dilation", "padding"))
    return _Places(places.axes, _through(places, _window(weight.shape[2:], *options)))


def _pool(call: _Call) -> _Places:
    kernel, padding = (check_pair("halo", name, call.params[name], 0) for name in ("kernel_size", "padding"))
    given = call.params.get("stride")
    stride = kernel if given is None else check_pair("halo", "stride", given, 1)
    return _Places(call.first.axes, _through(call.first, _window(kernel, stride, (1, 1), padding)))


def _operator(call: _Call) -> _Places:
    operator = dynarray.OPERATORS[call.name]
    names = dict(zip(operator.arrays, call.known))
    for name in operator.reads.values.split() if operator.reads is not None else ():
        if names.get(name) is not None:
            raise NoHalo(f"where it reads follows from the image, by {name}")
    try:
        reach = operator.halo(call.params, tuple(plain(arg) for arg in call.args))
    except TypeError as problem:
        raise NoHalo(str(problem)) from None
    found, axes = list[Reaches](), len(operator.reads.space.image) if operator.reads is not None else 0
    for name, places in names.items():
        if places is None:
            if reach.get(name) is not None:
                raise NoHalo(f"{name} is an array of the size of the image, and no input")
        elif reach[name] is None:
            raise NoHalo(f"{name} follows from the image, and each output reads all of it")
        else:
            ndim = len(call.args[operator.arrays.index(name)].shape)
            if places.axes != tuple(range(ndim - axes, ndim)):
                raise NoHalo(f"rows and columns are not the last axes of {name}")
            found.append(_through(places, reach[name] or ()))
    ndim = len(call.shape)
    return _Places(tuple(range(ndim - axes, ndim)), _merged(found))


_RULES: dict[str, Callable[[_Call], _Places]] = {
    "add subtract multiply divide negative power square sqrt exp log log1p sin cos tanh abs maximum minimum"
    " hypot arctan2 where clip relu leaky_relu sigmoid softplus silu erf gelu astype": _elementwise,
    "sum mean max min var std prod logsumexp softmax log_softmax normalize cumsum flip sort": _along,
    "reshape": _reshape,
    "transpose": _transpose,
    "broadcast_to": _broadcast,
    "concatenate": _concatenate,
    "getitem": _getitem,
    "conv2d": _conv2d,
    "avg_pool2d max_pool2d": _pool,
}
