"""Conversations in other people's rows: texts, content parts, and where the row's media stand in them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipelines.sample import Item, Modality, Part, Turn
from pipelines.sources import content_parts, speakers
from pipelines.sources.rows import Dialogue, Row, caption, listed, name, prose

PLACEHOLDER = re.compile(r"<(image|video|audio)>", re.IGNORECASE)


class MediaPool:
    """The media a row names beside its text, taken in order, modality by modality.

    With `repeat` a placeholder is given the last item again when no more are left: all turns may show one and the same
    image. With `video_as_image` it is given a video when the row has no image left for `<image>`.
    """

    def __init__(self, items: Iterable[Item], *, repeat: bool = False, video_as_image: bool = False) -> None:
        self._left = list(items)
        self._last: dict[Modality, Item] = {}
        self._repeat, self._video_as_image = repeat, video_as_image

    def take(self, modality: Modality) -> Item:
        """The item that a placeholder of a modality stands for.

        Raises:
            ValueError: there is none.
        """
        item = self.next(modality)
        if item is None and modality == Modality.IMAGE and self._video_as_image:
            item = self.next(Modality.VIDEO)
        if item is None:
            if modality not in self._last:
                raise ValueError(f"missing medium: the row names none for a placeholder <{modality}>")
            return self._last[modality]
        if self._repeat:
            self._last[modality] = item
        return item

    def next(self, modality: Modality) -> Item | None:
        """The next item of a modality, None where none is left."""
        item = next((item for item in self._left if item.modality == modality), None)
        if item:
            self._left.remove(item)
        return item

    def claim(self, item: Item) -> Item:
        """An item that a turn names itself, which is so no longer left."""
        if item in self._left:
            self._left.remove(item)
        return item

    def rest(self) -> list[Item]:
        """What nothing took, in order."""
        return list(self._left)


def items(row: Row, fields: Sequence[str]) -> list[Item]:
    """Items named in a row's fields, such as `input_{}` and `{}_name` of any modality: a name or a list of names.

    The first field of a modality that names any counts; an empty one names none, as in a CSV file.
    """
    found = []
    for modality in Modality:
        listings = (listed(row, spelling.format(modality)) for spelling in fields)
        names = next((names for names in listings if names not in ([], [""])), [])
        found += [Item(modality=modality, name=name(value, f"{modality} name")) for value in names]
    return found


def captioned_items(row: Row) -> list[Item]:
    """Items to generate: their captions in `{modality}_captions`, and the names in `output_{modality}` where given.

    Raises:
        ValueError: a name has no caption, or a caption is bad.
    """
    found = []
    for modality in Modality:
        captions = listed(row, f"{modality}_captions")
        names = [name(value, f"{modality} name") for value in listed(row, f"output_{modality}")]
        if len(captions) < len(names):
            raise ValueError(f"missing field: {modality}_captions for every output_{modality}")
        names += [""] * (len(captions) - len(names))
        found += [
            Item(modality=modality, name=file, caption=caption(value, f"{modality} caption"))
            for file, value in zip(names, captions, strict=True)
        ]
    return found


def embeddings(row: Row) -> dict[str, Any]:
    """What a sample remembers of the precomputed caption embeddings its row names: `{"embeddings": {"image": [file]}}`.

    They belong to the captions of `{modality}_captions`, one each and in their order, as the items to generate do.

    Raises:
        ValueError: a name is bad, or there are not as many as captions.
    """
    found = {}
    for modality in Modality:
        names = [name(value, f"{modality} embedding") for value in listed(row, f"{modality}_caption_embeddings")]
        count = len(listed(row, f"{modality}_captions"))
        if names and len(names) != count:
            raise ValueError(f"bad field: {len(names)} {modality}_caption_embeddings for {count} {modality}_captions")
        if names:
            found[modality.value] = names
    return {"embeddings": found} if found else {}


def turns(
    row: Row,
    inputs: Sequence[Item] = (),
    outputs: Sequence[Item] = (),
    *,
    spellings: speakers.Spellings = speakers.CONVERSATIONS,
    is_prompt: bool = False,
    has_media: bool | None = None,
) -> Dialogue:
    """A row's conversation, with its media where placeholders and parts stand, and the names of caption embeddings.

    Where the row names no media (`has_media` says that it does), what looks like a placeholder is text, unless it
    begins or ends a question as one whose medium was lost. Inputs that nothing takes follow the last of their modality;
    where there is none, they follow the media of the first user turn, or begin it. Outputs that nothing takes stand at
    the end of the last assistant turn. A prompt ends in a user's turn.

    Raises:
        ValueError: fields are missing or bad, speakers do not take turns, a turn is empty, a placeholder has no item.
    """
    spoken = [(speaker, content_parts.parse(content)) for speaker, content in speakers.messages(row, spellings)]
    asked = [part for speaker, parts in spoken if speaker == "user" for part in parts if isinstance(part, str)]
    # LLaVA-Video writes <image> for its videos.
    media = _Media(
        inputs, outputs, video_as_image=not any("<video>" in text.lower() for text in asked), has_media=has_media
    )
    said = [
        (speaker, _joined([found for part in parts for found in media.parts(speaker, part)]))
        for speaker, parts in spoken
    ]
    speakers.check_order([speaker for speaker, _ in said], is_prompt)
    _follow([parts for speaker, parts in said if speaker == "user"], media.inputs.rest())
    for answer in [parts for speaker, parts in said if speaker == "assistant"][-1:]:  # A prompt may have none yet.
        answer.extend(media.outputs.rest())
    return finished(said, embeddings(row), is_prompt)


class _Media:
    """Finds what the parts of a row's messages show."""

    def __init__(
        self, inputs: Sequence[Item], outputs: Sequence[Item], *, video_as_image: bool, has_media: bool | None
    ) -> None:
        self.inputs = MediaPool(inputs, repeat=True, video_as_image=video_as_image)
        self.outputs = MediaPool(outputs)
        self._has_media = bool(inputs or outputs) if has_media is None else has_media

    def parts(self, speaker: speakers.Speaker, part: str | content_parts.Medium) -> list[Part]:
        """A text, split where placeholders stand for media of the row; or an item."""
        if isinstance(part, content_parts.Medium):
            item = self._item(speaker, part)
            if speaker == "assistant" and not item.caption:
                raise ValueError(f"missing field: caption of the {item.modality} to generate")
            return [_no_system(speaker, item)]
        text = prose(part, "text")
        if not self._has_media:  # Then what looks like a placeholder is HTML.
            if speaker == "user":
                _check_no_medium_is_lost(text)
            return text_part(text)
        pool = self.outputs if speaker == "assistant" else self.inputs
        return split(text, PLACEHOLDER, lambda match: _no_system(speaker, pool.take(Modality(match[1].lower()))))

    def _item(self, speaker: speakers.Speaker, medium: content_parts.Medium) -> Item:
        modality = medium.modality
        words = "" if medium.caption is None else caption(medium.caption, f"{modality} caption")
        if medium.data:
            raise ValueError(f"missing field: the file of {'a' if modality == 'video' else 'an'} {modality}")
        if medium.place:
            found = self.inputs.claim(Item(modality=modality, name=name(medium.place, f"{modality} name")))
        else:
            listed = (self.outputs.next(modality) if speaker == "assistant" else None) or self.inputs.next(modality)
            if not listed and not (speaker == "assistant" and words):  # What is to be generated may have no file yet.
                raise ValueError(f"missing medium: the row names none for a placeholder <{modality}>")
            found = listed or Item(modality=modality)
        return Item(modality=modality, name=found.name, caption=words or found.caption)


