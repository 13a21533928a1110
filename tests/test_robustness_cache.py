"""The cache of the CPU kernels missing, read-only, full, damaged or foreign: operators work, and compile."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from _processes import TESTS
from conftest import backend_params

SCRIPT = """
import os, resource, signal, sys
import numpy as np
import dynarray as dyn
from dynarray.cpu.engine.compile import cached_jit

@cached_jit
def increase(values):
    for i in range(len(values)):
        values[i] += 1

if sys.argv[1] == "full":  # no file may grow past one page: an error on writing, as on a full disk
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
if sys.argv[1] == "edited":
    with open("dynarray/cpu/engine/pixels.py", "a") as file:
        print("# changed", file=file)
if sys.argv[1].startswith("kill"):
    left, begun = int(sys.argv[1].split()[1]), False
    def step(event, arguments):
        global left, begun
        begun = begun or event == "open" and str(arguments[0]).endswith(".part")
        if begun and event.split(".")[0] in ("os", "open", "fcntl"):
            left -= 1
            if left == -1:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(step)
dtype = np.float32 if sys.argv[1] == "single" else np.float64
if sys.argv[1] == "operator":
    x, weight = np.ones((1, 2, 4, 4)), np.ones((1, 1, 3, 3, 4, 4))
    y = dyn.involution(x, weight)
    print(y[0, 0, 0, 0], y[0, 1, 1, 1])
else:
    y = np.array([3, 8], dtype)
    increase(y)
    print(*y)
"""
RIGHT = "4.0 9.0"  # pixels around a corner and around one inside

pytestmark = pytest.mark.parametrize("name", backend_params("cpu"))


@pytest.fixture
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages, whose sources a test may change."""
    copy, ignored = tmp_path_factory.mktemp("source"), shutil.ignore_patterns("__pycache__")
    for package in ("dynarray", "rawkernels"):
        shutil.copytree(TESTS.parent / package, copy / package, ignore=ignored)
    return copy


def start(source: Path, directory: Path, how: str = "") -> subprocess.Popen[str]:
    """One call in a new process with this cache directory."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(directory), "PYTHONPATH": str(source)}
    environment.pop("DYNARRAY_CACHE_DIR", None)
    command = [sys.executable, "-c", SCRIPT, how]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=source, env=environment, stdout=pipe, stderr=pipe, text=True)


def check(source: Path, directory: Path, how: str = "", killed: bool = False) -> str:
    """The call is right; what it reports. If it may be `killed`, whether it was."""
    process = start(source, directory, how)
    out, err = process.communicate(timeout=400)
    if killed and process.returncode == -signal.SIGKILL:
        return "killed"
    assert (process.returncode, out.strip()) == (0, RIGHT), err
    return "" if killed else err


def files(directory: Path) -> list[Path]:
    """What the cache holds."""
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_an_operator_is_kept_and_used(name: str, source: Path, tmp_path: Path) -> None:
    check(source, tmp_path, "operator")
    before = contents(tmp_path)
    assert before and check(source, tmp_path, "operator") == ""
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_missing_directory_is_made(name: str, source: Path, tmp_path: Path) -> None:
    check(source, tmp_path / "not" / "yet")
    assert files(tmp_path)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Nothing can be written there; for root, who may write anywhere, it is mounted so."""
    directory.chmod(0o555)
    mounted = os.geteuid() == 0
    if mounted:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "none", directory], capture_output=True, check=False
        )
        if done.returncode:
            directory.chmod(0o755)
            pytest.skip(f"root cannot mount a read-only directory here: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", directory], check=True)
        directory.chmod(0o755)


@pytest.mark.slow
def test_a_read_only_directory(name: str, source: Path, tmp_path: Path) -> None:
    with read_only(tmp_path):
        check(source, tmp_path)
        assert not files(tmp_path)


