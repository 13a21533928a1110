"""Module: something with parameters."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..functions._common import library
from ..variable import Variable


class Module:
    """Base of layers and networks.

    Attributes that are Variables are its parameters, attributes that are arrays are its buffers (state that
    is not trained), and attributes that are Modules, or lists, tuples or dicts of them, are its parts.
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
        parts: dict[str, Module] = {}
        for name, value in vars(self).items():
            if isinstance(value, list | tuple):
                entries = [(f"{name}.{i}", item) for i, item in enumerate(value)]
            elif isinstance(value, Mapping):
                entries = [(f"{name}.{key}", item) for key, item in value.items()]
            else:
                entries = [(name, value)]
            parts.update((path, item) for path, item in entries if isinstance(item, Module))
        return parts

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
        return list({p.key: p for p in self.named_parameters().values()}.values())

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

    def state_dict(self) -> dict[str, Any]:
        """A copy of every parameter and buffer by its path."""
        return {path: (v.data if isinstance(v, Variable) else v).copy() for path, _, v in self._state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the arrays of a `state_dict`; unless all names, shapes and dtypes agree, nothing changes.

        Raises
        ------
        ValueError
            With every missing, unexpected or misshapen entry.
        """
        own = {path: value for path, _, value in self._state()}
        faults = [f"missing: {path}" for path in own if path not in state]
        faults += [f"unexpected: {path}" for path in state if path not in own]
        for path, value in own.items():
            if path in state and (tuple(state[path].shape), state[path].dtype) != (value.shape, value.dtype):
                expected, got = (
                    f"{value.shape} {value.dtype}",
                    f"{tuple(state[path].shape)} {state[path].dtype}",
                )
                faults.append(f"{path}: expected {expected}, got {got}")
        if faults:
            raise ValueError(f"{type(self).__name__}.load_state_dict:\n  " + "\n  ".join(faults))
        for path, value in own.items():
            array = value.data if isinstance(value, Variable) else value
            array[...] = state[path]

    def to_device(self, device: str) -> "Module":
        """Move parameters and buffers to ``"cpu"`` (NumPy arrays) or ``"cuda"`` (CuPy arrays), in place."""
        if device not in ("cpu", "cuda"):
            raise ValueError(f"to_device: device must be 'cpu' or 'cuda', got {device!r}")
        for path, owner, value in self._state():
            array = value.data if isinstance(value, Variable) else value
            if device == "cuda":
                import cupy

                array = cupy.asarray(array)
            elif library(array) is not np:
                array = array.get()
            if isinstance(value, Variable):
                value.data = array
            else:
                setattr(owner, path.rpartition(".")[2], array)
        return self

    def _state(self) -> Iterator[tuple[str, "Module", Any]]:
        """(path, owner, Variable or array) for every parameter and buffer."""
        for path, module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, Variable) or (hasattr(value, "dtype") and hasattr(value, "strides")):
                    yield (f"{path}.{name}" if path else name), module, value


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
