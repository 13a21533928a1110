"""Entries of caches: what was written comes back, and nothing else is ever taken for it."""

import errno
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rawkernels import store

pytestmark = pytest.mark.skipif(os.name == "nt", reason="owners and locks are those of POSIX")
CONTENTS = bytes(range(256)) * 3


def test_an_entry_comes_back_until_it_is_another(tmp_path: Path) -> None:
    entry = tmp_path / "deep" / "er" / "entry.code"
    assert store.load_entry(entry) is None
    assert store.save_entry(entry, CONTENTS)
    assert store.load_entry(entry) == CONTENTS
    assert store.save_entry(entry, b"")
    assert store.load_entry(entry) == b""
    assert [path.name for path in entry.parent.iterdir()] == ["entry.code"]


@pytest.mark.parametrize("seed", range(200))
def test_damage_anywhere_is_seen(seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry, rng = tmp_path / "entry.code", np.random.default_rng(seed)
    store.save_entry(entry, CONTENTS)
    sealed = bytearray(entry.read_bytes())
    kind, place = rng.integers(4), int(rng.integers(len(sealed)))
    if kind == 0:
        sealed[place] ^= int(rng.integers(1, 256))
    elif kind == 1:
        del sealed[place:]
    elif kind == 2:
        sealed[place:place] = rng.bytes(int(rng.integers(1, 50)))
    else:
        sealed = bytearray(rng.bytes(place))
    entry.write_bytes(sealed)
    assert store.load_entry(entry) is None
    assert [record.name for record in caplog.records] == ["dynarray"]
    assert not entry.exists(), "it would be read and refused again"


def test_an_entry_of_another_name_is_refused(tmp_path: Path) -> None:
    store.save_entry(tmp_path / "one.code", CONTENTS)
    (tmp_path / "one.code").rename(tmp_path / "two.code")
    assert store.load_entry(tmp_path / "two.code") is None


@pytest.mark.parametrize("what", ["a link", "a folder", "a pipe", "open to the group", "open to all"])
def test_what_others_could_have_put_there_is_refused(what: str, tmp_path: Path) -> None:
    entry, other = tmp_path / "entry.code", tmp_path / "other" / "entry.code"
    store.save_entry(entry, CONTENTS)
    store.save_entry(other, CONTENTS)
    if what.startswith("open"):
        entry.chmod(0o620 if what.endswith("group") else 0o602)
    else:
        entry.unlink()
        if what == "a link":
            entry.symlink_to(other)
        elif what == "a folder":
            entry.mkdir()
        else:
            os.mkfifo(entry, 0o600)  # where a reader would wait for a writer
    assert store.load_entry(entry) is None
    assert store.load_entry(other) == CONTENTS


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() != 0, reason="only root can give files away")
def test_files_and_folders_of_other_users_are_refused(tmp_path: Path) -> None:
    entry = tmp_path / "entry.code"
    store.save_entry(entry, CONTENTS)
    os.chown(entry, 65534, 65534)
    assert store.load_entry(entry) is None
    os.chown(tmp_path, 65534, 65534)
    assert not store.save_entry(entry, CONTENTS)


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_folders_are_for_this_user_alone(mask: int, tmp_path: Path) -> None:
    entry, before = tmp_path / "a" / "b" / "entry.code", os.umask(mask)
    try:
        assert store.save_entry(entry, CONTENTS)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (entry, *entry.parents[:2])] == [0o600, 0o700, 0o700]


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    assert not store.save_entry(folder / "entry.code", CONTENTS)
    assert not list(folder.iterdir())


def test_nothing_is_read_from_a_folder_that_others_can_write_by_now(tmp_path: Path) -> None:
    """They could put another file there between the look at one and its use."""
    entry = tmp_path / "folder" / "entry.code"
    assert store.save_entry(entry, CONTENTS)
    entry.parent.chmod(0o777)
    assert store.load_entry(entry) is None


def test_where_files_cannot_be_locked_all_is_kept_and_nothing_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(store.fcntl, "flock", refuse)
    entry, other = tmp_path / "entry.code", tmp_path / ".build-0123456789abcdef.part"
    other.touch()  # of a process that may be alive
    assert store.save_entry(entry, CONTENTS)
    with store.scratch_folder(tmp_path) as scratch:
        (scratch / "file").touch()
    assert store.load_entry(entry) == CONTENTS
    assert set(tmp_path.iterdir()) == {entry, other}


