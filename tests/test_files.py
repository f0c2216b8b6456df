"""Files and folders that are there whole or not at all: whatever fails, whenever the process is killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from llmcore.files import replaced_folder, restore_folder, written_whole

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills and locks are POSIX's")

OLD, NEW = {"a": "old a", "b": "old b"}, {"a": "new a", "c": "new c"}


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def read(folder):
    return {entry.name: entry.read_text() for entry in folder.iterdir()}


def replace(path):
    with replaced_folder(path, ["?"]) as folder:
        write(folder, NEW)


@pytest.mark.parametrize("old", [None, {}, OLD])
def test_a_folder_takes_the_place_of_another(tmp_path, old):
    path = tmp_path / "above" / "folder"
    if old is not None:
        path.parent.mkdir()
        write(path, old)
    replace(path)
    assert read(path) == NEW and os.listdir(path.parent) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, BlockingIOError])
def test_what_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "folder"
    write(path, OLD)
    with pytest.raises(error), replaced_folder(path, ["?"]) as folder:
        write(folder, NEW)
        raise error
    assert read(path) == OLD and os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_rename_that_fails_leaves_what_was_there(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "folder"
    write(path, OLD)
    rename, calls = os.rename, []

    def failing_rename(source, target):
        calls.append(target)
        if len(calls) == failing + 1:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing_rename)
    with pytest.raises(error):
        replace(path)
    assert read(path) == OLD and os.listdir(tmp_path) == ["folder"]


KILLED = """
import os, signal, sys
from pathlib import Path
from llmcore import files

left = int(sys.argv[2])

def counted(function):
    def call(*arguments, **named):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*arguments, **named)
    return call

for name in "rename mkdir unlink rmdir fsync replace".split():
    setattr(os, name, counted(getattr(os, name)))
with files.replaced_folder(sys.argv[1], ["?"]) as folder:
    for name in "ac":
        with files.written_whole(folder / name) as file:
            file.write(f"new {name}".encode())
"""


def test_a_kill_at_any_moment_leaves_the_old_or_the_new(tmp_path):
    path = tmp_path / "folder"
    restored = []
    for moment in range(100):
        write(path, OLD)
        done = subprocess.run([sys.executable, "-c", KILLED, path, str(moment)])
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        restored.append(not path.exists())
        restore_folder(path)
        found = read(path)
        assert found in (OLD, NEW), moment
        # What is left does not keep the next call from its work, and is gone after it.
        replace(path)
        assert read(path) == NEW and os.listdir(tmp_path) == ["folder"], moment
        for entry in path.iterdir():
            entry.unlink()
    else:
        pytest.fail("never came to an end")
    assert moment > 10 and sum(restored) == 1  # between the two renames, there is nothing under the name


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    path = tmp_path / "folder"
    write(path, OLD | {"notes.txt": "mine"})
    expected = r"folder: found 'notes\.txt', expected a new folder, or one that holds nothing but \?"
    with pytest.raises(FileExistsError, match=expected):
        replace(path)
    with pytest.raises(FileExistsError, match=r"folder: found 'a', expected nothing"), replaced_folder(path):
        pass
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file: found a file, expected a folder"):
        replace(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and len(read(path)) == 3


def test_what_came_meanwhile_is_left_alone(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(FileExistsError, match=r"notes\.txt"), replaced_folder(path, ["?"]) as folder:
        write(folder, NEW)
        write(path, {"notes.txt": "mine"})
    assert read(path) == {"notes.txt": "mine"}


def test_one_writes_at_a_time(tmp_path):
    path = tmp_path / "folder"
    with replaced_folder(path) as folder:
        write(folder, NEW)
        with pytest.raises(BlockingIOError, match=r"another process is writing it: .*folder"):
            replace(path)
    assert read(path) == NEW


def test_a_link_stays_a_link(tmp_path):
    write(tmp_path / "folder", OLD)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    replace(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and read(tmp_path / "folder") == NEW


def test_an_error_of_a_write_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*name'"),
        written_whole(tmp_path / "name") as file,
    ):
        file.write(b"text")
    assert os.listdir(tmp_path) == []


def test_all_is_on_the_disk_before_it_takes_the_place(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    write(path, OLD)
    synced, fsync, rename = [], os.fsync, os.rename
    renamed = []

    def logged_fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def logged_rename(source, target):
        if source != path:
            inside = {entry.stat().st_ino for entry in (source, *source.rglob("*"))}
            assert inside <= set(synced) and len(inside) == 4
        renamed.append(len(synced))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "rename", logged_rename)
    with replaced_folder(path, ["?"]) as folder:
        (folder / "d").mkdir()
        write(folder / "d", NEW)
    assert len(renamed) == 2 and len(synced) > renamed[-1]  # and then the folder above
    assert synced[-1] == tmp_path.stat().st_ino


def test_what_is_being_replaced_is_not_put_back(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    write(path, OLD)
    rename = os.rename

    def watched_rename(source, target):
        rename(source, target)
        if source == path:  # now there is nothing under its name
            with pytest.raises(BlockingIOError, match="another process is writing it"):
                restore_folder(path)

    monkeypatch.setattr(os, "rename", watched_rename)
    replace(path)
    assert read(path) == NEW and os.listdir(tmp_path) == ["folder"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    replace(tmp_path / "folder")
    assert read(tmp_path / "folder") == NEW
