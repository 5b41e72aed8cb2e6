"""Checks of every request before it is handled: access, origin, and size."""

import hmac
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse, RedirectResponse, Response

from jobs.serving.requests.openai_answers import error

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
MAX_BODY = 96 * 2**20  # three media of the maximum size in base64
TOKEN = "NEXTGPT_CHAT_TOKEN"  # the environment variable that holds it
TOKEN_COOKIE = "nextgpt_token"
_OPEN = ("/healthz",)
_API = ("/v1/", "/healthz")  # what pages of other origins may be allowed to use
_PREFLIGHT_SECONDS = 600
_LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"SAMEORIGIN"),
)


class TooMuch(Exception):
    """A request body is larger than allowed."""


class Guard:
    """ASGI middleware. Without a token, only requests to loopback host names are answered, against DNS rebinding.

    With a `token`, requests must carry it as `Authorization: Bearer`; a browser sends it once as `/?token=...` and
    keeps it in a cookie that scripts cannot read. Pages of `origins` may use the API from a browser (CORS); `*` are
    all.
    """

    def __init__(self, app: App, token: str | None = None, origins: Collection[str] = ()) -> None:
        self._app, self._token, self._origins = app, token, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with the reason for its refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._is_allowed(scope, headers):
            send = _shared(send, headers["origin"])
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        size, has_begun = 0, False

        async def limited() -> MutableMapping[str, Any]:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise TooMuch
            return message

        async def guarded(message: MutableMapping[str, Any]) -> None:
            nonlocal has_begun
            if size > MAX_BODY and not has_begun:  # The application's own answer to TooMuch would be unclear.
                return
            if message["type"] == "http.response.start":
                has_begun = True
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            await self._app(scope, limited, guarded)
        except TooMuch:
            pass
        finally:
            if size > MAX_BODY and not has_begun:
                await _too_much()(scope, receive, send)

    def _is_allowed(self, scope: Scope, headers: dict[str, str]) -> bool:
        """Whether a request comes from a page of another origin that may use the API."""
        origin = headers.get("origin")
        is_known = origin is not None and ("*" in self._origins or origin in self._origins)
        return is_known and scope["path"].startswith(_API)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> Response | None:
        """The answer to a request that does not reach the application; None for others."""
        if (
            scope["method"] == "OPTIONS"
            and "access-control-request-method" in headers
            and self._is_allowed(scope, headers)
            and (self._token is not None or _host(headers.get("host", "")) in _LOOPBACK)
        ):
            return _preflight(headers)  # browsers send it without the token
        if self._token is None:
            if _host(headers.get("host", "")) not in _LOOPBACK:
                return _refused(403, "this server only answers on loopback; open http://127.0.0.1:PORT")
            if not _is_own(headers) and not self._is_allowed(scope, headers):
                return _refused(403, "requests from another page are refused")
        elif scope["path"] not in _OPEN and not self._knows_token(headers):
            given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
            if not self._is_token(given):
                return _refused(
                    401, "send the server's token as Authorization: Bearer TOKEN, or open /?token=TOKEN once"
                )
            answer = RedirectResponse(scope.get("root_path", "") + "/", 303)
            answer.set_cookie(TOKEN_COOKIE, given, httponly=True, samesite="strict")
            return answer
        try:
            is_large = int(headers.get("content-length", "0")) > MAX_BODY
        except ValueError:
            is_large = True
        return _too_much() if is_large else None

    def _knows_token(self, headers: dict[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        return (kind.lower() == "bearer" and self._is_token(given.strip())) or self._is_token(
            cookie(headers.get("cookie", ""), TOKEN_COOKIE)
        )

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self._token or "").encode())


def cookie(header: str, name: str) -> str:
    """The value of a cookie, or empty."""
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _host(value: str) -> str:
    return value.rpartition(":")[0] if not value.endswith("]") and ":" in value else value


def _is_own(headers: dict[str, str]) -> bool:
    """Whether a request comes from outside a browser, or from a page of this server."""
    origin = headers.get("origin")
    return not origin or origin.partition("://")[2] == headers.get("host", "")


def _shared(send: Send, origin: str) -> Send:
    """Lets a page of this origin read the answer."""
    shared = ((b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin"))
    exposed = (b"access-control-expose-headers", b"Retry-After")

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *shared, exposed]
        await send(message)

    return sending


def _preflight(headers: dict[str, str]) -> Response:
    """What a browser asks before it sends a page's request to another origin."""
    allowed = {
        "Access-Control-Allow-Methods": "GET, HEAD, POST",
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "authorization, content-type"),
        "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
    }
    if "access-control-request-private-network" in headers:
        allowed["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=allowed)


def _refused(status: int, message: str) -> Response:
    return JSONResponse(error(message, "authentication_error" if status == 401 else "permission_error"), status)


def _too_much() -> Response:
    return JSONResponse(error(f"the request is too large: {MAX_BODY} bytes is the limit", "invalid_request_error"), 413)
