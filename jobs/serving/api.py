"""The HTTP API: OpenAI-compatible chat completions, `/v1/models` and `/healthz`."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import Match

from jobs.replies.events import Event, Full, Lost, Made, Planned, Said
from jobs.replies.scheduler import NoPlan
from jobs.serving.requests import openai_answers as answers
from jobs.serving.requests import openai_format as wire
from jobs.serving.service import Service
from model.inference.query import BadSchema, NoRoom, Query, Response, TooLong
from pipelines.sample import Media

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
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
            reason = f"no model {name!r}; there is {service.about.name}"
            return JSONResponse(answers.error(reason, "not_found_error", "model", "model_not_found"), 404)
        return _model(service)

    @routes.post(
        "/v1/chat/completions",
        summary="Answer a conversation in text and media",
        responses=_failures(400, 401, 413, 422, 429, 503),
    )
    async def completions(request: wire.ChatRequest) -> Any:
        head = answers.head(f"chatcmpl-{secrets.token_hex(12)}", service.about.name)
        # In a thread: it waits for the process that decodes media.
        query = await asyncio.to_thread(wire.to_query, request, allowed_urls)
        _check_media(service, query)
        queries = wire.choices(query, request.n or 1)
        events = service.choices(queries)
        if not request.stream:
            async with aclosing(events):
                whole = {number: event async for number, event in events if isinstance(event, Response)}
            return answers.completion(head, *(whole[number] for number in sorted(whole)))
        # The first event shows whether a place is free and the query can be answered.
        first = await anext(events)
        wants_usage = request.stream_options is not None and request.stream_options.include_usage
        told = _stream(head, len(queries), _from(first, events), wants_usage)
        return StreamingResponse(told, media_type="text/event-stream")

    for path, answer in (("/healthz", healthz), ("/v1/models", models), ("/v1/models/{name}", model)):
        routes.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)
    _add_refusals(routes)
    return routes


def _add_refusals(routes: APIRouter) -> None:
    """Adds an answer to every other request to the API, which the page would answer otherwise."""
    known = [route for route in routes.routes if isinstance(route, APIRoute)]

    async def refuse(request: Request) -> None:
        matching = [route for route in known if route.matches(request.scope)[0] is not Match.NONE]
        if methods := sorted({method for route in matching for method in route.methods or ()}):
            raise HTTPException(
                405, f"{request.method} is not possible here; use {' or '.join(methods)}", {"Allow": ", ".join(methods)}
            )
        raise HTTPException(404, f"there is no {request.url.path}; /docs describes what there is")

    for path in ("/healthz", "/v1/{rest:path}"):
        routes.add_api_route(path, refuse, methods=_METHODS, include_in_schema=False)


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
    head: dict[str, Any], count: int, events: AsyncIterator[tuple[int, Event]], wants_usage: bool
) -> AsyncIterator[str]:
    """Replies as server-sent events: text in `delta.content`, each medium in `delta.parts` as soon as it is ready."""
    for number in range(count):
        yield answers.sse(answers.chunk(head, {"role": "assistant", "content": ""}, number=number))
    responses = list[Response[Media]]()
    try:
        async for number, event in events:
            if isinstance(event, Response):
                responses.append(event)
            yield _told(head, number, event)
        if wants_usage:
            yield answers.sse(
                {**head, "object": "chat.completion.chunk", "choices": [], "usage": answers.usage(*responses)}
            )
        yield "data: [DONE]\n\n"
    except Lost as lost:
        yield answers.sse(answers.error(str(lost), "server_error", code="lost"))
    except Exception as error:
        yield answers.sse(answers.error(_short(error), "server_error"))


def _told(head: dict[str, Any], number: int, event: Event) -> str:
    """An event of choice `number` as a server-sent event."""
    if isinstance(event, Response):
        return answers.sse(answers.chunk(head, {}, event, number))
    if isinstance(event, Planned):
        return answers.sse(answers.chunk(head, answers.plan_of(event.plan), number=number))
    if isinstance(event, Said):
        return answers.sse(answers.chunk(head, {"content": event.text}, number=number))
    if isinstance(event, Made):
        parts = [{"index": event.number, **answers.part_of(event.media)}]
        return answers.sse(answers.chunk(head, {"parts": parts}, number=number))
    return f": {type(event).__name__.lower()} {event.number}\n\n"  # a comment that keeps the connection open


async def _from(first: tuple[int, Event], rest: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[tuple[int, Event]]:
    yield first
    async for event in rest:
        yield event


def _short(error: BaseException) -> str:
    """A message for the client without internals of the server."""
    is_clear = type(error) in (ValueError, NoPlan, TooLong, NoRoom, BadSchema)
    return str(error) if is_clear else "the reply failed; see the log"


def add_handlers(app: FastAPI) -> None:
    """Registers handlers that answer errors in OpenAI's format."""

    def handle(kind: type[Exception], answer: Callable[[Any], JSONResponse]) -> None:
        async def handler(_: Request, error: Exception) -> JSONResponse:
            return answer(error)

        app.add_exception_handler(kind, handler)

    handle(wire.Mistake, lambda e: _mistake(str(e), e.param, e.code))
    handle(TooLong, lambda e: _mistake(str(e), "messages", "context_length_exceeded"))
    handle(NoRoom, lambda e: _mistake(str(e).replace("max_new_tokens", "max_tokens"), "max_tokens"))
    handle(BadSchema, lambda e: _mistake(str(e), "response_format"))
    handle(NoPlan, lambda e: JSONResponse(answers.error(_short(e), "server_error", code="no_plan"), 422))
    handle(ValueError, lambda e: _mistake(_short(e)))
    handle(RequestValidationError, _invalid)
    handle(
        HTTPException,
        lambda e: JSONResponse(answers.error(str(e.detail), _kind_of(e.status_code)), e.status_code, e.headers),
    )
    handle(Full, lambda e: _later(429, e, "rate_limit_error"))
    handle(Lost, lambda e: _later(503, e, "server_error"))


def _mistake(message: str, param: str | None = None, code: str | None = None) -> JSONResponse:
    return JSONResponse(answers.error(message, "invalid_request_error", param, code), 400)


def _kind_of(status: int) -> str:
    return "not_found_error" if status == 404 else "invalid_request_error"


def _invalid(error: RequestValidationError) -> JSONResponse:
    """The first mistake in a request, with its field as OpenAI writes it: `messages[0].content[1]`."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _mistake(f"the body is not JSON: {first['ctx']['error']} (character {first['loc'][-1]})")
    places = [*first["loc"][1:], *([first["ctx"]["place"]] if first["type"] == "part" else ())]
    param = "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in places).removeprefix(".")
    if not param:
        return _mistake("the body must be a JSON object, sent with Content-Type: application/json")
    return _mistake(f"{param}: {first['msg'].removeprefix('Value error, ')}", param)


def _later(status: int, error: Any, kind: str) -> JSONResponse:
    return JSONResponse(answers.error(str(error), kind), status, {"Retry-After": str(error.retry_after)})
