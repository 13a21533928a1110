"""Writes files as PyTorch does, by the description of the format: pickles in opcodes, zip by zipfile."""

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class Global:
    """``c``: a module and a name."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """``R``: a function and a tuple of arguments."""

    function: Any
    args: tuple


@dataclass(frozen=True)
class Built:
    """``b``: an object and its state."""

    value: Any
    state: Any


@dataclass(frozen=True)
class Outside:
    """``Q``: a persistent identifier."""

    identity: Any


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    code: bytes


@dataclass(frozen=True)
class Ordered:
    """An OrderedDict, as Python 3 reduces it."""

    entries: dict = field(default_factory=dict)


def emit(value: Any) -> bytes:
    """The opcodes of protocol 2 that put a value on the stack."""
    if isinstance(value, Raw):
        return value.code
    if isinstance(value, Global):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return emit(value.function) + emit(value.args) + b"R"
    if isinstance(value, Built):
        return emit(value.value) + emit(value.state) + b"b"
    if isinstance(value, Outside):
        return emit(value.identity) + b"Q"
    if isinstance(value, Ordered):
        return emit(Call(Global("collections", "OrderedDict"), ())) + _items(value.entries)
    if isinstance(value, dict):
        return b"}" + _items(value)
    if isinstance(value, list):
        return b"](" + b"".join(map(emit, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(emit, value)) + b"t"
    return _scalar(value)


def _items(entries: dict) -> bytes:
    return b"(" + b"".join(emit(k) + emit(v) for k, v in entries.items()) + b"u"


def _scalar(value: Any) -> bytes:
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        if 0 <= value < 256:
            return b"K" + bytes([value])
        content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(content)]) + content
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def program(value: Any) -> bytes:
    """A whole pickle of protocol 2."""
    return b"\x80\x02" + emit(value) + b"."


def storage(kind: str, key: str, count: int, module: str = "torch", *part: Any) -> Outside:
    """What a tensor refers to."""
    return Outside(("storage", Global(module, kind), key, "cpu", count, *part))


def tensor(source: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> Call:
    """A tensor as PyTorch has written it since 0.4."""
    args = (source, offset, shape, stride, False, Ordered(), *more)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), args)


def vector(kind: str, key: str, count: int) -> Call:
    """All of a storage."""
    return tensor(storage(kind, key, count), 0, (count,), (1,))


def zip_bytes(value: Any, storages: Mapping[str, bytes] | None = None, **records: bytes) -> bytes:
    """A zip file with a value (or a pickle, as bytes), storages, and further records."""
    content = value if isinstance(value, bytes) else program(value)
    whole = {"data.pkl": content, "byteorder": b"little", "version": b"3\n", **records}
    whole |= {f"data/{key}": data for key, data in (storages or {}).items()}
    return zip_of({f"archive/{name}": data for name, data in whole.items()})


def zip_of(records: Mapping[str, bytes], packed: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of records by name."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packed) as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(name), data, packed)
    return file.getvalue()


def legacy_bytes(
    value: Any, storages: Mapping[str, tuple[int, bytes]] | None = None, keys: Any = None
) -> bytes:
    """A file as before PyTorch 1.6: storages are a number of elements and bytes."""
    storages = storages or {}
    machine = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    body = value if isinstance(value, bytes) else program(value)
    start = program(MAGIC) + program(1001) + program(machine) + body
    start += program(list(storages) if keys is None else keys)
    return start + b"".join(struct.pack("<q", count) + data for count, data in storages.values())
