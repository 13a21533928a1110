"""The records of a zip file that holds them as they are, as PyTorch writes it: not packed, not locked.

The list at the end of the file says where each record begins, and each record begins with a header of its
own. Nothing of that is believed before it has been compared with the size of the file and with the other
records: they lie one after the other, have names of their own, and none is used twice. Packed records are not
read, so that no small file can become a large one.
"""

import struct
import zlib
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ._errors import FileError, read_exactly
from .safe import MAX_HEADER

END, END_64, PLACE_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
LISTED, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
# The end of the file is 22 bytes and a comment of at most 65535.
END_BYTES = 22
ENCRYPTED = 1
UNKNOWN_32 = 0xFFFFFFFF


class Record(NamedTuple):
    """Where the content of a record is, and the checksum that it should have."""

    name: str
    begin: int
    size: int
    checksum: int
    flags: int
    method: int


class _Listed(NamedTuple):
    """What the list at the end says about a record."""

    name: bytes
    place: int
    size: int
    checksum: int
    flags: int
    method: int


def find_records(file: BinaryIO, size: int) -> dict[str, Record]:
    """Every record of a zip file by its name.

    Parameters
    ----------
    file : binary file
        Open for reading, and able to seek.
    size : int
        Its size.

    Raises
    ------
    FileError
        If the file is cut short, or its records overlap or share a name.
    """
    place, length, limit = _find_list(file, size)
    if length > MAX_HEADER:
        raise FileError(f"the list of its records would be {length:,} bytes long")
    if place + length > limit:
        raise FileError("is cut short: the list of its records reaches over its end")
    file.seek(place)
    listed = _parse_list(file.read(length))
    records: dict[str, Record] = {}
    position = 0
    for entry in sorted(listed, key=lambda entry: entry.place):
        record = _locate(file, entry, place)
        if entry.place < position:
            raise FileError(f"{record.name!r} overlaps the record before it")
        if record.name in records:
            raise FileError(f"has two records of the name {record.name!r}")
        records[record.name] = record
        position = record.begin + record.size
    return records


def read_record(file: BinaryIO, record: Record, target: np.ndarray) -> None:
    """Read a record into an array of its size, and compare it with its checksum; refused if it is packed."""
    if record.flags & ENCRYPTED:
        raise FileError(f"{record.name!r} is encrypted")
    if record.method != 0:
        raise FileError(f"{record.name!r} is packed (method {record.method}), which PyTorch never does")
    file.seek(record.begin)
    read_exactly(file, target, repr(record.name))
    if zlib.crc32(target.reshape(-1).view(np.uint8).data) != record.checksum:
        raise FileError(f"{record.name!r} is damaged, or was written without a checksum")


def _find_list(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Where the list of records begins, how long it is, and where it must end."""
    tail = min(size, END_BYTES + 0xFFFF)
    file.seek(size - tail)
    content = file.read(tail)
    at = content.rfind(END)
    if at < 0 or len(content) - at < END_BYTES:
        raise FileError("is cut short: a zip file ends with a list of its records")
    disks, _, count, _, length, place, comment = struct.unpack("<4x HHHHIIH", content[at : at + END_BYTES])
    if disks != 0 or at + END_BYTES + comment != len(content):
        raise FileError("has an end that is not that of a whole zip file")
    end = size - tail + at
    if at >= 20 and content[at - 20 : at - 16] == PLACE_64:
        end = struct.unpack("<8x Q 4x", content[at - 20 : at])[0]
        if end + 56 > size:
            raise FileError("is cut short: the list of its records reaches over its end")
        file.seek(end)
        content = file.read(56)
        if content[:4] != END_64:
            raise FileError("has an end that is not that of a whole zip file")
        count, length, place = struct.unpack("<32x QQQ", content)
    elif UNKNOWN_32 in (length, place) or count == 0xFFFF:
        raise FileError("has an end that is not that of a whole zip file")
    return place, length, end


def _parse_list(content: bytes) -> list[_Listed]:
    found, at = [], 0
    while at < len(content):
        head = content[at : at + 46]
        if head[:4] != LISTED or len(head) < 46:
            raise FileError("the list of its records is damaged")
        flags, method, checksum, packed, size, names, extras, comments, place = struct.unpack(
            "<8x HH 4x IIIHHH 8x I", head
        )
        body = content[at + 46 : at + 46 + names + extras]
        if len(body) < names + extras:
            raise FileError("the list of its records is damaged")
        name, extra = body[:names], body[names:]
        size, packed, place = _wide(extra, [size, packed, place])
        if size != packed and method == 0:
            raise FileError(f"{_shown(name)} has two sizes, {size:,} and {packed:,} bytes")
        found.append(_Listed(name, place, packed, checksum, flags, method))
        at += 46 + names + extras + comments
    return found


def _wide(extra: bytes, numbers: list[int]) -> list[int]:
    """Numbers that do not fit 32 bits stand in a field of their own, those alone, in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack("<HH", extra[at : at + 4])
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
            for index, number in enumerate(numbers):
                if number == UNKNOWN_32 and len(field) >= 8:
                    numbers[index] = int.from_bytes(field[:8], "little")
                    field = field[8:]
            return numbers
        at += 4 + length
    return numbers


def _locate(file: BinaryIO, entry: _Listed, limit: int) -> Record:
    """The record that the list speaks of, if its own header agrees."""
    file.seek(min(entry.place, limit))
    head = file.read(30)
    if head[:4] != LOCAL or len(head) < 30:
        raise FileError(f"{_shown(entry.name)} is not where the list of its records says")
    flags, method, names, extras = struct.unpack("<6x HH 16x HH", head)
    name = file.read(names)
    if (method, flags & ENCRYPTED) != (entry.method, entry.flags & ENCRYPTED):
        raise FileError(f"{_shown(name)} is packed or encrypted by one of its two headers alone")
    if name != entry.name:
        raise FileError(f"has a record with two names, {_shown(entry.name)} and {_shown(name)}")
    begin = entry.place + 30 + names + extras
    if begin + entry.size > limit:
        raise FileError(f"is cut short in {_shown(name)}")
    try:
        return Record(name.decode(), begin, entry.size, entry.checksum, flags, method)
    except UnicodeDecodeError:
        raise FileError(f"has a record whose name is not UTF-8, {_shown(name)}") from None


def _shown(name: Any) -> str:
    return repr(name.decode(errors="backslashreplace"))
