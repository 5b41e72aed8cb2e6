"""What clients that people use expect of the API: OpenAI's own and LangChain's, asked in this process, without Ray."""

import base64
import io
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Literal

import httpx
import openai
import PIL.Image
import pytest
from fastapi import FastAPI
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from starlette.testclient import TestClient

from jobs.common.settings import checkpoint_model
from jobs.replies.respond import asks
from jobs.serving.api import add_handlers, router
from jobs.serving.deployments import Language, Renderer, about
from jobs.serving.handles import Handles
from jobs.serving.service import Service, answer
from model.checkpoints.description import SHIPPED
from model.checkpoints.hub import find_checkpoint
from pipelines.sample import Modality

DRAW = "Draw a small red circle at the left."
CONTEXT = 1024  # tokens of the shipped model
URL = "/v1/chat/completions"


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    checkpoint = find_checkpoint(SHIPPED)
    config = checkpoint_model(checkpoint, ())
    language = Language(str(checkpoint), config, 32)
    output = config.outputs[Modality.IMAGE]
    painter = Renderer(output.decoder, Modality.IMAGE, config.decoders, None)
    handles = Handles(remote(reply=language.reply), {Modality.IMAGE: remote(make=painter.make)})
    what = about(str(checkpoint), config)
    service = Service(what, lambda query: answer(handles, asks("joint", query, guides=False)), places=1)
    app = FastAPI()
    app.include_router(router(service))
    add_handlers(app)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client
    assert service.taken == 0


def remote(**methods: Any) -> Any:
    return SimpleNamespace(**{name: SimpleNamespace(remote=method) for name, method in methods.items()})


@pytest.fixture(scope="module")
def client(http: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", max_retries=0, http_client=http)


def ask(client: openai.OpenAI, content: Any, history: Any = (), **more: Any) -> Any:
    extra = {"max_items": 0, **more.pop("extra_body", {})}
    messages = [*history, {"role": "user", "content": content}]
    return client.chat.completions.create(model="any", messages=messages, extra_body=extra, **more)


def picture() -> str:
    """A PNG of Pillow's in base64, with line breaks and without padding."""
    file = io.BytesIO()
    PIL.Image.effect_noise((32, 31), 50).save(file, format="PNG")
    return base64.encodebytes(file.getvalue()).decode().rstrip("=\n")


def said(reply: Any) -> str:
    return str(reply.choices[0].message.content)


@pytest.fixture(scope="module")
def plain(client: openai.OpenAI) -> str:
    """What the model answers to DRAW in words."""
    words = said(ask(client, DRAW))
    assert "red circle" in words
    return words


@pytest.mark.parametrize("most", [2048, 100_000, 10**30])
def test_more_tokens_than_the_context_has_left_are_those_that_are_left(
    client: openai.OpenAI, plain: str, most: int
) -> None:
    assert said(ask(client, DRAW, max_tokens=most)) == plain
    long = ask(client, f"{'red ' * 900} {DRAW}", max_tokens=most)
    assert long.usage.total_tokens <= CONTEXT
    assert long.usage.prompt_tokens > 900


def test_a_prompt_is_too_long_for_the_context_whatever_may_be_answered(client: openai.OpenAI) -> None:
    for most in (1, 100_000):
        with pytest.raises(openai.BadRequestError, match=rf"takes \d+ tokens, at most {CONTEXT - 1} fit") as mistake:
            ask(client, "red " * 3000, max_tokens=most)
        assert (mistake.value.param, mistake.value.code) == ("messages", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError, match=rf"has 8\d+ characters, at most {CONTEXT} tokens fit"):
        ask(client, "red " * 2_000_000)


def test_fewer_tokens_than_a_required_picture_takes_are_refused_under_the_clients_name(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens is 1, but the reply needs at least 4") as mistake:
        ask(client, DRAW, max_tokens=1, extra_body={"modalities": ["image"]})
    assert mistake.value.param == "max_tokens"


def test_a_conversation_of_any_length_goes_on_with_what_fits(client: openai.OpenAI) -> None:
    history = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}] * 400
    reply = ask(client, DRAW, history, max_tokens=100_000)
    assert said(reply)
    assert reply.usage.total_tokens <= CONTEXT
    assert CONTEXT // 2 < reply.usage.prompt_tokens < CONTEXT