def _check_no_medium_is_lost(text: str) -> None:
    """Whether a text of a row without media is text: LLaVA's placeholders stand first, or alone in the last line."""
    lost = PLACEHOLDER.match(text) or PLACEHOLDER.fullmatch(text.rpartition("\n")[2])
    if lost and f"</{lost[1]}>" not in text:
        raise ValueError(f"missing medium: the row names none for a placeholder {lost[0]}")


def _no_system(speaker: speakers.Speaker, item: Item) -> Item:
    if speaker == "system":
        raise ValueError("bad conversation: a system message holds a medium")
    return item


def _follow(users: Sequence[list[Part]], left: Sequence[Item]) -> None:
    """Puts media that nothing took into the user's turns, behind those they follow."""
    for item in left:
        turn, place = _last(users, [item.modality]) or _last(users[:1], list(Modality)) or (0, -1)
        users[turn].insert(place + 1, item)


def _last(turns: Sequence[list[Part]], modalities: Sequence[Modality]) -> tuple[int, int] | None:
    """The turn and the place in it of the last item of these modalities."""
    places = (
        (turn, place)
        for turn, parts in reversed(list(enumerate(turns)))
        for place, part in reversed(list(enumerate(parts)))
        if isinstance(part, Item) and part.modality in modalities
    )
    return next(places, None)


def text_turns(row: Row) -> Dialogue:
    """A row's conversation without items: what looks like a placeholder is text.

    Raises:
        ValueError: fields are missing or bad, speakers do not take turns, a turn is empty.
    """
    return finished((speaker, text_part(text)) for speaker, text in speakers.speeches(row))


def text_part(text: str) -> list[Part]:
    """A text as the parts of a turn: none, where it is empty."""
    return [text] if text else []


def split(text: str, pattern: re.Pattern[str], item: Callable[[re.Match[str]], Item | None]) -> list[Part]:
    """Text cut where the pattern matches, an item or nothing in place of each match; no white space at the cuts."""
    parts: list[Part | None] = []
    position = 0
    for match in pattern.finditer(text):
        parts += [text[position : match.start()].strip(), item(match)]
        position = match.end()
    parts.append(text[position:].strip())
    return [part for part in parts if part]


def finished(
    said: Iterable[speakers.Speech], meta: Mapping[str, Any] | None = None, is_prompt: bool = False
) -> Dialogue:
    """A dialogue from speakers and parts that alternate.

    The model's chat format has no system turn: a system message stands in the user's turn (`speakers.with_system`), and
    `system` in the meta tells its words from the user's. A last question without an answer teaches nothing: unless it
    `is_prompt`, it is left out, and `unanswered` in the meta says so.

    Raises:
        ValueError: a turn is empty, or no user's turn takes a system message.
    """
    said = list(said)
    system = [part for speaker, parts in said if speaker == "system" for part in parts]
    spoken = [(role, _joined(parts) if system else parts) for role, parts in speakers.with_system(said)]
    result = tuple(Turn(role=role, parts=tuple(parts)) for role, parts in spoken)
    unanswered = {"unanswered": True} if result[-1].role == "user" and not is_prompt else {}
    if unanswered:
        result = result[:-1]
    empty = next((turn.role for turn in result if not turn.parts), None)
    if empty:
        raise ValueError(f"empty turn: the {empty} says nothing")
    return Dialogue(result, {**(meta or {}), **({"system": system} if system else {}), **unanswered})


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Texts that follow each other, in lines of one text."""
    result: list[Part] = []
    for part in parts:
        if isinstance(part, str) and result and isinstance(result[-1], str):
            result[-1] = f"{result[-1]}\n{part}"
        else:
            result.append(part)
    return result
