"""What the page and the API share: the events of a reply, how many may ask at once, and what the others are told."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from ray.exceptions import RayActorError

from jobs.replies.events import Begun, Event, ItemProgress, Lost, Made, Planned, Said
from jobs.replies.options import Architecture
from jobs.replies.respond import asks
from jobs.replies.scheduler import NoPlan
from jobs.serving.api import add_handlers, router
from jobs.serving.deployments import About
from jobs.serving.handles import Handles
from jobs.serving.service import Service, answer
from model.decoders.wish import RenderStep, Wish
from model.inference.query import Query, Reply, Response, Sampling
from pipelines.sample import Item, Media, Modality, Part, Turn
from pipelines.scheduling.tool_plans import Step as Tool
from pipelines.scheduling.tool_plans import to_json
from tests.conftest import ROOT

ABOUT = About(name="small", settings={Modality.IMAGE: {"height": 32}}, untrained=(), needs_guides=False)
DONE = Response(parts=("hello",), media=(), prompt_tokens=3, tokens=1, was_cut=True)
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


PICTURE = Media(modality=Modality.IMAGE, data=b"picture", format="png")
DRAW = Query(turns=(Turn(role="user", parts=("Draw a dog.",)),), sampling=Sampling(seed=5))


def said(*parts: Part, conditions: Any = ()) -> Reply:
    return Reply(parts=parts, conditions=list(conditions), prompt_tokens=10, tokens=2, was_cut=False)


class Parts:
    """A model's parts as handles reach them: what the LLM answers, query by query, and a renderer of pictures."""

    def __init__(self, *answers: Sequence[Any]) -> None:
        self.answers = iter(answers)
        self.asked, self.wishes, self.told = list[Query](), list[Wish](), list[Event]()
        renderer = SimpleNamespace(make=SimpleNamespace(remote=self._make))
        language = SimpleNamespace(reply=SimpleNamespace(remote=self._reply))
        self.handles = Handles(language, {Modality.IMAGE: renderer})

    async def _reply(self, query: Query) -> AsyncGenerator[Any, None]:
        self.asked.append(query)
        for part in next(self.answers):
            if isinstance(part, Exception):
                raise part
            yield part

    async def _make(self, wish: Wish) -> AsyncGenerator[Any, None]:
        self.wishes.append(wish)
        yield RenderStep(1, 2)
        yield PICTURE

    async def events(self, architecture: Architecture) -> list[Event]:
        async for event in answer(self.handles, asks(architecture, DRAW, guides=False)):
            self.told.append(event)
        return self.told


@pytest.mark.anyio
async def test_the_joint_architecture_is_asked_once_and_its_items_are_rendered_from_its_conditions() -> None:
    item, condition = Item(modality=Modality.IMAGE), np.ones((1, 4), np.float32)
    parts = Parts(["Here ", item, said("Here", item, conditions=[(Modality.IMAGE, condition)])])
    assert await parts.events("joint") == [
        Said("Here "),
        Begun(0, Modality.IMAGE),
        ItemProgress(0, 1, 2),
        Made(0, PICTURE),
        Response(parts=("Here", item), media=(PICTURE,), prompt_tokens=10, tokens=2, was_cut=False),
    ]
    assert parts.asked == [DRAW]
    assert [(wish.seed, wish.condition is condition) for wish in parts.wishes] == [(5, True)]


@pytest.mark.anyio
async def test_the_scheduler_is_asked_for_its_plan_and_then_for_its_words() -> None:
    plan = to_json([Tool(id=1, tool="make_image", input="a dog")])
    parts = Parts([plan, said(plan)], ["Here.", said("Here.")])
    assert await parts.events("scheduler") == [
        Planned(plan),
        Said("Here."),
        Begun(0, Modality.IMAGE),
        ItemProgress(0, 1, 2),
        Made(0, PICTURE),
        Response(
            parts=("Here.", Item(modality=Modality.IMAGE)),
            media=(PICTURE,),
            prompt_tokens=20,
            tokens=4,
            was_cut=False,
            plan=plan,
        ),
    ]
    assert [(wish.seed, wish.condition) for wish in parts.wishes] == [(5, "a dog")]


@pytest.mark.anyio
async def test_a_reply_that_is_lost_after_its_first_words_is_not_begun_again() -> None:
    parts = Parts(["He", RayActorError()], ["Hello", said("Hello")])
    with pytest.raises(Lost, match="language model"):
        await parts.events("joint")
    assert parts.told == [Said("He")]
    assert len(parts.asked) == 1


FRONT = """
import sys
from jobs.common.settings import checkpoint_model
from jobs.serving.app import Settings, build
from jobs.serving.page import add_page

checkpoint_model("builtin:world")
build(Settings(checkpoint="builtin:world"))
print(sorted({"torch", "transformers", "diffusers"} & set(sys.modules)))
"""


def test_the_command_and_the_front_end_load_no_model_and_nothing_it_needs() -> None:
    done = subprocess.run([sys.executable, "-c", FRONT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
