"""What PyTorch saved, read without PyTorch: the tensors of a ``.pth`` or ``.pt`` file as NumPy arrays.

Such a file is a pickle, in which tensors say which storage they are a view of, and the bytes of the storages.
Since PyTorch 1.6 they are records of a zip file (``data.pkl``, ``data/0``, ``data/1``, ..., ``byteorder``);
before, the pickle followed three small ones (a magic number, a version, and what machine wrote it), and was
followed by one with the list of the storages, and these, each after the number of its elements.
"""

import os
from collections.abc import Callable
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np

from . import tensors
from ._errors import FileError, PathLike, named_dtype, read_exactly
from .records import Record, find_records, read_record
from .tensors import Kind, Part, Storage, Tensor
from .unpickle import MAX_BYTES, MAX_DEPTH, MAX_STEPS, SCALARS, Machine, Source, Unread, shown

MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
NEWEST_VERSION = 10  # of the zip form, of which 3 is what is written
# How files begin that are taken for those of PyTorch.
OTHERS = {
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "packed by gzip",
    b"version https://git-lfs": "a pointer of Git LFS, not the file that it points to",
    b"<": "a page of HTML, such as an error of a download",
    b"\x93NUMPY": "a file of NumPy",
}


def load_torch(path: PathLike, *, strict: bool = True) -> Any:
    r"""Read what ``torch.save`` wrote, without PyTorch, and without running anything that the file contains.

    Parameters
    ----------
    path : path
        A ``.pth`` or ``.pt`` file: a zip file, or of the form before PyTorch 1.6.
    strict : bool
        Whether anything else than tensors, storages, containers, numbers, strings, dtypes and devices is an
        error. Otherwise an `Unread` stands in its place; that helps with checkpoints that hold the options
        of a training beside the weights.

    Returns
    -------
    object
        What was saved, most often a dict of arrays by name. Tensors and parameters are NumPy arrays; those
        that shared memory still do, as views of one array, and those whose elements share memory (such as
        expanded ones) are read-only. An OrderedDict is a dict, a ``torch.Size`` a tuple, a dtype NumPy's, a
        device its name. Attributes of tensors and dicts, such as ``requires_grad``, are left out.

    Raises
    ------
    FileError
        If the file is damaged or cut short, or holds something else. The message names it: a class or
        function, or a kind of tensor that NumPy does not have (quantised, sparse, nested, complex32).
        bfloat16 and float8 need the package ml_dtypes.
    OSError
        If the file cannot be read.

    Notes
    -----
    The pickle is interpreted by a machine that has no instruction for calling what the file names. Sizes are
    compared with that of the file before memory is reserved; depth and number of objects are bounded.

    Examples
    --------
    >>> import numpy as np, pathlib, tempfile, zipfile
    >>> from autodiff import files
    >>> program = (
    ...     b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
    ...     b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    ...     b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQK\x00K\x03\x85K\x01\x85\x89NtRs."
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "model.pth")
    ...     with zipfile.ZipFile(path, "w") as file:
    ...         file.writestr("model/data.pkl", program)
    ...         file.writestr("model/data/0", np.arange(3, dtype="<f4").tobytes())
    ...     files.load_torch(path)
    {'w': array([0., 1., 2.], dtype=float32)}
    """
    with open(path, "rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                return _load_zip(file, size, strict)
            if start[:1] == b"\x80":
                return _load_legacy(file, size, strict)
            raise FileError(_something_else(file.read(512), size))
        except FileError as error:
            raise FileError(f"{os.fspath(path)}: {error}") from None


def _something_else(start: bytes, size: int) -> str:
    for begin, what in OTHERS.items():
        if start.startswith(begin):
            return f"is {what}"
    if start[8:9] == b"{":
        return "is a safetensors file, which autodiff.files.load reads"
    if start[257:262] == b"ustar":
        return "is a tar file, as PyTorch wrote before its version 0.1.10: it has to be saved anew"
    return f"is no file of PyTorch's ({size:,} bytes)"


def _machine(source: Source, storages: dict[str, Storage], find: Callable[..., Any], strict: bool) -> Machine:
    """The machine that knows tensors, with the storages that it meets."""

    def persistent(identity: Any) -> Any:
        return tensors.storage_of(identity, storages, find)

    return Machine(
        source, tensors.CALLS, tensors.values(), persistent, refused=tensors.REFUSED, strict=strict
    )


# ---- the zip form


def _load_zip(file: BinaryIO, size: int, strict: bool) -> Any:
    records = find_records(file, size)
    folder = _folder(records)
    order = _byte_order(file, records, folder)
    storages: dict[str, Storage] = {}

    def find(storage: Storage) -> None:
        record = records.get(f"{folder}data/{storage.key}")
        if record is None:
            raise FileError(f"has no record data/{storage.key}, which a tensor needs")
        if record.size != storage.bytes:
            raise FileError(
                f"{record.name!r} has {record.size:,} bytes, but should have {storage.bytes:,}: "
                f"{storage.count:,} of {storage.dtype}"
            )

    program = records[f"{folder}data.pkl"]
    if program.size > MAX_BYTES:
        raise FileError(f"its pickle is longer than {MAX_BYTES:,} bytes")
    content = np.empty(program.size, np.uint8)
    read_record(file, program, content)
    source = Source(BytesIO(content.tobytes()), program.size)
    tree = _machine(source, storages, find, strict).run()
    if source.left:
        raise FileError(f"has {source.left:,} bytes after its pickle")

    def fill(storage: Storage) -> None:
        read_record(file, records[f"{folder}data/{storage.key}"], storage.make(order))

    return _Builder(fill).build(tree, 0)


def _folder(records: dict[str, Record]) -> str:
    """The folder of all records, whose name is free."""
    found = [name for name in records if name.endswith("data.pkl") and name.count("/") <= 1]
    if len(found) != 1:
        raise FileError(f"has {len(found)} records data.pkl: no file of PyTorch's")
    folder = found[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in records:
        raise FileError("is a TorchScript program: save the state_dict() of its module instead")
    return folder


def _byte_order(file: BinaryIO, records: dict[str, Record], folder: str) -> str:
    """How numbers are written, "<" or ">", after a look at the version of the form."""

    def content(name: str) -> bytes | None:
        record = records.get(folder + name)
        if record is None:
            return None
        if record.size > 100:
            raise FileError(f"{record.name!r} is too long")
        found = np.empty(record.size, np.uint8)
        read_record(file, record, found)
        return found.tobytes().strip()

    version = content("version") or content(".data/version")
    if version is not None and not (version.isdigit() and 1 <= int(version) <= NEWEST_VERSION):
        raise FileError(f"is of version {version!r}; known are 1 to {NEWEST_VERSION}")
    order = content("byteorder")
    if order not in (None, b"little", b"big"):
        raise FileError(f"has the byte order {order!r}; known are little and big")
    return ">" if order == b"big" else "<"


# ---- the form before


def _load_legacy(file: BinaryIO, size: int, strict: bool) -> Any:
    def plain(what: str) -> Any:
        try:
            return Machine(Source(file, size - file.tell()), {}, {}).run()
        except FileError as error:
            raise FileError(f"in {what}: {error}") from None

    if plain("its magic number") != MAGIC:
        raise FileError("is a pickle, but none of PyTorch's")
    if (version := plain("its version")) != LEGACY_VERSION:
        raise FileError(f"is of version {shown(version)}; known is {LEGACY_VERSION}")
    plain("what machine wrote it")
    storages: dict[str, Storage] = {}
    room = size

    def find(storage: Storage) -> None:
        nonlocal room
        room -= storage.bytes
        if room < 0:
            raise FileError(f"is cut short: its storages take more than its {size:,} bytes")

    tree = _machine(Source(file, size - file.tell()), storages, find, strict).run()
    keys = plain("the list of its storages")
    if type(keys) is not list or not all(type(key) is str for key in keys) or len(set(keys)) < len(keys):
        raise FileError("the list of its storages is damaged")
    if set(keys) != set(storages):
        raise FileError("the list of its storages does not agree with its tensors")
    for key in keys:
        _fill_legacy(file, storages[key])
    if left := size - file.tell():
        raise FileError(f"has {left:,} bytes more than its storages")
    return _Builder(lambda storage: None).build(tree, 0)


def _fill_legacy(file: BinaryIO, storage: Storage) -> None:
    count = file.read(8)
    if len(count) < 8:
        raise FileError(f"is cut short before storage {storage.key!r:.50}")
    if int.from_bytes(count, "little") != storage.count:
        raise FileError(f"storage {storage.key!r:.50} should have {storage.count:,} elements")
    read_exactly(file, storage.make("<"), f"storage {storage.key!r:.50}")


# ---- arrays for tensors


class _Builder:
    """Puts arrays in the place of tensors, in containers that are checked on the way.

    A container that is met twice, as Python's pickles allow, is built once. One that contains itself has no
    end, and a few dozen that contain each other twice have billions of entries: both are refused, as are
    those that are nested so deep that nobody's functions could follow.
    """

    def __init__(self, fill: Callable[[Storage], None]) -> None:
        self.fill = fill
        self.built: dict[int, tuple[Any, int, int]] = {}  # by id: the object, its entries, its depth
        self.open: set[int] = set()

    def build(self, value: Any, depth: int) -> Any:
        """The object with arrays."""
        return self._build(value, depth)[0]

    def _build(self, value: Any, depth: int) -> tuple[Any, int, int]:
        if isinstance(value, Tensor):
            return self._array(value), 1, 0
        if isinstance(value, Storage | Part):
            return self._array(value.whole()), 1, 0
        if isinstance(value, Kind) and not value.storage:
            return named_dtype("a dtype", value.name), 1, 0
        if isinstance(value, (*SCALARS, Unread, set, frozenset)):
            return value, 1, 0
        if not isinstance(value, dict | list | tuple):
            what = getattr(value, "path", None) or getattr(value, "name", None) or type(value).__name__
            raise FileError(f"holds {shown(what)} where an object should be")
        found = self.built.get(id(value))
        if found is None:
            if id(value) in self.open:
                raise FileError("holds a container that contains itself")
            self.open.add(id(value))
            found = self.built[id(value)] = self._container(value, depth)
            self.open.remove(id(value))
        if depth + found[2] > MAX_DEPTH:
            raise FileError(f"is nested more than {MAX_DEPTH} deep")
        return found

    def _container(self, value: Any, depth: int) -> tuple[Any, int, int]:
        if depth >= MAX_DEPTH:
            raise FileError(f"is nested more than {MAX_DEPTH} deep")
        entries = list(value.values() if isinstance(value, dict) else value)
        parts = [self._build(entry, depth + 1) for entry in entries]
        count = 1 + sum(part[1] for part in parts)
        if count > MAX_STEPS:
            raise FileError(f"holds more than {MAX_STEPS:,} objects")
        made = [part[0] for part in parts]
        height = 1 + max((part[2] for part in parts), default=0)
        if isinstance(value, dict):
            return dict(zip(value, made)), count, height
        return (tuple(made) if isinstance(value, tuple) else made), count, height

    def _array(self, tensor: Tensor) -> np.ndarray:
        if tensor.storage.data is None:
            self.fill(tensor.storage)
        return tensor.array()
