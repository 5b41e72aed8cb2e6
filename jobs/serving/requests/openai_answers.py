"""OpenAI's chat completion format: writes answers, whole or in chunks, and errors. Needs neither Ray nor torch."""

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

from model.inference.query import Response
from pipelines.sample import Item, Media

MIME = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "mp4": "video/mp4", "wav": "audio/wav"}


def data_uri(medium: Media) -> str:
    """A medium as a data URI."""
    return f"data:{MIME[medium.format]};base64,{base64.b64encode(medium.data).decode()}"


def part_of(medium: Media) -> dict[str, Any]:
    """A medium as a content part, with its `note` if it has one."""
    kind = f"{medium.modality.value}_url"
    return {"type": kind, kind: {"url": data_uri(medium)}} | ({"note": medium.note} if medium.note else {})


def completion(head: Mapping[str, Any], *responses: Response[Media]) -> dict[str, Any]:
    """A whole answer, with a choice for each response."""
    found = [_choice(number, response) for number, response in enumerate(responses)]
    return {**head, "object": "chat.completion", "choices": found, "usage": usage(*responses)}


def _choice(number: int, response: Response[Media]) -> dict[str, Any]:
    """A choice: `content` is its text, `parts` everything in order, `plan` the steps if it was planned."""
    media = iter(response.media)
    parts = [
        part_of(next(media)) if isinstance(part, Item) else {"type": "text", "text": part} for part in response.parts
    ]
    message = {"role": "assistant", "content": response.text, "refusal": None, "parts": parts}
    if response.plan:
        message |= plan_of(response.plan)
    return {"index": number, "message": message, "logprobs": None, "finish_reason": _reason(response)}


def plan_of(plan: str) -> dict[str, Any]:
    """A plan as a field of a message."""
    return {"plan": json.loads(plan)["steps"]}


def chunk(
    head: Mapping[str, Any], delta: Mapping[str, Any], response: Response[Media] | None = None, number: int = 0
) -> dict[str, Any]:
    """A chunk of choice `number` of a streamed answer."""
    reason = _reason(response) if response else None
    choice = {"index": number, "delta": dict(delta), "logprobs": None, "finish_reason": reason}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def head(identity: str, model: str) -> dict[str, Any]:
    """The fields shared by all chunks of an answer."""
    return {"id": identity, "created": int(time.time()), "model": model}


def usage(*responses: Response[Media]) -> dict[str, int]:
    """The token counts of the LLM; the prompt, which all choices share, counts once."""
    read, written = responses[0].prompt_tokens, sum(response.tokens for response in responses)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's format."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def sse(document: Mapping[str, Any]) -> str:
    """A document as a server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _reason(response: Response[Media]) -> str:
    return "length" if response.was_cut else "stop"