def test_where_no_open_file_can_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, which has no locks of this kind either."""
    opened, replace = [], os.replace

    def careful(source: Path, target: Path) -> None:
        assert all(file.closed for file in opened)
        replace(source, target)

    monkeypatch.setattr(store, "fcntl", None)
    monkeypatch.setattr(os, "replace", careful)
    for contents in (CONTENTS, CONTENTS[:5]):
        with store.replaced(tmp_path / "file") as file:
            opened.append(file)
            file.write(contents)
        assert (tmp_path / "file").read_bytes() == contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_nobody_uses_goes_and_what_is_used_stays(tmp_path: Path) -> None:
    old, used, foreign = (tmp_path / name for name in ("old.code", "used.code", "old.txt"))
    foreign.write_text("not ours")
    for entry in (old, used):
        store.save_entry(entry, CONTENTS)
    for path in (old, used, foreign):
        os.utime(path, (0, 0))
    assert store.load_entry(used) == CONTENTS
    store.save_entry(tmp_path / "new.code", CONTENTS)
    assert {path.name for path in tmp_path.iterdir()} == {"new.code", "used.code", "old.txt"}


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("os.open", "os.chmod", "os.replace"):
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "dynarray"):
            patch.setattr(step, full)
            assert not store.save_entry(tmp_path / "entry.code", CONTENTS)
        assert not list(tmp_path.iterdir()), step
    assert "No space left" in caplog.text


def _write_half(entry: Path, inside: object) -> None:
    with store.replaced(entry) as file:
        file.write(b"half")
        file.flush()
        inside.set()  # type: ignore[attr-defined]
        signal.pause()


def test_what_a_killed_writer_left_goes_with_the_next_entry_whichever_that_is(tmp_path: Path) -> None:
    """Of the one that it wrote there may be no other writer: somebody was faster, and it is there."""
    context = multiprocessing.get_context("spawn")
    event, entry, other = context.Event(), tmp_path / "entry.code", tmp_path / "other.code"
    writer = context.Process(target=_write_half, args=(entry, event))
    writer.start()
    assert event.wait(60)
    assert store.save_entry(entry, CONTENTS)
    assert len(list(tmp_path.iterdir())) == 2, "the writer lives, and so does its file"
    writer.kill()
    writer.join()
    assert store.save_entry(other, CONTENTS)
    assert set(tmp_path.iterdir()) == {entry, other}


def _stay(folder: Path, inside: object) -> None:
    with store.scratch_folder(folder) as scratch:
        (scratch / "half made").write_text("...")
        inside.set()  # type: ignore[attr-defined]
        signal.pause()


def test_folders_of_killed_processes_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    events = [context.Event() for _ in range(2)]
    living, killed = (context.Process(target=_stay, args=(tmp_path, event)) for event in events)
    for process, event in zip((living, killed), events, strict=True):
        process.start()
        assert event.wait(60)
    killed.kill()
    killed.join()
    with store.scratch_folder(tmp_path) as scratch:
        names = {path.parent for path in tmp_path.rglob("half made")}
        assert len(names) == 1 and scratch not in names, "the one of the living process alone"
    living.kill()
    living.join()
    with store.scratch_folder(tmp_path):
        assert not list(tmp_path.rglob("half made"))
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from rawkernels import store

left, folder = int(sys.argv[1]), sys.argv[2]
def step(event, arguments):
    global left
    if event.split(".")[0] in ("os", "open", "fcntl", "shutil", "tempfile"):
        left -= 1
        if left == -1:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(step)
with store.scratch_folder(Path(folder)) as scratch:
    (scratch / "deeper").mkdir()
    (scratch / "deeper" / "file").touch()
"""


def test_whenever_a_process_is_killed_its_folder_is_swept(tmp_path: Path) -> None:
    """At each access to the disk, from the first to the last."""
    killed, removing = 0, 0
    while True:
        command = [sys.executable, "-c", KILLED, str(killed), str(tmp_path)]
        status = subprocess.run(command, cwd=Path(store.__file__).parent.parent, check=False).returncode
        if not status:
            break
        assert status == -signal.SIGKILL
        killed += 1
        left = sorted(path.suffix for path in tmp_path.iterdir())
        removing += left == [".part"]
        with store.scratch_folder(tmp_path) as scratch:
            kept = {path.stem for path in tmp_path.iterdir()}
            assert len(kept) == 2 and scratch.name in kept, "its own folder and lock"
    assert killed > 8 and removing > 1, "before the folder was there, and after it was removed"
    assert not list(tmp_path.iterdir())
