"""Content parts of messages, as data sets and OpenAI's clients write them: one parser for readers and for the API."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.sample import Modality

_SPELLINGS = ("{}", "{}_url", "input_{}", "{}_path", "url", "path", "file", "file_name")
_INNER = ("url", "path", "file", "file_name")
_TEXTS = ("text", "value", "content")


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """A medium in a message.

    `place` is a file's name, a URL or a data URI, and `data` its bytes in base64; both are empty where a part says only
    that a medium of its modality stands here. `caption` is as the part has it, None without one.
    """

    modality: Modality
    place: str = ""
    data: str = ""
    caption: Any = None


def parse(content: Any) -> list[str | Medium]:
    """The content of a message: a text, or a list of parts under any usual spelling of their types and fields.

    `{"type": "image_url", "image_url": {"url": "a.jpg"}}`, `{"type": "image", "image": "a.jpg"}` and
    `{"image": {"path": "a.jpg"}}` say the same. Texts are returned unchanged.

    Raises:
        ValueError: `bad field: ...` or `missing field: ...`, in one line.
    """
    return [_part(part) for part in (content if isinstance(content, list | tuple) else [content])]


def _part(part: Any) -> str | Medium:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise ValueError("bad field: content is neither text nor a list of parts")
    kind = _kind(part)
    if kind == "text":
        return _text(part)
    if kind not in list(Modality):
        raise ValueError(f"bad field: a part of type {kind[:20]!r}; it may be text, image, video or audio")
    modality = Modality(kind)
    place, data = _source(part, modality)
    return Medium(modality=modality, place=place, data=data, caption=part.get("caption"))


def _kind(part: Mapping[str, Any]) -> str:
    """`text`, `image` ..., also where it is spelled `image_url` or `input_audio`, or no type is given."""
    kind = part.get("type")
    if kind is None:
        kind = next((name for name in ("text", *Modality) if _first(part, name, f"{name}_url") is not None), "")
    if not isinstance(kind, str):
        raise ValueError("bad field: the type of a part must be a string")
    return kind.removeprefix("input_").removeprefix("output_").removesuffix("_url")


def _text(part: Mapping[str, Any]) -> str:
    text = _first(part, *_TEXTS)
    if isinstance(text, dict):  # As OpenAI's assistants have it.
        text = _first(text, *_TEXTS)
    if text is None:
        raise ValueError(f"missing field: {' or '.join(_TEXTS)}")
    if not isinstance(text, str):
        raise ValueError("bad field: text must be a string")
    return text


def _source(part: Mapping[str, Any], modality: Modality) -> tuple[str, str]:
    """The location of a part's medium and its bytes in base64, at the top or one level down."""
    place, data = _first(part, *(spelling.format(modality) for spelling in _SPELLINGS)), part.get("data")
    if isinstance(place, dict):
        place, data = _first(place, *_INNER), place.get("data")
        if place is None and data is None:
            raise ValueError(f"missing field: the file of {'a' if modality == 'video' else 'an'} {modality}")
    for value, what in ((place, "name"), (data, "data")):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"bad field: {modality} {what} must be a string")
    return place or "", data or ""


def _first(values: Mapping[str, Any], *spellings: str) -> Any:
    return next((values[spelling] for spelling in spellings if values.get(spelling) is not None), None)
