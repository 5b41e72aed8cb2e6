"""Visitors of the page: each has a cookie, and a conversation in a folder of its own that only the cookie opens."""

import atexit
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from starlette.responses import JSONResponse

from jobs.serving.requests.guard import App, Receive, Scope, Send, cookie
from jobs.serving.requests.openai_answers import error
from pipelines.sample import Item, Media, Modality, Turn

COOKIE = "nextgpt_session"
_PREFIX = "nextgpt-chat-"
_IDLE_SECONDS = 24 * 3600.0
_MOST_BYTES = 256 * 2**20  # of one visitor's media
_MOST_SESSIONS = 1000
_FILE = re.compile(r"[0-9a-f]{16}\.[a-z0-9]{1,8}")
_UPLOAD = "/gradio_api/upload"
_UPLOADED = "/gradio_api/file="
# All that the page requests. Gradio has more: records of other visitors, a proxy, developer pages.
_NEEDED = (
    *("/assets/", "/static/", "/svelte/", "/theme.css", "/config", "/favicon.ico", "/manifest.json"),
    *("/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/cancel", "/gradio_api/heartbeat/"),
    *("/gradio_api/upload_progress", "/gradio_api/startup-events", "/gradio_api/app_id", "/gradio_api/info"),
    *("/gradio_api/theme.css", "/gradio_api/reset"),
    *("/media/", "/conversation.zip", "/v1/", "/healthz", "/docs", "/openapi.json"),
)
_MOST_UPLOADS = 64


class TooManyMedia(ValueError):
    """The media of one visitor exceed the limit."""

    def __init__(self) -> None:
        super().__init__("this conversation holds too many media; clear it to go on")


@dataclass(slots=True, eq=False)
class Session:
    """One visitor's conversation. Items of its turns are named after their files in `folder`."""

    folder: Path
    turns: list[Turn] = field(default_factory=list)
    uploads: set[str] = field(default_factory=set)  # paths of uploads that have not been sent yet
    last_seen: float = field(default_factory=time.monotonic)
    is_busy: bool = False
    plan: str = ""  # of the last reply, in words, or empty

    def keep(self, medium: Media) -> Item:
        """Stores a medium; returns an item with its file name, and its note as caption. Raises TooManyMedia."""
        if sum(file.stat().st_size for file in self.folder.iterdir()) + len(medium.data) > _MOST_BYTES:
            raise TooManyMedia
        name = f"{secrets.token_hex(8)}.{medium.format}"
        (self.folder / name).write_bytes(medium.data)
        return Item(modality=medium.modality, name=name, caption=medium.note)

    def path(self, name: str) -> Path | None:
        """The file of a medium; None if this session has none of that name."""
        path = self.folder / name
        return path if _FILE.fullmatch(name) and path.is_file() else None

    def read(self, item: Item) -> Media:
        """An item's medium; raises FileNotFoundError if it is gone."""
        path = self.path(item.name)
        if path is None:
            raise FileNotFoundError(f"{item.name}: this conversation holds no such medium")
        return Media(modality=Modality(item.modality), data=path.read_bytes(), format=path.suffix[1:])

    def truncate(self, turns: int) -> None:
        """Keeps the first `turns` turns, and deletes the media of the others."""
        del self.turns[turns:]
        self.plan = ""
        kept = {part.name for turn in self.turns for part in turn.parts if isinstance(part, Item)}
        for file in list(self.folder.iterdir()):
            if file.name not in kept:
                file.unlink(missing_ok=True)


class Sessions:
    """All sessions of a server. Their files are in one folder, which is deleted when this process ends."""

    def __init__(self, root: Path | None = None, *, idle_seconds: float = _IDLE_SECONDS) -> None:
        remove_orphans()
        self.root = root or Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        self._idle_seconds = idle_seconds
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        atexit.register(self.close)

    def find(self, identity: str) -> Session | None:
        """The session of a cookie, or None."""
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
        """Deletes sessions that were idle for too long, and the longest idle ones above the maximum number."""
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
        """Deletes everything."""
        shutil.rmtree(self.root, ignore_errors=True)


class Visitors:
    """ASGI middleware around the page: sets cookies, and restricts each visitor to their own uploads."""

    def __init__(self, app: App, sessions: Sessions) -> None:
        self._app, self._sessions = app, sessions

    def close(self) -> None:
        """Deletes all visitors' files."""
        self._sessions.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 403 or 404 where the visitor has no access."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = unquote(scope["path"])
        header = next((value for name, value in scope["headers"] if name == b"cookie"), b"").decode("latin-1")
        session = self._sessions.find(cookie(header, COOKIE))
        if path == "/" and scope["method"] == "GET" and session is None:
            identity, _ = self._sessions.start()
            await self._app(scope, receive, _with_cookie(send, identity))
        elif path.startswith(_UPLOADED):
            await self._file(scope, receive, send, session, path)
        elif path == _UPLOAD and scope["method"] == "POST":
            await self._upload(scope, receive, send, session)
        elif path == "/" or path.startswith(_NEEDED):
            await self._app(scope, receive, send)
        else:
            await _not_found()(scope, receive, send)

    async def _file(self, scope: Scope, receive: Receive, send: Send, session: Session | None, path: str) -> None:
        wanted = path.removeprefix(_UPLOADED)
        if session is None or wanted not in session.uploads or ".." in PurePosixPath(wanted).parts:
            await _not_found()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send, session: Session | None) -> None:
        if session is None or len(session.uploads) >= _MOST_UPLOADS:
            reason = "open the page first" if session is None else "too many unsent uploads; reload the page"
            await JSONResponse(error(reason, "permission_error"), 403)(scope, receive, send)
            return
        status, body = 0, b""

        async def heard(message: MutableMapping[str, Any]) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                body += message.get("body", b"")
                if status == 200 and not message.get("more_body"):
                    # Before the page gets the paths: it requests the files immediately.
                    session.uploads.update(path for path in json.loads(body) if isinstance(path, str))
            await send(message)

        await self._app(scope, receive, heard)


def remove_orphans(ended: Collection[int] = ()) -> None:
    """Deletes what killed servers have left behind.

    `ended` are processes known to have ended, whose ids still exist until their parent has waited for them.
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


def _with_cookie(send: Send, identity: str) -> Send:
    value = f"{COOKIE}={identity}; HttpOnly; SameSite=Strict; Path=/; Max-Age=86400"

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"set-cookie", value.encode())]
        await send(message)

    return sending


def _not_found() -> JSONResponse:
    return JSONResponse(error("there is no such page or file", "not_found_error"), 404)
