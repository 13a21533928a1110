"""Files of arrays: what is written is read, whoever writes or reads it, and nothing else is accepted."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from _counting import counted_calls
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from autodiff import files
from autodiff.layers import BatchNorm2d, Conv2d, Linear, Sequential

ROOT = Path(__file__).resolve().parent.parent
DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]


def encode(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, given as JSON or as its text, and a length that may be wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


GOOD = encode({"a": entry()}, bytes(8))

named_arrays = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != files.METADATA),
    st.sampled_from(DTYPES).flatmap(lambda t: arrays(t, array_shapes(min_dims=0, max_dims=3, min_side=0))),
    max_size=4,
)


@given(contents=named_arrays, metadata=st.dictionaries(st.text("abc\u00e9"), st.text('ab\n"')))
def test_what_is_written_is_read(tmp_path, contents, metadata):
    path = tmp_path / "a.safetensors"
    files.save(path, contents, metadata)
    found = files.load(path)
    assert found.metadata == metadata
    assert set(found.arrays) == set(contents)
    for name, array in contents.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].flags.writeable
        np.testing.assert_array_equal(found.arrays[name], array)
    assert os.listdir(tmp_path) == ["a.safetensors"]


@given(contents=named_arrays)
def test_the_formats_own_library_reads_and_writes_the_same(tmp_path, contents):
    other = pytest.importorskip("safetensors.numpy", reason="the package safetensors is not installed")
    path = tmp_path / "a.safetensors"
    files.save(path, contents)
    theirs = other.load_file(path)
    assert set(theirs) == set(contents)
    for name, array in contents.items():
        assert theirs[name].dtype == array.dtype
        np.testing.assert_array_equal(theirs[name], array)
    # Its NumPy side takes neither views nor 0-d arrays with grace: give it plain ones.
    other.save_file({name: array.copy() for name, array in contents.items()}, path)
    ours = files.load(path).arrays
    assert set(ours) == set(contents)
    for name, array in contents.items():
        np.testing.assert_array_equal(ours[name], array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(12.0)[::-3],
        np.broadcast_to(np.float32(3), (2, 2)),
        np.arange(4, dtype=">f4"),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
    ],
    ids=["transposed", "backwards", "broadcast", "big-endian", "Fortran"],
)
def test_any_layout_of_memory(tmp_path, array):
    files.save(tmp_path / "a", {"a": array})
    found = files.load(tmp_path / "a").arrays["a"]
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.flags.c_contiguous


def test_bfloat16(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the package ml_dtypes is not installed")
    array = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    files.save(tmp_path / "a", {"a": array})
    found = files.load(tmp_path / "a").arrays["a"]
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()


def test_bfloat16_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(encode({"a": entry("BF16", [4])}, bytes(8)))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(files.FileError, match="'a' is bfloat16, which needs the package ml_dtypes"):
        files.load(tmp_path / "a")


@pytest.mark.parametrize(
    ("contents", "metadata", "error", "message"),
    [
        ({"__metadata__": np.zeros(1)}, None, ValueError, "cannot be the name of an array"),
        ({3: np.zeros(1)}, None, ValueError, "3 cannot be the name"),
        ({"a": [1.0]}, None, TypeError, "a must be an array, got list"),
        ({"a": np.zeros(1, complex)}, None, TypeError, "a has dtype complex128"),
        ({"a": np.array(["text"])}, None, TypeError, "a has dtype <U4"),
        ({"a": np.array([object()])}, None, TypeError, "a has dtype object"),
        ({"a": np.zeros(1)}, {"epoch": 3}, TypeError, "metadata must be strings"),
        ({"a\ud800": np.zeros(1)}, None, ValueError, "surrogates"),
    ],
)
def test_what_cannot_be_written(tmp_path, contents, metadata, error, message):
    path = tmp_path / "a"
    path.write_bytes(GOOD)
    with pytest.raises(error, match=message):
        files.save(path, contents, metadata)
    assert path.read_bytes() == GOOD
    assert os.listdir(tmp_path) == ["a"]


HOSTILE = {
    "empty": (b"", "too short"),
    "seven bytes": (b"\0" * 7, "too short"),
    "header cut short": (encode({"a": entry()}, length=10_000), "is cut short: its header should be 10,000"),
    "header of 2**64 - 1 bytes": (encode({}, length=2**64 - 1), "no safetensors file"),
    "header of 100 MB": (encode({}, length=files.MAX_HEADER), "is cut short"),
    "header too short": (encode({"a": entry()}, bytes(8), length=5), "not JSON"),
    "header of no bytes": (encode(b""), "not JSON"),
    "not UTF-8": (encode(b'{"\xff": 1}'), "not JSON"),
    "a list": (encode([]), "not a JSON object"),
    "two objects": (encode(b"{}{}"), "not JSON"),
    "deeply nested": (encode(b'{"a":' + b"[" * 200_000), "not JSON"),
    "a number of 5000 digits": (encode(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
    "a name twice": (encode(b'{"a":1,"a":2}'), "gives a name twice"),
    "a key twice": (encode(b'{"a":{"dtype":"F32","dtype":"F64"}}'), "gives a name twice"),
    "metadata no object": (encode({"__metadata__": ["a"]}), "metadata must be strings"),
    "metadata of numbers": (encode({"__metadata__": {"a": 1}}), "metadata must be strings"),
    "no description": (encode({"a": None}), "'a' must have dtype, shape and data_offsets"),
    "a key missing": (encode({"a": {"dtype": "F32", "shape": []}}, bytes(4)), "must have dtype, shape"),
    "a key too many": (encode({"a": entry(code="rm -r")}, bytes(8)), "must have dtype, shape"),
    "unknown dtype": (encode({"a": entry("O")}, bytes(8)), "'a' has dtype 'O'; known are C64, F64"),
    "dtype no string": (encode({"a": entry(["F32"])}, bytes(8)), "has dtype"),
    "negative size": (encode({"a": entry(shape=[-2])}, bytes(8)), "no valid shape"),
    "fractional size": (encode({"a": entry(shape=[2.0])}, bytes(8)), "no valid shape"),
    "boolean size": (encode({"a": entry(shape=[2, True])}, bytes(8)), "no valid shape"),
    "shape a string": (encode({"a": entry(shape="2")}, bytes(8)), "no valid shape"),
    "NaN size": (encode(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'), "no valid shape"),
    "65 axes": (encode({"a": entry(shape=[2] + [1] * 64)}, bytes(8)), "no valid shape"),
    "huge": (encode({"a": entry(shape=[2**40])}, bytes(8)), "takes 4,398,046,511,104 bytes, but has 8"),
    "beyond 64 bits": (encode({"a": entry(shape=[2**32, 2**32])}, bytes(8)), "too large"),
    "beyond 64 bits, but empty": (encode({"a": entry(shape=[2**62, 2**62, 0], offsets=[0, 0])}), "too large"),
    "huge and claimed": (encode({"a": entry(shape=[2**40], offsets=[0, 2**42])}, bytes(8)), "cut short"),
    "offsets backwards": (encode({"a": entry(offsets=[8, 0])}, bytes(8)), "takes 8 bytes, but has -8"),
    "offsets negative": (encode({"a": entry(offsets=[-8, 0])}, bytes(8)), "no valid data_offsets"),
    "three offsets": (encode({"a": entry(offsets=[0, 8, 8])}, bytes(8)), "no valid data_offsets"),
    "wrong size": (
        encode({"a": entry(shape=[3])}, bytes(8)),
        r"'a', \(3,\) float32, takes 12 bytes",
    ),
    "overlap": (encode({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "'b' overlaps"),
    "the same bytes twice": (encode({"a": entry(), "b": entry()}, bytes(8)), "'b' overlaps"),
    "empty inside another": (
        encode({"a": entry(), "b": entry(shape=[0], offsets=[4, 4])}, bytes(8)),
        "overlaps",
    ),
    "a gap": (encode({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "'b' leaves a gap"),
    "a gap at the start": (encode({"a": entry(offsets=[4, 12])}, bytes(12)), "'a' leaves a gap"),
    "data cut short": (encode({"a": entry()}, bytes(7)), "cut short: they take 8 bytes, 7 are there"),
    "data too long": (encode({"a": entry()}, bytes(9)), "more than its arrays"),
    "boolean 2": (encode({"a": entry("BOOL", [1], [0, 1])}, b"\2"), "said to be boolean"),
    "a pickle": (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05hello\x94.", "header"),
    "a zip": (b"PK\x03\x04" + bytes(40), "header"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_damaged_or_hostile_file_is_refused(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(files.FileError, match=message) as caught, counted_calls() as count:
        files.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert 0 < count.calls < 10_000


@given(cut=st.integers(0, len(GOOD) - 1))
def test_no_file_cut_short_is_read(tmp_path, cut):
    (tmp_path / "a").write_bytes(GOOD[:cut])
    with pytest.raises(files.FileError):
        files.load(tmp_path / "a")


def good_file() -> bytearray:
    header = {
        "w": entry("F32", [2, 2], [0, 16]),
        "b": entry("I16", [2], [16, 20]),
        "z": entry("U8", [0, 3], [20, 20]),
        "__metadata__": {"kind": "x"},
    }
    return bytearray(encode(header, bytes(range(20))))


@settings(max_examples=400)
@given(seed=st.integers(0, 2**32))
def test_what_is_accepted_is_what_the_formats_own_library_reads(tmp_path, seed):
    """Bytes changed at random: an array, as that library reads it, or a `FileError`, but nothing else."""
    other = pytest.importorskip("safetensors.numpy", reason="the package safetensors is not installed")
    rng = random.Random(seed)
    content = good_file()
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(content))
        content[place] = rng.choice([rng.randrange(256), *b'0123456789[]{}",:-eFIU'])
    (tmp_path / "a").write_bytes(content)
    try:
        ours = files.load(tmp_path / "a").arrays
    except files.FileError:
        return
    theirs = other.load(bytes(content))
    assert set(ours) == set(theirs)
    for name, array in ours.items():
        assert (array.dtype, array.shape) == (theirs[name].dtype, theirs[name].shape)
        assert array.tobytes() == theirs[name].tobytes()


def test_names_are_names_and_no_paths(tmp_path):
    names = ["../../up", "/etc/passwd", "a/b", "..", ".", "C:\\x", "nul\0", "~root", "$HOME", "\n"]
    inside = tmp_path / "inside"
    inside.mkdir()
    files.save(inside / "a", {name: np.zeros(1) for name in names})
    assert set(files.load(inside / "a").arrays) == set(names)
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "a"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    """A "latest" that leads to a file of another folder, through a second link."""
    there = tmp_path / "there"
    there.mkdir()
    target, second, link = there / "model", tmp_path / "second", tmp_path / "latest"
    files.save(target, {"a": np.ones(1)})
    second.symlink_to(target)
    link.symlink_to(second)
    files.save(link, {"a": np.zeros(1)})
    assert link.is_symlink() and second.is_symlink() and not target.is_symlink()
    np.testing.assert_array_equal(files.load(target).arrays["a"], [0])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["latest", "model", "second", "there"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_permissions_stay(tmp_path, mode):
    path = tmp_path / "a"
    files.save(path, {"a": np.zeros(1)})
    path.chmod(mode)
    files.save(path, {"a": np.ones(1)})
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        files.save(tmp_path / "a", {"a": np.zeros(1)})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("name", ["n" * 240 + ".safetensors", "\u00e9" * 127, "-rf", ".hidden"])
def test_long_and_strange_names(tmp_path, name):
    files.save(tmp_path / name, {"a": np.zeros(1)})
    files.save(tmp_path / name, {"a": np.ones(1)})
    assert os.listdir(tmp_path) == [name]
    np.testing.assert_array_equal(files.load(tmp_path / name).arrays["a"], [1])


def test_masked_arrays_are_refused(tmp_path):
    with pytest.raises(TypeError, match="save: a is a masked array"):
        files.save(tmp_path / "a", {"a": np.ma.masked_array([1.0, 2.0], [True, False])})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b'{"__metadata__":null,"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}',
        b'  \n{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}  ',
    ],
)
def test_what_the_formats_own_library_reads_is_read(tmp_path, text):
    (tmp_path / "a").write_bytes(encode(text, bytes(8)))
    array = files.load(tmp_path / "a").arrays["a"]
    assert array.shape == (1,) and array[0] == 0


def test_no_file_and_no_folder_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        files.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        files.save(tmp_path / "nowhere" / "a", {"a": np.zeros(1)})
    with pytest.raises(IsADirectoryError):
        files.load(tmp_path)


@pytest.mark.parametrize("fault", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, fault, error):
    path = tmp_path / "a"
    files.save(path, {"a": np.zeros(2)})
    before = path.read_bytes()

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(fault, fail)
        with pytest.raises(type(error)):
            files.save(path, {"a": np.ones(2)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_the_contents_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, original=original: calls.append(name) or original(*args)
        )
    files.save(tmp_path / "a", {"a": np.zeros(1)})
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, and the folder that holds the name


SAVE_FOREVER = """
import itertools, sys
import numpy as np
from autodiff import files
for i in itertools.count():
    files.save(sys.argv[1], {"a": np.full(200_000, i), "b": np.full(200_000, i)})
    print(i, flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_process_killed_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a"
    rng = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(path)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"0\n"
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = files.load(path).arrays
        assert (found["a"] == found["a"][0]).all()
        np.testing.assert_array_equal(found["a"], found["b"])
    files.save(path, {"a": np.zeros(1)})
    assert os.listdir(tmp_path) == ["a"], "what killed processes had begun is still there"


KILLED_AT = """
import os, signal, sys
import numpy as np
from autodiff import files

steps = 0
def count(event, arguments):
    global steps
    if event.split(".")[0] in ("os", "open", "shutil", "fcntl"):
        steps += 1
        if steps == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
files.save(sys.argv[1], {"a": np.ones(3)})
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_process_killed_at_any_step_leaves_the_old_file_or_the_new_and_nothing_once_the_next_has_saved(
    tmp_path,
):
    path, step, status = tmp_path / "a", 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        step += 1
        files.save(path, {"a": np.zeros(3)})
        command = [sys.executable, "-c", KILLED_AT, str(path), str(step)]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        found = files.load(path).arrays["a"]
        assert found.tolist() in ([0, 0, 0], [1, 1, 1]), f"killed at step {step}"
    assert status == 0 and step > 5
    files.save(path, {"a": np.zeros(3)})
    assert os.listdir(tmp_path) == ["a"]


def network(seed: int) -> Sequential:
    return Sequential(Conv2d(1, 2, 3, rng=seed), BatchNorm2d(2), Linear(4, 3, rng=seed))


def test_a_network_goes_through_a_file(tmp_path):
    one, other = network(1), network(2)
    one(np.random.default_rng(0).standard_normal((2, 1, 4, 4)).astype(np.float32))
    files.save(tmp_path / "a", one.state_dict())
    files.load_module(tmp_path / "a", other)
    state = other.state_dict()
    assert len(state) == 8
    for name, value in one.state_dict().items():
        np.testing.assert_array_equal(state[name], value)


def test_a_file_of_another_network_names_every_fault_and_changes_nothing(tmp_path, monkeypatch):
    state = network(1).state_dict()
    del state["layers.1.running_mean"]
    state["layers.0.weight"] = state["layers.0.weight"].astype(np.float64)
    state["layers.2.bias"] = np.zeros(4, np.float32)
    state["extra"] = np.zeros(1)
    files.save(tmp_path / "a", state)
    mine = network(2)
    before = mine.state_dict()
    # It must be refused by its header alone: arrays of any size stay unread.
    monkeypatch.setattr(files.safe, "_read", lambda *_: pytest.fail("an array was read"))
    with pytest.raises(files.FileError) as caught:
        files.load_module(tmp_path / "a", mine)
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'a'}: is not of this Sequential:",
        "  missing: layers.1.running_mean",
        "  unexpected: extra",
        "  layers.0.weight: expected (2, 1, 3, 3) float32, got (2, 1, 3, 3) float64",
        "  layers.2.bias: expected (3,) float32, got (4,) float32",
    ]
    for name, value in mine.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_no_file_is_ever_unpickled():
    """What ranks of one run tell each other is pickled, as by any pipe between processes; no file is."""
    ranks = ROOT / "autodiff" / "distributed" / "_mpi.py"
    assert not re.search(r"\bopen\(|\bPath\b|read_bytes|memmap|fromfile", ranks.read_text())
    pickles = ("marshal", "shelve", "joblib", "np.load(", "np.save(", "allow_pickle", "torch.load")
    uses = r"^ *(?:import|from) pickle\b|\bpickle\.\w*(?:load|Unpickler)|cloudpickle"
    imports = re.compile(uses, re.MULTILINE)
    assert imports.search("    import pickle\n") and imports.search("x = pickle.loads(y)")
    for path in [*(ROOT / "autodiff").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        text = path.read_text().replace("allow_pickle=False", "")
        assert not [word for word in pickles if word in text], path
        assert path == ranks or not imports.search(text), path
