"""Compilations: who follows them, and how processes share them out."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from _processes import TESTS

from rawkernels import compilations, store
from rawkernels.compilations import Compilation, NotKeptError, Refusing, Sharing, TakenError

HOLD = """
import sys
from pathlib import Path
from rawkernels.compilations import Sharing
Sharing().before(Path(sys.argv[1])) or print("taken", flush=True)
sys.stdin.read()
"""
OTHERS = pytest.mark.skipif(store.fcntl is None, reason="this system has no locks of files")


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """An entry that is not there."""
    return tmp_path / "cache" / "kernel.code"


@pytest.fixture
def other(entry: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which is compiling that entry."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(entry)],
        cwd=TESTS.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


def files(entry: Path) -> list[str]:
    return [path.name for path in entry.parent.iterdir()]


def test_a_compilation_is_one_line_and_goes_to_the_follower(caplog: pytest.LogCaptureFixture) -> None:
    sharing = Sharing()
    with caplog.at_level(logging.INFO, "dynarray"):
        compilations.ends("a kernel", 1.25, kept=True)
        with compilations.followed(sharing):
            compilations.ends("another", 0.5, kept=False)
    assert caplog.messages == ["compiled a kernel in 1.2 s", "compiled another in 0.5 s"]
    assert sharing.done == [Compilation("another", 0.5, False)]


def test_a_follower_that_refuses(entry: Path) -> None:
    compilations.begins(entry)  # nobody follows
    refusing = Refusing()
    with compilations.followed(refusing), pytest.raises(NotKeptError, match=r"^kernel\.code$"):
        compilations.begins(entry)
    compilations.begins(entry)
    assert refusing.missing == {entry}


def test_who_has_taken_an_entry_leaves_nothing(entry: Path) -> None:
    sharing = Sharing()
    with compilations.followed(sharing):
        compilations.begins(entry)
        assert len(files(entry)) == 1
        compilations.ends("kernel", 1.0, kept=True)
    assert files(entry) == []


@OTHERS
def test_what_another_process_compiles_is_left_to_it(
    entry: Path, other: subprocess.Popen[str], tmp_path: Path
) -> None:
    sharing = Sharing()
    for _ in range(3):
        with pytest.raises(TakenError):
            sharing.before(entry)
    sharing.before(entry.with_name("other.code"))
    sharing.alone = True
    sharing.before(entry)


@OTHERS
def test_what_a_process_that_was_killed_had_taken_is_free(entry: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert len(files(entry)) == 1
    sharing = Sharing()
    sharing.before(entry)
    sharing.release()
    assert files(entry) == []


@OTHERS
def test_claims_of_killed_processes_are_swept(entry: Path, other: subprocess.Popen[str]) -> None:
    store.sweep(entry.parent, compilations.CLAIM)
    assert len(files(entry)) == 1
    other.kill()
    other.wait()
    store.sweep(entry.parent, compilations.CLAIM)
    assert files(entry) == []


def test_what_was_made_meanwhile_is_looked_for_again_once(entry: Path) -> None:
    sharing = Sharing()
    assert store.save_entry(entry, b"code")
    with pytest.raises(TakenError):
        sharing.before(entry)
    sharing.before(entry)  # it was there and is no good


def test_a_folder_that_cannot_be_written_keeps_nobody_from_compiling(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sharing = Sharing()
    sharing.before(tmp_path / "file" / "kernel.code")
    sharing.release()
    link = tmp_path / "kernel.code"
    os.symlink(tmp_path / "nowhere", link)
    sharing.before(link)
    assert not (tmp_path / "nowhere").exists()
