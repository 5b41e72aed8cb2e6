"""Speakers of a conversation: their names, the order of their turns, and the place of system messages."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pipelines.sample import Part, Role
from pipelines.sources.rows import Row, field, prose

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


def messages(row: Row, spellings: Spellings) -> list[tuple[Speaker, Any]]:
    """Who says what, as the row has it: text or content parts; `messages` is read under whatever spellings.

    Raises:
        ValueError: it is no list of turns, or a turn has no content or an unknown speaker.
    """
    found = next((spelling for spelling in MESSAGES if row.get(spelling) is not None), None)
    conversation = field(row, *(spellings if found is None else [found]))
    if not isinstance(conversation, list) or not all(isinstance(said, dict) for said in conversation):
        raise ValueError(f"bad field: {found} is no list of turns")
    who, what = ("from", "role"), ("value", "content")
    if found == "messages":
        who, what = who[::-1], what[::-1]
    return [(role_of(field(turn, *who)), field(turn, *what)) for turn in conversation]


def speeches(row: Row) -> list[tuple[Speaker, str]]:
    """The speeches of a text conversation, under any spelling of the field.

    Raises:
        ValueError: it is no conversation, or user and assistant do not take turns, the user first.
    """
    said = [(speaker, prose(content, "text")) for speaker, content in messages(row, CONVERSATIONS)]
    check_order([speaker for speaker, _ in said])
    return said


def check_order(speakers: Sequence[Speaker], is_prompt: bool = False) -> None:
    """Checks that user and assistant take turns; system messages may be anywhere.

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
    """The speaker, under any of the usual names, in any case.

    Raises:
        ValueError: it is no name of a user, an assistant or the system.
    """
    speaker = _SPEAKERS.get(value.strip().lower()) if isinstance(value, str) else None
    if speaker is None:
        raise ValueError(f"bad conversation: unknown speaker {str(value)[:20]!r}")
    return speaker


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
