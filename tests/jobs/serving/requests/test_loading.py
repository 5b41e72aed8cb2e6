"""What is answered before the model is loaded."""

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jobs.serving.requests.guard import Guard
from jobs.serving.requests.loading import Gate, Parts

pytestmark = pytest.mark.anyio


async def answer(_: Request) -> Response:
    return JSONResponse("served")


def http(parts: Parts, token: str | None = None) -> httpx.AsyncClient:
    paths = ("/", "/healthz", "/v1/models", "/v1/chat/completions", "/docs")
    app = Starlette(routes=[Route(path, answer, methods=["GET", "POST"]) for path in paths])
    transport = httpx.ASGITransport(Guard(Gate(app, parts), token))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


async def test_until_every_part_is_loaded_all_but_the_description_is_503() -> None:
    llm, decoder = asyncio.Event(), asyncio.Event()
    async with http(Parts({"language model": llm.wait, "image decoder": decoder.wait})) as client:
        for path in ("/v1/models", "/v1/chat/completions"):
            said = await client.post(path) if "chat" in path else await client.get(path)
            assert said.status_code == 503
            assert int(said.headers["retry-after"]) >= 1
            assert said.json()["error"] == {
                "message": "the model is loading (language model, image decoder); try again",
                "type": "server_error",
                "param": None,
                "code": "loading",
            }
        assert (await client.get("/docs")).status_code == 200
        decoder.set()
        health = await client.get("/healthz")
        assert (health.status_code, health.json()) == (503, {"status": "loading", "parts": ["language model"]})
        page = await client.get("/")
        assert page.status_code == 503
        assert "The model is loading: language model." in page.text
        assert 'http-equiv="refresh"' in page.text
        llm.set()
        for path in ("/", "/healthz", "/v1/models"):
            assert (await client.get(path)).json() == "served"


async def test_a_server_that_is_loaded_answers_the_first_request() -> None:
    async def loaded() -> bool:
        await asyncio.sleep(0)
        return True

    async with http(Parts({"language model": loaded})) as client:
        assert (await client.get("/v1/models")).json() == "served"


async def test_a_part_that_was_lost_while_it_loaded_is_asked_again() -> None:
    tries = []

    async def probe() -> bool:
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("its process ended")
        return True

    async with http(Parts({"language model": probe})) as client:
        assert (await client.get("/healthz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200


async def test_who_has_no_token_is_not_told_even_that() -> None:
    async with http(Parts({"language model": asyncio.Event().wait}), token="x" * 16) as client:
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/healthz")).status_code == 503
