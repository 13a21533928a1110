"""Records that kernels take by reference.

By value a record is its fields, every array among them a handful of numbers: some hundred for what the
largest kernels take, which Numba unpacks, checks, hands on from callee to callee and packs again at each
call. That is most of what it compiles. By reference a record is one address, and a kernel loads what it
reads.

In memory it is rows of 64-bit words, one for each number; of an array its address, sizes and strides.
"""

import sys
from array import array
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    NativeValue,
    infer_getattr,
    lower_getattr_generic,
    models,
    register_model,
    typeof_impl,
    unbox,
)
from numba.np.arrayobj import populate_array

KeptRecord = TypeVar("KeptRecord", bound=tuple)
# By identity: a record that is a part of others again and again, its words, and what its type depends on.
_kept: dict[int, tuple[tuple, array, list]] = {}
_MOST_KEPT = 1024
# By description: Numba takes long to find the type of a large record.
_types: dict[tuple, "RecordReference"] = {}


class Reference:
    """A record in memory; it and its arrays are kept as long as this is."""

    __slots__ = ("_numba_type_", "_words", "address", "record")

    def __init__(self, record: tuple) -> None:
        words = array("q")
        parts: list[Any] = []
        _describe(words, parts, record)
        description = tuple(parts)
        kind = _types.get(description)
        if kind is None:
            kind = _types[description] = RecordReference(numba.typeof(record))
        self.record, self._words, self._numba_type_ = record, words, kind
        self.address = words.buffer_info()[0]


def keep(record: KeptRecord) -> KeptRecord:
    """The record, described for all references to come that hold it: its arrays must stay where they are."""
    words = array("q")
    parts: list[Any] = []
    _describe(words, parts, record)
    if len(_kept) >= _MOST_KEPT:
        _kept.clear()  # what is still in use is described as others are
    _kept[id(record)] = record, words, parts
    return record


def _describe(words: array, parts: list, value: Any) -> None:
    """Add the words of a field, and what its type depends on."""
    kind = type(value)
    if kind is int or kind is bool:
        words.append(value)
    elif kind is np.ndarray:
        words.append(value.__array_interface__["data"][0])
        words.extend(value.shape)
        words.extend(value.strides)
        parts += value.dtype.char, value.ndim, value.flags.num
        return
    elif isinstance(value, tuple):
        known = _kept.get(id(value))
        if known is not None and known[0] is value:
            words.extend(known[1])
            parts += known[2]
            return
        parts += kind, len(value)
        for field in value:
            _describe(words, parts, field)
        return
    elif isinstance(value, np.generic):
        words.append(int.from_bytes(value.tobytes(), sys.byteorder, signed=True))
    elif kind is float:
        words.append(int.from_bytes(np.float64(value).tobytes(), sys.byteorder, signed=True))
    elif value is not None:
        raise TypeError(f"a record by reference holds no {kind.__name__}")
    parts.append(kind)


class RecordReference(types.Type):
    """The type of a reference to a record of another type."""

    def __init__(self, record: types.BaseNamedTuple) -> None:
        self.record = record
        super().__init__(f"Reference({record})")

    def find(self, name: str) -> tuple[int, Any] | None:
        """The first word of a field, and its type; None if there is no such field."""
        if name not in self.record.fields:
            return None
        number = self.record.fields.index(name)
        return sum(map(_count_words, self.record.types[:number])), self.record.types[number]


def _count_words(kind: Any) -> int:
    if isinstance(kind, types.BaseTuple):
        return sum(map(_count_words, kind))
    if isinstance(kind, types.Array):
        return 1 + 2 * kind.ndim
    return 0 if isinstance(kind, types.NoneType) else 1


@register_model(RecordReference)
class _ReferenceModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.IntType(64).as_pointer())


@typeof_impl.register(Reference)
def _type_of_reference(value: Reference, _context: Any) -> Any:
    return value._numba_type_


@unbox(RecordReference)
def _unbox_reference(kind: Any, value: Any, c: Any) -> Any:
    number = c.pyapi.object_getattr_string(value, "address")
    address = c.builder.inttoptr(c.pyapi.long_as_longlong(number), ir.IntType(64).as_pointer())
    c.pyapi.decref(number)
    return NativeValue(address, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))


@infer_getattr
class _Fields(AttributeTemplate):
    key = RecordReference

    def generic_resolve(self, kind: RecordReference, name: str) -> Any:
        found = kind.find(name)
        if found is None:
            return None
        return RecordReference(found[1]) if isinstance(found[1], types.BaseNamedTuple) else found[1]


@lower_getattr_generic(RecordReference)
def _get_field(context: Any, builder: Any, kind: RecordReference, reference: Any, name: str) -> Any:
    word, field = kind.find(name) or (0, types.none)  # there is one: it has a type
    place = builder.gep(reference, [ir.IntType(64)(word)])
    if isinstance(field, types.BaseNamedTuple):
        return place
    return _load(context, builder, field, place)


def _load(context: Any, builder: Any, kind: Any, place: Any) -> Any:
    """The value of a field. Nothing writes to records while kernels run, so that loads may leave loops."""

    def word(number: int, type_: Any) -> Any:
        pointer = builder.gep(place, [ir.IntType(64)(number)])
        loaded = builder.load(builder.bitcast(pointer, type_.as_pointer()))
        loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
        return loaded

    if isinstance(kind, types.Array):
        result = context.make_array(kind)(context, builder)
        number, sizes = ir.IntType(64), range(1, 1 + kind.ndim)
        populate_array(
            result,
            data=word(0, context.get_data_type(kind.dtype).as_pointer()),
            shape=[word(k, number) for k in sizes],
            strides=[word(k + kind.ndim, number) for k in sizes],
            itemsize=number(context.get_abi_sizeof(context.get_data_type(kind.dtype))),
            meminfo=None,
        )
        return result._getvalue()
    if isinstance(kind, types.BaseTuple):
        values, number = [], 0
        for each in kind:
            values.append(_load(context, builder, each, builder.gep(place, [ir.IntType(64)(number)])))
            number += _count_words(each)
        return context.make_tuple(builder, kind, values)
    if isinstance(kind, types.NoneType):
        return context.get_dummy_value()
    if isinstance(kind, types.Boolean):
        return builder.icmp_unsigned("!=", word(0, ir.IntType(8)), ir.IntType(8)(0))
    return word(0, context.get_value_type(kind))
