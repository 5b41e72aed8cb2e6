"""The API of a running server, asked with OpenAI's own client."""

import base64
import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import PIL.Image
import pytest

from jobs.serving.requests import openai_answers as answers
from pipelines.media.codecs import decode, encode
from pipelines.sample import Audio, Decoded, Image, Media, Modality, Video
from pipelines.world.conversations import converse
from pipelines.world.oracles import read
from pipelines.world.render import render
from tests.benchmarks.chat_server import ChatServer, chat_server
from tests.conftest import BIN, ROOT

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("chat"), pytest.mark.timeout(900)]
KINDS = {"image_url": Image, "video_url": Video, "audio_url": Audio}
ALL = "Show me a picture, a video and a sound of a red circle."


def ask(client: openai.OpenAI, *content: Any, history: Any = (), **more: Any) -> Any:
    messages = [*history, {"role": "user", "content": content[0] if len(content) == 1 else list(content)}]
    return client.chat.completions.create(model="any", messages=messages, extra_body=more)


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def shown(medium: Decoded) -> dict[str, Any]:
    return answers.part_of(encode(medium))


def media(message: Any) -> list[Decoded]:
    found = []
    for part in message.parts:
        if part["type"] != "text":
            data = base64.b64decode(part[part["type"]]["url"].partition(",")[2])
            modality = Modality(part["type"].removesuffix("_url"))
            found.append(decode(Media(modality=modality, data=data, format="bin")))
            assert isinstance(found[-1], KINDS[part["type"]])
    return found


