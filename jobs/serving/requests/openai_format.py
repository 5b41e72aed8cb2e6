"""OpenAI's chat completion format: parses requests. Needs neither Ray nor torch."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from jobs.replies import options
from jobs.replies.options import OPTIONS
from jobs.serving.requests import uploads
from model.inference.query import Query, Sampling
from pipelines.media.policy import Refused
from pipelines.sample import Item, Media, Modality, Part, Turn
from pipelines.sources import content_parts
from pipelines.sources.content_parts import Medium
from pipelines.sources.speakers import Speaker, Speech, role_of, with_system

MAX_MEDIA = 64
MAX_CHOICES = 8
MAX_STOPS = 4
# Fields of OpenAI's that change what an answer is: who sends them must know that they have no effect.
UNSUPPORTED = {
    "tools": "this model calls no tools; leave tools out",
    "functions": "this model calls no functions; leave functions out",
    "logprobs": "this server tells no log probabilities; leave logprobs out",
    "logit_bias": "this server biases no tokens; leave logit_bias out",
}
_SEEDS = 2**31  # of the decoders, and of the page
Name = Annotated[str, Field(max_length=200)]


def _shown(content: Any) -> list[str | Medium]:
    if not isinstance(content, list | tuple):
        return content_parts.parse(content)
    parts = list[str | Medium]()
    for place, part in enumerate(content):
        try:
            parts.append(_part(part))
        except ValueError as error:
            raise PydanticCustomError("part", "{reason}", {"reason": str(error), "place": place}) from None
    return parts


def _part(part: Any) -> str | Medium:
    if isinstance(part, dict) and part.get("type") == "refusal":  # in an answer of OpenAI's that is sent back
        part = {"type": "text", "text": part.get("refusal")}
    [found] = content_parts.parse([part])
    if isinstance(found, Medium) and not (found.place or found.data):
        raise ValueError(f"missing field: {found.modality}_url")
    return found


def _schema() -> dict[str, Any]:
    """What `/docs` says of content: the parts that OpenAI's clients send; others are read that mean the same."""
    text = {"type": "string"}
    fields: dict[str, Any] = {f"{modality}_url": _object({"url": {"type": "string"}}) for modality in Modality}
    fields |= {"text": text, "input_audio": _object({"data": {"type": "string", "contentEncoding": "base64"}})}
    parts = [_object({"type": {"const": name}, name: field}) for name, field in fields.items()]
    return {"anyOf": [text, {"type": "array", "items": {"anyOf": parts}}]}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(properties)}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Parts = Annotated[list[str | Medium], BeforeValidator(_shown), WithJsonSchema(_schema(), "validation")]
_STOP = {"type": "string", "minLength": 1}
Stops = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}]}),
]


class Message(BaseModel):
    """A message of one role.

    This server's replies have `parts` beside `content`: text and media in order. A reply can therefore be sent back
    unchanged. If both are given, `parts` is used. The result of a tool is read as the user's words.
    """

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Parts | None = None
    parts: Parts | None = None
    tool_calls: list[dict[str, Any]] | None = None

    @property
    def speaker(self) -> Speaker:
        """Who speaks, for the model."""
        return "user" if self.role in ("tool", "function") else role_of(self.role)


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


class JsonSchema(BaseModel):
    """A JSON schema under a name."""

    model_config = ConfigDict(extra="ignore")

    name: Name = ""
    document: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(BaseModel):
    """The form of an answer: text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(BaseModel):
    """A request for a chat completion. Other fields of OpenAI's are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: Name = ""
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        default=None, description="how many answers to choose from, each with a seed of its own"
    )
    stop: Stops | None = Field(default=None, description="texts that end the answer, and do not belong to it")
    response_format: ResponseFormat | None = None
    temperature: Annotated[float, OPTIONS["temperature"].field()] | None = None
    top_p: Annotated[float, OPTIONS["top_p"].field()] | None = None
    seed: int | None = None
    max_tokens: Annotated[int, OPTIONS["max_new_tokens"].field()] | None = None
    max_completion_tokens: Annotated[int, OPTIONS["max_new_tokens"].field()] | None = None
    modalities: list[Literal["text", "image", "video", "audio"]] | None = Field(
        default=None, max_length=8, description="media that the reply must contain, whether the model chooses to or not"
    )
    max_items: Annotated[int, OPTIONS["max_items"].field()] = Field(
        default=OPTIONS["max_items"].default, description=OPTIONS["max_items"].help
    )
    decoders: dict[Literal["image", "video", "audio"], DecoderOptions] = Field(default_factory=dict)
    tools: Any = Field(default=None, description="refused")
    functions: Any = Field(default=None, description="refused")
    logprobs: Any = Field(default=None, description="refused")
    logit_bias: Any = Field(default=None, description="refused")


