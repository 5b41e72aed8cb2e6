"""OpenAI's chat completion format: parses requests, and writes answers. Needs neither Ray nor torch."""

import base64
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from jobs.replies import options
from jobs.replies.options import OPTIONS
from jobs.serving.requests import uploads
from model.inference.query import Query, Response, Sampling
from pipelines.media.policy import Refused
from pipelines.sample import Item, Media, Modality, Part, Turn
from pipelines.sources import content_parts
from pipelines.sources.content_parts import Medium
from pipelines.sources.speakers import Speech, role_of, with_system

MIME = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "mp4": "video/mp4", "wav": "audio/wav"}
MAX_TEXT = 20_000  # characters of one text
MAX_PARTS = 64
Name = Annotated[str, Field(max_length=200)]


def _shown(content: Any) -> list[str | Medium]:
    parts = content_parts.parse(content)
    for part in parts:
        if isinstance(part, Medium) and not (part.place or part.data):
            raise ValueError(f"missing field: {part.modality}_url")
    return parts


def _schema() -> dict[str, Any]:
    """What `/docs` says of content: the parts that OpenAI's clients send; others are read that mean the same."""
    text = {"type": "string", "maxLength": MAX_TEXT}
    fields: dict[str, Any] = {f"{modality}_url": _object({"url": {"type": "string"}}) for modality in Modality}
    fields |= {"text": text, "input_audio": _object({"data": {"type": "string", "contentEncoding": "base64"}})}
    parts = [_object({"type": {"const": name}, name: field}) for name, field in fields.items()]
    return {"anyOf": [text, {"type": "array", "maxItems": MAX_PARTS, "items": {"anyOf": parts}}]}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(properties)}


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Parts = Annotated[
    list[Text | Medium], Field(max_length=MAX_PARTS), BeforeValidator(_shown), WithJsonSchema(_schema(), "validation")
]


class Message(BaseModel):
    """A message of one role.

    This server's replies have `parts` beside `content`: text and media in order. A reply can therefore be sent back
    unchanged. If both are given, `parts` is used.
    """

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: Parts | None = None
    parts: Parts | None = None


class DecoderOptions(BaseModel):
    """How media of one modality are made; what is left out has the decoder's own default."""

    model_config = ConfigDict(extra="forbid")

    steps: Annotated[int, OPTIONS["steps"].field()] | None = None
    guidance: Annotated[float, OPTIONS["guidance"].field()] | None = None
    num_frames: Annotated[int, OPTIONS["num_frames"].field()] | None = None
    audio_length_in_s: Annotated[float, OPTIONS["audio_length_in_s"].field()] | None = None


