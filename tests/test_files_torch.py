"""Files of PyTorch's: what the published format says is read, in any layout, and nothing else."""

import os
import pickle
import random
import struct
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from _torch_files import (
    Built,
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
)

from autodiff import files
from autodiff.files import FileError, unpickle

KINDS = {
    "DoubleStorage": ("<d", "f8"),
    "FloatStorage": ("<f", "f4"),
    "HalfStorage": ("<e", "f2"),
    "LongStorage": ("<q", "i8"),
    "IntStorage": ("<i", "i4"),
    "ShortStorage": ("<h", "i2"),
    "CharStorage": ("<b", "i1"),
    "ByteStorage": ("<B", "u1"),
    "BoolStorage": ("<?", "?"),
}
SIX = struct.pack("<6f", *range(6))


def load(tmp_path, content, **options):
    (tmp_path / "a.pth").write_bytes(content)
    return files.load_torch(tmp_path / "a.pth", **options)


def load_both(tmp_path, value, data, kind="FloatStorage", item=4):
    """The value from a file of each form, with one storage "0" of these bytes; both must agree."""
    new = load(tmp_path, zip_bytes(value, {"0": data}))
    old = load(tmp_path, legacy_bytes(value, {"0": (len(data) // item, data)}))
    assert type(new) is type(old)
    if isinstance(new, np.ndarray):
        assert (new.dtype, new.shape, new.strides) == (old.dtype, old.shape, old.strides)
        assert new.tobytes() == old.tobytes()
    return new


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_storage(tmp_path, kind):
    form, dtype = KINDS[kind]
    values = [True, False, True] if dtype == "?" else [1, 0, 100]
    data = b"".join(struct.pack(form, value) for value in values)
    found = load_both(tmp_path, vector(kind, "0", 3), data, item=len(data) // 3)
    assert found.dtype == np.dtype(dtype)
    assert found.tolist() == values
    found[0] = 0  # it can be written to


def test_complex_numbers_and_bfloat16(tmp_path):
    data = struct.pack("<4f", 1, 2, 3, -4)
    assert load_both(tmp_path, vector("ComplexFloatStorage", "0", 2), data, item=8).tolist() == [
        1 + 2j,
        3 - 4j,
    ]
    data = struct.pack("<4d", 1, 2, 3, -4)
    assert load_both(tmp_path, vector("ComplexDoubleStorage", "0", 2), data, item=16).dtype == "c16"
    pytest.importorskip("ml_dtypes", reason="the package ml_dtypes is not installed")
    # The upper halves of float32: 1.0 is 0x3f80, -2.5 is 0xc020.
    found = load_both(tmp_path, vector("BFloat16Storage", "0", 2), struct.pack("<2H", 0x3F80, 0xC020), item=2)
    assert found.dtype.name == "bfloat16" and found.astype(float).tolist() == [1, -2.5]


def test_bfloat16_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(FileError, match="storage '0' is bfloat16, which needs the package ml_dtypes"):
        load(tmp_path, zip_bytes(vector("BFloat16Storage", "0", 1), {"0": bytes(2)}))


def third(kind, dtype, shape, data):
    """A tensor with a dtype of its own, on a storage of bytes."""
    source = storage("UntypedStorage", "0", len(data), "torch.storage")
    args = (source, 0, shape, (1,), False, Ordered(), Global("torch", dtype))
    return Call(Global("torch._utils", "_rebuild_tensor_v3"), args)


def test_dtypes_without_storages_of_their_own(tmp_path):
    data = struct.pack("<2H", 1, 65535)
    found = load_both(tmp_path, third("", "uint16", (2,), data), data, item=1)
    assert found.dtype == np.uint16 and found.tolist() == [1, 65535]
    pytest.importorskip("ml_dtypes", reason="the package ml_dtypes is not installed")
    # Sign, 4 bits of exponent with bias 7, 3 of mantissa: 1.0 and -1.5; with 5 and 2 and bias 15: 2.0.
    found = load_both(tmp_path, third("", "float8_e4m3fn", (2,), b"\x38\xbc"), b"\x38\xbc", item=1)
    assert found.astype(float).tolist() == [1, -1.5]
    assert load_both(tmp_path, third("", "float8_e5m2", (1,), b"\x40"), b"\x40", item=1).astype(float) == [2]


@pytest.mark.parametrize(
    ("offset", "shape", "stride", "expected"),
    [
        (0, (2, 3), (3, 1), [[0, 1, 2], [3, 4, 5]]),
        (0, (3, 2), (1, 3), [[0, 3], [1, 4], [2, 5]]),
        (1, (2,), (4,), [1, 5]),
        (5, (), (), 5),
        (2, (2, 2), (0, 1), [[2, 3], [2, 3]]),
        (0, (3, 2), (1, 1), [[0, 1], [1, 2], [2, 3]]),
        (6, (0, 3), (3, 1), []),
        (0, (2, 0), (1, 1), [[], []]),
        (5, (1, 1), (10**15, 7), [[5]]),
    ],
)
def test_layouts(tmp_path, offset, shape, stride, expected):
    found = load_both(tmp_path, tensor(storage("FloatStorage", "0", 6), offset, shape, stride), SIX)
    assert found.shape == shape and found.tolist() == expected
    alone = len(np.unique(found)) == found.size  # no element of the storage is there twice
    assert found.flags.writeable == alone


def test_shared_storages_stay_shared(tmp_path):
    source = storage("FloatStorage", "0", 6)
    value = {"all": tensor(source, 0, (6,), (1,)), "end": tensor(source, 4, (2,), (1,)), "own": source}
    for content in (zip_bytes(value, {"0": SIX}), legacy_bytes(value, {"0": (6, SIX)})):
        found = load(tmp_path, content)
        found["all"][5] = 9
        assert found["end"].tolist() == [4, 9] == found["own"][4:].tolist()


def test_what_is_still_to_be_conjugated_or_negated(tmp_path):
    data = struct.pack("<4f", 1, 2, 3, -4)
    source = storage("ComplexFloatStorage", "0", 2)
    for flags, expected in [
        ({"conj": True, "neg": False}, [1 - 2j, 3 + 4j]),
        ({"neg": True}, [-1 - 2j, -3 + 4j]),
        ({"conj": True, "neg": True}, [-1 + 2j, -3 - 4j]),
    ]:
        assert load_both(tmp_path, tensor(source, 0, (2,), (1,), flags), data, item=8).tolist() == expected


def test_big_endian_files(tmp_path):
    for kind, (form, dtype) in KINDS.items():
        data = b"".join(struct.pack(">" + form[1], value) for value in (1, 0))
        content = zip_bytes(
            [vector(kind, "0", 2), tensor(storage(kind, "0", 2), 1, (1,), (1,))],
            {"0": data},
            byteorder=b"big",
        )
        both = load(tmp_path, content)
        assert both[0].dtype == np.dtype(dtype)
        assert both[0].tolist() == [1, 0] and both[1].tolist() == [0]
    data = struct.pack(">2f", 1, -2)
    (one,) = load(tmp_path, zip_bytes([vector("ComplexFloatStorage", "0", 1)], {"0": data}, byteorder=b"big"))
    assert one.tolist() == [1 - 2j]
    data = struct.pack(">2H", 1, 258)
    found = load(tmp_path, zip_bytes(third("", "uint16", (2,), data), {"0": data}, byteorder=b"big"))
    assert found.tolist() == [1, 258]


def test_parts_of_storages_in_older_files(tmp_path):
    def part(begin, count):
        return storage("FloatStorage", "7", 6, "torch", ("8", begin, count))

    value = [
        tensor(part(2, 3), 1, (2,), (1,)),
        part(4, 2),
        tensor(storage("FloatStorage", "7", 6, "torch", None), 0, (1,), (1,)),
    ]
    found = load(tmp_path, legacy_bytes(value, {"7": (6, SIX)}))
    assert [array.tolist() for array in found] == [[3, 4], [4, 5], [0]]
    for begin, count, offset in [(4, 3, 0), (2, 2, 1), (-1, 2, 0)]:
        with pytest.raises(FileError, match="storage '7'"):
            load(tmp_path, legacy_bytes(tensor(part(begin, count), offset, (2,), (1,)), {"7": (6, SIX)}))


def test_what_else_checkpoints_hold(tmp_path):
    weight = vector("FloatStorage", "0", 6)
    hooks = Ordered()
    utils = "torch._utils"
    state = Built(Ordered({"weight": weight}), {"_metadata": Ordered({"": {"version": 1}})})
    value = {
        "state": state,
        "parameter": Call(Global(utils, "_rebuild_parameter"), (weight, True, hooks)),
        "named": Call(Global(utils, "_rebuild_parameter_with_state"), (weight, True, hooks, {"tag": 1})),
        "subclass": Call(
            Global("torch._tensor", "_rebuild_from_type_v2"),
            (Global(utils, "_rebuild_tensor_v2"), Global("torch", "Tensor"), weight.args, {"tag": 1}),
        ),
        "old": Call(Global(utils, "_rebuild_tensor"), weight.args[:4]),
        "size": Call(Global("torch", "Size"), ((2, 3),)),
        "dtype": Global("torch", "float16"),
        "device": Call(Global("torch", "device"), ("cuda", 1)),
        "bytes": Call(Global("_codecs", "encode"), ("a\xff", "latin1")),
        "complex": Call(Global("__builtin__", "complex"), (1.0, -2.0)),
        "set": Call(Global("__builtin__", "set"), ([1, "a"],)),
        "pairs": Call(Global("collections", "OrderedDict"), ([["b", 1], ["a", 2]],)),
        "text of Python 2": Raw(b"U\x03abc"),
        "numbers": [0, -1, 2**40, 0.5, True, None],
        (1, "key"): (),
    }
    found = load_both(tmp_path, value, SIX)
    assert list(found) == list(value)
    for name in ("parameter", "named", "subclass", "old"):
        assert found.pop(name).tolist() == [0, 1, 2, 3, 4, 5]
    assert found.pop("state")["weight"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found == {
        "size": (2, 3),
        "dtype": np.dtype("float16"),
        "device": "cuda:1",
        "bytes": b"a\xff",
        "complex": 1 - 2j,
        "set": {1, "a"},
        "pairs": {"b": 1, "a": 2},
        "text of Python 2": "abc",
        "numbers": [0, -1, 2**40, 0.5, True, None],
        (1, "key"): (),
    }
    assert list(found["pairs"]) == ["b", "a"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_python(tmp_path, protocol):
    shared = (0.9, 0.999)
    value = {
        "numbers": [0, 255, 256, 65536, -5, 2**31, -(2**70), 1.5, True, None, 2 - 1j],
        "texts": ["", "a" * 300, "\u00e9\U0001f600", "\ud800"],
        "groups": [{"betas": shared, "params": list(range(1000))}, {"betas": shared}],
        "sets": {1, 2, 3},
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "bytes": [b"", b"ab\xff", b"\0" * 300],
    }
    assert load(tmp_path, zip_bytes(pickle.dumps(value, protocol))) == value
    assert load(tmp_path, legacy_bytes(pickle.dumps(value, protocol))) == value


def in_64_bits(content):
    """A zip file whose list has all sizes and places in fields of 64 bits, as files of more than 4 GB do."""
    end = content.rindex(b"PK\x05\x06")
    count, _, place = struct.unpack_from("<HII", content, end + 10)
    listed, at = b"", place
    for _ in range(count):
        head = bytearray(content[at : at + 46])
        packed, size, names = struct.unpack_from("<IIH", head, 20)
        (begin,) = struct.unpack_from("<I", head, 42)
        struct.pack_into("<II", head, 20, 2**32 - 1, 2**32 - 1)
        struct.pack_into("<H", head, 30, 4 + 3 + 4 + 24)
        struct.pack_into("<I", head, 42, 2**32 - 1)
        # A field of another kind comes first.
        extra = struct.pack("<HH3xHHQQQ", 0x4246, 3, 1, 24, size, packed, begin)
        listed += bytes(head) + content[at + 46 : at + 46 + names] + extra
        at += 46 + names
    ends = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(listed), place)
    ends += struct.pack("<4sIQI", b"PK\x06\x07", 0, place + len(listed), 1)
    ends += struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    return content[:place] + listed + ends


def test_zip_files_described_in_64_bits(tmp_path):
    content = in_64_bits(zip_bytes(vector("FloatStorage", "0", 6), {"0": SIX}))
    assert load(tmp_path, content).tolist() == [0, 1, 2, 3, 4, 5]
    far = content.replace(struct.pack("<QQ", 24, 24), struct.pack("<QQ", 2**63, 2**63))
    assert far != content
    with pytest.raises(FileError, match="is cut short in 'archive/data/0'"):
        load(tmp_path, far)
    place = content.index(b"PK\x06\x07") + 8
    for wrong in (0, 2**64 - 1):
        with pytest.raises(FileError, match=r"list of its records reaches over its end|whole zip file"):
            load(tmp_path, content[:place] + struct.pack("<Q", wrong) + content[place + 8 :])
    for index in range(3):  # a place in the list that no file can have
        at = [i for i in range(len(content)) if content.startswith(b"\x01\x00\x18\x00", i)][index] + 20
        with pytest.raises(FileError, match="not where the list of its records says"):
            load(tmp_path, content[:at] + b"\xff" * 8 + content[at + 8 :])


# ---- nothing runs


def attacks(target):
    """Programs that make a folder, or would, if they ran; the names of what each must be refused for."""
    name, path = Global(os.mkdir.__module__, "mkdir"), str(target)
    call = Call(name, (path,))
    text = path.encode()
    short = b"\x8c" + bytes([len(text)]) + text
    module = name.module.encode()
    source = f"__import__('os').mkdir({path!r})"
    return {
        "call": (program(call), "mkdir"),
        "inside": (program({"a": [call]}), "mkdir"),
        "key": (program(Raw(b"}" + emit_call(call) + b"Ns")), "mkdir"),
        "stack global": (
            b"\x80\x04\x8c" + bytes([len(module)]) + module + b"\x8c\x05mkdir\x93" + short + b"\x85R.",
            "mkdir",
        ),
        "eval": (program(Call(Global("builtins", "eval"), (source,))), "builtins.eval"),
        "eval of Python 2": (program(Call(Global("__builtin__", "eval"), (source,))), "builtins.eval"),
        "instance": (
            b"\x80\x02(X" + struct.pack("<I", len(text)) + text + b"i" + module + b"\nmkdir\n.",
            "INST",
        ),
        "object": (
            b"\x80\x02(c" + module + b"\nmkdir\nX" + struct.pack("<I", len(text)) + text + b"o.",
            "mkdir",
        ),
        "torch function": (program(Call(Global("torch.hub", "load"), (path,))), "torch.hub.load"),
        "rebuild by another": (
            program(Call(Global("torch._tensor", "_rebuild_from_type_v2"), (name, name, (path,), None))),
            "mkdir",
        ),
        "hooks": (program(tensor(storage("FloatStorage", "0", 1), 0, (1,), (1,), call)), "mkdir"),
        "kind of storage": (program(Raw(b"(X\x07\0\0\0storage" + emit_call(call) + b"tQ")), "mkdir"),
    }


def emit_call(call):
    return program(call)[2:-1]


def test_nothing_runs(tmp_path):
    target = tmp_path / "it ran"
    worked = 0
    for content, name in attacks(target).values():
        for whole in (zip_bytes(content, {"0": bytes(4)}), legacy_bytes(content), content):
            with pytest.raises(FileError, match=name if whole is not content else None):
                load(tmp_path, whole)
            assert not target.exists()
        with suppress(Exception):  # Python's own reader: the program does what it says
            pickle.loads(content)
        if target.exists():
            target.rmdir()
            worked += 1
    assert worked >= 6


def test_nothing_runs_without_strict(tmp_path):
    target = tmp_path / "it ran"
    for name, (content, _) in attacks(target).items():
        for whole in (zip_bytes(content), legacy_bytes(content)):
            try:
                found = load(tmp_path, whole, strict=False)
            except FileError:
                continue
            assert (
                found == {"inside": {"a": [unread(found["a"][0])]}}.get(name)
                if name == "inside"
                else unread(found)
            )
        assert not target.exists()


def unread(value):
    assert isinstance(value, files.Unread)
    return value


def test_options_beside_the_weights(tmp_path):
    options = Built(Raw(b"cargparse\nNamespace\n)\x81"), {"lr": 0.1})
    value = {
        "weight": vector("FloatStorage", "0", 6),
        "args": options,
        "scale": Raw(b"cnumpy\nfloat64\nG" + bytes(8) + b"\x85R"),
    }
    with pytest.raises(FileError, match=r"something else than tensors and containers: 'argparse.Namespace'"):
        load(tmp_path, zip_bytes(value, {"0": SIX}))
    found = load(tmp_path, zip_bytes(value, {"0": SIX}), strict=False)
    assert found["weight"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found["args"] == files.Unread("argparse.Namespace")
    assert found["scale"] == files.Unread("numpy.float64")


def test_tensors_of_a_class_of_their_own_are_unread_without_strict(tmp_path):
    plain, rebuild = vector("FloatStorage", "0", 6), Global("torch._tensor", "_rebuild_from_type_v2")
    own = Call(rebuild, (plain.function, Global("theirs", "MyTensor"), plain.args, {"name": 1}))
    content = zip_bytes({"own": own, "plain": plain}, {"0": SIX})
    with pytest.raises(FileError, match=r"'theirs\.MyTensor'"):
        load(tmp_path, content)
    found = load(tmp_path, content, strict=False)
    assert found["own"] == files.Unread("theirs.MyTensor")
    assert found["plain"].tolist() == [0, 1, 2, 3, 4, 5]


def test_the_machine_has_no_way_to_call_or_look_up_what_a_file_names():
    """No instruction for it is known, and the module imports nothing by name."""
    for refused in (b"i", b"o", b"P", b"\x82", b"\x83", b"\x84"):  # instances, objects, extensions
        assert refused[0] not in unpickle.STEPS
    source = Path(unpickle.__file__).read_text()
    assert not any(word in source for word in ("import_module", "__import__", "getattr", "eval(", "exec("))


# ---- files cut short or changed


STORAGES = {  # elements and bytes
    "0": (6, SIX),
    "1": (1, struct.pack("<q", 7)),
    "2": (2, b"\1\0"),
    "3": (2, struct.pack("<4f", 1, 2, 3, -4)),
    "4": (4, struct.pack("<2H", 1, 2)),
}


def good_files():
    """A file of each form, and the pickle in it: of all that the reader knows, a little."""
    source = storage("FloatStorage", "0", 6)
    weights = {"w": tensor(source, 0, (2, 3), (3, 1)), "b": tensor(source, 4, (2,), (1,))}
    args = (storage("UntypedStorage", "4", 4, "torch.storage"), 0, (2,), (1,), False, Ordered())
    value = {
        "epoch": 3,
        "state": Ordered(weights),
        "count": vector("LongStorage", "1", 1),
        "flag": Call(
            Global("torch._utils", "_rebuild_parameter"), (vector("BoolStorage", "2", 2), True, None)
        ),
        "lr": [0.5, (1, 2)],
        "conj": tensor(storage("ComplexFloatStorage", "3", 2), 0, (2,), (1,), {"conj": True, "neg": False}),
        "third": Call(Global("torch._utils", "_rebuild_tensor_v3"), (*args, Global("torch", "uint16"))),
        "size": Call(Global("torch", "Size"), ((2, 3),)),
    }
    data = {key: content for key, (_, content) in STORAGES.items()}
    return zip_bytes(value, data), legacy_bytes(value, STORAGES), program(value)


def test_no_file_cut_short_is_read(tmp_path):
    for content in good_files()[:2]:
        for cut in {*range(0, len(content), 7), *range(len(content) - 60, len(content))}:
            with pytest.raises(FileError):
                load(tmp_path, content[:cut])


def mutate(rng, content):
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content))
        kind = rng.randrange(4)
        if kind == 0:
            content[place] = rng.randrange(256)
        elif kind == 1:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del content[place : place + rng.randint(1, 8)]
        else:
            content[place:place] = rng.choice(INSERTED)
    return bytes(content)


INSERTED = [bytes([code]) for code in unpickle.STEPS] + [
    b"i",
    b"o",
    b"\x82\x01",
    b"cos\nsystem\n",
    b"\xff" * 8,
    b"(t",
    b"2",
]


def check_mutations(tmp_path, first, count):
    """Mutated files end in a `FileError` or are read: of the zip form also with checksums that agree."""
    path = tmp_path / "a.pth"
    outcomes = {"read": 0, "refused": 0}
    whole, old, pickled = good_files()
    data = {key: content for key, (_, content) in STORAGES.items()}
    for number in range(first, first + count):
        rng = random.Random(number)
        kind = number % 3
        if kind == 2:
            content = zip_bytes(mutate(rng, pickled), data)
        else:
            content = mutate(rng, (whole, old)[kind])
        path.write_bytes(content)
        try:
            files.load_torch(path, strict=bool(number % 5))
        except FileError as error:
            assert str(error).startswith(f"{path}: ")
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
    assert outcomes["read"] > count // 100 and outcomes["refused"] > count // 2


def test_mutated_files(tmp_path):
    check_mutations(tmp_path, 0, 1000)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_twenty_thousand_mutated_files(tmp_path):
    check_mutations(tmp_path, 1000, 20_000)
