"""Weights that others published, by the names that their networks have there."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .. import files
from .._state import to_numpy
from ..layers import DDF, AtomConv, BatchNorm2d, Bottleneck, DDFUp, DisplacedConv, Module
from ..variable import Variable
from .resnet import ResNet

# By class: how paths within it begin, and how they begin where it was published.
RULES: dict[type[Module], list[tuple[str, str | Callable[[re.Match[str]], str]]]] = {
    # torchvision's and timm's
    ResNet: [
        (r"stem\.", "conv1."),
        (r"stem_norm\.", "bn1."),
        (r"stages\.(\d+)\.layers\.(\d+)\.", lambda found: f"layer{int(found[1]) + 1}.{found[2]}."),
        (r"head\.", "fc."),
    ],
    Bottleneck: [
        (r"reduce\.", "conv1."),
        (r"reduce_norm\.", "bn1."),
        (r"middle\.", "conv2."),
        (r"middle_norm\.", "bn2."),
        (r"expand\.", "conv3."),
        (r"expand_norm\.", "bn3."),
        (r"shortcut\.layers\.(\d+)\.", r"downsample.\1."),
    ],
    BatchNorm2d: [(r"running_variance$", "running_var")],
    # theFoxofSky/ddfnet
    DDF: [
        (r"spatial\.", "spatial_branch.0."),
        (r"channel\.layers\.0\.", "channel_branch.1."),
        (r"channel\.layers\.2\.", "channel_branch.3."),
        (r"channel_norm\.alpha$", "channel_branch.4.std"),
    ],
    # ZeWang95/ACDA
    AtomConv: [(r"choose\.layers\.(\d+)\.", r"bases_net.\1."), (r"coefficients$", "coef")],
    # skokec/DAU-ConvNet
    DisplacedConv: [(r"weight$", "weights"), (r"displacement$", "mu1 mu2")],
}
# What checkpoints hold the weights under, and what wrappers for several devices put before each name.
WRAPPERS = ("state_dict", "model", "state_dict_ema")
PREFIX = "module."
COUNTER = "num_batches_tracked"  # of batch normalisation, which nobody needs
MOST_LINES = 20


def published_names(network: Module) -> dict[str, str]:
    """The names that the parameters and buffers of a network have where it was published.

    Parameters
    ----------
    network : Module
        A `ResNet` (also of `DDFBottleneck`, and `DilatedResNet`), or a layer `DDF`, `DDFUp`, `AtomConv` or
        `DisplacedConv`, or a network of such.

    Returns
    -------
    dict of str to str
        By own name: the name in torchvision and timm (`ResNet`), or in the repositories of the authors of
        the layers. Where there are several, of the displacements along x and y, or of each phase of an
        upsampler, spaces are between them.

    Examples
    --------
    >>> from autodiff import networks
    >>> names = networks.published_names(networks.ddf_resnet50(rng=0))
    >>> names["stages.0.layers.2.middle.channel.layers.2.bias"]
    'layer1.2.conv2.channel_branch.3.bias'
    """
    parts = dict(network.modules())
    return {path: _published(path, parts) for path, _, _ in network._state()}


def _published(path: str, parts: Mapping[str, Module]) -> str:
    """The path with the beginnings of all parts on the way exchanged."""
    at, names = 0, [""]
    while at < len(path):
        for pattern, replacement in _rules(parts.get(path[:at].rstrip("."))):
            if found := re.compile(pattern).match(path[at:]):
                new = found.expand(replacement) if isinstance(replacement, str) else replacement(found)
                at += found.end()
                break
        else:
            step = path.find(".", at) + 1 or len(path)
            new, at = path[at:step], step
        names = [name + each for each in new.split(" ") for name in names]
    return " ".join(names)


def _rules(module: Module | None) -> Iterator[tuple[str, Any]]:
    for kind in type(module).__mro__ if module is not None else ():
        yield from RULES.get(kind, ())
    if isinstance(module, DDFUp):
        yield from _phases(module)


def _phases(layer: DDFUp) -> Iterator[tuple[str, Any]]:
    """theFoxofSky/ddfnet's ``DDFUpPack`` has two branches for each phase, where `DDFUp` has them stacked."""
    yield r"depthwise\.(\d+)\.", r"spatial_branch.\1.0."
    spatial = "1.0." if layer.depthwise else "0."
    for own, branch, inner in (
        (r"spatial\.", "spatial_branch", spatial),
        (r"channel\.layers\.0\.", "channel_branch", "1."),
        (r"channel\.layers\.2\.", "channel_branch", "3."),
        (r"channel_norm\.alpha$", "channel_branch", "4.std"),
    ):
        yield own, " ".join(f"{branch}.{phase}.{inner}" for phase in range(layer.scale**2))


