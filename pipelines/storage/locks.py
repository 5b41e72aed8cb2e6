"""A lock on a folder that one command at a time may write to; it ends with the process that holds it."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pipelines.storage.files import is_local

LOCK = ".lock"
_HELD = frozenset({errno.EWOULDBLOCK, errno.EACCES})


class FolderInUse(OSError):
    """Another process holds the folder. Its text is one line."""


@contextmanager
def locked(folder: Path) -> Iterator[str | None]:
    """Makes a folder and keeps other processes that ask for it out; yields a note if nothing can keep them out.

    The system drops the lock with the process, however it ends. The file `.lock` says who holds it; it is removed at
    the end, and left by a process that was killed, which locks nobody out.

    Raises:
        FolderInUse: another process holds it.
        OSError: the folder cannot be written to; the message names it.
    """
    if not is_local(folder):
        yield f"{folder}: an object store has no locks; do not start a second run in this folder"
        return
    file, note = _acquire(folder)
    try:
        yield note
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is held, so that it is never that of another
        file.close()


def _acquire(folder: Path) -> tuple[IO[str], str | None]:
    while True:
        file = _open(folder)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                message = f"{folder}: in use by {_holder(file)}; wait for its end, or give another folder"
                file.close()
                raise FolderInUse(message) from None
            return file, (
                f"{folder}: its file system has no locks ({error.strerror}); do not start a second run in this folder"
            )
        if _is_current(file, folder / LOCK):
            file.seek(0)
            file.truncate()
            json.dump(_myself(), file)
            file.flush()
            return file, None
        file.close()  # its holder removed it between our opening and locking it


def _open(folder: Path) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # "a+" makes it where there is none, and does not cut what its holder wrote.
        return (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(f"{folder}: cannot be written to ({reason}); give a folder that can") from None


def _is_current(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _myself() -> dict[str, str | int]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(" ", "seconds").partition("+")[0],
    }


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return f"process {holder['process']} on {holder['host']} since {holder['since']} UTC"
    except (ValueError, KeyError, TypeError):  # it has only just got it
        return "another process"
