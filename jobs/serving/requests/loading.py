"""What the server answers while the parts of its model are loading."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import HTMLResponse, JSONResponse, Response

from jobs.serving.requests.guard import App, Receive, Scope, Send
from jobs.serving.requests.openai_answers import error

RETRY_AFTER = 5
_PATIENCE = 0.5  # seconds; a loaded part answers within milliseconds
_DESCRIBED = ("/docs", "/openapi.json")
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<title>NExT-GPT on Ray</title>
<style>body {{ font: 1.1rem system-ui, sans-serif; margin: 20vh auto; max-width: 32rem; padding: 0 1rem; }}</style>
<h1>NExT-GPT on Ray</h1><p>The model is loading: {parts}.</p><p>This page opens by itself when it is ready.</p></html>
"""


class Parts:
    """Tracks which parts of a model are not loaded yet; each of `probes` returns once its part answers."""

    def __init__(self, probes: Mapping[str, Callable[[], Awaitable[object]]]) -> None:
        self._probes, self._tasks = dict(probes), dict[str, asyncio.Task[object]]()

    async def missing(self) -> list[str]:
        """The names of the parts that are not loaded, in order."""
        for name, probe in self._probes.items():
            task = self._tasks.get(name)
            if task is None or (task.done() and task.exception()):  # its replica was lost while it loaded
                self._tasks[name] = asyncio.ensure_future(_awaited(probe))
        if waiting := [task for task in self._tasks.values() if not task.done()]:
            await asyncio.wait(waiting, timeout=_PATIENCE)
        return [name for name, task in self._tasks.items() if not task.done() or task.exception()]


async def _awaited(probe: Callable[[], Awaitable[object]]) -> object:
    return await probe()


class Gate:
    """ASGI middleware: answers 503, on `/healthz` too, until every part is loaded."""

    def __init__(self, app: App, parts: Parts) -> None:
        self._app, self._parts, self._is_open = app, parts, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 503."""
        if not self._is_open and scope["type"] == "http" and scope["path"] not in _DESCRIBED:
            if missing := await self._parts.missing():
                await _loading(scope["path"], missing)(scope, receive, send)
                return
            self._is_open = True
        await self._app(scope, receive, send)


def _loading(path: str, missing: list[str]) -> Response:
    headers, parts = {"Retry-After": str(RETRY_AFTER), "Cache-Control": "no-store"}, ", ".join(missing)
    if path == "/":
        return HTMLResponse(_PAGE.format(parts=parts), 503, headers)
    if path == "/healthz":
        return JSONResponse({"status": "loading", "parts": missing}, 503, headers)
    return JSONResponse(
        error(f"the model is loading ({parts}); try again", "server_error", code="loading"), 503, headers
    )
