"""Captions by a server in OpenAI's format: what it is sent, what costs a sample its caption, and what ends the run."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from dataset_cases import pair, talk

from jobs.recaptioning import by_api
from jobs.recaptioning.by_api import Api, ApiCaptions, NoAnswer, api_source
from jobs.recaptioning.recaptions import MOST_CHARACTERS, Recaptions, recaption_scorer
from pipelines.curate.scorers import Content

TOKEN = "secret-token-71"


@dataclass
class Chat:
    """A server of one model: `answer` maps a request to status and body."""

    url: str = ""
    answer: Callable[[dict[str, Any]], tuple[int, str]] = lambda body: (200, said("a picture"))
    asked: list[tuple[str, str | None, dict[str, Any]]] = field(default_factory=list)


def said(text: str) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Iterator[Chat]:
    monkeypatch.setattr(by_api, "_FIRST_PAUSE", 0.0)
    found = Chat()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.asked.append((self.path, self.headers.get("Authorization"), body))
            status, text = found.answer(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}/v1/"
    yield found
    server.shutdown()
    server.server_close()


def captions(chat: Chat, token: str = "") -> Recaptions:
    return Recaptions(ApiCaptions(Api(url=chat.url, model="m", token=token), "Describe.", 32))


def test_a_pair_is_sent_as_its_bytes_with_the_prompt_and_the_token(chat: Chat) -> None:
    sample = pair("k0", shade=7)
    assert captions(chat, TOKEN)([Content(sample=sample)]) == [{"new_caption": "a picture"}]
    ((path, authorization, body),) = chat.asked
    assert (path, authorization) == ("/v1/chat/completions", f"Bearer {TOKEN}")
    image, text = body["messages"][0]["content"]
    assert image["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(sample.media["png"].data).decode()
    assert (text, body["model"], body["max_tokens"]) == ({"type": "text", "text": "Describe."}, "m", 32)


def test_answers_come_in_the_order_of_the_samples_and_what_is_no_pair_is_not_asked(chat: Chat) -> None:
    chat.answer = lambda body: (200, said(body["messages"][0]["content"][0]["image_url"]["url"][-9:]))
    samples = [pair("k0", shade=1), talk("t", ["x"]), *(pair(f"k{n}", shade=30 * n) for n in range(1, 6))]
    told = captions(chat)([Content(sample=sample) for sample in samples])
    media = [base64.b64encode(one.media["png"].data).decode()[-9:] if one.media else None for one in samples]
    assert [one["new_caption"] for one in told] == media
    assert len(chat.asked) == 6


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (400, "no such format", "refused by the server, which answers 400: no such format"),
        (413, f"too large, {TOKEN}", "refused by the server, which answers 413: too large, ***"),
        (200, said("  "), "the model said nothing"),
        (200, said("x" * (MOST_CHARACTERS + 1)), "a caption of 2001 characters; it may have 2000"),
        (200, said("x" * (1 << 20)), "an answer of more than 1048576 bytes"),
    ],
)
def test_what_a_server_refuses_costs_that_sample_its_caption(chat: Chat, status: int, text: str, reason: str) -> None:
    chat.answer = lambda body: (status, text)
    assert captions(chat, TOKEN)([Content(sample=pair("k0"))]) == [{"reason": reason}]


@pytest.mark.parametrize(
    ("status", "text", "told", "attempts"),
    [
        (401, f"bad token {TOKEN}", "answers 401: bad token ***; run this again", 1),
        (503, "loading", "answers 503: loading; run this again", by_api.ATTEMPTS),
        (429, "slowly", "answers 429: slowly; run this again", by_api.ATTEMPTS),
        (302, "elsewhere", "answers 302: elsewhere; run this again", 1),
        (200, "<html>", "its answer is none of OpenAI's format: <html>", 1),
    ],
)
def test_a_server_that_does_not_answer_ends_the_run_in_one_line(
    chat: Chat, status: int, text: str, told: str, attempts: int
) -> None:
    chat.answer = lambda body: (status, text)
    with pytest.raises(NoAnswer) as caught:
        captions(chat, TOKEN)([Content(sample=pair("k0"))])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert len(chat.asked) == attempts


def test_a_server_that_is_busy_at_first_is_asked_again(chat: Chat) -> None:
    chat.answer = lambda body: (503, "") if len(chat.asked) < 3 else (200, said("at last"))
    assert captions(chat)([Content(sample=pair("k0"))]) == [{"new_caption": "at last"}]


def test_where_nobody_listens_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_api, "_FIRST_PAUSE", 0.0)
    with pytest.raises(NoAnswer, match=r"http://127\.0\.0\.1:9/v1: cannot be reached: "):
        captions(Chat(url="http://127.0.0.1:9/v1"))([Content(sample=pair("k0"))])


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ftp://a/v1", "not a URL such as"),
        ("127.0.0.1:80", "not a URL such as"),
        ("http://me:it@a/v1", "without user, password"),
        ("https://a/v1?key=1", "without user, password, query"),
        ("http://captions.example/v1", "the token would be sent unencrypted; use https"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_before_anything_is_sent(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Api(url=url, model="m", token=TOKEN).check()


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://[::1]:1/v1", "http://127.0.0.2/v1", "https://a/v1"])
def test_a_token_goes_over_loopback_or_encrypted(url: str) -> None:
    Api(url=url, model="m", token=TOKEN).check()


def test_columns_depend_on_model_and_prompt_and_neither_shows_the_token() -> None:
    api = Api(url="http://127.0.0.1:1/v1", model="m", token=TOKEN)
    one = recaption_scorer(api_source(api, "Describe.", 32))
    assert one.about == {"model": "m", "prompt": "Describe."}
    others = [api_source(Api(url="http://127.0.0.1:1/v1", model="n"), "Describe.", 32), api_source(api, "Say.", 32)]
    assert len({one.version, *(recaption_scorer(other).version for other in others)}) == 3
    elsewhere = api_source(Api(url="https://b/v1", model="m"), "Describe.", 32)
    assert recaption_scorer(elsewhere).version == one.version
    assert TOKEN not in repr(one)
