"""Conversations in other people's JSON: speakers, texts, and the placeholders in which items stand."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipelines.sample import Item, Modality, Part, Role, Turn
from pipelines.sources.rows import Dialogue, Row, caption, field, listed, name, prose

PLACEHOLDER = re.compile(r"<(image|video|audio)>")
_ROLES: dict[str, Role] = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class Pool:
    """The items a row offers to one side; placeholders take them in order, modality by modality.

    With `repeat` the last item is given again when no more are left: all turns may show one and the same image.
    """

    def __init__(self, items: Iterable[Item], repeat: bool) -> None:
        self._left = list(items)
        self._last: dict[Modality, Item] = {}
        self._repeat = repeat

    def take(self, modality: Modality) -> Item:
        """The next item of a modality.

        Raises:
            ValueError: there is none.
        """
        item = next((item for item in self._left if item.modality == modality), None)
        if item is None:
            if modality not in self._last:
                raise ValueError(f"missing medium: the row names none for a placeholder <{modality}>")
            return self._last[modality]
        self._left.remove(item)
        if self._repeat:
            self._last[modality] = item
        return item

    def rest(self) -> tuple[Item, ...]:
        """What no placeholder took."""
        return tuple(self._left)


def items(row: Row, fields: Sequence[str]) -> list[Item]:
    """Items named in a row's fields, such as `input_{}` and `{}_name` of any modality: a name or a list of names."""
    return [
        Item(modality=modality, name=name(value, f"{modality} name"))
        for modality in Modality
        for value in listed(row, *(spelling.format(modality) for spelling in fields))
    ]


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


def turns(row: Row, inputs: Sequence[Item] = (), outputs: Sequence[Item] = ()) -> Dialogue:
    """A row's conversation, with its items where the placeholders stand, and the names of their caption embeddings.

    Inputs without a placeholder stand at the beginning of the first user turn, outputs at the end of the last
    assistant turn.

    Raises:
        ValueError: fields are missing or bad, speakers do not take turns, a turn is empty, a placeholder has no item.
    """
    pools: dict[Role, Pool] = {"user": Pool(inputs, repeat=True), "assistant": Pool(outputs, repeat=False)}

    def parts(role: Role, text: str) -> list[Part]:
        return split(text, PLACEHOLDER, lambda match: pools[role].take(Modality(match[1])))

    said = [(role, parts(role, text)) for role, text in speeches(row)]
    said[0][1][:0] = pools["user"].rest()
    said[1::2][-1][1].extend(pools["assistant"].rest())
    return finished(said, embeddings(row))


def text_turns(row: Row) -> Dialogue:
    """A row's conversation without items: what looks like a placeholder is text.

    Raises:
        ValueError: fields are missing or bad, speakers do not take turns, a turn is empty.
    """
    return finished((role, text_part(text)) for role, text in speeches(row))


def text_part(text: str) -> list[Part]:
    """A text as the parts of a turn: none, where it is empty."""
    return [text] if text else []


def speeches(row: Row) -> list[tuple[Role, str]]:
    """Who says what, under either spelling of the field.

    Raises:
        ValueError: it is no conversation, or user and assistant do not take turns, the user first.
    """
    conversation = field(row, "conversations", "conversation")
    if not isinstance(conversation, list) or not all(isinstance(said, dict) for said in conversation):
        raise ValueError("bad field: conversations is no list of turns")
    said = [
        (role_of(field(turn, "from", "role")), prose(field(turn, "value", "content"), "text")) for turn in conversation
    ]
    check_order([role for role, _ in said])
    return said


def check_order(roles: Sequence[Role]) -> None:
    """Whether user and assistant take turns.

    Raises:
        ValueError: they do not, the assistant begins, or there is no answer at all.
    """
    expected: list[Role] = ["user", "assistant"] * len(roles)
    if len(roles) < 2 or list(roles) != expected[: len(roles)]:
        raise ValueError("bad conversation: user and assistant must take turns, the user first")


def role_of(value: Any) -> Role:
    """Who speaks, under any of the usual names.

    Raises:
        ValueError: it is no name of a user or an assistant.
    """
    role = _ROLES.get(value) if isinstance(value, str) else None
    if role is None:
        raise ValueError(f"bad conversation: unknown speaker {str(value)[:20]!r}")
    return role


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
    said: Iterable[tuple[Role, list[Part]]], meta: Mapping[str, Any] | None = None, is_prompt: bool = False
) -> Dialogue:
    """A dialogue from roles and parts that alternate.

    A last question without an answer teaches nothing: unless it `is_prompt`, it is left out, and `unanswered` in the
    meta says so.

    Raises:
        ValueError: a turn is empty.
    """
    result = tuple(Turn(role=role, parts=tuple(parts)) for role, parts in said)
    unanswered = {"unanswered": True} if result[-1].role == "user" and not is_prompt else {}
    if unanswered:
        result = result[:-1]
    empty = next((turn.role for turn in result if not turn.parts), None)
    if empty:
        raise ValueError(f"empty turn: the {empty} says nothing")
    return Dialogue(result, {**(meta or {}), **unanswered})
