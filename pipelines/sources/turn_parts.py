"""Conversations in other people's rows: speakers, texts, content parts, and where the row's media stand in them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from pipelines.sample import Item, Modality, Part, Role, Turn
from pipelines.sources import content_parts
from pipelines.sources.rows import Dialogue, Row, caption, field, listed, name, prose

PLACEHOLDER = re.compile(r"<(image|video|audio)>", re.IGNORECASE)
Speaker = Role | Literal["system"]
Speech = tuple[Speaker, list[Part]]
Spellings = tuple[str, ...]
CONVERSATIONS: Spellings = ("conversations", "conversation")
MESSAGES: Spellings = ("messages", *CONVERSATIONS)
_SPEAKERS: dict[str, Speaker] = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}


class Pool:
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
    spellings: Spellings = CONVERSATIONS,
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
    spoken = [(speaker, content_parts.parse(content)) for speaker, content in _speeches(row, spellings)]
    asked = [part for speaker, parts in spoken if speaker == "user" for part in parts if isinstance(part, str)]
    # LLaVA-Video writes <image> for its videos.
    media = _Media(
        inputs, outputs, video_as_image=not any("<video>" in text.lower() for text in asked), has_media=has_media
    )
    said = [
        (speaker, _joined([found for part in parts for found in media.parts(speaker, part)]))
        for speaker, parts in spoken
    ]
    check_order([speaker for speaker, _ in said], is_prompt)
    _follow([parts for speaker, parts in said if speaker == "user"], media.inputs.rest())
    for answer in [parts for speaker, parts in said if speaker == "assistant"][-1:]:  # A prompt may have none yet.
        answer.extend(media.outputs.rest())
    return finished(said, embeddings(row), is_prompt)


class _Media:
    """Finds what the parts of a row's messages show."""

    def __init__(
        self, inputs: Sequence[Item], outputs: Sequence[Item], *, video_as_image: bool, has_media: bool | None
    ) -> None:
        self.inputs = Pool(inputs, repeat=True, video_as_image=video_as_image)
        self.outputs = Pool(outputs)
        self._has_media = bool(inputs or outputs) if has_media is None else has_media

    def parts(self, speaker: Speaker, part: str | content_parts.Medium) -> list[Part]:
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

    def _item(self, speaker: Speaker, medium: content_parts.Medium) -> Item:
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


def _no_system(speaker: Speaker, item: Item) -> Item:
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
    return finished((speaker, text_part(text)) for speaker, text in speeches(row))


def text_part(text: str) -> list[Part]:
    """A text as the parts of a turn: none, where it is empty."""
    return [text] if text else []


def speeches(row: Row) -> list[tuple[Speaker, str]]:
    """Who says what in a conversation of texts, under any spelling of the field.

    Raises:
        ValueError: it is no conversation, or user and assistant do not take turns, the user first.
    """
    said = [(speaker, prose(content, "text")) for speaker, content in _speeches(row, CONVERSATIONS)]
    check_order([speaker for speaker, _ in said])
    return said


def _speeches(row: Row, spellings: Spellings) -> list[tuple[Speaker, Any]]:
    """Who says what, as the row has it; `messages` is read also where it is none of the spellings."""
    found = next((spelling for spelling in MESSAGES if row.get(spelling) is not None), None)
    conversation = field(row, *(spellings if found is None else [found]))
    if not isinstance(conversation, list) or not all(isinstance(said, dict) for said in conversation):
        raise ValueError(f"bad field: {found} is no list of turns")
    who, what = ("from", "role"), ("value", "content")
    if found == "messages":
        who, what = who[::-1], what[::-1]
    return [(role_of(field(turn, *who)), field(turn, *what)) for turn in conversation]


def check_order(speakers: Sequence[Speaker], is_prompt: bool = False) -> None:
    """Whether user and assistant take turns; system messages may stand anywhere between.

    Raises:
        ValueError: they do not, the assistant begins, or there is no answer at all; or a prompt ends in an answer.
    """
    roles = [speaker for speaker in speakers if speaker != "system"]
    if is_prompt and roles and roles[-1] == "assistant":
        raise ValueError("bad conversation: the last turn is the assistant's, so that nothing is left to answer")
    expected: list[Speaker] = ["user", "assistant"] * (len(roles) + 1)
    if len(roles) < (1 if is_prompt else 2) or roles != expected[: len(roles)]:
        raise ValueError("bad conversation: user and assistant must take turns, the user first")


def role_of(value: Any) -> Speaker:
    """Who speaks, under any of the usual names, in any case.

    Raises:
        ValueError: it is no name of a user, an assistant or the system.
    """
    speaker = _SPEAKERS.get(value.strip().lower()) if isinstance(value, str) else None
    if speaker is None:
        raise ValueError(f"bad conversation: unknown speaker {str(value)[:20]!r}")
    return speaker


def split(text: str, pattern: re.Pattern[str], item: Callable[[re.Match[str]], Item | None]) -> list[Part]:
    """Text cut where the pattern matches, an item or nothing in place of each match; no white space at the cuts."""
    parts: list[Part | None] = []
    position = 0
    for match in pattern.finditer(text):
        parts += [text[position : match.start()].strip(), item(match)]
        position = match.end()
    parts.append(text[position:].strip())
    return [part for part in parts if part]


def finished(said: Iterable[Speech], meta: Mapping[str, Any] | None = None, is_prompt: bool = False) -> Dialogue:
    """A dialogue from speakers and parts that alternate.

    The model's chat format has no system turn: a system message stands in the user's turn (`with_system`), and `system`
    in the meta tells its words from the user's. A last question without an answer teaches nothing: unless it
    `is_prompt`, it is left out, and `unanswered` in the meta says so.

    Raises:
        ValueError: a turn is empty, or no user's turn takes a system message.
    """
    said = list(said)
    system = [part for speaker, parts in said if speaker == "system" for part in parts]
    spoken = [(role, _joined(parts) if system else parts) for role, parts in with_system(said)]
    result = tuple(Turn(role=role, parts=tuple(parts)) for role, parts in spoken)
    unanswered = {"unanswered": True} if result[-1].role == "user" and not is_prompt else {}
    if unanswered:
        result = result[:-1]
    empty = next((turn.role for turn in result if not turn.parts), None)
    if empty:
        raise ValueError(f"empty turn: the {empty} says nothing")
    return Dialogue(result, {**(meta or {}), **({"system": system} if system else {}), **unanswered})


def with_system(said: Iterable[Speech]) -> list[tuple[Role, list[Part]]]:
    """Speeches with each system message in a user's turn, since the model's chat format has no turn for it.

    It ends the user's turn that it stands behind, before the answer it is meant for, and else begins the one in front
    of which it stands.

    Raises:
        ValueError: there is no such turn.
    """
    result: list[tuple[Role, list[Part]]] = []
    system: list[Part] = []
    for speaker, parts in said:
        if speaker == "system":
            if result and result[-1][0] == "user":
                result[-1][1].extend(parts)
            else:
                system += parts
        else:
            if system and speaker == "assistant":
                break
            result.append((speaker, [*system, *parts]))
            system = []
    if system:
        raise ValueError("bad conversation: a system message is followed by no user")
    return result


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Texts that follow each other, in lines of one text."""
    result: list[Part] = []
    for part in parts:
        if isinstance(part, str) and result and isinstance(result[-1], str):
            result[-1] = f"{result[-1]}\n{part}"
        else:
            result.append(part)
    return result
