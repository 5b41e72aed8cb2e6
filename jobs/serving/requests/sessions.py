"""Conversations of visitors: each in a folder of its own that only its cookie opens."""

import atexit
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.sample import Item, Media, Modality, Turn

COOKIE = "nextgpt_session"
_PREFIX = "nextgpt-chat-"
_IDLE_SECONDS = 24 * 3600.0
_MOST_BYTES = 256 * 2**20  # of one visitor's media
_MOST_SESSIONS = 1000
_FILE = re.compile(r"[0-9a-f]{16}\.[a-z0-9]{1,8}")


class TooManyMedia(ValueError):
    """A visitor's media take more room than one may have."""

    def __init__(self) -> None:
        super().__init__("this conversation holds too many media; clear it to go on")


@dataclass(slots=True, eq=False)
class Session:
    """One visitor's conversation. Items of its turns are named after their files in `folder`."""

    folder: Path
    turns: list[Turn] = field(default_factory=list)
    uploads: set[str] = field(default_factory=set)  # paths of what the page has uploaded and nobody has sent yet
    last_seen: float = field(default_factory=time.monotonic)
    is_busy: bool = False
    plan: str = ""  # of the last reply, in words, if it had one

    def keep(self, medium: Media) -> Item:
        """Writes a medium; returns the item that names it, its note as the caption. Raises TooManyMedia."""
        if sum(file.stat().st_size for file in self.folder.iterdir()) + len(medium.data) > _MOST_BYTES:
            raise TooManyMedia
        name = f"{secrets.token_hex(8)}.{medium.format}"
        (self.folder / name).write_bytes(medium.data)
        return Item(modality=medium.modality, name=name, caption=medium.note)

    def path(self, name: str) -> Path | None:
        """The file of a medium; None where this session has none of that name."""
        path = self.folder / name
        return path if _FILE.fullmatch(name) and path.is_file() else None

    def read(self, item: Item) -> Media:
        """An item's medium; raises FileNotFoundError where it is gone."""
        path = self.path(item.name)
        if path is None:
            raise FileNotFoundError(f"{item.name}: this conversation holds no such medium")
        return Media(modality=Modality(item.modality), data=path.read_bytes(), format=path.suffix[1:])

    def truncate(self, turns: int) -> None:
        """Keeps so many turns, and removes the media of the others."""
        del self.turns[turns:]
        self.plan = ""
        kept = {part.name for turn in self.turns for part in turn.parts if isinstance(part, Item)}
        for file in list(self.folder.iterdir()):
            if file.name not in kept:
                file.unlink(missing_ok=True)


class Sessions:
    """All visitors of a server. Their files lie in one folder, which goes when this process ends."""

    def __init__(self, root: Path | None = None, *, idle_seconds: float = _IDLE_SECONDS) -> None:
        remove_orphans()
        self.root = root or Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self._idle_seconds = idle_seconds
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        atexit.register(self.close)

    def find(self, identity: str) -> Session | None:
        """The session that a cookie names, if there is one."""
        with self._lock:
            session = self._sessions.get(identity)
        if session is not None:
            session.last_seen = time.monotonic()
        return session

    def start(self) -> tuple[str, Session]:
        """A new session, and the cookie that opens it."""
        self.sweep()
        identity = secrets.token_hex(32)
        folder = self.root / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        session = Session(folder=folder)
        with self._lock:
            self._sessions[identity] = session
        return identity, session

    def sweep(self) -> None:
        """Removes who has not been seen for long, and of too many those who were seen longest ago."""
        now = time.monotonic()
        with self._lock:
            oldest = sorted(self._sessions, key=lambda identity: self._sessions[identity].last_seen)
            surplus = max(0, len(oldest) + 1 - _MOST_SESSIONS)
            gone = {i for i in oldest if now - self._sessions[i].last_seen > self._idle_seconds} | set(oldest[:surplus])
            removed = [self._sessions.pop(identity) for identity in gone]
        for session in removed:
            for upload in session.uploads:
                Path(upload).unlink(missing_ok=True)
            shutil.rmtree(session.folder, ignore_errors=True)

    def close(self) -> None:
        """Removes everything."""
        shutil.rmtree(self.root, ignore_errors=True)


def remove_orphans(ended: Collection[int] = ()) -> None:
    """Removes what servers that were killed have left behind.

    `ended` are processes that are known to have ended: until its parent has heard of it, one of them still has its id.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        has_ended = pid.isdigit() and (int(pid) in ended or not _is_running(int(pid)))
        if has_ended and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
