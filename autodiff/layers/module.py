"""Module: something with parameters."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._show import Shown
from .._state import assign, mismatches, to_numpy
from ..variable import Variable
from . import _inspect


class Loaded(NamedTuple):
    """What `Module.load_state_dict` found only in the module, and what only in the state: names."""

    missing: list[str]
    unexpected: list[str]


class Module(Shown):
    """Base of layers and networks.

    Attributes that are Variables are its parameters and attributes that are Modules are its parts, also those
    in lists, tuples and dicts, at any depth; attributes that are arrays are its buffers (state that is not
    trained). What was computed from Variables that still exist is neither. Nothing is registered;
    the name of a parameter is the path of attributes to it, such as ``blocks.0.conv.weight``. Two of one
    name, and modules that contain themselves, are refused. What a module holds in other ways, such as in a
    set, is not found: `ignored` lists it, and `parameters` warns of it.

    Printing a module shows the tree of its parts.

    Examples
    --------
    >>> from autodiff.layers import Linear, ReLU, Sequential
    >>> print(Sequential(Linear(2, 8, rng=0), ReLU(), Linear(8, 1, rng=0)))
    Sequential, 33 parameters
      layers.0: Linear, 24 parameters: weight (8, 2), bias (8,)
      layers.1: ReLU()
      layers.2: Linear, 9 parameters: weight (1, 8), bias (1,)
    """

    training = True

    def __call__(self, *args: Any, **params: Any) -> Any:
        """`forward`."""
        return self.forward(*args, **params)

    def forward(self, *args: Any, **params: Any) -> Any:
        """The output; each module defines it, for arguments of its own.

        Parameters
        ----------
        *args, **params
            As the module takes them. Layers convert integers to the dtype of their parameters, and refuse
            floats of another.

        Returns
        -------
        object
            What the module makes of them: Variables where parameters or Variables take part.

        Raises
        ------
        NotImplementedError
            If the module does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def multiply_adds(self, x: Any, output: Any) -> int:
        """Multiply-adds of one call, without those of its parts.

        Parameters
        ----------
        x : array, any shape
            The first input of the call.
        output : array, any shape
            What came of it.

        Returns
        -------
        int
            Of this module alone.
        """
        return 0

    def children(self) -> dict[str, "Module"]:
        """The direct parts of this module.

        Returns
        -------
        dict of str to Module
            By name.
        """
        return {name: value for name, value in self._members() if isinstance(value, Module)}

    def modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """All modules from this one down.

        Parameters
        ----------
        prefix : str
            The path of this one, which is empty by default.

        Returns
        -------
        iterator of (str, Module)
            Their paths and themselves.
        """
        return self._modules(prefix, ())

    def _modules(self, path: str, above: tuple) -> Iterator[tuple[str, "Module"]]:
        if any(self is module for module in above):
            raise ValueError(f"{type(self).__name__}: it contains itself, as {path}")
        yield path, self
        for name, child in self.children().items():
            yield from child._modules(f"{path}.{name}" if path else name, (*above, self))

    def named_parameters(self) -> dict[str, Variable]:
        """Every parameter by its path.

        Returns
        -------
        dict of str to Variable
            A parameter that is held twice is there twice.
        """
        return {path: value for path, _, value in self._state() if isinstance(value, Variable)}

    def parameters(self) -> list[Variable]:
        """Every parameter, each once. Warns of Variables and modules that the network holds, but not as
        parts.

        Returns
        -------
        list of Variable
            In the order of `named_parameters`.
        """
        if lost := {name: why for name, why in self.ignored().items() if "holds" in why or "class" in why}:
            text = "; ".join(f"{name}: {why}" for name, why in lost.items())
            warnings.warn(f"{type(self).__name__}: not among its parameters: {text}", stacklevel=2)
        return list(dict.fromkeys(self.named_parameters().values()))

    def ignored(self) -> dict[str, str]:
        """What looks like a parameter, part or buffer and is none.

        Returns
        -------
        dict of str to str
            By its path, the reason.
        """
        return {
            f"{path}.{name}" if path else name: reason
            for path, module in self.modules()
            for name, reason in _inspect.ignored(module).items()
        }

    @property
    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.size for p in set(self.named_parameters().values()))

    def train(self, mode: bool = True) -> "Module":
        """Set this module and its parts to training mode.

        Parameters
        ----------
        mode : bool
            False sets them to evaluation mode.

        Returns
        -------
        Module
            This one.
        """
        for _, module in self.modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """Set this module and its parts to evaluation mode.

        Returns
        -------
        Module
            This one.
        """
        return self.train(False)

    def generators(self) -> dict[str, np.random.Generator]:
        """Every source of random numbers, of dropout for example: state too, but no array.

        Returns
        -------
        dict of str to Generator
            By its path.
        """
        return {
            f"{path}.{name}" if path else name: value
            for path, module in self.modules()
            for name, value in module._members()
            if isinstance(value, np.random.Generator)
        }

    def state_dict(self) -> dict[str, Any]:
        """A copy of every parameter and buffer.

        Returns
        -------
        dict of str to array
            By its path, with its shape and dtype, where it is: of NumPy or CuPy.
        """
        return {path: (v.data if isinstance(v, Variable) else v).copy() for path, _, v in self._state()}

    def constants(self) -> dict[str, Any]:
        """Arrays that calls use and that are no state: held averages.

        Returns
        -------
        dict of str to array
            (N, C, 1, 1) each, by the path of its module; None where nothing was called yet.
        """
        held = {path: getattr(module, "held", None) for path, module in self.modules()}
        return {path: holder.value for path, holder in held.items() if holder is not None}

    def state_faults(self, state: Mapping[str, Any]) -> list[str]:
        """What keeps a state from being a `state_dict` of this module.

        Parameters
        ----------
        state : mapping of str to array
            By the names of `state_dict`, in the shapes and dtypes that it has.

        Returns
        -------
        list of str
            A line for each entry that is missing, unexpected, or of another shape or dtype.
        """
        return mismatches({path: value for path, _, value in self._state()}, state)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> Loaded:
        """Take over the arrays of a `state_dict`; if anything is wrong with it, nothing changes.

        Parameters
        ----------
        state : mapping of str to array
            By the names of `state_dict`, in the shapes and dtypes that it has.
        strict : bool
            Whether both must have the same names. Otherwise names of one side alone are passed over.

        Returns
        -------
        Loaded
            The names passed over: ``missing`` in the state, and ``unexpected`` in it.

        Raises
        ------
        TypeError
            If `state` is no mapping: what `autodiff.files.load` gives has it as ``.arrays``.
        ValueError
            With every missing, unexpected or misshapen entry.
        """
        if not isinstance(state, Mapping):
            raise TypeError(
                f"{type(self).__name__}.load_state_dict: expected a mapping of names to arrays, got "
                f"{type(state).__name__}; of a file that is files.load(path).arrays"
            )
        own = {path: value for path, _, value in self._state()}
        report = Loaded([n for n in own if n not in state], [n for n in state if n not in own])
        common = [name for name in own if name in state]
        faults = mismatches(own, state)
        if not strict:
            faults = mismatches({n: own[n] for n in common}, {n: state[n] for n in common})
        if faults:
            raise ValueError(f"{type(self).__name__}.load_state_dict:\n  " + "\n  ".join(faults))
        assign((v.data if isinstance(v := own[name], Variable) else v, state[name]) for name in common)
        return report

    def to_device(self, device: str) -> "Module":
        """Move parameters and buffers, in place.

        Parameters
        ----------
        device : {"cpu", "cuda"}
            Where to: arrays of NumPy, or of CuPy.

        Returns
        -------
        Module
            This one.

        Raises
        ------
        ValueError
            If `device` is neither.
        """
        if device not in ("cpu", "cuda"):
            raise ValueError(f"to_device: device must be 'cpu' or 'cuda', got {device!r}")
        for path, owner, value in self._state():
            array = value.data if isinstance(value, Variable) else value
            if device == "cuda":
                import cupy

                array = cupy.asarray(array)
            else:
                array = to_numpy(array)
            if isinstance(value, Variable):
                value.data = array
            else:
                setattr(owner, path.rpartition(".")[2], array)
        return self

    def _members(self) -> Iterable[tuple[str, Any]]:
        """Attributes, and the entries of those that are lists, tuples or dicts, with their names."""
        found: dict[str, Any] = {}
        for name, value in vars(self).items():
            for path, item in _inspect.flattened(name, value):
                if path in found:
                    raise ValueError(f"{type(self).__name__}: two of its members are called {path!r}")
                found[path] = item
        return found.items()

    def _state(self) -> Iterator[tuple[str, "Module", Any]]:
        """(path, owner, Variable or array) for every parameter and buffer."""
        seen = set()
        for path, module in self.modules():
            for name, value in module._members():
                if _inspect.is_parameter(value) or (_inspect.is_array(value) and name in vars(module)):
                    whole = f"{path}.{name}" if path else name
                    if whole in seen:
                        raise ValueError(f"{type(self).__name__}: two of its parameters are called {whole!r}")
                    seen.add(whole)
                    yield whole, module, value

    def _label(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        return _inspect.tree(self)


def generator(rng: Any) -> np.random.Generator:
    """A Generator as it is; a seed, or None for a fresh one, as a new Generator."""
    return np.random.default_rng(rng)


class Sequential(Module):
    """Modules (or plain functions) one after the other.

    Parameters
    ----------
    *layers : Module or callable
        Each is given the output of the one before.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff.layers import Conv2d, ReLU, Sequential
    >>> network = Sequential(Conv2d(1, 4, 3, rng=0), ReLU(), Conv2d(4, 1, 3, rng=1))
    >>> network(np.ones((1, 1, 8, 8), np.float32)).shape, sorted(network.named_parameters())[0]
    ((1, 1, 8, 8), 'layers.0.bias')
    """

    def __init__(self, *layers: Any) -> None:
        self.layers = layers

    def forward(self, x: Any) -> Any:
        """Apply one layer after the other.

        Parameters
        ----------
        x : object
            What the first layer takes.

        Returns
        -------
        object
            What the last layer gives.
        """
        for layer in self.layers:
            x = layer(x)
        return x

    def __getitem__(self, index: int) -> Any:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)
