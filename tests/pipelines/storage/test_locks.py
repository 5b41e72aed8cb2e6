"""A folder has one writer at a time, whatever became of the one before."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from upath import UPath

from pipelines.storage.locks import LOCK, FolderInUse, locked

HOLDER = """
import sys, time
from pathlib import Path
from pipelines.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""
UNPRIVILEGED = """
import os, sys
from pathlib import Path
from pipelines.storage.locks import locked
if os.getuid() == 0:
    os.setuid(65534)
try:
    with locked(Path(sys.argv[1])):
        pass
except OSError as error:
    print(error)
"""


def test_the_second_is_told_who_holds_it_until_that_one_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse) as caught, locked(folder):
            pass
        assert str(caught.value).startswith(f"{folder}: in use by process {holder.pid} on {os.uname().nodename} since ")
    finally:
        holder.kill()
        holder.wait()
    assert (folder / LOCK).is_file()
    with locked(folder) as note:
        assert note is None
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} on "), locked(folder):
            pass
    assert list(folder.iterdir()) == []
    with locked(folder):
        pass


def test_where_nothing_keeps_others_out_this_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path) as note:
        assert note == (
            f"{tmp_path}: its file system has no locks (No locks available); do not start a second run in this folder"
        )
    with locked(UPath("memory://runs/one")) as note:
        assert note is not None
        assert note.startswith("memory://runs/one: an object store has no locks")


@pytest.mark.parametrize("name", ["", "run"])
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "read-only" / name
    folder.parent.mkdir(exist_ok=True)
    (tmp_path / "read-only").mkdir(exist_ok=True)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)
    (tmp_path / "read-only").chmod(0o555)
    command = [sys.executable, "-c", UNPRIVILEGED, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder}: cannot be written to (Permission denied); give a folder that can\n"
