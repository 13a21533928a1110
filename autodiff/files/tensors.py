"""Tensors and storages as the pickles of PyTorch describe them, and the arrays that they are."""

import functools
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._errors import MAX_AXES, FileError, check_booleans, named_dtype
from .unpickle import Name, Unread, as_set, call, fill, shown

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
}
# Newer dtypes have no storages of their own: their tensors say the dtype, and the storage is of bytes.
DTYPES = [
    *dict.fromkeys(STORAGES.values()),
    *("uint16", "uint32", "uint64"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
]
ALIASES = {"double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32"}
BYTES = ("torch.storage.UntypedStorage", "torch.storage._UntypedStorage", "torch.UntypedStorage")
CLASSES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter")
MAX_BYTES = 2**63
OWN_ORDER = "<" if sys.byteorder == "little" else ">"

REFUSED = {
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor of the device meta, which has no values",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device, as an array",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "torch.complex32": "complex32, which NumPy does not have",
    "torch.float4_e2m1fn_x2": "numbers of 4 bits, which NumPy does not have",
    **{
        f"torch.{kind}Storage": "a quantised tensor"
        for kind in ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")
    },
}


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of storages, or a dtype: the dtype by its name."""

    name: str
    storage: bool


@dataclass(eq=False, slots=True)
class Storage:
    """Numbers one after the other, of which tensors are views."""

    key: str
    dtype: np.dtype
    untyped: bool
    count: int
    data: Any = None
    order: str = "<"
    ready: bool = False
    changed: dict[Any, np.ndarray] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.count * self.dtype.itemsize

    def make(self, order: str) -> np.ndarray:
        """Its memory, to be filled with numbers in this byte order before `values` is asked for."""
        self.data, self.order = np.empty(self.count, self.dtype), order
        return self.data

    def whole(self) -> "Tensor":
        """All of it."""
        return Tensor(self, 0, (self.count,), (1,), self.dtype)

    def values(self, dtype: np.dtype, flags: dict[str, bool]) -> np.ndarray:
        """The numbers, in the byte order of this machine, conjugated or negated once for all views."""
        if not self.ready:
            if self.order != OWN_ORDER and not self.untyped:
                swap_bytes(self.data)
            self.ready = True
        wanted = tuple(flag for flag in ("conj", "neg") if flags.get(flag))
        swapped = self.untyped and self.order != OWN_ORDER and dtype.itemsize > 1
        if not wanted and not swapped and dtype != np.bool_:
            return self.data
        key = (dtype, wanted)
        if key not in self.changed:
            whole = self.bytes // dtype.itemsize * dtype.itemsize
            found = self.data.view(np.uint8)[:whole].view(dtype)
            check_booleans(found, f"storage {self.key!r:.50}")
            if swapped:
                found = swap_bytes(found.copy())
            if "conj" in wanted:
                found = found.conj()
            self.changed[key] = -found if "neg" in wanted else found
        return self.changed[key]


@dataclass(eq=False, slots=True)
class Part:
    """Older files have storages that are parts of others: tensors of a part are tensors of the whole."""

    storage: Storage
    begin: int
    count: int

    def whole(self) -> "Tensor":
        """All of it."""
        return Tensor(self.storage, self.begin, (self.count,), (1,), self.storage.dtype)


@dataclass(eq=False, slots=True)
class Tensor:
    """A view of a storage: element (i, j, ...) is at ``offset + i*stride[0] + j*stride[1] + ...``."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: np.dtype
    flags: dict[str, bool] = field(default_factory=dict)

    def check(self, room: int) -> "Tensor":
        """Itself, if it does not leave the first `room` bytes of the storage."""
        if not _are_sizes(self.shape) or len(self.shape) > MAX_AXES:
            raise FileError("a tensor has no valid shape")
        if type(self.stride) is tuple and any(type(step) is int and step < 0 for step in self.stride):
            raise FileError("a tensor has a negative stride")
        if not _are_sizes(self.stride) or len(self.stride) != len(self.shape):
            raise FileError("a tensor has no valid stride")
        if type(self.offset) is not int or self.offset < 0:
            raise FileError("a tensor begins before its storage")
        item = self.dtype.itemsize
        # NumPy refuses sizes whose product without the zeros does not fit an index, and so large strides.
        if math.prod(max(size, 1) for size in self.shape) * item >= MAX_BYTES:
            raise FileError("a tensor has no valid shape: too large")
        last = self.offset - 1
        if 0 not in self.shape:
            last += 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride))
        if (last + 1) * item > room:
            raise FileError(
                f"a tensor of shape {self.shape} and stride {self.stride} from {self.offset:,} on leaves "
                f"its storage {self.storage.key!r:.50} of {room:,} bytes"
            )
        return self

    def array(self) -> np.ndarray:
        """The view, of numbers of this machine."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        # NumPy compares with the size of the buffer again.
        item = self.dtype.itemsize
        numbers = self.storage.values(self.dtype, self.flags).view(np.uint8)
        steps = tuple(step * item if size > 1 else 0 for size, step in zip(self.shape, self.stride))
        view = np.ndarray(self.shape, self.dtype, numbers.data, self.offset * item, steps)
        if self._overlaps():
            view.flags.writeable = False
        return view

    def _overlaps(self) -> bool:
        """Whether two elements may be at one place."""
        reach = 0
        for step, size in sorted(zip(self.stride, self.shape)):
            if size > 1 and step <= reach:
                return True
            reach += (size - 1) * step
        return False


def swap_bytes(array: np.ndarray) -> np.ndarray:
    """Turn the bytes of each number around, in place; dtypes of ml_dtypes cannot do that themselves."""
    if array.dtype.kind == "c":
        array.byteswap(inplace=True)
    elif array.dtype.itemsize > 1:
        array.view(f"u{array.dtype.itemsize}").byteswap(inplace=True)
    return array


def _are_sizes(values: Any) -> bool:
    return type(values) is tuple and all(type(v) is int and 0 <= v < MAX_BYTES for v in values)


@functools.cache
def values() -> dict[str, Any]:
    """What names stand for that are not called: classes of storages, dtypes, classes of tensors."""
    found: dict[str, Any] = {name: Kind("uint8", True) for name in BYTES}
    for name, dtype in STORAGES.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            found[f"{module}.{name}"] = Kind(dtype, True)
    found |= {f"torch.{name}": Kind(name, False) for name in DTYPES}
    found |= {f"torch.{alias}": Kind(name, False) for alias, name in ALIASES.items()}
    return found | {name: Name(name) for name in CLASSES}


def storage_of(identity: Any, storages: dict[str, Storage], find: Callable[[Storage], Any]) -> Any:
    """The storage with an identity ``("storage", class, key, device, count)``, in older files with a view."""
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        kind = identity[0] if type(identity) is tuple and identity else identity
        raise FileError(f"its pickle refers to {shown(kind)} outside of it, not to a storage")
    kind, key, device, count = identity[1:5]
    if isinstance(kind, Unread):
        raise FileError(f"holds {REFUSED.get(kind.name, 'a storage of unknown kind')}: {shown(kind.name)}")
    if not isinstance(kind, Kind) or not kind.storage or type(key) is not str or type(device) is not str:
        raise FileError("its pickle has a storage without class, name or device")
    if type(count) is not int or not 0 <= count < MAX_BYTES:
        raise FileError(f"storage {key!r:.50} has no valid number of elements")
    dtype = named_dtype(f"storage {key!r:.50}", kind.name)
    known = storages.get(key)
    if known is None:
        known = Storage(key, dtype, False, count)
        find(known)
        storages[key] = known
    if (known.dtype, known.count) != (dtype, count):
        raise FileError(f"storage {key!r:.50} is said to have two kinds or sizes")
    if len(identity) == 6 and identity[5] is not None:
        return _part(known, identity[5])
    return known


def _part(storage: Storage, view: Any) -> Part:
    if type(view) is not tuple or len(view) != 3 or not _are_sizes(view[1:]):
        raise FileError(f"storage {storage.key!r:.50} has no valid part")
    if sum(view[1:]) > storage.count:
        raise FileError(f"storage {storage.key!r:.50} has a part that leaves it")
    return Part(storage, view[1], view[2])


# ---- what pickles call


def _tensor(
    source: Any, offset: Any, shape: Any, stride: Any, dtype: Any = None, flags: Any = None
) -> Tensor:
    part = source if isinstance(source, Part) else None
    storage = part.storage if part else source
    if not isinstance(storage, Storage):
        raise FileError(f"a tensor is made of a {_kind(storage)}, not of a storage")
    if dtype is not None:
        if not isinstance(dtype, Kind) or dtype.storage:
            raise FileError(f"a tensor has a {_kind(dtype)} as its dtype")
        if storage.dtype != np.uint8:
            raise FileError("a tensor with a dtype of its own is made of a storage that has another")
        storage.untyped = True
    flags = {} if flags is None else flags
    if not isinstance(flags, dict) or not all(
        key in ("conj", "neg") and type(value) is bool for key, value in flags.items()
    ):
        raise FileError("a tensor has flags that are not known")
    chosen = storage.dtype if dtype is None else named_dtype("a tensor", dtype.name)
    if (flags.get("conj") and chosen.kind != "c") or (flags.get("neg") and chosen.kind not in "fc"):
        raise FileError(f"a tensor of {chosen} is to be conjugated or negated")
    tensor = Tensor(storage, offset, shape, stride, chosen, flags)
    tensor.check(part.count * storage.dtype.itemsize if part else storage.bytes)
    tensor.offset += part.begin if part else 0
    return tensor


def _kind(value: Any) -> str:
    return value.path if isinstance(value, Name) else type(value).__name__


def _tensor_v2(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any = None, hooks: Any = None, flags: Any = None
) -> Tensor:
    return _tensor(storage, offset, shape, stride, None, flags)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, flags: Any = None
) -> Tensor:
    return _tensor(storage, offset, shape, stride, dtype, flags)


def _plain_tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
    return _tensor(storage, offset, shape, stride)


def _parameter(tensor: Any, grad: Any = None, hooks: Any = None, state: Any = None) -> Any:
    if not isinstance(tensor, Tensor | Unread):
        raise FileError(f"a parameter is made of a {_kind(tensor)}, not of a tensor")
    return tensor


def _with_attributes(function: Any, kind: Any, args: Any, state: Any) -> Any:
    for unread in (function, kind):
        if isinstance(unread, Unread):
            return unread
    if not isinstance(function, Name) or type(args) is not tuple or function.path == _SELF:
        raise FileError("a tensor with attributes is made of no function")
    if not isinstance(kind, Name) or kind.path in CALLS:
        raise FileError(f"a tensor has the class {_kind(kind)}")
    return call(CALLS, function.path, args)


def _ordered(pairs: Any = ()) -> OrderedDict:
    """Python 2 wrote the pairs as a list of lists."""
    if type(pairs) not in (list, tuple) or not all(type(p) in (list, tuple) and len(p) == 2 for p in pairs):
        raise FileError("an OrderedDict is made of something else than pairs")
    return fill(OrderedDict(), pairs)  # type: ignore[return-value]


def _size(values: Any = ()) -> tuple:
    if type(values) not in (tuple, list) or not _are_sizes(tuple(values)):
        raise FileError("a torch.Size has no valid sizes")
    return tuple(values)


def _device(name: Any, index: Any = None) -> str:
    if type(name) is not str or not (index is None or type(index) is int):
        raise FileError("a torch.device has no valid name")
    return name if index is None else f"{name}:{index}"


def _bytes(text: Any, coding: Any = "latin1") -> bytes:
    """Protocol 2 writes bytes as text."""
    if type(text) is not str or coding != "latin1" or any(ord(letter) > 255 for letter in text):
        raise FileError("bytes are written in an unknown way")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """So does it write none at all."""
    return b""


def _complex(real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise FileError("a complex number is made of no numbers")
    return complex(real, imaginary)


_SELF = "torch._tensor._rebuild_from_type_v2"
CALLS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _plain_tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    _SELF: _with_attributes,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered,
    "_codecs.encode": _bytes,
    "builtins.bytes": _no_bytes,
    "builtins.complex": _complex,
    "builtins.set": as_set,
}