def test_it_says_what_it_serves(chat: ChatServer, client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert model.id == "world"
    assert model.output_modalities == ["text", "image", "video", "audio"]  # type: ignore[attr-defined]
    assert client.models.retrieve("world").id == "world"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")
    assert httpx.get(f"{chat.url}/healthz").json() == {"status": "ok"}
    assert "/v1/chat/completions" in httpx.get(f"{chat.url}/openapi.json").json()["paths"]
    assert httpx.get(f"{chat.url}/docs").status_code == 200


def test_it_answers_words_with_all_three_media(client: openai.OpenAI) -> None:
    reply = ask(client, ALL, modalities=["image", "video", "audio"])
    message = reply.choices[0].message
    assert {type(medium) for medium in media(message)} == {Image, Video, Audio}
    assert message.content == " ".join(part["text"] for part in message.parts if part["type"] == "text")
    assert reply.usage.completion_tokens > 12
    assert reply.choices[0].finish_reason == "stop"
    [picture] = [medium for medium in media(message) if isinstance(medium, Image)]
    assert getattr(read(picture), "colour", None) == "red"


@pytest.mark.parametrize("modality", Modality)
def test_it_sees_and_hears_what_it_is_shown(client: openai.OpenAI, modality: Modality) -> None:
    right, count = 0, 12
    for index in range(count):
        conversation = converse(f"describe_{modality}", 11, index)
        item, *words = sorted(conversation.turns[0].parts, key=lambda part: isinstance(part, str))
        reply = ask(
            client,
            shown(render(conversation.media[item.name], index)),
            text(" ".join(str(word) for word in words)),  # type: ignore[union-attr]
        )
        named = conversation.answers[0].named
        right += any(value in (reply.choices[0].message.content or "") for value in named.values())
    assert right > count / 2


def test_the_same_seed_gives_the_same_bytes_and_another_others(client: openai.OpenAI) -> None:
    one, same, other = (
        ask(client, ALL, modalities=["image"], seed=seed, temperature=0.8).choices[0].message.parts
        for seed in (3, 3, 4)
    )
    assert one == same
    assert one != other


def test_a_stream_gives_words_first_then_each_medium_and_ends_with_the_usage(
    chat: ChatServer, client: openai.OpenAI
) -> None:
    messages: Any = [{"role": "user", "content": ALL}]
    extra = {"modalities": ["image", "audio"]}
    whole = client.chat.completions.create(model="any", messages=messages, extra_body=extra)
    chunks = list(
        client.chat.completions.create(
            model="any", messages=messages, extra_body=extra, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    pieces = [delta.content for delta in deltas if delta.content]
    assert len(pieces) > 3
    assert "".join(pieces) == whole.choices[0].message.content
    parts = list(itertools.chain.from_iterable(getattr(delta, "parts", None) or [] for delta in deltas))
    made = [part for part in whole.choices[0].message.parts if part["type"] != "text"]
    assert [{k: v for k, v in part.items() if k != "index"} for part in sorted(parts, key=lambda p: p["index"])] == made
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage


def test_a_conversation_goes_on_with_the_reply_sent_back(client: openai.OpenAI) -> None:
    first = ask(client, "Draw a big red square at the top.", modalities=["image"])
    history = [{"role": "user", "content": "Draw a big red square at the top."}, first.choices[0].message.model_dump()]
    second = ask(client, "Now the same in blue.", history=history, modalities=["image"])
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + first.usage.completion_tokens
    assert media(second.choices[0].message)


def test_mistakes_are_named_and_nothing_is_a_server_error(client: openai.OpenAI) -> None:
    picture = io.BytesIO()
    PIL.Image.new("1", (8_000, 8_000)).save(picture, format="PNG")
    bomb = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    for content, reason in {
        "data:image/png;base64,AAAA": "unreadable",
        "http://127.0.0.1/x.png": "not allowed",
        "file:///etc/passwd": "not allowed",
        bomb: "too large: 8000x8000 pixels",
    }.items():
        with pytest.raises(openai.BadRequestError, match=reason) as mistake:
            ask(client, {"type": "image_url", "image_url": {"url": content}}, text("what is it?"))
        assert mistake.value.param == "messages[0].content[0]"
    with pytest.raises(openai.BadRequestError, match=r"takes \d+ tokens"):
        ask(client, "red " * 3000)
    with pytest.raises(openai.BadRequestError, match="no setting num_frames"):
        ask(client, "hi", decoders={"image": {"num_frames": 3}})
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(client, "hi", temperature=9)


def test_text_that_looks_like_signal_tokens_or_slots_is_text(client: openai.OpenAI) -> None:
    """No token of a prompt's text is one of the model's own: each takes several, as any text does."""
    plain = ask(client, "say", max_tokens=1).usage.prompt_tokens
    for marks in ("[IMG0][IMG1][IMG2][IMG3]", "<Img></Img>", "</s><s>"):
        assert ask(client, f"say {marks}", max_tokens=1).usage.prompt_tokens > plain + 6
    reply = ask(client, "[IMG0][IMG1][IMG2][IMG3]", max_tokens=30, max_items=0)
    assert not media(reply.choices[0].message)


def test_many_at_once_each_get_their_own_reply(client: openai.OpenAI) -> None:
    colours = ["red", "green", "blue", "yellow"]

    def one(number: int) -> bool:
        colour = colours[number % len(colours)]
        words = f"Draw a small {colour} circle at the left."
        [picture] = media(ask(client, words, max_items=1, modalities=["image"]).choices[0].message)
        return bool(getattr(read(picture), "colour", None) == colour)

    with ThreadPoolExecutor(16) as pool:
        right = list(pool.map(one, range(32)))
    assert np.mean(right) > 0.8


def test_a_killed_replica_costs_no_more_than_a_clean_failure_and_comes_back(
    chat: ChatServer, client: openai.OpenAI
) -> None:
    assert len(chat.replicas()) == 2, "the front end, and the model in one process"
    assert_survives(chat, client, "Model")


@pytest.mark.slow
def test_so_does_a_killed_part_where_each_has_a_process_of_its_own() -> None:
    with chat_server("--separate-decoders", "--no-page") as server:
        own = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)
        assert len(server.replicas()) == 5
        for deployment in ("ImageRenderer", "Language"):
            assert_survives(server, own, deployment)


def assert_survives(chat: ChatServer, client: openai.OpenAI, deployment: str) -> None:
    outcomes: list[str] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                ask(client, "Draw a small red circle at the left.", modalities=["image"])
                outcomes.append("answered")
            except openai.InternalServerError as error:
                outcomes.append(f"{error.status_code} {error.response.headers.get('retry-after')}")

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    [replica] = chat.replicas(deployment)
    os.kill(replica.pid, signal.SIGKILL)
    deadline = time.monotonic() + 240
    while not (found := chat.replicas(deployment)) or found == [replica]:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(outcomes) <= {"answered", "503 5"}
    assert media(ask(client, "Draw a small red circle at the left.", modalities=["image"]).choices[0].message)


def test_what_the_api_does_not_know_is_not_answered_by_the_page(chat: ChatServer) -> None:
    for method, path, status in (
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/healthz", 405),
        ("POST", "/v1/embeddings", 404),
    ):
        answer = httpx.request(method, chat.url + path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
    for path in ("/healthz", "/v1/models"):
        answer = httpx.head(chat.url + path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_a_clients_mistake_or_departure_is_no_news_on_the_servers_console(
    chat: ChatServer, client: openai.OpenAI
) -> None:
    before = len(chat.log.read_text())
    with pytest.raises(openai.BadRequestError):
        ask(client, "red " * 3000)
    with pytest.raises(openai.BadRequestError):
        ask(client, "hi", response_format={"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}})
    assert httpx.post(f"{chat.url}/v1/chat/completions", content="{").status_code == 400
    asked = {"messages": [{"role": "user", "content": ALL}], "modalities": ["video"]}
    slow = asked | {"decoders": {"video": {"steps": 200}}}
    with httpx.stream("POST", f"{chat.url}/v1/chat/completions", json=slow | {"stream": True}, timeout=60) as reply:
        next(reply.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{chat.url}/v1/chat/completions", json=slow, timeout=httpx.Timeout(60, read=1))
    assert ask(client, "Hello!").choices[0].message.content
    time.sleep(3)  # Ray brings what its processes print within a second
    told = chat.log.read_text()[before:]
    assert len(told.splitlines()) <= 5, told
    assert "Traceback" not in told


def test_schemathesis_finds_no_server_error(chat: ChatServer, tmp_path: Path) -> None:
    command = [BIN / "schemathesis", "run", f"{chat.url}/openapi.json", "--checks", "not_a_server_error"]
    done = subprocess.run(
        [*map(str, command), "--max-examples", "25", "--seed", "1", "--suppress-health-check", "all"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "No issues found" in done.stdout or "passed" in done.stdout


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--public",), "error: --public: set NEXTGPT_CHAT_TOKEN"),
        (("--port", "0"), "error: --port 0: must be 1 to 65535"),
        (("--checkpoint", "nowhere"), "error: nowhere: no finished checkpoint there"),
        (("--allow-url", "example.com"), "error: --allow-url example.com: give http"),
        (("--allow-origin", "http://a.example/"), "error: --allow-origin http://a.example/: give http"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_wrong_command_line_says_what_to_do(options: tuple[str, ...], reason: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NEXTGPT")}
    done = subprocess.run(
        [sys.executable, "jobs/chat.py", *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert done.stderr.splitlines()[-1].startswith(reason)
