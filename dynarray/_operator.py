"""The operator record and the registry that everything generic iterates over."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import zip_longest
from numbers import Real
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rawkernels import forks

from ._backward import backward_of as backward_of
from ._check import check_count
from ._dispatch import (
    Passed,
    any_dask,
    call_key,
    choose_backend,
    fits_backend,
    library_of,
    passed_call,
    well_placed,
)
from ._foreign import OWN, view
from ._geometry import after_zeros, behind_zeros
from ._halo import Halo, Reach, mirrors
from .typing import ArrayT

if TYPE_CHECKING:
    from ._outside import Outside

F = TypeVar("F", bound=Callable[..., Any])

OPERATORS: dict[str, "Operator"] = {}

MOST_CALLS = 1024  # kinds of calls of an operator that are remembered


class Checked(NamedTuple):
    """What a check returns: arrays and parameters as the backends take them, and the shape of the output.

    The forms may know the output by another shape than the caller, `form_shape`, which has as many elements.
    Arrays named in `zeros` get as many zeros in front, along the axis given there, before a form takes them:
    the y coordinates of what the caller places by x alone. Zeros have no gradient. Images that are not zero
    `outside` are the first array.
    """

    arrays: tuple[Any, ...]
    params: dict[str, Any]
    output_shape: tuple[int, ...]
    form_shape: tuple[int, ...] | None = None
    zeros: Mapping[str, int] = {}
    outside: "Outside | None" = None


class Saved(NamedTuple):
    """What a forward pass leaves for the backward pass; `arrays` are the arrays it keeps alive."""

    backend: str
    arrays: tuple[Any, ...]
    params: dict[str, Any]
    output_shape: tuple[int, ...]
    form_shape: tuple[int, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    zeros: Mapping[str, int]
    outside: "Outside | None"


@dataclass(frozen=True)
class Form:
    """A function of another module, imported when first called, so that ``import dynarray`` stays light."""

    module: str
    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(load(self.module), self.name)(*args, **kwargs)


@cache
def load(module: str) -> ModuleType:
    """Import a module. A fork meanwhile would leave its child waiting for the end of the import for ever."""
    with forks.held_off():
        return import_module(module)


@dataclass(frozen=True)
class OnCpu:
    """The form of the CPU, or the definition where ``NUMBA_DISABLE_JIT`` keeps Numba from compiling."""

    compiled: Callable[..., Any]
    definition: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        form = self.compiled if load("dynarray.cpu.engine.compile").available() else self.definition
        return form(*args, **kwargs)


@dataclass(frozen=True)
class OnPtx:
    """The form of CUDA, whose launches run what NVRTC made of the kernels, and check it."""

    form: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with load("rawkernels.launch").numpy_runner("ptx"):
            return self.form(*args, **kwargs)


@dataclass(frozen=True)
class LazyModule:
    """A module whose functions are `Form`: nothing is imported until one is called."""

    module: str

    def __getattr__(self, name: str) -> Form:
        return Form(self.module, name)


def modules(stem: str) -> tuple[Any, Any, Any, Any]:
    """The modules of a family: reference, composite, CPU kernels, launches of CUDA kernels.

    Families import them by name where a type checker or an editor reads, and take these where Python does.
    """
    packages = ("dynarray.reference", "dynarray.composite", "dynarray.cpu", "rawkernels")
    reference, composite, cpu, cuda = (LazyModule(f"{package}.{stem}") for package in packages)
    return reference, composite, cpu, cuda


def forms(reference: Callable[..., Any], cpu: Callable[..., Any], cuda: Callable[..., Any]) -> dict[str, Any]:
    """One function on each backend; those that run CUDA kernels without a GPU make the same launches."""
    on_cpu, on_ptx = OnCpu(cpu, reference), OnPtx(cuda)
    return {"reference": reference, "cpu": on_cpu, "host": cuda, "ptx": on_ptx, "cuda": cuda}


@dataclass(frozen=True)
class Operator:
    """One operator: its public function, its argument names, its check and its forms.

    Parameters
    ----------
    name : str
        The name of the public function.
    function : callable
        The public function; its signature is where argument names and defaults are defined.
    arrays, optional, keywords : tuple of str
        Names of the array arguments in order, those of them that may be ``None``, and those that the public
        function takes by keyword only.
    numbers : tuple of str
        Those whose default is a number: they may be a plain number too, a constant without gradient, or a 0-d
        array. None stands for the default.
    may_be_float32 : tuple of str
        Those that may be float32 beside 16-bit others: what 16 bits would round to another pixel, or to
        filters that no longer add up to one. All others have the dtype of the first array.
    defaults : dict
        The parameters and their defaults. Arrays that have no gradient are parameters, here as on the tape.
    forward : dict
        Per backend, ``forward(*arrays, **params) -> (output, kept)``.
    backward : dict
        Per backend, ``backward(grad_output, kept, needs, **params) -> tuple`` with None where not needed.
        `kept` begins with the arrays of the forward pass; whatever follows them is recomputed when missing.
    check : callable
        ``check(*arrays, **params) -> Checked``; raises TypeError or ValueError. It reads no values of arrays,
        but of `numbers`: what it says holds for other calls with these types, shapes, dtypes and `params`.
    roles : tuple of str
        The public name of each array that the forms take, in the order in which they take them.
    composite : callable, optional
        ``composite(functions, *arrays, **params) -> output``: the operator in elementary functions, for
        gradients of gradients; see `dynarray.composite`.
    reads : Halo, optional
        What outputs read of each array; see `dynarray._halo`.
    constants : frozenset of str
        Parameters that may be arrays without gradient.
    by_x : tuple of str
        Backends whose forms take what the caller places by x alone as it is, without `Checked.zeros`.

    Examples
    --------
    >>> import dynarray as dyn
    >>> operator = dyn.OPERATORS["ddf"]
    >>> operator.function is dyn.ddf, operator.arrays
    (True, ('x', 'channel_filter', 'spatial_filter'))
    """

    name: str
    function: Callable[..., Any]
    arrays: tuple[str, ...]
    optional: tuple[str, ...]
    keywords: tuple[str, ...]
    numbers: tuple[str, ...]
    may_be_float32: tuple[str, ...]
    defaults: Mapping[str, Any]
    forward: Mapping[str, Any]
    backward: Mapping[str, Any]
    check: Callable[..., Checked]
    roles: tuple[str, ...]
    composite: Callable[..., Any] | None = None
    reads: Halo | None = None
    constants: frozenset[str] = frozenset()
    by_x: tuple[str, ...] = ()
    _passed: dict[tuple[Any, ...], Passed] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def stem(self) -> str:
        """The name that the files of its family share."""
        reference: Form = self.forward["reference"]
        return reference.module.rpartition(".")[2]

    def __call__(self, arrays: tuple[ArrayT, *tuple[Any, ...]], **params: Any) -> ArrayT:
        """The output alone; of arrays of dask one of dask."""
        if any_dask(arrays):
            lazy: ArrayT = load("dynarray._dask").output(self, arrays, params)
            return lazy
        output: ArrayT = self.run(arrays, params)[0]
        return output

    def arguments(self, arrays: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The `arrays` of a call as the public function takes them: ``(positional, by keyword)``."""
        named = dict(zip(self.arrays, arrays, strict=True))
        by_keyword = {name: named.pop(name) for name in self.keywords}
        return tuple(named.values()), by_keyword

    def halo(
        self, params: Mapping[str, Any], arrays: tuple[Any, ...], origin: tuple[int, ...] | None = None
    ) -> dict[str, tuple[Reach, ...] | None]:
        """What an output reads of each array: how many rows and columns before and after its own place.

        Parameters
        ----------
        params : mapping
            The keyword parameters of a call; what is left out has its default.
        arrays : tuple
            The arrays of the call, None where one is left out. Shapes are all that is looked at, but for
            those whose values say where others are read: offsets, displacements, points.
        origin : tuple of int, optional
            Where these are a part of the whole, the output (y, x) with which it begins.

        Returns
        -------
        dict
            For each array that is given, a `Reach` (with fields `before`, `after`, `step` and `scale`) for
            each axis of the image, (y, x); None for arrays without such axes, which any output may read as a
            whole.

        Raises
        ------
        TypeError, ValueError
            If the operator says nothing of what it reads, for arrays and parameters that are not its own, and
            where there is no halo, as with ``border="wrap"``.

        Examples
        --------
        >>> import numpy as np, dynarray as dyn
        >>> x, weight = np.ones((1, 2, 8, 8)), np.ones((1, 1, 5, 3, 8, 8))
        >>> rows, columns = dyn.OPERATORS["local_filter2d"].halo({}, (x, weight, None))["x"]
        >>> rows.before, rows.after, columns.before, columns.after
        (2, 2, 1, 1)
        """
        if self.reads is None:
            raise TypeError(f"{self.name}: nothing says what its outputs read, so that it has no halo")
        check_count("halo", self.name, self.arrays, arrays)
        given = {name: array for name, array in zip(self.arrays, arrays) if array is not None}
        chosen = self.chosen(params)
        mirrors(self.name, chosen)
        reaches = self.reads(self.name, chosen, given, origin or (0,) * len(self.reads.space.image))
        return {name: reaches[name] for name in given}

    def prepare(self, arrays: tuple[Any, ...], params: Mapping[str, Any]) -> tuple[str, Checked]:
        """Check a call with `arrays` and `params`; return its backend and what the forms of that backend are
        to be given. What is wrong with the call is a TypeError or a ValueError.
        """
        key = None if self.numbers else call_key(arrays, params)
        passed = None if key is None else self._passed.get(key)
        if passed is not None and well_placed([*arrays, *map(params.get, passed.constants)]):
            return passed.backend, passed.again(arrays, params)
        backend, checked = self._check(arrays, params)
        if key is not None:
            new = passed_call(self.arrays, self.roles, backend, checked, arrays, params)
            if new is not None:
                if len(self._passed) >= MOST_CALLS:
                    self._passed.clear()
                self._passed[key] = new
        return backend, checked

    def _taken(
        self, arrays: tuple[Any, ...], params: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The arrays of a call, also those among its parameters, as NumPy and CuPy have them."""
        constants = {name: view(self.name, name, params[name]) for name in self.constants & params.keys()}
        taken = tuple([view(self.name, name, array) for name, array in zip(self.arrays, arrays)])
        return taken, {**params, **constants}

    def chosen(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters of a call with `params`; a TypeError for one that is unknown, or must be given."""
        chosen = {**self.defaults, **params}
        if len(chosen) > len(self.defaults):
            unknown = min(set(params) - set(self.defaults))
            raise TypeError(
                f"{self.name}: unknown parameter {unknown!r}; it takes {', '.join(self.defaults)}"
            )
        for name, value in chosen.items():
            if value is inspect.Parameter.empty:
                raise TypeError(f"{self.name}: parameter {name!r} must be given")
        return chosen

    def _check(self, arrays: tuple[Any, ...], params: Mapping[str, Any]) -> tuple[str, Checked]:
        chosen = self.chosen(params)
        return self.backend_of(arrays), self.check(*arrays, **chosen)

    def backend_of(self, arrays: tuple[Any, ...]) -> str:
        """The backend that takes `arrays`; a TypeError or ValueError says which of them fits not, and why."""
        given = {
            name: array
            for name, array in zip(self.arrays, arrays, strict=True)
            if (array is not None or name not in self.optional)
            and not (name in self.numbers and library_of(array) is None)  # left to the check
        }
        return choose_backend(self.name, given, self.may_be_float32)

    def run(self, arrays: tuple[Any, ...], params: Mapping[str, Any]) -> tuple[Any, Saved]:
        """Forward pass for `arrays` and `params`: the output, and what the backward pass needs."""
        if self.constants or not OWN.issuperset(map(type, arrays)):
            arrays, params = self._taken(arrays, params)
        return self.run_checked(*self.prepare(arrays, params), arrays)

    def run_checked(self, backend: str, checked: Checked, arrays: tuple[Any, ...]) -> tuple[Any, Saved]:
        """Forward pass of a call that was `checked`, with its `arrays`, on a `backend`: see `prepare`."""
        given = checked.arrays
        if checked.zeros:
            given = self._formed(given, self.zeros(backend, checked))
        form, outside = self.forward[backend], checked.outside
        if outside is None:
            output, kept = form(*given, **checked.params)
        else:
            output, kept = outside.forward(form, given, checked.params, backend == "reference"), given
        if output.shape != checked.output_shape:
            output = output.reshape(checked.output_shape)
        return output, self._saved(backend, checked, kept, arrays)

    def gradients(self, grad_output: Any, saved: Saved, needs: tuple[bool, ...]) -> tuple[Any, ...]:
        """Backward pass, from `grad_output` and what a forward pass `saved`: one gradient per array argument,
        None where `needs` is False or nothing was given. A ValueError says that `grad_output` does not fit.
        """
        shape, first = saved.output_shape, self.arrays[0]
        kept = saved.arrays[self.roles.index(first)]
        if not fits_backend(saved.backend, kept, grad_output):
            grad_output = view(self.name, "grad_output", grad_output)
            backend = choose_backend(self.name, {first: kept, "grad_output": grad_output})
            if backend != saved.backend:
                raise ValueError(
                    f"{self.name}: forward and backward must use one backend; forward used {saved.backend!r}"
                )
        if tuple(grad_output.shape) != shape:
            raise ValueError(
                f"{self.name}: grad_output must have the shape of the output, {shape}, "
                f"got {tuple(grad_output.shape)}"
            )
        return self.gradients_checked(grad_output, saved, needs)

    def backward_pass(
        self, grad_output: Any, arrays: tuple[Any, ...], params: Mapping[str, Any], needs: tuple[bool, ...]
    ) -> tuple[Any, ...]:
        """The `gradients`, from `grad_output` as far as `needs` says, of a call with `arrays` and `params` of
        which nothing was kept; of arrays of dask they are such, too.
        """
        if any_dask((grad_output, *arrays)):
            lazy: tuple[Any, ...] = load("dynarray._dask").gradients(self, grad_output, arrays, params, needs)
            return lazy
        if self.constants or not OWN.issuperset(map(type, arrays)):
            arrays, params = self._taken(arrays, params)
        backend, checked = self.prepare(arrays, params)
        saved = self._saved(backend, checked, checked.arrays, arrays)
        return self.gradients(grad_output, saved, needs)

    def gradients_checked(self, grad_output: Any, saved: Saved, needs: tuple[bool, ...]) -> tuple[Any, ...]:
        """`gradients`, as far as `needs` says, by what was `saved`, from a `grad_output` that was checked."""
        shapes = saved.shapes
        wanted = {
            name for name, needed, given in zip(self.arrays, needs, shapes) if needed and given is not None
        }
        if grad_output.shape != saved.form_shape:
            grad_output = grad_output.reshape(saved.form_shape)
        form, outside = self.backward[saved.backend], saved.outside
        zeros = self.zeros(saved.backend, saved) if saved.zeros else saved.zeros
        kept = self._formed(saved.arrays, zeros)
        asked = tuple([role in wanted for role in self.roles])
        if outside is None:
            results = form(grad_output, kept, asked, **saved.params)
        else:
            definition = saved.backend == "reference"
            results = outside.backward(form, grad_output, kept, asked, saved.params, definition)
        named = dict(zip(self.roles, results, strict=True))
        for name in wanted.intersection(zeros):
            named[name] = named[name][behind_zeros(named[name].shape, zeros[name])].copy()
        found = [named[name] if name in wanted else None for name in self.arrays]
        return tuple(
            [
                array if array is None or array.shape == given else array.reshape(given)
                for array, given in zip(found, shapes)
            ]
        )

    def compose(self, functions: Any, arrays: Iterable[Any], call: Checked | Saved) -> Any:
        """The output of the composite by `functions`; `arrays` are those of a checked `call` or Variables."""
        composite: Any = self.composite
        given, params, outside = list(arrays), call.params, call.outside
        if outside is not None:
            given[0], params = outside.compose(functions, given[0]), {**params, **outside.whole.steps}
        return composite(functions, *given, **params)

    def zeros(self, backend: str, call: Checked | Saved) -> Mapping[str, int]:
        """The zeros of a `call` that the forms of a `backend` are given."""
        return {} if backend in self.by_x else call.zeros

    def _formed(self, arrays: tuple[Any, ...], zeros: Mapping[str, int]) -> tuple[Any, ...]:
        """The arrays as a form takes them, with the zeros of which the caller does not know."""
        if not zeros:
            return arrays
        return tuple(
            after_zeros(array, zeros[role]) if role in zeros else array
            for role, array in zip_longest(self.roles, arrays)
        )

    def _saved(self, backend: str, checked: Checked, kept: tuple[Any, ...], arrays: tuple[Any, ...]) -> Saved:
        if checked.zeros:  # of these the caller's own are kept
            own = zip_longest(self.roles, checked.arrays, kept)
            kept = tuple(mine if role in checked.zeros else other for role, mine, other in own)
        if self.numbers:
            shapes = tuple(tuple(array.shape) if library_of(array) else None for array in arrays)
        else:
            shapes = tuple([None if array is None else array.shape for array in arrays])
        form_shape = checked.form_shape or checked.output_shape
        known = (checked.output_shape, form_shape, shapes, checked.zeros, checked.outside)
        return Saved(backend, kept, checked.params, *known)


def register(
    function: Callable[..., Any],
    *,
    forward: Mapping[str, Callable[..., Any]],
    backward: Mapping[str, Callable[..., Any]],
    check: Callable[..., Checked],
    roles: tuple[str, ...] | None = None,
    composite: Callable[..., Any] | None = None,
    keywords: tuple[str, ...] = (),
    constants: tuple[str, ...] = (),
    may_be_float32: tuple[str, ...] = (),
    halo: Halo | None = None,
    by_x: tuple[str, ...] = (),
) -> Operator:
    """Add an operator: its arrays are the positional arguments of `function` and `keywords`.

    Positional arguments that have no gradient are `constants`: parameters, arrays among them.
    """
    parameters = inspect.signature(function).parameters
    positional = tuple(
        n
        for n, p in parameters.items()
        if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and n not in constants
    )
    arrays, defaults = (*positional, *keywords), {name: p.default for name, p in parameters.items()}
    operator = Operator(
        name=function.__name__,
        function=function,
        arrays=arrays,
        optional=tuple([name for name in arrays if defaults[name] is not inspect.Parameter.empty]),
        keywords=keywords,
        numbers=tuple([name for name in arrays if isinstance(defaults[name], Real)]),
        may_be_float32=may_be_float32,
        defaults={name: default for name, default in defaults.items() if name not in arrays},
        forward=forward,
        backward=backward,
        check=check,
        roles=roles or arrays,
        composite=composite,
        reads=halo,
        constants=frozenset(constants),
        by_x=by_x,
    )
    OPERATORS[operator.name] = operator
    return operator
