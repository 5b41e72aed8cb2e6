"""Who a request of the page comes from: a cookie a visitor, and no visitor's files for another."""

import json
from collections.abc import MutableMapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from starlette.responses import JSONResponse

from jobs.serving.requests.guard import App, Receive, Scope, Send, cookie
from jobs.serving.requests.openai_format import error
from jobs.serving.requests.sessions import COOKIE, Session, Sessions

_UPLOAD = "/gradio_api/upload"
_FILE = "/gradio_api/file="
# All that the page asks for. Gradio has more: records of what others did, a proxy, pages for its developers.
_NEEDED = (
    *("/assets/", "/static/", "/svelte/", "/theme.css", "/config", "/favicon.ico", "/manifest.json"),
    *("/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/cancel", "/gradio_api/heartbeat/"),
    *("/gradio_api/upload_progress", "/gradio_api/startup-events", "/gradio_api/app_id", "/gradio_api/info"),
    *("/gradio_api/theme.css", "/gradio_api/reset"),
    *("/media/", "/conversation.zip", "/v1/", "/healthz", "/docs", "/openapi.json"),
)
_MOST_UPLOADS = 64


class Visitors:
    """ASGI middleware around the page: gives out cookies, and lets a visitor see only what that one has uploaded."""

    def __init__(self, app: App, sessions: Sessions) -> None:
        self._app, self._sessions = app, sessions

    def close(self) -> None:
        """Removes all that visitors left."""
        self._sessions.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it itself where it is none of the visitor's business."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = unquote(scope["path"])
        header = next((value for name, value in scope["headers"] if name == b"cookie"), b"").decode("latin-1")
        session = self._sessions.find(cookie(header, COOKIE))
        if path == "/" and scope["method"] == "GET" and session is None:
            identity, _ = self._sessions.start()
            await self._app(scope, receive, _with_cookie(send, identity))
        elif path.startswith(_FILE):
            await self._file(scope, receive, send, session, path)
        elif path == _UPLOAD and scope["method"] == "POST":
            await self._upload(scope, receive, send, session)
        elif path == "/" or path.startswith(_NEEDED):
            await self._app(scope, receive, send)
        else:
            await _not_found()(scope, receive, send)

    async def _file(self, scope: Scope, receive: Receive, send: Send, session: Session | None, path: str) -> None:
        wanted = path.removeprefix(_FILE)
        if session is None or wanted not in session.uploads or ".." in PurePosixPath(wanted).parts:
            await _not_found()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send, session: Session | None) -> None:
        if session is None or len(session.uploads) >= _MOST_UPLOADS:
            reason = "open the page first" if session is None else "too many uploads wait to be sent; reload the page"
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
                    # Before the page hears of them: it asks for what it shows at once.
                    session.uploads.update(path for path in json.loads(body) if isinstance(path, str))
            await send(message)

        await self._app(scope, receive, heard)


def _with_cookie(send: Send, identity: str) -> Send:
    value = f"{COOKIE}={identity}; HttpOnly; SameSite=Strict; Path=/; Max-Age=86400"

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"set-cookie", value.encode())]
        await send(message)

    return sending


def _not_found() -> JSONResponse:
    return JSONResponse(error("there is no such page or file", "not_found_error"), 404)
