"""A reader of pickles that can build containers, numbers and strings, and nothing else.

A pickle is a program for a machine with a stack. Python's own machine looks up any function that the program
names and calls it; this one has no instruction for that. What a program names is a `Name`, a piece of text.
Where it asks for a call, the caller's table says which of its own functions makes something of the arguments;
a name that is not in that table is refused.

Only instructions that Python writes with protocols 2 to 5 are known. Work and memory are bounded: by the
number of instructions, the length of the pickle and of what it hands to functions, which may be one long text
again and again, and the depth and size of what comes out.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from ._errors import FileError

# A tensor takes about 25 instructions: room for 100,000 of them.
MAX_STEPS = 3_000_000
MAX_BYTES = 100_000_000
MAX_DEPTH = 64
MAX_INTEGER_BYTES = 255
MAX_KEY = 64  # parts of a tuple that is a key: they are hashed anew each time
SCALARS = (str, int, float, bool, bytes, complex, type(None))
# Python 2 called some modules differently, and protocol 2 still does.
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass(frozen=True, slots=True)
class Name:
    """What a pickle names, such as ``collections.OrderedDict``: text, not the thing."""

    path: str


@dataclass(frozen=True, slots=True)
class Unread:
    """Stands where a file holds an object that is not read; says what it would have been.

    Parameters
    ----------
    name : str
        Module and name of its class or function.

    Examples
    --------
    >>> from autodiff import files
    >>> files.Unread("argparse.Namespace")
    Unread(name='argparse.Namespace')
    """

    name: str


class Source:
    """A file from which no more is read than it has, nor than a pickle may have."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left = file, min(size, MAX_BYTES)
        self.whole = size <= MAX_BYTES

    def read(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > self.left:
            what = "cut short" if self.whole else f"longer than {MAX_BYTES:,} bytes"
            raise FileError(f"its pickle is {what}")
        self.left -= count
        found = self.file.read(count)
        if len(found) < count:
            raise FileError("its pickle is cut short")
        return found

    def line(self) -> str:
        """The next line, without its end."""
        found = self.file.readline(min(self.left, 1000))
        self.left -= len(found)
        if not found.endswith(b"\n"):
            raise FileError("its pickle has a name that does not end")
        return text(found[:-1])

    def number(self, form: str) -> Any:
        """The next number, in a form of the module struct."""
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]


def shown(value: Any) -> str:
    """A value in a message; of a container only its kind, for what is in it may have no end."""
    return f"{value!r:.200}" if isinstance(value, SCALARS) else f"a {type(value).__name__}"


def text(content: bytes) -> str:
    """Bytes as UTF-8, with what Python's pickles allow beside it."""
    try:
        return content.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise FileError("its pickle has a text that is not UTF-8") from None


