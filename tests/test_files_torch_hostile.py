"""Files of PyTorch's that are damaged or hostile: each is refused by name, soon, and without much memory."""

import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from _torch_files import (
    MAGIC,
    Call,
    Global,
    Ordered,
    Raw,
    legacy_bytes,
    program,
    storage,
    tensor,
    vector,
    zip_bytes,
    zip_of,
)

from autodiff import files
from autodiff.files import FileError

FOUR = bytes(16)
FLOATS = storage("FloatStorage", "0", 4)


def view(offset, shape, stride):
    return tensor(FLOATS, offset, shape, stride)


def laughs(make):
    """Forty containers, each of which holds the one before it twice: a million million entries."""
    code = make(b"K\x01", b"K\x02") + b"q\x00"
    for number in range(40):
        code += make(b"h" + bytes([number]), b"h" + bytes([number])) + b"q" + bytes([number + 1])
    return Raw(b"(" + code + b"t")


def sized(count, **records):
    return zip_bytes(vector("FloatStorage", "0", count), {"0": FOUR}, **records)


# What a tensor, or a pickle, says: refused in files of both forms.
CLAIMS = {
    "leaves the storage": (
        view(0, (5,), (1,)),
        r"shape \(5,\) and stride \(1,\) from 0 on leaves its storage '0'",
    ),
    "begins behind it": (view(4, (1,), (1,)), "leaves its storage"),
    "empty, behind it": (view(5, (0,), (1,)), "leaves its storage"),
    "strides out of it": (view(0, (2, 2), (3, 1)), "leaves its storage"),
    "negative stride": (view(3, (4,), (-1,)), "a negative stride"),
    "negative offset": (view(-1, (1,), (1,)), "begins before its storage"),
    "negative size": (view(0, (-1,), (1,)), "no valid shape"),
    "fractional size": (view(0, (1.0,), (1,)), "no valid shape"),
    "boolean size": (view(0, (True,), (1,)), "no valid shape"),
    "shape a list": (view(0, [1], (1,)), "no valid shape"),
    "shape a number": (view(0, 1, (1,)), "no valid shape"),
    "65 axes": (view(0, (1,) * 65, (1,) * 65), "no valid shape"),
    "too few strides": (view(0, (2, 2), (1,)), "no valid stride"),
    "beyond 64 bits": (view(0, (2**62, 2**62), (0, 0)), "too large"),
    "beyond 64 bits, but empty": (view(0, (2**62, 2**62, 0), (0, 0, 0)), "too large"),
    "stride of 2**63": (view(0, (0,), (2**63,)), "no valid stride"),
    "stride of 2**61": (view(0, (2,), (2**61,)), "leaves its storage"),
    "quantised storage": (tensor(storage("QInt8Storage", "0", 4), 0, (4,), (1,)), "a quantised tensor"),
    "quantised": (
        Call(Global("torch._utils", "_rebuild_qtensor"), ()),
        "a quantised tensor: '.*_rebuild_qtensor'",
    ),
    "sparse": (Call(Global("torch._utils", "_rebuild_sparse_tensor"), ()), "a sparse tensor"),
    "nested": (Call(Global("torch._utils", "_rebuild_nested_tensor"), ()), "a nested tensor"),
    "meta": (Call(Global("torch._utils", "_rebuild_meta_tensor_no_storage"), ()), "which has no values"),
    "complex32": (Global("torch", "complex32"), "complex32, which NumPy does not have"),
    "unknown storage": (tensor(storage("Storage", "0", 4), 0, (4,), (1,)), "'torch.Storage'"),
    "a module": (Raw(b"X\x06\x00\x00\x00moduleN\x86Q"), "refers to 'module' outside of it"),
    "a deep identity": (Raw(b")" + b"\x85" * 20_000 + b"\x85Q"), "refers to a tuple outside of it"),
    "an identity that laughs": (
        Raw(b"(" + laughs(lambda a, b: a + b + b"\x86").code + b"tQ"),
        "refers to a tuple",
    ),
    "deep objects as strides": (view(0, (1, 1), (-1, Raw(b")" + b"\x85" * 20_000))), "a negative stride"),
    "identity a number": (Raw(b"K\x07Q"), "refers to 7 outside of it"),
    "storage of negative size": (vector("FloatStorage", "0", -1), "no valid number of elements"),
    "storage of 2**63 elements": (vector("FloatStorage", "0", 2**63), "no valid number of elements"),
    "two kinds": ([vector("FloatStorage", "0", 4), vector("IntStorage", "0", 4)], "two kinds or sizes"),
    "a tensor of a number": (tensor(3, 0, (4,), (1,)), "made of a int, not of a storage"),
    "a tensor of a class": (tensor(Global("torch", "FloatStorage"), 0, (4,), (1,)), "made of a Kind"),
    "unknown flags": (tensor(FLOATS, 0, (4,), (1,), {"eval": True}), "flags that are not known"),
    "conjugated reals": (
        tensor(FLOATS, 0, (4,), (1,), {"conj": True}),
        "float32 is to be conjugated or negated",
    ),
    "negated booleans": (
        tensor(storage("BoolStorage", "0", 16), 0, (4,), (1,), {"neg": True}),
        "bool is to be conjugated or negated",
    ),
    "a dtype that is none": (
        Call(Global("torch._utils", "_rebuild_tensor_v3"), (FLOATS, 0, (4,), (1,), False, None, 3)),
        "has a int as its dtype",
    ),
    "a dtype on typed storage": (
        Call(
            Global("torch._utils", "_rebuild_tensor_v3"),
            (FLOATS, 0, (4,), (1,), False, None, Global("torch", "int8")),
        ),
        "a storage that has another",
    ),
    "too few arguments": (Call(Global("torch._utils", "_rebuild_tensor_v2"), (FLOATS,)), "with 1 arguments"),
    "too many arguments": (Call(Global("torch", "Size"), ((), 1, 2)), "with 3 arguments"),
    "no tuple of arguments": (Raw(b"ctorch\nSize\nK\x01R"), "without a tuple of arguments"),
    "a parameter of a number": (
        Call(Global("torch._utils", "_rebuild_parameter"), (1, True, None)),
        "made of a int",
    ),
    "sizes of text": (Call(Global("torch", "Size"), (("a",),)), "no valid sizes"),
    "a call of a number": (Raw(b"K\x01)R"), "calls a int"),
    "a function alone": (Global("torch", "Size"), "holds 'torch.Size' where an object should be"),
    "a class alone": ([Global("torch", "FloatStorage")], "holds 'float32' where an object should be"),
    "attributes of a list": (Raw(b"]}b"), "sets attributes of a list"),
    "an append to a tuple": (Raw(b")K\x01a"), "appends to a tuple"),
    "an item of a list": (Raw(b"]K\x01K\x02s"), "sets items of a list"),
    "an odd number of items": (Raw(b"}(K\x01u"), "a key without a value"),
    "a list as a key": (Raw(b"}]Ns"), "a list of no plain values as a key"),
    "a tensor as a key": (Raw(b"}" + program(vector("FloatStorage", "0", 4))[2:-1] + b"Ns"), "as a key"),
    "a long tuple as a key": (Raw(b"}(" + b"N" * 65 + b"tNs"), "a tuple of 65 values as a key"),
    "a deep tuple as a key": (Raw(b"})" + b"\x85" * 20_000 + b"Ns"), "a tuple of no plain values as a key"),
    "pairs that are none": (Call(Global("collections", "OrderedDict"), ([[1, 2, 3]],)), "else than pairs"),
    "a list that contains itself": (Raw(b"]q\x00h\x00a"), "contains itself"),
    "a dict that contains itself": (Raw(b"}q\x00K\x01h\x00s"), "contains itself"),
    "20,000 lists deep": (Raw(b"]" * 20_000 + b"a" * 19_999), "nested more than 64 deep"),
    "20,000 tuples deep": (Raw(b")" + b"\x85" * 20_000), "nested more than 64 deep"),
    "65 deep, the second time": (
        Raw(b"(]q\x00" + b"\x85" * 40 + b"q\x01" + b"h\x01" + b"\x85" * 40 + b"t"),
        "nested more than 64 deep",
    ),
    "laughs of lists": (laughs(lambda a, b: b"](" + a + b + b"e"), "more than 3,000,000 objects"),
    "laughs of tuples": (laughs(lambda a, b: a + b + b"\x86"), "more than 3,000,000 objects"),
    "laughs of dicts": (
        laughs(lambda a, b: b"}(K\x01" + a + b"K\x02" + b + b"u"),
        "more than 3,000,000 objects",
    ),
    "an integer of 2 GB": (Raw(b"\x8b\xff\xff\xff\x7f"), "an integer of 2147483647 bytes"),
    "an integer of -1 bytes": (Raw(b"\x8b\xff\xff\xff\xff"), "an integer of -1 bytes"),
    "a text of 4 GB": (Raw(b"X\xff\xff\xff\xff"), "cut short"),
    "a text of 2**63 bytes": (Raw(b"\x8d" + b"\xff" * 8), "cut short"),
    "bytes of 2**62": (Raw(b"\x8e" + struct.pack("<Q", 2**62)), "cut short"),
    "a frame of 2**63 bytes": (Raw(b"\x95" + b"\xff" * 8), "cut short"),
    "a text that is none": (Raw(b"X\x01\x00\x00\x00\xff"), "a text that is not UTF-8"),
    "a text of negative length": (Raw(b"T\xff\xff\xff\xff"), "negative length"),
    "a name without end": (Raw(b"c" + b"a" * 2000 + b"\n"), "a name that does not end"),
    "a name that is none": (Raw(b"K\x01K\x02\x93"), "a name that is no text"),
    "kept nowhere": (Raw(b"h\x07"), "asks for the object 7"),
    "kept at 2**32 - 1": (Raw(b"Nr\xff\xff\xff\xffh\x07"), "asks for the object 7"),
    "an empty stack": (Raw(b"a"), "takes more from its stack"),
    "no mark": (Raw(b"Nt"), "takes more from its stack"),
    "two objects": (Raw(b"NN"), "more or less than one object"),
    "a mark left": (Raw(b"(N"), "more or less than one object"),
    "no object": (Raw(b""), "more or less than one object"),
    "protocol 1": (Raw(b"\x80\x01N"), "of protocol 1"),
    "protocol 6": (Raw(b"\x80\x06N"), "of protocol 6"),
    "an instruction of protocol 0": (Raw(b"I1\n"), "the instruction INT"),
    "an extension": (Raw(b"\x82\x01"), "the instruction EXT1"),
    "no instruction": (Raw(b"\xff"), "the instruction 0xff"),
    "an array out of band": (Raw(b"\x97"), "the instruction NEXT_BUFFER"),
}