@pytest.mark.parametrize(
    "places",
    [[(8, 12)], [(7, 9)], [(30, 34), (9, 14)], [(5, -1)], [(-1, None)]],
    ids=["within", "short", "the first of two", "nearly all", "the last character"],
)
def test_a_text_ends_before_the_first_stop_streamed_or_not(
    client: openai.OpenAI, plain: str, places: list[tuple[int, int | None]]
) -> None:
    stops = [*(plain[start:end] for start, end in places), "zebra"]
    before = plain[: min(plain.index(stop) for stop in stops[:-1])].rstrip()
    reply = ask(client, DRAW, stop=stops)
    assert said(reply) == before
    assert reply.choices[0].finish_reason == "stop"
    chunks = list(ask(client, DRAW, stop=stops, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == before
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert said(ask(client, DRAW, stop=stops[0])) == plain[: plain.index(stops[0])].rstrip()


def test_a_stop_that_does_not_come_takes_nothing_away(client: openai.OpenAI, plain: str) -> None:
    stops = [plain + "!", plain[5:12] + "?", plain[-3:] + " ", "zebra"]
    chunks = list(ask(client, DRAW, stop=stops, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain


class Shape(BaseModel):
    colour: Literal["red", "green"]
    name: str
    count: int
    tags: list[str]


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_of_a_schema_is_parsed_by_the_client(client: openai.OpenAI, seed: int) -> None:
    completion = client.chat.completions.parse(
        model="any",
        messages=[{"role": "user", "content": DRAW}],
        response_format=Shape,
        temperature=1.0,
        seed=seed,
    )
    assert isinstance(completion.choices[0].message.parsed, Shape)


def test_a_json_object_is_one_streamed_or_not(client: openai.OpenAI, plain: str) -> None:
    reply = ask(client, DRAW, response_format={"type": "json_object"})
    assert isinstance(json.loads(said(reply)), dict)
    chunks = list(ask(client, DRAW, response_format={"type": "json_object"}, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said(reply)
    assert said(ask(client, DRAW, response_format={"type": "text"})) == plain


def test_a_schema_that_nothing_can_hold_is_the_clients_mistake(client: openai.OpenAI) -> None:
    for wrong, reason in (
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}}, "schema: "),
        ({"type": "json_schema"}, "missing field: json_schema"),
    ):
        with pytest.raises(openai.BadRequestError, match=reason) as mistake:
            ask(client, DRAW, response_format=wrong)
        assert mistake.value.param == "response_format"
    with pytest.raises(openai.BadRequestError, match="JSON holds no media"):
        ask(client, DRAW, response_format={"type": "json_object"}, extra_body={"modalities": ["image"]})


def test_choices_differ_and_are_the_same_again_streamed_or_not(client: openai.OpenAI) -> None:
    options: Any = {"n": 4, "temperature": 1.5, "seed": -(2**63)}
    one, same = (ask(client, "Hello! Who are you?", **options) for _ in range(2))
    texts = [choice.message.content for choice in one.choices]
    assert [choice.index for choice in one.choices] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in same.choices]
    alone = ask(client, "Hello! Who are you?", **options | {"n": 1})
    assert said(alone) == texts[0]
    assert one.usage.prompt_tokens == alone.usage.prompt_tokens
    assert one.usage.completion_tokens > alone.usage.completion_tokens
    streamed, ends = dict.fromkeys(range(4), ""), []
    for chunk in ask(client, "Hello! Who are you?", stream=True, stream_options={"include_usage": True}, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert list(streamed.values()) == texts
    assert sorted(ends) == [0, 1, 2, 3]
    assert chunk.usage == one.usage


def test_choices_have_pictures_of_their_own(client: openai.OpenAI) -> None:
    reply = ask(client, DRAW, n=2, extra_body={"max_items": 1, "modalities": ["image"]})
    first, second = ([part for part in choice.message.parts if part["type"] != "text"] for choice in reply.choices)
    assert len(first) == len(second) == 1
    assert first != second


@pytest.mark.parametrize("seed", [-1, 2**31, 2**64 - 1, -(2**63), 10**40])
def test_any_integer_is_a_seed(client: openai.OpenAI, seed: int) -> None:
    one, same, other = (
        said(ask(client, "Hello!", temperature=2.0, seed=number, max_tokens=40)) for number in (seed, seed, seed + 1)
    )
    assert one == same
    assert one != other


def test_who_greets_first_and_what_tools_found_are_read(client: openai.OpenAI) -> None:
    plain = ask(client, DRAW).usage.prompt_tokens
    greeting = [{"role": "assistant", "content": "How can I help?"}]
    assert ask(client, DRAW, greeting).usage.prompt_tokens > plain + 5
    brief = [{"role": "developer", "content": "Be brief."}]
    assert ask(client, DRAW, [*brief, *greeting]).usage.prompt_tokens > ask(client, DRAW, greeting).usage.prompt_tokens
    call = {"id": "1", "type": "function", "function": {"name": "colour", "arguments": "{}"}}
    used: Any = [
        {"role": "user", "content": "Which colour?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "red"},
    ]
    reply = client.chat.completions.create(model="any", messages=used, extra_body={"max_items": 0})
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.prompt_tokens > 10


def test_what_the_model_cannot_do_is_refused_by_name(client: openai.OpenAI, plain: str) -> None:
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    for field, value in {
        "tools": [tool],
        "functions": [{"name": "f"}],
        "logprobs": True,
        "logit_bias": {"5": 1},
    }.items():
        with pytest.raises(openai.BadRequestError, match=f"leave {field} out") as mistake:
            ask(client, DRAW, **{field: value})
        assert (mistake.value.param, mistake.value.code) == (field, "unsupported_parameter")
    assert said(ask(client, DRAW, extra_body={"tools": [], "logprobs": False, "logit_bias": None})) == plain


def test_mistakes_of_form_are_told_in_openais(http: TestClient) -> None:
    def mistake(status: int, method: str = "POST", path: str = URL, **request: Any) -> Any:
        answer: httpx.Response = http.request(method, path, **request)
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        return SimpleNamespace(**answer.json()["error"], headers=answer.headers)

    def asked(*content: Any) -> Any:
        return {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": [*content]}]}

    unknown = mistake(400, json=asked({"type": "text", "text": "a"}, {"type": "file", "file": {}}))
    assert unknown.param == "messages[1].content[1]"
    assert "a part of type 'file'; it may be text, image, video or audio" in unknown.message
    nobody = mistake(400, json={"messages": [{"role": "nobody", "content": "a"}]})
    assert nobody.param == "messages[0].role"
    broken = mistake(400, content='{"messages": [', headers={"Content-Type": "application/json"})
    assert broken.message.startswith("the body is not JSON: Expecting value")
    assert broken.param is None
    assert "must be a JSON object" in mistake(400, json=[1]).message
    assert "Content-Type: application/json" in mistake(400, content="a=b").message
    assert mistake(405, "GET").headers["allow"] == "POST"
    assert mistake(405, "DELETE", "/v1/models").headers["allow"] == "GET, HEAD"
    assert mistake(405, "POST", "/healthz").type == "invalid_request_error"
    assert mistake(404, "POST", "/v1/embeddings").type == "not_found_error"
    assert mistake(404, "GET", "/v1/models/gpt-5").code == "model_not_found"
    for five in ({"stop": list("abcde")}, {"stop": ""}, {"n": 9}, {"max_tokens": 0}):
        assert mistake(400, json=asked("a") | five).param.partition("[")[0] == next(iter(five))


@pytest.mark.parametrize("path", ["/healthz", "/v1/models", "/v1/models/world"])
def test_head_answers_as_get_without_a_body(http: TestClient, path: str) -> None:
    assert http.head(path).status_code == http.get(path).status_code == 200


def test_langchain_asks_streams_stops_and_gets_objects(http: TestClient, plain: str) -> None:
    model = ChatOpenAI(
        model="world", base_url="http://127.0.0.1/v1", api_key="none", max_retries=0, http_client=http, temperature=0
    )
    messages = [SystemMessage("Be brief."), AIMessage("Hello!"), HumanMessage(DRAW)]
    reply = model.invoke(messages, max_tokens=100_000)
    assert "red circle" in reply.content
    assert reply.response_metadata["finish_reason"] == "stop"
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_tokens"] > 5
    assert "".join(str(chunk.content) for chunk in model.stream(messages)) == reply.content
    assert model.invoke([HumanMessage(DRAW)], stop=["circle"]).content == plain.partition("circle")[0].rstrip()
    assert isinstance(model.with_structured_output(Shape).invoke(DRAW), Shape)
    url = f"data:image/png;base64,{picture()}"
    content: Any = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    assert model.invoke([HumanMessage(content)]).content
    with pytest.raises(openai.BadRequestError, match="calls no tools"):
        model.bind_tools([Shape]).invoke(DRAW)
