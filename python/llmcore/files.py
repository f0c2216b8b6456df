"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

__all__ = [
    "errors_name_file",
    "locked_folder",
    "replaced_folder",
    "restore_folder",
    "sync_folder",
    "written_whole",
]


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A new file to write, which takes the place of `path` once it is on the disk. Whatever fails before
    that, an interrupt included, leaves what was there."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        file = unfinished.open("wb")
        try:
            yield file
            with errors_name_file(path):
                file.flush()
                os.fsync(file.fileno())
        finally:
            # What could not be written was an error before this, which another is not to hide.
            with suppress(OSError):
                file.close()
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def errors_name_file(path: Path) -> Iterator[None]:
    """Lets an `OSError` of a write, which knows only of a number, name the file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def replaced_folder(path: str | os.PathLike[str], replaces: Iterable[str] = ()) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `path` once all of it is on the disk.

    The folder to fill is `.NAME.unfinished`, beside `path`; it is locked, so that one process at a time
    writes. When it is filled, its files and folders are fsynced, the folder at `path` becomes
    `.NAME.replaced`, the new one takes its place, and the old one is deleted. What a crash leaves:

    - before the first of those two renames: the old folder at `path`, and an unfinished one, which the next
      call deletes;
    - between the renames: nothing at `path`, the old folder, complete, at `.NAME.replaced`; `restore_folder`
      (which the next call does first) puts it back;
    - after them: the new folder at `path`, and remains of the old one, which the next call deletes.

    An exception, an interrupt included, leaves `path` as it was, and nothing beside it.

    Args:
        path: The folder, which may exist. Folders above it are made.
        replaces: Patterns (as `*.json`) of the names that a folder at `path` may hold. One that holds
            anything else is not replaced: it was not written by whoever asks.

    Raises:
        FileExistsError: `path` is a file, or a folder that holds what `replaces` does not name.
        BlockingIOError: another process is writing it.
        OSError: it cannot be written.
    """
    path, patterns = Path(os.path.realpath(path)), list(replaces)
    _make_folder(path.parent)
    unfinished, replaced = _beside(path, "unfinished"), _beside(path, "replaced")
    with _locked(unfinished):
        _put_back(path)
        shutil.rmtree(replaced, ignore_errors=True)
        _check_replaceable(path, patterns)
        _empty(unfinished)
        yield unfinished
        _sync_tree(unfinished)
        _check_replaceable(path, patterns)  # filling it may have taken long
        try:
            if path.exists():
                os.rename(path, replaced)
            os.rename(unfinished, path)
        finally:
            _put_back(path)
        sync_folder(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Makes a folder and holds a lock on it, which ends with the process however that ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    _make_folder(folder)
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(descriptor):
            raise BlockingIOError(errno.EWOULDBLOCK, "another process is using it", str(folder))
        yield
    finally:
        os.close(descriptor)


def restore_folder(path: str | os.PathLike[str]) -> None:
    """Puts the folder at `path` back, if `replaced_folder` was killed between its two renames.

    Raises:
        BlockingIOError: another process is between them now.
        OSError: it cannot be renamed.
    """
    path = Path(os.path.realpath(path))
    if _beside(path, "replaced").exists() and not path.exists():
        with _locked(_beside(path, "unfinished")):
            _put_back(path)


def sync_folder(folder: Path) -> None:
    """Makes a rename last through a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put_back(path: Path) -> None:
    replaced = _beside(path, "replaced")
    if replaced.exists() and not path.exists():
        os.rename(replaced, path)


def _beside(path: Path, state: str) -> Path:
    return path.with_name(f".{path.name}.{state}")


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, to last."""
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Makes a folder and holds a lock on it, which ends with the process however that ends. What is still
    called `folder` at the end is deleted."""
    folder.mkdir(exist_ok=True)
    if sys.platform == "win32":
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Whoever had the lock may have given the folder another name since it was opened.
        if not _lock(descriptor) or not _is_named(descriptor, folder):
            raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing it", str(folder))
        try:
            yield
        finally:
            if _is_named(descriptor, folder):
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Locks a file or folder, unless somebody else has; where the file system has no locks, does nothing."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN)
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file or folder is (still) the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _check_replaceable(path: Path, patterns: list[str]) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path}: found a file, expected a folder, or nothing")
    for name in sorted(entry.name for entry in path.iterdir()):
        if not any(fnmatch(name, pattern) for pattern in patterns):
            expected = f"a new folder, or one that holds nothing but {', '.join(patterns)}"
            raise FileExistsError(f"{path}: found {name!r}, expected {expected if patterns else 'nothing'}")


def _empty(folder: Path) -> None:
    """Deletes what a folder holds."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync_tree(folder: Path) -> None:
    """Waits until all that a folder holds is on the disk."""
    for root, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(root, name), "r+b") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))
