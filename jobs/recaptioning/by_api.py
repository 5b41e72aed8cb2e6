"""Captions by a server that speaks OpenAI's format of chats, on this machine or at a named URL.

A request that the server refuses for what it holds costs that sample its caption; a server that cannot be reached, or
answers nothing of use, ends the run, which goes on later with what is missing.
"""

import base64
import ipaddress
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, urlsplit

from jobs.recaptioning.recaptions import CaptionSource
from pipelines.curate.scorers import Content
from pipelines.sample import Media, Modality
from pipelines.views import pair_items

AT_ONCE = 8  # requests of a worker
ATTEMPTS = 4
MOST_BYTES = 1 << 20  # of an answer
TIMEOUT = 300.0  # seconds
_REFUSED = (400, 413, 415, 422)  # for what a request holds
_FIRST_PAUSE = 1.0  # seconds; doubled at each attempt


class NoAnswer(ValueError):
    """A server that does not answer as it should, whatever it is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """A server's base URL (`http://127.0.0.1:8000/v1`), a model's name there, and the token, which is never shown."""

    url: str
    model: str
    token: str = field(default="", repr=False)

    def check(self) -> None:
        """Checks the URL.

        Raises:
            ValueError: it is none, holds a password, or would carry the token in the clear; one line.
        """
        parts = self.parts
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not a URL such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("give the URL without user, password, query or fragment")
        if self.token and parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ValueError("the token would be sent unencrypted; use https")

    @property
    def parts(self) -> SplitResult:
        """The URL in parts."""
        return urlsplit(self.url)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def api_source(api: Api, prompt: str, max_tokens: int) -> CaptionSource:
    """Captions by a server's model; the name of the model is what they depend on, wherever it is served."""
    make = MakeApiCaptions(api=api, prompt=prompt, max_tokens=max_tokens)
    return CaptionSource(
        model=api.model, identity=f"api {api.model}", prompt=prompt, max_tokens=max_tokens, make=make, on_devices=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeApiCaptions:
    """Makes the captioner in a worker."""

    api: Api
    prompt: str
    max_tokens: int

    def __call__(self) -> "ApiCaptions":
        """A captioner that keeps nothing open."""
        return ApiCaptions(self.api, self.prompt, self.max_tokens)


class ApiCaptions:
    """Asks a server for the caption of each pair, several at a time."""

    def __init__(self, api: Api, prompt: str, max_tokens: int) -> None:
        self._api, self._prompt, self._max_tokens = api, prompt, max_tokens

    def __call__(self, contents: Sequence[Content]) -> list[str | Exception]:
        """The captions of pairs.

        Raises:
            NoAnswer: the server cannot be asked; one line.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._ask, contents))

    def _ask(self, content: Content) -> str | Exception:
        media = [content.sample.media[item.name] for item in pair_items(content.sample)]
        parts = [*map(_part, media), {"type": "text", "text": self._prompt}]
        body = {
            "model": self._api.model,
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": self._max_tokens,
            "temperature": 0,
        }
        try:
            return self._answer(json.dumps(body).encode())
        except NoAnswer:
            raise
        except ValueError as error:
            return error

    def _answer(self, body: bytes) -> str:
        """The text of an answer; asks again where the server is busy or cannot be reached."""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                status, data = self._post(body)
            except (OSError, HTTPException) as error:
                told = f"cannot be reached: {' '.join(str(error).split()) or type(error).__name__}"
                continue
            if status == 200:
                return self._text(data)
            told = f"answers {status}: {self._shown(data)}"
            if status in _REFUSED:
                raise ValueError(f"refused by the server, which {told}")
            if status != 429 and status < 500:
                break
        raise NoAnswer(f"{self._api.url}: {told}; run this again when it answers")

    def _post(self, body: bytes) -> tuple[int, bytes]:
        parts = self._api.parts
        connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = connect(parts.hostname or "", parts.port, timeout=TIMEOUT)
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._api.token}"} if self._api.token else {}
        try:
            connection.request("POST", f"{parts.path.rstrip('/')}/chat/completions", body, headers)
            response = connection.getresponse()
            return response.status, response.read(MOST_BYTES + 1)
        finally:
            connection.close()

    def _text(self, data: bytes) -> str:
        if len(data) > MOST_BYTES:
            raise ValueError(f"an answer of more than {MOST_BYTES} bytes")
        try:
            text = json.loads(data)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise NoAnswer(f"{self._api.url}: its answer is none of OpenAI's format: {self._shown(data)}") from None
        return text if isinstance(text, str) else ""

    def _shown(self, data: bytes) -> str:
        """What a server says, in short and without the token, which it may repeat."""
        text = " ".join(data[:2000].decode("utf-8", "replace").split())
        return (text.replace(self._api.token, "***") if self._api.token else text)[:200]


def _part(medium: Media) -> dict[str, Any]:
    """A medium as a part of a message, its bytes as they are stored."""
    data = base64.b64encode(medium.data).decode()
    if medium.modality is Modality.AUDIO:
        return {"type": "input_audio", "input_audio": {"data": data, "format": medium.format}}
    kind = "jpeg" if medium.format == "jpg" else medium.format
    name = f"{medium.modality.value}_url"
    return {"type": name, name: {"url": f"data:{medium.modality.value}/{kind};base64,{data}"}}