def check_refused(path, message):
    """Refused with its path, and with no more memory than the objects of its pickle take."""
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match=message) as caught:
            files.load_torch(path)
        assert tracemalloc.get_traced_memory()[1] < 64_000_000
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize(("value", "message"), CLAIMS.values(), ids=CLAIMS.keys())
def test_claims_are_refused_in_both_forms(tmp_path, value, message):
    path = tmp_path / "a.pth"
    path.write_bytes(zip_bytes(value, {"0": FOUR}))
    check_refused(path, message)
    # The older form has a list of the storages that are used.
    used = b"Storage\nX\x01\x00\x00\x000" in program(value)
    path.write_bytes(legacy_bytes(value, {"0": (4, FOUR)} if used else {}))
    check_refused(path, message)


def patched(content, **places):
    """A zip file with numbers of its last record changed, in the list and in the record itself."""
    content = bytearray(content)
    listed, local = content.rindex(b"PK\x01\x02"), content.rindex(b"PK\x03\x04")
    for name, value in places.items():
        for begin, offsets in ((listed, {"flags": 8, "method": 10}), (local, {"flags": 6, "method": 8})):
            content[begin + offsets[name] : begin + offsets[name] + 2] = struct.pack("<H", value)
    return bytes(content)


def with_list(content, index, offset, form, value):
    """A zip file with a number in its list of records changed."""
    content = bytearray(content)
    place = -1
    for _ in range(index + 1):
        place = content.index(b"PK\x01\x02", place + 1)
    content[place + offset : place + offset + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(content)


def with_end(content, offset, form, value):
    content = bytearray(content)
    place = content.rindex(b"PK\x05\x06") + offset
    content[place : place + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(content)


GOOD = sized(4)
DAMAGED = GOOD.replace(FOUR, b"\1" + FOUR[1:])
PICKLE = program([1])
TWICE = zip_of({"a/data.pkl": PICKLE, "a/data/0": FOUR, "a/data/1": FOUR})
ZIPS = {
    "cut in the middle": (GOOD[: len(GOOD) // 2], "cut short: a zip file ends with a list"),
    "without its last byte": (GOOD[:-1], "cut short|not that of a whole zip file"),
    "a byte more": (GOOD + b"\0", "not that of a whole zip file"),
    "a record before": (b"PK\x03\x04" + GOOD, "the list of its records is damaged"),
    "storage too short": (sized(5), "'archive/data/0' has 16 bytes, but should have 20: 5 of float32"),
    "storage too long": (sized(3), "has 16 bytes, but should have 12"),
    "storage of 4 TB": (sized(2**40), "has 16 bytes, but should have 4,398,046,511,104"),
    "no storage": (zip_bytes(vector("FloatStorage", "0", 4)), "has no record data/0"),
    "storage by a path": (
        zip_bytes(vector("FloatStorage", "../0", 4), {"0": FOUR}),
        "has no record data/../0",
    ),
    "damaged storage": (DAMAGED, "'archive/data/0' is damaged, or was written without a checksum"),
    "packed": (zip_of({"a/data.pkl": PICKLE}, zipfile.ZIP_DEFLATED), r"'a/data.pkl' is packed \(method 8\)"),
    "a bomb": (zip_of({"a/data.pkl": bytes(10**7)}, zipfile.ZIP_BZIP2), r"is packed \(method 12\)"),
    "encrypted": (patched(GOOD, flags=1), "'archive/data/0' is encrypted"),
    "unknown method": (patched(GOOD, method=99), r"packed \(method 99\)"),
    "encrypted in its own header": (GOOD[:6] + b"\1" + GOOD[7:], "encrypted by one of its two headers alone"),
    "two sizes": (with_list(GOOD, 3, 24, "<I", 17), "'archive/data/0' has two sizes"),
    "size over the end": (
        with_list(with_list(GOOD, 3, 24, "<I", 10**6), 3, 20, "<I", 10**6),
        "is cut short in 'archive/data/0'",
    ),
    "a record over another": (
        with_list(with_list(TWICE, 1, 24, "<I", 40), 1, 20, "<I", 40),
        "'a/data/1' overlaps the record before it",
    ),
    "one place for two": (with_list(TWICE, 2, 42, "<I", TWICE.index(b"PK\3\4", 9)), "two names"),
    "a place far away": (with_list(GOOD, 3, 42, "<I", 2**31), "not where the list of its records says"),
    "another name in the list": (with_list(GOOD, 3, 46, "<c", b"b"), "a record with two names"),
    "a name twice": (TWICE.replace(b"data/1", b"data/0"), "two records of the name 'a/data/0'"),
    "a name that is none": (TWICE.replace(b"a/data/1", b"a/data/\xff"), "not UTF-8"),
    "another disk": (with_end(GOOD, 4, "<H", 1), "not that of a whole zip file"),
    "list over the end": (with_end(GOOD, 12, "<I", 10**6), "the list of its records reaches over its end"),
    "list of 4 GB": (with_end(GOOD, 12, "<I", 2**32 - 2), "would be 4,294,967,294 bytes long"),
    "list elsewhere": (with_end(GOOD, 16, "<I", 3), "the list of its records is damaged"),
    "of 64 bits, without": (with_end(GOOD, 16, "<I", 2**32 - 1), "not that of a whole zip file"),
    "no pickle": (zip_of({"a/data/0": FOUR}), "has 0 records data.pkl"),
    "two pickles": (zip_of({"a/data.pkl": PICKLE, "b/data.pkl": PICKLE}), "has 2 records data.pkl"),
    "TorchScript": (zip_bytes([1], **{"constants.pkl": PICKLE}), "is a TorchScript program"),
    "byte order": (sized(4, byteorder=b"middle"), "has the byte order b'middle'"),
    "byte order of 4 KB": (sized(4, byteorder=bytes(4096)), "'archive/byteorder' is too long"),
    "version 11": (sized(4, version=b"11\n"), "is of version b'11'"),
    "no version": (sized(4, version=b"x"), "is of version b'x'"),
    "more after the pickle": (zip_bytes(PICKLE + b"N"), "has 1 bytes after its pickle"),
    "a pickle of nothing": (zip_bytes(b""), "its pickle is cut short"),
    "boolean 2": (zip_bytes(vector("BoolStorage", "0", 1), {"0": b"\2"}), "said to be boolean"),
    "too many instructions": (zip_bytes(b"\x80\x02" + b"N0" * 10), "the instruction POP"),
}


@pytest.mark.parametrize(("content", "message"), ZIPS.values(), ids=ZIPS.keys())
def test_zip_files_are_refused(tmp_path, content, message):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    check_refused(path, message)


START = program(MAGIC) + program(1001) + program({})
WHOLE = legacy_bytes(vector("FloatStorage", "0", 4), {"0": (4, FOUR)})
OLD = {
    "another magic number": (program(MAGIC + 1) + program(1001), "is a pickle, but none of PyTorch's"),
    "a dict": (program({"a": 1}), "is a pickle, but none of PyTorch's"),
    "a deep version": (
        program(MAGIC) + program(Raw(b")" + b"\x85" * 20_000)),
        "is of version a tuple; known is 1001",
    ),
    "another version": (program(MAGIC) + program(1002), "is of version 1002; known is 1001"),
    "tensors before the weights": (program(vector("FloatStorage", "0", 4)), "in its magic number: holds"),
    "no pickle": (START, "its pickle is cut short"),
    "no list": (START + program([]), "in the list of its storages: its pickle is cut short"),
    "list of something else": (legacy_bytes([], {}, keys={"0": 1}), "the list of its storages is damaged"),
    "list of numbers": (legacy_bytes([], {}, keys=[1]), "the list of its storages is damaged"),
    "a storage twice": (
        legacy_bytes(vector("FloatStorage", "0", 4), {"0": (4, FOUR)}, keys=["0", "0"]),
        "the list of its storages is damaged",
    ),
    "a storage too many": (legacy_bytes([], {"0": (4, FOUR)}), "does not agree with its tensors"),
    "a storage too few": (
        legacy_bytes(vector("FloatStorage", "0", 4)),
        "does not agree with its tensors|cut short",
    ),
    "another number": (
        legacy_bytes(vector("FloatStorage", "0", 4), {"0": (3, FOUR)}),
        "storage '0' should have 4 elements",
    ),
    "a storage of 4 TB": (
        legacy_bytes(vector("FloatStorage", "0", 2**40), {"0": (2**40, FOUR)}),
        "its storages take more than its",
    ),
    "many large storages": (
        legacy_bytes([vector("FloatStorage", str(i), 100) for i in range(9)], {"0": (100, bytes(400))}),
        "its storages take more than its",
    ),
    "cut in a storage": (WHOLE[:-1], "is cut short in storage '0'"),
    "cut before a storage": (WHOLE[:-20], "is cut short before storage '0'"),
    "more than its storages": (WHOLE + b"\0", "has 1 bytes more than its storages"),
    "boolean 2 of bytes": (
        legacy_bytes(
            Call(
                Global("torch._utils", "_rebuild_tensor_v3"),
                (
                    storage("UntypedStorage", "0", 1, "torch.storage"),
                    0,
                    (1,),
                    (1,),
                    False,
                    None,
                    Global("torch", "bool"),
                ),
            ),
            {"0": (1, b"\2")},
        ),
        "said to be boolean",
    ),
    "boolean 2": (legacy_bytes(vector("BoolStorage", "0", 1), {"0": (1, b"\2")}), "said to be boolean"),
}


@pytest.mark.parametrize(("content", "message"), OLD.values(), ids=OLD.keys())
def test_older_files_are_refused(tmp_path, content, message):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    check_refused(path, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is no file of PyTorch's \(0 bytes\)"),
        (b"nothing", r"is no file of PyTorch's \(7 bytes\)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "is a page of HTML"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\x1f\x8b\x08", "is packed by gzip"),
        (b"\x93NUMPY", "is a file of NumPy"),
        ((2).to_bytes(8, "little") + b"{}", "is a safetensors file"),
        (b"sys_info".ljust(257, b"\0") + b"ustar\0" + bytes(300), "before its version 0.1.10"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    check_refused(path, message)


def test_no_file_and_no_folder_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        files.load_torch(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError):
        files.load_torch(tmp_path)


def test_a_long_pickle_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(files.unpickle, "MAX_STEPS", 1000)
    (tmp_path / "a").write_bytes(zip_bytes(b"\x80\x02" + b"]" * 2000 + b"."))
    with pytest.raises(FileError, match="more than 1,000 instructions"):
        files.load_torch(tmp_path / "a")
    monkeypatch.setattr(files.pytorch, "MAX_BYTES", 1000)
    with pytest.raises(FileError, match=r"longer than 1,000 bytes"):
        files.load_torch(tmp_path / "a")


@pytest.mark.parametrize(
    ("kept", "call"),
    [
        (
            b"X" + struct.pack("<I", 1000) + b"a" * 1000,
            b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R",
        ),
        (b"(" + b"K\x01" * 1000 + b"l", b"cbuiltins\nset\nh\x00\x85R"),
        (b"(" + b"K\x01" * 1000 + b"t", b"ctorch\nSize\nh\x00\x85R"),
    ],
    ids=["bytes", "set", "size"],
)
def test_one_long_text_is_not_handed_to_functions_without_end(tmp_path, monkeypatch, kept, call):
    """A short pickle can ask for the same work a million times."""
    path = tmp_path / "model.pth"
    monkeypatch.setattr("autodiff.files.unpickle.MAX_BYTES", 10_000)
    for times, fails in ((9, False), (10, True)):
        path.write_bytes(zip_bytes(Raw(b"(" + kept + b"q\x00" + call * times + b"t"), {}))
        if fails:
            with pytest.raises(FileError, match="hands more than 10,000 letters and objects to functions"):
                files.load_torch(path)
        else:
            assert len(files.load_torch(path)) == 10


def test_expanded_tensors_take_no_memory(tmp_path):
    """A tensor of a million million elements, all of them one."""
    value = tensor(storage("FloatStorage", "0", 1), 0, (10**6, 10**6), (0, 0), Ordered())
    value = Call(value.function, value.args[:6])
    (tmp_path / "a").write_bytes(zip_bytes(value, {"0": struct.pack("<f", 3)}))
    tracemalloc.start()
    found = files.load_torch(tmp_path / "a")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert found.shape == (10**6, 10**6) and found[-1, -1] == np.float32(3)
    assert not found.flags.writeable


def test_one_storage_is_looked_at_once_for_all_its_tensors(tmp_path):
    """A thousand views of a megabyte, all conjugated and half of them expanded, take one copy of it."""
    flags = {"conj": True, "neg": True}
    source = storage("ComplexFloatStorage", "0", 2**17)
    views = [tensor(source, 0, (10**6, 10**6), (0, 0), flags) for _ in range(500)]
    views += [tensor(source, number, (2**17 - number,), (1,), flags) for number in range(500)]
    (tmp_path / "a").write_bytes(zip_bytes(views, {"0": struct.pack("<2f", 1, 2) * 2**17}))
    tracemalloc.start()
    found = files.load_torch(tmp_path / "a")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert found[0][-1, -1] == found[999][-1] == -1 + 2j