def load_published(network: Module, weights: Any, *, without: str | Sequence[str] = ()) -> None:
    """Give a network weights that others published; unless all of them agree, nothing changes.

    Parameters
    ----------
    network : Module
        As for `published_names`: `resnet50` takes what torchvision and timm published for theirs,
        `ddf_resnet50` the checkpoints of the authors of DDF, and so on.
    weights : path, or mapping of str to array
        A file of PyTorch's (see `autodiff.files.load_torch`) or a safetensors file, or what was read from
        one. Checkpoints that hold the weights beside other things are searched for ``state_dict`` and
        ``model``; a ``module.`` before all names is left out.
    without : str or sequence of str
        Beginnings of published names that are not wanted: ``["fc."]`` for a backbone without classifier.

    Raises
    ------
    ValueError
        With every name that is missing, left over or of another shape. `FileError` if they come from a file.

    Notes
    -----
    Every name must be used, except the counters ``num_batches_tracked``. Floating types are converted to
    those of the network.

    Examples
    --------
    >>> import numpy as np
    >>> from autodiff import networks
    >>> try:
    ...     networks.load_published(networks.resnet50(rng=0), {"conv1.weight": np.zeros((4, 3, 3, 3))})
    ... except ValueError as error:
    ...     print(str(error).splitlines()[1].strip())
    conv1.weight: expected (64, 3, 7, 7), got (4, 3, 3, 3)
    """
    if isinstance(weights, str | os.PathLike):
        path = os.fspath(weights)
        read = (
            files.load(path).arrays if path.endswith(".safetensors") else files.load_torch(path, strict=False)
        )
        try:
            load_published(network, read, without=without)
        except ValueError as error:
            raise files.FileError(f"{path}: {error}") from None
        return
    unwanted = (without,) if isinstance(without, str) else tuple(without)
    found = {name: value for name, value in _unwrapped(weights).items() if not name.startswith(unwanted)}
    state, faults = _translated(network, found)
    if faults:
        more = [f"and {len(faults) - MOST_LINES:,} more"] if len(faults) > MOST_LINES else []
        lines = "\n  ".join([*faults[:MOST_LINES], *more])
        raise ValueError(f"these are not the weights of this {type(network).__name__}:\n  {lines}")
    network.load_state_dict(state)


def _unwrapped(weights: Any) -> dict[str, Any]:
    """The mapping of names to arrays, wherever it is."""
    for _ in range(3):
        if not isinstance(weights, Mapping):
            raise ValueError(f"weights must be arrays by name, got a {type(weights).__name__}")
        inside = [weights[key] for key in WRAPPERS if isinstance(weights.get(key), Mapping)]
        if not inside:
            break
        weights = inside[0]
    others = [key for key, value in weights.items() if type(key) is not str or not hasattr(value, "dtype")]
    if others:
        raise ValueError(f"weights must be arrays by name; {others[0]!r:.50} is none")
    if weights and all(name.startswith(PREFIX) for name in weights):
        weights = {name.removeprefix(PREFIX): value for name, value in weights.items()}
    return dict(weights)


def _translated(network: Module, found: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The state of the network, and what keeps the weights from being that."""
    parts = dict(network.modules())
    state: dict[str, Any] = {}
    faults: list[str] = []
    used: set[str] = set()
    for path, owner, value in network._state():
        own = value.data if isinstance(value, Variable) else value
        if isinstance(owner, DisplacedConv) and path.endswith("alive"):
            state[path] = np.ones(own.shape, bool)
            continue
        names = _published(path, parts).split(" ")
        used.update(names)
        if absent := [name for name in names if name not in found]:
            faults += [f"missing: {name}" for name in absent]
            continue
        arrays = [np.asarray(to_numpy(found[name])) for name in names]
        made = _converted(owner, path.rpartition(".")[2], arrays, own)
        if made is None:
            shape = "those of the units" if isinstance(owner, DisplacedConv) else tuple(own.shape)
            faults.append(f"{' and '.join(names)}: expected {shape}, got {tuple(arrays[0].shape)}")
        elif (made.dtype.kind == "f" or made.dtype.name == "bfloat16") and own.dtype != made.dtype:
            state[path] = made.astype(own.dtype)
        else:
            state[path] = made
        if made is not None and made.dtype.kind in "iub" and own.dtype.kind not in "iub":
            faults.append(f"{names[0]}: expected {own.dtype}, got {made.dtype}")
    used |= _beside(network, parts, found, faults)
    faults += [f"left over: {name}" for name in found if name not in used]
    return state, faults


def _converted(owner: Module, member: str, arrays: list[np.ndarray], own: Any) -> np.ndarray | None:
    """The array as the network has it; None if its shape is another."""
    shape = tuple(own.shape)
    if isinstance(owner, AtomConv) and member in ("coefficients", "bases"):
        # (O, C*M, 1, 1) and (B, k*k)
        count = int(np.prod(shape[1:]))
        if arrays[0].reshape(arrays[0].shape[0], -1).shape == (shape[0], count) and arrays[0].ndim in (2, 4):
            return arrays[0].reshape(shape)
        return None
    if isinstance(owner, DisplacedConv) and member in ("weight", "displacement"):
        # (1, C, G, O), of displacements first along x, then along y
        outputs, channels, units = shape[:3]
        if any(array.shape != (1, channels, units, outputs) for array in arrays):
            return None
        turned = [array[0].transpose(2, 0, 1) for array in reversed(arrays)]
        return turned[0] if member == "weight" else np.stack(turned, axis=-1)
    if len({array.shape[1:] for array in arrays}) > 1:
        return None
    stacked = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    return stacked if stacked.shape == shape else None


def _beside(
    network: Module, parts: Mapping[str, Module], found: dict[str, Any], faults: list[str]
) -> set[str]:
    """Names that belong to the network, though they are none of its arrays."""
    used = set()
    for path, part in parts.items():
        if isinstance(part, BatchNorm2d):
            weight = _published(f"{path}.weight" if path else "weight", parts)
            used.add(weight.removesuffix("weight") + COUNTER)
        if isinstance(part, DisplacedConv) and not isinstance(part.sigma, Variable):
            name = _published(f"{path}.sigma" if path else "sigma", parts)
            if name in found and not np.allclose(np.asarray(found[name]), part.sigma, rtol=1e-6, atol=0):
                faults.append(
                    f"{name}: expected {part.sigma} as in this layer, got {np.ravel(found[name])[:1]}"
                )
            used.add(name)
    return used