class Mistake(ValueError):
    """An invalid request: what is wrong, and the field it concerns."""

    def __init__(self, message: str, param: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


def to_query(request: ChatRequest, allowed_urls: Sequence[str] = ()) -> Query:
    """The query for a request; its media are checked and decoded. Raises Mistake."""
    for field, reason in UNSUPPORTED.items():
        if getattr(request, field):
            raise Mistake(reason, field, "unsupported_parameter")
    media: dict[str, Media] = {}
    said = list[Speech]()
    for place, message in enumerate(request.messages):
        speaker, param = message.speaker, f"messages[{place}]"
        content = [*_content(message, param, media, allowed_urls), *_calls(message)]
        if speaker == "system" and any(isinstance(part, Item) for part in content):
            raise Mistake("a system message holds a medium; put it into a user's", param)
        said.append((speaker, content))
    try:
        turns = [Turn(role=role, parts=tuple(parts)) for role, parts in with_system(_after_user(said))]
    except ValueError as error:
        raise Mistake(str(error), "messages") from None
    turns = alternating(turns)  # Some clients send a picture and its question one after the other.
    _check_turns(turns)
    require = [Modality(name) for name in dict.fromkeys(request.modalities or ()) if name != "text"]
    return Query(
        turns=turns,
        system=[part for speaker, parts in said if speaker == "system" for part in parts if isinstance(part, str)],
        media={name: uploads.decode(medium) for name, medium in media.items()},
        require=require,
        sampling=_sampling(request, require),
        settings={Modality(name): found.model_dump(exclude_none=True) for name, found in request.decoders.items()},
    )


def choices(query: Query, count: int) -> list[Query]:
    """The query once for each choice, with seeds derived from its own; the first keeps it."""
    sampling = query.sampling
    seeds = [_seed(sampling.seed, number) for number in range(count)]
    return [replace(query, sampling=replace(sampling, seed=seed)) for seed in seeds]


def _seed(seed: int, number: int = 0) -> int:
    """A seed below `_SEEDS` for choice `number`; a usual one is kept, any other integer leads to one."""
    if not number and 0 <= seed < _SEEDS:
        return seed
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % _SEEDS


def _after_user(said: Sequence[Speech]) -> Iterable[Speech]:
    """Speeches with a silent user before an assistant who greets first: the model's chat format begins with a user."""
    first = next((place for place, (speaker, _) in enumerate(said) if speaker != "system"), len(said))
    silent: list[Speech] = [("user", [])] if first < len(said) and said[first][0] == "assistant" else []
    return [*said[:first], *silent, *said[first:]]


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
    schema = _schema_of(request.response_format)
    if schema and require:
        raise Mistake("JSON holds no media; drop one of modalities and response_format", "response_format")
    return replace(
        sampling,
        max_items=max(request.max_items, len(require)),
        seed=_seed(sampling.seed),
        schema=schema,
        stops=tuple(request.stop or ()),
    )


def _schema_of(wanted: ResponseFormat | None) -> str:
    """The JSON schema of an answer, as JSON text; empty for text."""
    if wanted is None or wanted.type == "text":
        return ""
    if wanted.type == "json_object":
        return '{"type": "object"}'
    if wanted.json_schema is None:
        raise Mistake("missing field: json_schema", "response_format")
    return json.dumps(wanted.json_schema.document)


def _check_turns(turns: Sequence[Turn]) -> None:
    if not turns or turns[-1].role != "user":
        raise Mistake("the last message must be a user's: the reply answers it", "messages")
    if not any(isinstance(part, Item) or part.strip() for part in turns[-1].parts):
        raise Mistake("the last message says nothing", "messages")


def _calls(message: Message) -> Iterator[Part]:
    """What an assistant has called, in words, so that a tool's result is not without its reason."""
    for call in message.tool_calls or ():
        function = call.get("function")
        if isinstance(function, dict):
            yield f"{function.get('name', '')}({function.get('arguments', '')})"


def _content(message: Message, param: str, media: dict[str, Media], allowed: Sequence[str]) -> Iterator[Part]:
    field, content = ("content", message.content) if message.parts is None else ("parts", message.parts)
    for place, part in enumerate(content or ()):
        if isinstance(part, str):
            yield part
            continue
        if message.role == "assistant":  # The model needs no features of its own media.
            yield Item(modality=part.modality)
            continue
        if len(media) == MAX_MEDIA:
            raise Mistake(f"too many media: {MAX_MEDIA} is the limit", f"{param}.{field}[{place}]")
        try:
            data = uploads.from_base64(part.data) if part.data else uploads.from_url(part.place, allowed)
            medium = uploads.check(data, part.modality)
        except Refused as refused:
            raise Mistake(str(refused), f"{param}.{field}[{place}]") from None
        name = str(len(media))
        media[name] = medium
        yield Item(modality=part.modality, name=name)
