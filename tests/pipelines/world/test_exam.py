"""The world's exam grades what is in an answer, whoever gave it."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sample import Decoded, Item, Media, Modality, Turn
from pipelines.world.conversations import Conversation, Expected
from pipelines.world.exam import ROWS, Attempt, Case, ExamRow, cases, chance, grade, is_lost, score, shown
from pipelines.world.oracles import read
from pipelines.world.render import render
from pipelines.world.scenes import Motion, Scene, Sound, Subject, is_held_out, modality_of

OWN = [row for row in ROWS.values() if row.kinds]
any_row = st.sampled_from(OWN)
numbers = st.integers(0, 11)


def case_of(row: ExamRow, number: int) -> Case:
    return cases(row, number + 1)[-1]


def subjects(conversation: Conversation) -> list[Subject]:
    return [*conversation.media.values(), *(subject for answer in conversation.answers for subject in answer.made)]


def perfect(conversation: Conversation) -> list[Attempt]:
    """Answers in the words of the data, with rendered media."""
    return [
        Attempt(parts=turn.parts, media=tuple(render(subject, 5) for subject in answer.made))
        for turn, answer in zip(conversation.turns[1::2], conversation.answers, strict=True)
    ]


def speechless(conversation: Conversation) -> list[Attempt]:
    return [Attempt(parts=(), media=()) for _ in conversation.answers]


def exchange(asked: str | Subject, said: str, *made: Subject) -> Conversation:
    """One exchange, of which the grading looks at the words, the shown and the made subjects."""
    media = {} if isinstance(asked, str) else {"0": asked}
    turns = (Turn(role="user", parts=("?",)), Turn(role="assistant", parts=(said,)))
    return Conversation(kind="", turns=turns, media=media, answers=(Expected(named={}, made=made),))


def answer(text: str, *media: Decoded) -> Attempt:
    items = [Item(modality=modality_of(found)) for medium in media if (found := read(medium))]
    return Attempt(parts=(text, *items), media=media)


@given(any_row, numbers)
def test_the_answers_of_the_data_are_all_right(row: ExamRow, number: int) -> None:
    conversation = case_of(row, number).conversation
    grades = grade(row, conversation, perfect(conversation))
    assert grades
    assert [name for name, right in grades.items() if not right] == []
    assert score(row, grades) == 1


@given(any_row, numbers)
def test_who_says_nothing_has_nothing_right(row: ExamRow, number: int) -> None:
    conversation = case_of(row, number).conversation
    assert score(row, grade(row, conversation, speechless(conversation))) == 0


@given(any_row, numbers)
def test_chance_lies_between_nothing_and_all(row: ExamRow, number: int) -> None:
    guess = chance(row, case_of(row, number).conversation)
    assert guess is not None
    assert 0 < guess < 1


@given(any_row, numbers)
def test_the_main_subject_is_held_out_unless_it_is_a_harder_one(row: ExamRow, number: int) -> None:
    conversation = case_of(row, number).conversation
    assert any(map(is_held_out, subjects(conversation))) or row.hard or row.name.startswith(("talk", "general"))
    assert not row.hard or not any(map(is_held_out, subjects(conversation)))


@given(any_row)
def test_more_conversations_begin_as_fewer_and_their_media_are_the_same(row: ExamRow) -> None:
    few, more = cases(row, 2), cases(row, 4)
    assert more[:2] == few
    assert len({case.key for case in more}) == 4

    def files(chosen: Sequence[Case]) -> list[dict[str, Media]]:
        return [shown(case) for case in chosen]

    assert files(few) == files(more[:2])


def test_shares_count_each_attribute() -> None:
    scene = Scene(colour="red", shape="circle", size="big", place="left")
    row = ROWS["understand_image"]
    grades = grade(row, exchange(scene, "?"), [answer("It is a big red square at the left.")])
    assert grades == {"colour": True, "shape": False, "size": True, "place": True}
    assert score(row, grades) == 0.75


def test_made_media_are_read_not_the_words_about_them() -> None:
    wanted, other = Sound(pitch="low do", timbre="flute"), Sound(pitch="low do", timbre="organ")
    row = ROWS["make_audio"]
    grades = grade(row, exchange("?", "", wanted), [answer("A low do on the flute.", render(other))])
    assert grades == {"pitch": True, "timbre": False}


def test_a_medium_of_another_modality_does_not_stand_in() -> None:
    scene, sound = Scene(colour="red", shape="circle", size="big", place="left"), Sound(pitch="low do", timbre="flute")
    grades = grade(ROWS["make_audio"], exchange("?", "", sound), [answer("", render(scene))])
    assert grades == {"pitch": False, "timbre": False}
    whole = grade(ROWS["case_everything"], exchange("?", "", sound), [answer("", render(scene), render(sound))])
    assert whole == {"audio pitch": True, "audio timbre": True, "modalities": False}
    assert score(ROWS["case_everything"], whole) == 0


def test_two_objects_are_right_where_both_are() -> None:
    second = Scene(colour="blue", shape="circle", size="small", place="right")
    scene = Scene(colour="red", shape="cross", size="big", place="left", other=second)
    said = "It is a big red cross at the left and a small green circle at the right."
    row = ROWS["hard_image"]
    assert grade(row, exchange(scene, "?"), [answer(said)]) == {
        "colour": False,
        "shape": True,
        "size": True,
        "place": True,
    }
    assert chance(row, exchange(scene, "?")) == pytest.approx((1 / 64 + 1 / 16 + 1 / 4 + 1 / 25) / 4)


def test_speeds_and_melodies_are_graded_where_they_are_wanted() -> None:
    motion = Motion(colour="red", shape="cross", direction="up", speed="slowly")
    row = ROWS["hard_video"]
    text = "It is a red cross that moves {} up."
    assert grade(row, exchange(motion, "?"), [answer(text.format("slowly"))])["speed"]
    assert not grade(row, exchange(motion, "?"), [answer(text.format("quickly"))])["speed"]
    made = grade(row, exchange("?", "", motion), [answer("", render(replace(motion, speed="quickly")))])
    assert made == {"colour": True, "shape": True, "direction": True, "speed": False}
    tune = Sound(pitch="low mi", timbre="flute", melody="rising")
    grades = grade(ROWS["hard_audio"], exchange(tune, "?"), [answer("A falling melody from a low mi on the flute.")])
    assert grades == {"pitch": True, "timbre": True, "melody": False}


def test_in_several_turns_one_mistake_is_one_too_many() -> None:
    row = ROWS["turns_change"]
    conversation = case_of(row, 0).conversation
    first, *others = perfect(conversation)
    assert score(row, grade(row, conversation, [first, *others])) == 1
    assert score(row, grade(row, conversation, [Attempt(parts=(), media=()), *others])) == 0


@given(any_row, numbers)
def test_a_conversation_is_lost_by_its_words_alone(row: ExamRow, number: int) -> None:
    conversation = case_of(row, number).conversation
    unseen = [replace(one, media=(None,) * len(one.media)) for one in perfect(conversation)]
    assert not is_lost(row, conversation, unseen)
    assert is_lost(row, conversation, speechless(conversation)) == (row.grading == "whole")


def test_replies_count_one_by_one_where_modalities_and_groups_are_asked_for() -> None:
    conversation = case_of(ROWS["turns_change"], 0).conversation
    others = perfect(conversation)[1:]
    silent = Attempt(parts=(), media=(), well_formed=False)
    for row in (ROWS["modalities"], ROWS["well_formed"]):
        assert score(row, grade(row, conversation, [silent, *others])) == len(others) / (len(others) + 1)


def test_chance_is_that_of_guessing_each_value_once() -> None:
    scene = Scene(colour="red", shape="circle", size="big", place="left")
    sound = Sound(pitch="low do", timbre="flute")
    assert chance(ROWS["understand_image"], exchange(scene, "?")) == pytest.approx((1 / 8 + 1 / 4 + 1 / 2 + 1 / 5) / 4)
    assert chance(ROWS["make_audio"], exchange("?", "", sound)) == pytest.approx((1 / 12 + 1 / 4) / 2)
    case = case_of(ROWS["case_image_to_sound"], 0).conversation
    assert chance(ROWS["case_image_to_sound"], case) == pytest.approx(1 / (8 * 4 * 2 * 5) / (12 * 4))
    assert chance(ROWS["modalities"], case) == 1 / 8
    assert chance(ROWS["well_formed"], case) is None


def test_every_modality_has_its_rows() -> None:
    for name in ("understand", "make", "hard"):
        assert {f"{name}_{modality}" for modality in Modality} <= ROWS.keys()