class StreamOptions(BaseModel):
    """What a stream includes besides the reply."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """A request for a chat completion. Other fields of OpenAI's are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: Name = ""
    messages: Annotated[list[Message], Field(min_length=1, max_length=200)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    temperature: Annotated[float, OPTIONS["temperature"].field()] | None = None
    top_p: Annotated[float, OPTIONS["top_p"].field()] | None = None
    seed: Annotated[int, OPTIONS["seed"].field()] | None = None
    max_tokens: Annotated[int, OPTIONS["max_new_tokens"].field()] | None = None
    max_completion_tokens: Annotated[int, OPTIONS["max_new_tokens"].field()] | None = None
    modalities: list[Literal["text", "image", "video", "audio"]] | None = Field(
        default=None, max_length=8, description="media that the reply must contain, whether the model chooses to or not"
    )
    max_items: Annotated[int, OPTIONS["max_items"].field()] = Field(
        default=OPTIONS["max_items"].default, description=OPTIONS["max_items"].help
    )
    decoders: dict[Literal["image", "video", "audio"], DecoderOptions] = Field(default_factory=dict)


class Mistake(ValueError):
    """An invalid request: what is wrong, and the field it concerns."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def to_query(request: ChatRequest, allowed_urls: Sequence[str] = ()) -> Query:
    """The query for a request; its media are checked and decoded. Raises Mistake."""
    media: dict[str, Media] = {}
    said = list[Speech]()
    for place, message in enumerate(request.messages):
        speaker, param = role_of(message.role), f"messages[{place}]"
        content = list(_content(message, param, media, allowed_urls))
        if speaker == "system" and any(isinstance(part, Item) for part in content):
            raise Mistake("a system message holds a medium; put it into a user's", param)
        said.append((speaker, content))
    try:
        turns = [Turn(role=role, parts=tuple(parts)) for role, parts in with_system(said)]
    except ValueError as error:
        raise Mistake(str(error), "messages") from None
    turns = alternating(turns)  # Some clients send a picture and its question one after the other.
    _check_turns(turns)
    require = [Modality(name) for name in dict.fromkeys(request.modalities or ()) if name != "text"]
    return Query(
        turns=turns,
        media={name: uploads.decode(medium) for name, medium in media.items()},
        require=require,
        sampling=_sampling(request, require),
        settings={Modality(name): found.model_dump(exclude_none=True) for name, found in request.decoders.items()},
    )


def alternating(turns: Sequence[Turn]) -> list[Turn]:
    """Merges consecutive turns of the same role."""
    joined = list[Turn]()
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            joined[-1] = Turn(role=turn.role, parts=(*joined[-1].parts, *turn.parts))
        else:
            joined.append(turn)
    return joined


def _sampling(request: ChatRequest, require: Collection[Modality]) -> Sampling:
    """How the reply is sampled, under OpenAI's names; the media that are required are always allowed."""
    length = request.max_completion_tokens or request.max_tokens
    sampling = options.sampling(dict(request) | {"max_new_tokens": length})
    return replace(sampling, max_items=max(request.max_items, len(require)))


def _check_turns(turns: Sequence[Turn]) -> None:
    if not turns or turns[-1].role != "user":
        raise Mistake("the last message must be a user's: the reply answers it", "messages")
    if turns[0].role != "user":
        raise Mistake("the first message must be a user's", "messages")
    if not any(isinstance(part, Item) or part.strip() for part in turns[-1].parts):
        raise Mistake("the last message says nothing", "messages")


def _content(message: Message, param: str, media: dict[str, Media], allowed: Sequence[str]) -> Iterator[Part]:
    field, content = ("content", message.content) if message.parts is None else ("parts", message.parts)
    for place, part in enumerate(content or ()):
        if isinstance(part, str):
            yield part
            continue
        if message.role == "assistant":  # The model needs no features of its own media.
            yield Item(modality=part.modality)
            continue
        try:
            data = uploads.from_base64(part.data) if part.data else uploads.from_url(part.place, allowed)
            medium = uploads.check(data, part.modality)
        except Refused as refused:
            raise Mistake(str(refused), f"{param}.{field}[{place}]") from None
        name = str(len(media))
        media[name] = medium
        yield Item(modality=part.modality, name=name)


def data_uri(medium: Media) -> str:
    """A medium as a data URI."""
    return f"data:{MIME[medium.format]};base64,{base64.b64encode(medium.data).decode()}"


def part_of(medium: Media) -> dict[str, Any]:
    """A medium as a content part, with its `note` if it has one."""
    kind = f"{medium.modality.value}_url"
    return {"type": kind, kind: {"url": data_uri(medium)}} | ({"note": medium.note} if medium.note else {})


def completion(head: Mapping[str, Any], response: Response[Media]) -> dict[str, Any]:
    """A whole answer: `content` is its text, `parts` everything in order, `plan` the steps if it was planned."""
    media = iter(response.media)
    parts = [
        part_of(next(media)) if isinstance(part, Item) else {"type": "text", "text": part} for part in response.parts
    ]
    message = {"role": "assistant", "content": response.text, "refusal": None, "parts": parts}
    if response.plan:
        message |= plan_of(response.plan)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(response)}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage(response)}


def plan_of(plan: str) -> dict[str, Any]:
    """A plan as a field of a message."""
    return {"plan": json.loads(plan)["steps"]}


def chunk(head: Mapping[str, Any], delta: Mapping[str, Any], response: Response[Media] | None = None) -> dict[str, Any]:
    """A chunk of a streamed answer."""
    reason = _reason(response) if response else None
    choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": reason}
    return {**head, "object": "chat.completion.chunk", "choices": [choice]}


def head(identity: str, model: str) -> dict[str, Any]:
    """The fields shared by all chunks of an answer."""
    return {"id": identity, "created": int(time.time()), "model": model}


def usage(response: Response[Media]) -> dict[str, int]:
    """The token counts of the LLM."""
    return {
        "prompt_tokens": response.prompt_tokens,
        "completion_tokens": response.tokens,
        "total_tokens": response.prompt_tokens + response.tokens,
    }


def error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's format."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def sse(document: Mapping[str, Any]) -> str:
    """A document as a server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


def _reason(response: Response[Media]) -> str:
    return "length" if response.was_cut else "stop"