@pytest.mark.slow
def test_a_path_that_is_no_directory(name: str, source: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    check(source, blocked)


@pytest.mark.slow
def test_a_full_disk(name: str, source: Path, tmp_path: Path) -> None:
    check(source, tmp_path, "full")
    assert max((path.stat().st_size for path in files(tmp_path)), default=0) <= 4096


def contents(directory: Path) -> dict[Path, bytes]:
    """The entries of the cache."""
    return {path: path.read_bytes() for path in files(directory)}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["longer", "as long, and as old"])
def test_a_change_of_what_kernels_call_is_seen(name: str, how: str, source: Path, tmp_path: Path) -> None:
    """Numba itself looks at the size and time of the file of the kernel only."""
    check(source, tmp_path)
    before = contents(tmp_path)
    check(source, tmp_path)
    assert before and contents(tmp_path) == before
    helper = source / "dynarray" / "cpu" / "engine" / "pixels.py"
    text, times = helper.read_text(), helper.stat()
    if how == "longer":
        helper.write_text(text + "# changed\n")
    else:
        helper.write_text(text.replace("cache", "CACHE", 1))
        os.utime(helper, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert helper.stat().st_size == times.st_size
    check(source, tmp_path)
    after = contents(tmp_path)
    assert len(after) == 2 * len(before) and before.items() <= after.items()


@pytest.mark.slow
def test_what_was_compiled_of_sources_that_changed_meanwhile_is_not_kept(
    name: str, source: Path, tmp_path: Path
) -> None:
    """Neither the old sources nor the new ones need be what it was made from."""
    check(source, tmp_path, "edited")
    assert not files(tmp_path)
    check(source, tmp_path)
    assert files(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_damaged_entries_are_made_anew_and_reported(
    name: str, seed: int, source: Path, tmp_path: Path
) -> None:
    """Bytes changed at a random place, cut off at one, added; empty, and something else altogether."""
    check(source, tmp_path)
    good, rng = contents(tmp_path), np.random.default_rng(seed)
    for path, sealed in good.items():
        place = int(rng.integers(len(sealed)))
        other = bytes([sealed[place] ^ int(rng.integers(1, 256))])
        damaged = {
            "changed": sealed[:place] + other + sealed[place + 1 :],
            "cut": sealed[:place],
            "added to": sealed + b"\0",
            "empty": b"",
            "garbage": rng.bytes(5000),
        }
        for what, bad in damaged.items():
            path.write_bytes(bad)
            assert f"{path} is made anew: it is damaged" in check(source, tmp_path), what
            assert check(source, tmp_path) == "", f"reported twice: {what}"
    assert set(contents(tmp_path)) == set(good)


@pytest.mark.slow
def test_an_entry_under_another_name_is_no_entry(name: str, source: Path, tmp_path: Path) -> None:
    """Whole files in each other's place, as a poisoned index would have it."""
    check(source, tmp_path)
    check(source, tmp_path, "single")
    paths, good = sorted(files(tmp_path)), contents(tmp_path)
    assert len(paths) > 1
    for path, other in zip(paths, paths[1:] + paths[:1], strict=True):
        path.write_bytes(good[other])
    assert "is damaged" in check(source, tmp_path)


@pytest.mark.slow
def test_processes_killed_while_they_compile_leave_nothing_wrong(
    name: str, source: Path, tmp_path: Path
) -> None:
    """Killed at each access to the disk from the first write on."""
    killed = 0
    while check(source, tmp_path, f"kill {killed}", killed=True):
        killed += 1
        check(source, tmp_path)
        for path in files(tmp_path):
            path.unlink()
    assert killed > 3
    check(source, tmp_path)
    assert {path.suffix for path in files(tmp_path)} == {".code"}


@pytest.mark.slow
def test_processes_that_compile_the_same_at_once(name: str, source: Path, tmp_path: Path) -> None:
    running = [start(source, tmp_path) for _ in range(4)]
    assert [(process.communicate(timeout=400)[0].strip(), process.returncode) for process in running] == [
        (RIGHT, 0)
    ] * 4
    assert {path.suffix for path in files(tmp_path)} == {".code"}
    assert check(source, tmp_path) == ""