class Machine:
    """Runs one pickle.

    Parameters
    ----------
    source : Source
        Where the pickle begins.
    calls : mapping of str to callable
        By name, what makes an object of a tuple of arguments.
    values : mapping of str to object
        By name, what stands for the name itself, unless it is called.
    persistent : callable, optional
        Makes an object of a persistent identifier.
    refused : mapping of str to str
        By name, what to say of names that deserve more than their name.
    strict : bool
        Whether a name that is in no table is an error. Otherwise what is made of it is an `Unread`.
    """

    def __init__(
        self,
        source: Source,
        calls: Mapping[str, Callable[..., Any]],
        values: Mapping[str, Any],
        persistent: Callable[[Any], Any] | None = None,
        *,
        refused: Mapping[str, str] | None = None,
        strict: bool = True,
    ) -> None:
        self.source, self.calls, self.values, self.persistent = source, calls, values, persistent
        self.refused, self.strict = refused or {}, strict
        self.work = MAX_BYTES
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle describes, its containers checked."""
        for _ in range(MAX_STEPS):
            code = self.source.read(1)[0]
            if code == STOP:
                if len(self.stack) != 1 or self.below:
                    raise FileError("its pickle ends with more or less than one object")
                return self.stack[0]
            step = STEPS.get(code)
            if step is None:
                name = _instruction(code)
                raise FileError(f"its pickle has the instruction {name}, which weights do not need")
            try:
                step(self)
            except IndexError:
                raise FileError("its pickle takes more from its stack than is there") from None
        raise FileError(f"its pickle has more than {MAX_STEPS:,} instructions")

    # ---- what the instructions are made of

    def push(self, value: Any) -> None:
        """Put on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take from the stack."""
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """What was put on the stack since the last mark, taken from it with the mark."""
        found, self.stack = self.stack, self.below.pop()
        return found

    def name(self, module: str, name: str) -> None:
        """Put on the stack what a name stands for, if it is known."""
        path = f"{RENAMED.get(module, module)}.{name}"
        if path in self.values:
            self.push(self.values[path])
        elif path in self.calls:
            self.push(Name(path))
        elif not self.strict:
            self.push(Unread(path))
        else:
            what = self.refused.get(path, "something else than tensors and containers")
            raise FileError(f"holds {what}: {shown(path)}")

    def call(self, function: Any, args: Any) -> Any:
        """What the table makes of the arguments."""
        if isinstance(function, Unread):
            return function
        if not isinstance(function, Name):
            raise FileError(f"its pickle calls a {type(function).__name__}")
        if type(args) is not tuple:
            raise FileError(f"its pickle calls {function.path} without a tuple of arguments")
        self.work -= sum(len(part) for part in (args, *args) if hasattr(part, "__len__"))
        if self.work < 0:
            raise FileError(f"its pickle hands more than {MAX_BYTES:,} letters and objects to functions")
        return call(self.calls, function.path, args)

    def recall(self, key: int) -> None:
        """Put on the stack what was kept under a number."""
        if key not in self.memo:
            raise FileError(f"its pickle asks for the object {key}, which it has not kept")
        self.push(self.memo[key])

    def keep(self, key: int) -> None:
        """Keep what is on top of the stack under a number."""
        self.memo[key] = self.stack[-1]


def call(calls: Mapping[str, Callable[..., Any]], path: str, args: tuple) -> Any:
    """The result of a function of our own table, if it is there and takes so many arguments."""
    function: Any = calls.get(path)
    if function is None:
        raise FileError(f"its pickle calls {path}, which makes nothing")
    most = function.__code__.co_argcount
    if not most - len(function.__defaults__ or ()) <= len(args) <= most:
        raise FileError(f"its pickle calls {path} with {len(args)} arguments")
    return function(*args)


def _instruction(code: int) -> str:
    import pickletools

    names = {ord(known.code): known.name for known in pickletools.opcodes}
    return names.get(code, f"{code:#04x}")


# ---- the instructions


def _mark(machine: Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _frame(machine: Machine) -> None:
    if machine.source.number("<Q") > machine.source.left:
        raise FileError("its pickle is cut short")


def _protocol(machine: Machine) -> None:
    version = machine.source.read(1)[0]
    if not 2 <= version <= 5:
        raise FileError(f"its pickle is of protocol {version}; known are 2 to 5")


def _long(form: str) -> Callable[[Machine], None]:
    def step(machine: Machine) -> None:
        count = machine.source.number(form)
        if not 0 <= count <= MAX_INTEGER_BYTES:
            raise FileError(f"its pickle has an integer of {count} bytes")
        machine.push(int.from_bytes(machine.source.read(count), "little", signed=True))

    return step


def _content(form: str, make: Callable[[bytes], Any]) -> Callable[[Machine], None]:
    """Text or bytes after their length. Python 2 wrote its strings as bytes."""

    def step(machine: Machine) -> None:
        machine.push(make(machine.source.read(machine.source.number(form))))

    return step


def _signed_length(machine: Machine) -> None:
    count = machine.source.number("<i")
    if count < 0:
        raise FileError("its pickle has a text of negative length")
    machine.push(text(machine.source.read(count)))


def _tuple(count: int) -> Callable[[Machine], None]:
    def step(machine: Machine) -> None:
        machine.push(tuple(reversed([machine.pop() for _ in range(count)])))

    return step


def _append(machine: Machine) -> None:
    _extend(machine, [machine.pop()])


def _extend(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Unread):
        return
    if type(target) is not list:
        raise FileError(f"its pickle appends to a {type(target).__name__}")
    target.extend(items)


def _set_item(machine: Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _set(machine, [key, value])


def _set(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, Unread):
        return
    if not isinstance(target, dict) or len(items) % 2:
        raise FileError(f"its pickle sets items of a {type(target).__name__}, or a key without a value")
    fill(target, zip(items[::2], items[1::2]))


def fill(target: dict, pairs: Any) -> dict:
    """Add pairs of key and value to a dict, the keys checked: the hash of a deep tuple has no bottom."""
    for key, value in pairs:
        parts = key if type(key) is tuple else (key,)
        if len(parts) > MAX_KEY:
            raise FileError(f"its pickle has a tuple of {len(parts):,} values as a key")
        if not all(isinstance(part, SCALARS) for part in parts):
            raise FileError(f"its pickle has a {type(key).__name__} of no plain values as a key")
        target[key] = value
    return target


def _dict(machine: Machine) -> None:
    items = machine.marked()
    machine.push({})
    _set(machine, items)


def as_set(items: Any = ()) -> set:
    """A set of plain values."""
    if type(items) not in (list, tuple):
        raise FileError("its pickle makes a set of what is no list")
    return set(fill({}, ((item, None) for item in items)))


def _add_items(machine: Machine) -> None:
    items = as_set(machine.marked())
    target = machine.stack[-1]
    if type(target) is not set:
        raise FileError(f"its pickle adds items to a {type(target).__name__}")
    target |= items


def _reduce(machine: Machine) -> None:
    args = machine.pop()
    machine.push(machine.call(machine.pop(), args))


def _new_object(machine: Machine) -> None:
    """As `_reduce`: no class is known whose objects are made without a call."""
    _reduce(machine)


def _new_object_by_keywords(machine: Machine) -> None:
    if machine.pop() and machine.strict:
        raise FileError("its pickle makes an object with keyword arguments")
    _reduce(machine)


def _build(machine: Machine) -> None:
    """Attributes, for example those that PyTorch gives the dict of a network's state, are passed over."""
    machine.pop()
    if not isinstance(target := machine.stack[-1], OrderedDict | Unread):
        raise FileError(f"its pickle sets attributes of a {type(target).__name__}")


