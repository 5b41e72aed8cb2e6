"""Conversations say what they show and make, in words an oracle understands, and keep held-out combinations out."""

import string
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sample import Item, Modality
from pipelines.world import small_talk, wording
from pipelines.world.conversations import KINDS, Conversation, converse
from pipelines.world.oracles import read_text
from pipelines.world.scenes import Subject, is_held_out, modality_of, sound_of

COUNT = 150
any_kind = st.sampled_from(KINDS)
any_number = st.integers(0, 10**6)


def subjects(conversation: Conversation) -> Iterator[Subject]:
    """All that is shown or made, in order."""
    answers = iter(conversation.answers)
    for turn in conversation.turns:
        if turn.role == "user":
            yield from (conversation.media[part.name] for part in turn.parts if isinstance(part, Item))
        else:
            yield from next(answers).made


def items(conversation: Conversation, role: str) -> list[Item]:
    return [part for turn in conversation.turns if turn.role == role for part in turn.parts if isinstance(part, Item)]


@given(any_kind, any_number, any_number, st.booleans())
def test_equal_arguments_give_equal_conversations(kind: str, seed: int, index: int, held_out: bool) -> None:
    conversation = converse(kind, seed, index, held_out=held_out)
    assert converse(kind, seed, index, held_out=held_out) == conversation
    assert conversation.kind == kind


@given(any_kind, any_number, any_number, st.booleans())
def test_user_and_assistant_take_turns_with_an_answer_each(kind: str, seed: int, index: int, held_out: bool) -> None:
    conversation = converse(kind, seed, index, held_out=held_out)
    exchanges = len(conversation.answers)
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"] * exchanges
    for turn in conversation.turns:
        assert all(isinstance(part, Item) or part == part.strip() != "" for part in turn.parts)


@given(any_kind, any_number, any_number, st.booleans())
def test_answers_name_what_they_say_they_do(kind: str, seed: int, index: int, held_out: bool) -> None:
    conversation = converse(kind, seed, index, held_out=held_out)
    for turn, answer in zip(conversation.turns[1::2], conversation.answers, strict=True):
        assert read_text(" ".join(part for part in turn.parts if isinstance(part, str))) == answer.named


@given(any_kind, any_number, any_number, st.booleans())
def test_items_stand_behind_their_captions_and_in_the_order_they_are_to_be_made(
    kind: str, seed: int, index: int, held_out: bool
) -> None:
    conversation = converse(kind, seed, index, held_out=held_out)
    for turn, answer in zip(conversation.turns[1::2], conversation.answers, strict=True):
        found = [part for part in turn.parts if isinstance(part, Item)]
        assert [item.modality for item in found] == [modality_of(subject) for subject in answer.made]
        for before, item in pairwise(turn.parts):
            if isinstance(item, Item):
                assert isinstance(before, str)
                assert before.endswith(f"{item.caption}.")
                assert item.name == ""


@given(any_kind, any_number, any_number, st.booleans())
def test_every_medium_of_the_user_is_known_by_its_name(kind: str, seed: int, index: int, held_out: bool) -> None:
    conversation = converse(kind, seed, index, held_out=held_out)
    shown = items(conversation, "user")
    assert [item.name for item in shown] == list(conversation.media)
    assert all(item.modality == modality_of(conversation.media[item.name]) and item.caption for item in shown)


@pytest.mark.parametrize("kind", KINDS)
def test_training_conversations_hold_no_held_out_combination(kind: str) -> None:
    for index in range(COUNT):
        assert not any(map(is_held_out, subjects(converse(kind, 0, index))))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("question", "chat", "beyond", "decline")])
def test_the_first_subject_of_an_examination_is_held_out_and_no_other(kind: str) -> None:
    for index in range(COUNT):
        first, *rest = subjects(converse(kind, 0, index, held_out=True))
        assert is_held_out(first)
        assert not any(map(is_held_out, rest))


@pytest.mark.parametrize("kind", ["image_to_sound", "video_to_sound"])
def test_a_shape_sounds_by_the_rule_of_the_world(kind: str) -> None:
    for index in range(COUNT):
        conversation = converse(kind, 0, index)
        (shown,) = conversation.media.values()
        ((made,),) = (answer.made for answer in conversation.answers)
        assert made == sound_of(shown.colour, shown.shape)  # type: ignore[union-attr]


def test_a_change_keeps_all_attributes_but_one() -> None:
    for index in range(COUNT):
        named = [answer.named for answer in converse("change", 0, index).answers]
        assert len(named) in (2, 3)
        for before, after in pairwise(named):
            assert len(before.items() ^ after.items()) == 2


@pytest.mark.parametrize("kind", ["change", "remember"])
def test_modalities_take_turns(kind: str) -> None:
    found = [modality_of(next(subjects(converse(kind, 0, index)))) for index in range(6)]
    assert found == [*Modality, *Modality]


def test_what_is_remembered_was_there_before_another_exchange() -> None:
    for index in range(COUNT):
        first, _, last = converse("remember", 0, index).answers
        assert last.named
        assert last.named.items() <= first.named.items()


@pytest.mark.parametrize("kind", KINDS)
def test_conversations_are_short_and_worded_in_many_ways(kind: str) -> None:
    conversations = [converse(kind, 0, index) for index in range(COUNT)]
    texts = [[part for turn in c.turns for part in turn.parts if isinstance(part, str)] for c in conversations]
    assert max(sum(len(text.split()) for text in parts) for parts in texts) < 120
    assert len({parts[0] for parts in texts}) >= 8


def test_frames_leave_attributes_to_the_subjects() -> None:
    """Else an answer would name what nobody asked for."""
    replies = [text for answers in small_talk.CHAT.values() for text in answers]
    beyond = [text for answers in small_talk.BEYOND.values() for text in answers]
    unknown = (*small_talk.BEYOND_COLOURS, *small_talk.BEYOND_WORDS, *small_talk.NOW_WORDS)
    for text in (*replies, *beyond, *unknown):
        assert read_text(text) == {}
    outside = {"beyond", "beyond_now", "things", "tunes", "beyond_colours"}
    asked = [frames for name, frames in wording.FRAMES.items() if name not in outside]
    for frames in (*asked, wording.DESCRIBED, wording.MADE, wording.RECALLED):
        for frame in frames:
            fields = {name: "it" for _, name, _, _ in string.Formatter().parse(frame) if name}
            assert read_text(frame.format(**fields)) == {}, frame
