"""Module: something with parameters."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .._state import assign, mismatches, to_numpy
from ..variable import Variable


class Module:
    """Base of layers and networks.

    Attributes that are Variables are its parameters and attributes that are Modules are its parts, also those
    in lists, tuples or dicts; attributes that are arrays are its buffers (state that is not trained).
    Nothing is registered; the name of a parameter is the path of attributes to it, such as
    ``blocks.0.conv.weight``.
    """

    training = True

    def __call__(self, *args: Any, **params: Any) -> Any:
        """`forward`."""
        return self.forward(*args, **params)

    def forward(self, *args: Any, **params: Any) -> Any:
        """The output; each module defines it."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def multiply_adds(self, x: Any, output: Any) -> int:
        """Multiply-adds of one call without those of its parts, from its first input and its output."""
        return 0

    def children(self) -> dict[str, "Module"]:
        """The direct parts of this module, by name."""
        return {name: value for name, value in self._members() if isinstance(value, Module)}

    def modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """All modules from this one (its path is empty) down, with their paths."""
        yield prefix, self
        for name, child in self.children().items():
            yield from child.modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> dict[str, Variable]:
        """Every parameter by its path."""
        return {path: value for path, _, value in self._state() if isinstance(value, Variable)}

    def parameters(self) -> list[Variable]:
        """Every parameter, each once."""
        return list({id(p): p for p in self.named_parameters().values()}.values())

    @property
    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.size for p in self.parameters())

    def train(self, mode: bool = True) -> "Module":
        """Set this module and its parts to training mode."""
        for _, module in self.modules():
            module.training = mode
        return self

    def eval(self) -> "Module":
        """Set this module and its parts to evaluation mode."""
        return self.train(False)

    def generators(self) -> dict[str, np.random.Generator]:
        """Every source of random numbers (of dropout, for example) by its path: state too, but no array."""
        return {
            f"{path}.{name}" if path else name: value
            for path, module in self.modules()
            for name, value in vars(module).items()
            if isinstance(value, np.random.Generator)
        }

    def state_dict(self) -> dict[str, Any]:
        """A copy of every parameter and buffer by its path."""
        return {path: (v.data if isinstance(v, Variable) else v).copy() for path, _, v in self._state()}

    def state_faults(self, state: Mapping[str, Any]) -> list[str]:
        """What keeps `state` from being a `state_dict` of this module: a line per entry, none if it fits."""
        return mismatches({path: value for path, _, value in self._state()}, state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the arrays of a `state_dict`; unless all names, shapes and dtypes agree, nothing changes.

        Raises
        ------
        ValueError
            With every missing, unexpected or misshapen entry.
        """
        faults = self.state_faults(state)
        if faults:
            raise ValueError(f"{type(self).__name__}.load_state_dict:\n  " + "\n  ".join(faults))
        for path, _, value in self._state():
            assign(value.data if isinstance(value, Variable) else value, state[path])

    def to_device(self, device: str) -> "Module":
        """Move parameters and buffers to ``"cpu"`` (NumPy arrays) or ``"cuda"`` (CuPy arrays), in place."""
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

    def _members(self) -> Iterator[tuple[str, Any]]:
        """Attributes, and the entries of those that are lists, tuples or dicts, with their names."""
        for name, value in vars(self).items():
            if isinstance(value, list | tuple):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value))
            elif isinstance(value, Mapping):
                yield from ((f"{name}.{key}", item) for key, item in value.items())
            else:
                yield name, value

    def _state(self) -> Iterator[tuple[str, "Module", Any]]:
        """(path, owner, Variable or array) for every parameter and buffer."""
        for path, module in self.modules():
            for name, value in module._members():
                if isinstance(value, Variable) or (_is_array(value) and name in vars(module)):
                    yield (f"{path}.{name}" if path else name), module, value


def _is_array(value: Any) -> bool:
    """NumPy's scalars have dtype and strides too, but cannot be written to."""
    return hasattr(value, "dtype") and hasattr(value, "strides") and not isinstance(value, np.generic)


def generator(rng: Any) -> np.random.Generator:
    """A Generator as it is; a seed, or None for a fresh one, as a new Generator."""
    return np.random.default_rng(rng)


class Sequential(Module):
    """Modules (or plain functions) one after the other."""

    def __init__(self, *layers: Any) -> None:
        self.layers = layers

    def forward(self, x: Any) -> Any:
        """The output of the last layer."""
        for layer in self.layers:
            x = layer(x)
        return x

    def __getitem__(self, index: int) -> Any:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)