def _stack_name(machine: Machine) -> None:
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str:
        raise FileError("its pickle has a name that is no text")
    machine.name(module, name)


def _persistent(machine: Machine) -> None:
    if machine.persistent is None:
        raise FileError("its pickle refers to an object outside of it")
    machine.push(machine.persistent(machine.pop()))


STOP = ord(".")
STEPS: dict[int, Callable[[Machine], Any]] = {
    ord("("): _mark,
    ord("J"): lambda m: m.push(m.source.number("<i")),
    ord("K"): lambda m: m.push(m.source.number("<B")),
    ord("M"): lambda m: m.push(m.source.number("<H")),
    ord("G"): lambda m: m.push(m.source.number(">d")),
    ord("N"): lambda m: m.push(None),
    ord("Q"): _persistent,
    ord("R"): _reduce,
    ord("T"): _signed_length,
    ord("U"): _content("<B", text),
    ord("X"): _content("<I", text),
    ord("B"): _content("<I", bytes),
    ord("C"): _content("<B", bytes),
    ord("a"): _append,
    ord("b"): _build,
    ord("c"): lambda m: m.name(m.source.line(), m.source.line()),
    ord("d"): _dict,
    ord("}"): lambda m: m.push({}),
    ord("e"): lambda m: _extend(m, m.marked()),
    ord("h"): lambda m: m.recall(m.source.number("<B")),
    ord("j"): lambda m: m.recall(m.source.number("<I")),
    ord("l"): lambda m: m.push(m.marked()),
    ord("]"): lambda m: m.push([]),
    ord("q"): lambda m: m.keep(m.source.number("<B")),
    ord("r"): lambda m: m.keep(m.source.number("<I")),
    ord("s"): _set_item,
    ord("t"): lambda m: m.push(tuple(m.marked())),
    ord(")"): lambda m: m.push(()),
    ord("u"): lambda m: _set(m, m.marked()),
    0x80: _protocol,
    0x81: _new_object,
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    0x8A: _long("<B"),
    0x8B: _long("<i"),
    0x8C: _content("<B", text),
    0x8D: _content("<Q", text),
    0x8E: _content("<Q", bytes),
    0x8F: lambda m: m.push(set()),
    0x90: _add_items,
    0x91: lambda m: m.push(frozenset(as_set(m.marked()))),
    0x92: _new_object_by_keywords,
    0x93: _stack_name,
    0x94: lambda m: m.keep(len(m.memo)),
    0x95: _frame,
}
