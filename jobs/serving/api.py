"""The HTTP API: OpenAI-compatible chat completions, `/v1/models` and `/healthz`."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from jobs.replies.events import Event, Full, Lost, Made, Planned, Said
from jobs.replies.scheduler import NoPlan
from jobs.serving.requests import openai_format as wire
from jobs.serving.service import Service
from model.inference.query import Query, Response, TooLong

_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
            "required": ["message", "type"],
        }
    },
    "required": ["error"],
}
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": _ERROR}}}
    for status, text in {
        400: "The request is invalid; `error.message` says where.",
        401: "The server requires a token.",
        404: "There is no such model.",
        413: "The request is too large.",
        422: "The model found no valid plan (architecture `scheduler` only).",
        429: "All places are taken; `Retry-After` says when to try again.",
        503: "The model is loading, or a part of it died; `Retry-After` says when to try again.",
    }.items()
}


def router(service: Service, allowed_urls: Sequence[str] = ()) -> APIRouter:
    """The routes of the API."""
    routes = APIRouter()

    @routes.get("/healthz", summary="Whether the model is loaded", responses={503: {"description": "Not yet"}})
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/v1/models", summary="The served model", responses=_failures(401, 503))
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @routes.get("/v1/models/{name}", summary="What a model can make", responses=_failures(401, 404, 503))
    async def model(name: str) -> Any:
        if name != service.about.name:
            return JSONResponse(wire.error(f"no model {name!r}; there is {service.about.name}", "not_found_error"), 404)
        return _model(service)

    @routes.post(
        "/v1/chat/completions",
        summary="Answer a conversation in text and media",
        responses=_failures(400, 401, 413, 422, 429, 503),
    )
    async def completions(request: wire.ChatRequest) -> Any:
        head = wire.head(f"chatcmpl-{secrets.token_hex(12)}", service.about.name)
        # In a thread: it waits for the process that decodes media.
        query = await asyncio.to_thread(wire.to_query, request, allowed_urls)
        _check_media(service, query)
        events = service.answer(query)
        if not request.stream:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Response):
                        return wire.completion(head, event)
        # The first event shows whether a place is free and the query can be answered.
        first = await anext(events)
        wants_usage = request.stream_options is not None and request.stream_options.include_usage
        return StreamingResponse(_stream(head, first, events, wants_usage), media_type="text/event-stream")

    return routes


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _FAILURES[status] for status in statuses}


def _check_media(service: Service, query: Query) -> None:
    for modality in {*query.require, *query.settings}:
        if modality not in service.about.settings:
            raise wire.Mistake(f"this model makes no {modality.value}", "modalities")
    for modality, settings in query.settings.items():
        known = {"steps", "guidance", *service.about.settings[modality]}
        if unknown := sorted(set(settings) - known):
            raise wire.Mistake(f"{modality.value} has no setting {unknown[0]}", f"decoders.{modality.value}")


def _model(service: Service) -> dict[str, Any]:
    about = service.about
    return {
        "id": about.name,
        "object": "model",
        "created": 0,
        "owned_by": "nextgpt-ray",
        "architecture": service.architecture,
        "output_modalities": ["text", *about.settings],
        "decoders": about.settings,
        "untrained": list(about.untrained),
    }


async def _stream(
    head: dict[str, Any], first: Event, rest: AsyncIterator[Event], wants_usage: bool
) -> AsyncIterator[str]:
    """A reply as server-sent events: text in `delta.content`, each medium in `delta.parts` as soon as it is ready."""

    async def events() -> AsyncIterator[Event]:
        yield first
        async for event in rest:
            yield event

    yield wire.sse(wire.chunk(head, {"role": "assistant", "content": ""}))
    try:
        async for event in events():
            if isinstance(event, Planned):
                yield wire.sse(wire.chunk(head, wire.plan_of(event.plan)))
            elif isinstance(event, Said):
                yield wire.sse(wire.chunk(head, {"content": event.text}))
            elif isinstance(event, Made):
                yield wire.sse(wire.chunk(head, {"parts": [{"index": event.number, **wire.part_of(event.media)}]}))
            elif isinstance(event, Response):
                yield wire.sse(wire.chunk(head, {}, event))
                if wants_usage:
                    yield wire.sse(
                        {**head, "object": "chat.completion.chunk", "choices": [], "usage": wire.usage(event)}
                    )
            else:
                yield f": {type(event).__name__.lower()} {event.number}\n\n"  # a comment that keeps the connection open
        yield "data: [DONE]\n\n"
    except Lost as lost:
        yield wire.sse(wire.error(str(lost), "server_error", code="lost"))
    except Exception as error:
        yield wire.sse(wire.error(_short(error), "server_error"))


def _short(error: BaseException) -> str:
    """A message for the client without internals of the server."""
    return str(error) if type(error) in (ValueError, NoPlan, TooLong) else "the reply failed; see the log"


def add_handlers(app: FastAPI) -> None:
    """Registers handlers that answer errors in OpenAI's format."""

    def handle(kind: type[Exception], answer: Callable[[Any], JSONResponse]) -> None:
        async def handler(_: Request, error: Exception) -> JSONResponse:
            return answer(error)

        app.add_exception_handler(kind, handler)

    handle(wire.Mistake, lambda e: JSONResponse(wire.error(str(e), "invalid_request_error", e.param), 400))
    handle(NoPlan, lambda e: JSONResponse(wire.error(_short(e), "server_error", code="no_plan"), 422))
    handle(ValueError, lambda e: JSONResponse(wire.error(_short(e), "invalid_request_error"), 400))
    handle(RequestValidationError, _invalid)
    handle(
        HTTPException,
        lambda e: JSONResponse(wire.error(str(e.detail), "invalid_request_error"), e.status_code, e.headers),
    )
    handle(Full, lambda e: _later(429, e, "rate_limit_error"))
    handle(Lost, lambda e: _later(503, e, "server_error"))


def _invalid(error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    param = ".".join(str(place) for place in first["loc"] if place != "body")
    return JSONResponse(wire.error(f"{param or 'body'}: {first['msg']}", "invalid_request_error", param or None), 400)


def _later(status: int, error: Any, kind: str) -> JSONResponse:
    return JSONResponse(wire.error(str(error), kind), status, {"Retry-After": str(error.retry_after)})
