"""Files written whole or not at all, and caches of compiled code that trust no file blindly.

An entry of a cache is one file, named after a hash of everything that it was made from, so that it never has
to change: what is there is right, or is made anew. It ends with a digest of its name and contents. Before it
is used, that is compared, and so are its owner and mode: code that somebody else could have put there does
not run. One that fails is removed and reported on the logger ``dynarray``.

Whatever is written goes to a file of another name first, which is locked while its writer lives. The locks of
a process that was killed are gone, so that the next writer can tell what it left behind, and removes it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

# Windows has none: there nobody sweeps.
fcntl: Any = import_module("fcntl") if os.name == "posix" else None

log = logging.getLogger("dynarray")

# No link is followed, no pipe waited for.
_READ = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_MAGIC = b"dynarray"
_DIGEST_BYTES = hashlib.sha256().digest_size
_SEAL_BYTES = len(_MAGIC) + _DIGEST_BYTES
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_DAY = 24 * 3600
_KEPT_DAYS = 30  # entries that nobody has used for so long are of sources that nobody has any more


def cache_folder(kind: str) -> Path:
    """Where entries of a kind are kept: below ``DYNARRAY_CACHE_DIR``, or where the user's caches are."""
    chosen = os.environ.get("DYNARRAY_CACHE_DIR")
    if chosen:
        return Path(chosen) / kind
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "dynarray" / kind


# ---- entries


class _RefusedError(Exception):
    """Why an entry is not used."""


def load_entry(path: Path) -> bytes | None:
    """The contents of an entry; None where there is none that is to be trusted."""
    try:
        return _read_entry(path)
    except FileNotFoundError:
        return None
    except _RefusedError as error:
        drop_entry(path, str(error))
        return None


def _read_entry(path: Path) -> bytes:
    try:
        handle = os.open(path, _READ)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _RefusedError(f"it cannot be opened as a file: {error.strerror}") from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise _RefusedError("it is no file")
    with open(handle, "rb") as file:
        if not (_is_ours(found) and _is_ours(os.stat(path.parent))):
            raise _RefusedError("others than this user could have written it")
        try:
            sealed = file.read()
        except OSError as error:
            raise _RefusedError(f"it cannot be read: {error.strerror}") from None
    contents = sealed[:-_SEAL_BYTES]
    if sealed[-_SEAL_BYTES:] != _seal(path.name, contents):
        raise _RefusedError("it is damaged")
    if time.time() - found.st_mtime > _DAY:
        with suppress(OSError):
            os.utime(path)  # still in use
    return contents


def save_entry(path: Path, contents: bytes) -> bool:
    """Make an entry, if the disk and the rights of its folder allow it; whether they did."""
    if not prepare_folder(path.parent):
        return False
    try:
        _prune(path.parent, path.suffix)
        sweep(path.parent, ".")  # of all entries: nobody may ever write again what is there by now
        with replaced(path, mode=0o600, lasting=False) as file:
            file.write(contents + _seal(path.name, contents))
    except OSError as error:
        log.warning("%s could not be kept: %s", path, error)
        return False
    return True


def drop_entry(path: Path, why: str) -> None:
    """Remove an entry that is not right, and say so."""
    log.warning("%s is made anew: %s", path, why)
    with suppress(OSError):
        path.unlink()


def prepare_folder(folder: Path) -> bool:
    """Make a folder for entries, for this user alone; whether it can be used and trusted."""
    try:
        for missing in reversed([f for f in (folder, *folder.parents) if not f.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        found = os.stat(folder)
        if not stat.S_ISDIR(found.st_mode):
            return False
        if not _is_ours(found):
            log.warning("%s is not used as a cache: others than this user can write there", folder)
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _seal(name: str, contents: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(name.encode() + b"\0" + contents).digest()


def _is_ours(found: os.stat_result) -> bool:
    """Whether nobody but this user and root can have made it what it is."""
    if not hasattr(os, "geteuid"):
        return True
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & _OTHERS_WRITE


def _prune(folder: Path, suffix: str) -> None:
    """Remove entries that nobody uses any more."""
    old = time.time() - _KEPT_DAYS * _DAY
    for entry in os.scandir(folder):
        with suppress(OSError):
            if entry.name.endswith(suffix) and entry.stat(follow_symlinks=False).st_mtime < old:
                os.unlink(entry.path)


# ---- files and folders that vanish if they are not finished


@contextmanager
def replaced(path: Path, *, mode: int | None = None, lasting: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when it is complete, and vanishes if it never is.

    Parameters
    ----------
    path : Path
        A symbolic link stays one: what it leads to is replaced.
    mode : int, optional
        Permissions of the file; by default those of the one that it replaces, else those of any new file.
    lasting : bool
        Whether it must survive a power failure.
    """
    path = Path(os.path.realpath(path))
    try:
        kept = stat.S_IMODE(os.stat(path).st_mode) if mode is None else mode
    except FileNotFoundError:
        kept = None
    begin = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}-"
    sweep(path.parent, begin)
    temporary, file = _locked(path.parent / begin, 0o666 if kept is None else kept)
    try:
        with file:
            if kept is not None:
                os.chmod(temporary, kept)  # whatever the umask has made of it
            yield file
            file.flush()
            if lasting:
                os.fsync(file.fileno())  # or the new name could be left with none of the contents
            if fcntl is None:
                file.close()  # Windows renames no file that is open; elsewhere it is locked until then
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if lasting:
        _sync_folder(path.parent)


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder that vanishes afterwards, or when the next one is made if this process is killed."""
    sweep(parent, ".build-")
    lock, file = _locked(parent / ".build-", 0o600)
    try:
        with file, tempfile.TemporaryDirectory(prefix=f"{lock.stem}-", dir=parent) as folder:
            yield Path(folder)
    finally:
        lock.unlink(missing_ok=True)  # last, since it is by its name that a folder left behind is found


def _locked(begin: Path, mode: int) -> tuple[Path, BinaryIO]:
    """A new file whose path begins so, locked for as long as it is open."""
    while True:
        path = begin.with_name(f"{begin.name}{os.urandom(8).hex()}.part")
        # O_EXCL follows no link that someone may have put there.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        file = open(handle, "wb")  # noqa: SIM115 (the caller closes it)
        if fcntl is None:
            return path, file
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # some file systems of clusters have no locks: there nobody sweeps either
            return path, file
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                return path, file
        file.close()  # a sweeper came between creation and lock


def sweep(folder: Path, begin: str) -> None:
    """Remove what processes that were killed have left: the files of that beginning which nobody locks."""
    if fcntl is None:
        return
    for path in _named(folder, begin):
        if path.suffix != ".part":
            continue
        with suppress(OSError), open(os.open(path, _READ), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for made in _named(folder, f"{path.stem}-"):  # the folder that it stands for
                shutil.rmtree(made)
            path.unlink()


def _named(folder: Path, begin: str) -> Iterable[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.name.startswith(begin)]


def _sync_folder(folder: Path) -> None:
    """Make a renaming last; Windows cannot open folders, and need not."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
