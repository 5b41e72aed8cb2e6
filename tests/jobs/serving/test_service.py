"""How many may ask at once, and what the others are told."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from jobs.replies.events import Event, Finished, Lost, Said
from jobs.replies.scheduler import NoPlan
from jobs.serving.api import add_handlers, router
from jobs.serving.deployments import About
from jobs.serving.service import Service
from model.inference.query import Query
from pipelines.sample import Modality

ABOUT = About(name="small", settings={Modality.IMAGE: {"height": 32}}, untrained=(), needs_guides=False)
DONE = Finished(parts=("hello",), media=(), prompt_tokens=3, tokens=1, was_cut=True)
QUESTION = {"messages": [{"role": "user", "content": "hi"}]}


def http(service: Service) -> httpx.AsyncClient:
    app = FastAPI()
    app.include_router(router(service))
    add_handlers(app)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_who_finds_all_places_taken_is_told_when_to_come_again(stream: bool) -> None:
    gate = asyncio.Event()

    async def slow(query: Query) -> AsyncGenerator[Event, None]:
        await gate.wait()
        yield DONE

    service = Service(ABOUT, slow, places=2)
    async with http(service) as client:
        asked = QUESTION | {"stream": stream}
        first = [asyncio.create_task(client.post("/v1/chat/completions", json=QUESTION)) for _ in range(2)]
        while service.taken < 2:
            await asyncio.sleep(0.01)
        refused = await client.post("/v1/chat/completions", json=asked)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        gate.set()
        answers = [await task for task in first]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json()["choices"][0]["finish_reason"] == "length"
        assert (await client.post("/v1/chat/completions", json=asked)).status_code == 200
    assert service.taken == 0


@pytest.mark.anyio
async def test_a_failure_is_said_cleanly_and_gives_the_place_back() -> None:
    failures: list[Exception] = [
        Lost("language model"),
        ValueError("too long; shorten it"),
        RuntimeError("/secret/path"),
        NoPlan("step 1 needs itself"),
    ]

    async def failing(query: Query) -> AsyncGenerator[Event, None]:
        if query.sampling.seed:  # the failure comes after the first words
            yield Said("hel")
        raise failures[query.sampling.max_new_tokens - 1]

    service = Service(ABOUT, failing, places=1)
    async with http(service) as client:
        answers: list[Any] = [
            await client.post("/v1/chat/completions", json=QUESTION | {"max_tokens": 1 + place}) for place in range(4)
        ]
        assert [answer.status_code for answer in answers] == [503, 400, 500, 422]
        assert answers[0].headers["retry-after"] == "5"
        assert answers[1].json()["error"]["message"] == "too long; shorten it"
        assert "secret" not in answers[2].text
        assert answers[3].json()["error"]["message"] == "the model found no plan: step 1 needs itself"
        body = QUESTION | {"stream": True, "seed": 1}
        streams = [
            (await client.post("/v1/chat/completions", json=body | {"max_tokens": 1 + place})).text
            for place in range(4)
        ]
    assert all('"content": "hel"' in text and '"error"' in text and "[DONE]" not in text for text in streams)
    assert "lost while it answered" in streams[0]
    assert "secret" not in streams[2]
    assert service.taken == 0


@pytest.mark.anyio
async def test_a_medium_that_the_model_does_not_make_is_refused_before_it_is_asked() -> None:
    async def never(query: Query) -> AsyncGenerator[Event, None]:
        raise AssertionError
        yield DONE

    async with http(Service(ABOUT, never, places=1)) as client:
        for wrong in ({"modalities": ["video"]}, {"decoders": {"image": {"num_frames": 2}}}):
            answer = await client.post("/v1/chat/completions", json=QUESTION | wrong)
            assert answer.status_code == 400


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
