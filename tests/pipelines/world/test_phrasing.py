"""People word things in many ways, of which some are kept from training, and none says anything else."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sample import Item, Modality, Turn
from pipelines.world import wording
from pipelines.world.conversations import KINDS, converse
from pipelines.world.phrasing import Voice, known, new
from pipelines.world.scenes import attributes, draw

numbers = st.integers(0, 10**6)
# Where a set has too few to keep any back, all are said always.
FRAME_SETS = {name: frames for name, frames in wording.FRAMES.items() if len(frames) >= 6}


def said_first(kind: str, index: int, *, is_newly_worded: bool = False) -> str:
    turn: Turn = converse(kind, 0, index, is_newly_worded=is_newly_worded).turns[0]
    return " ".join(part for part in turn.parts if not isinstance(part, Item)).lower()


def wordings(frame: str) -> int:
    return int(np.prod([found.count("|") + 1 for found in re.findall(r"\[[^\]]*\]", frame)]))


def test_there_are_hundreds_of_frames() -> None:
    frames = [frame for frames in FRAME_SETS.values() for frame in frames]
    assert len(set(frames)) >= 300
    assert sum(map(wordings, frames)) >= 1500


def test_no_set_says_the_same_twice() -> None:
    """Else a frame kept from training could stand in it as well."""
    for name, frames in wording.FRAMES.items():
        plain = [frame.lower().rstrip(" .!?") for frame in frames]
        assert len(set(plain)) == len(plain), name


@pytest.mark.parametrize("name", FRAME_SETS)
def test_some_frames_of_each_set_are_kept_from_training(name: str) -> None:
    frames = FRAME_SETS[name]
    assert new(frames)
    assert not set(new(frames)) & set(known(frames))
    assert sorted([*new(frames), *known(frames)]) == sorted(frames)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("chat", "question", "remember")])
def test_what_is_newly_worded_is_said_in_no_other_conversation(kind: str) -> None:
    usual = {said_first(kind, index) for index in range(400)}
    newly = {said_first(kind, index, is_newly_worded=True) for index in range(100)}
    assert len(newly & usual) <= 2  # a slip of the keyboard, or a stop left out, may make one of another


@given(st.sampled_from(Modality), numbers, st.booleans())
def test_a_phrase_leaves_out_only_what_is_usual(modality: Modality, number: int, is_new: bool) -> None:
    voice = Voice(np.random.default_rng(number), is_new)
    subject = voice.brief(draw(number, 0, hard=False)[modality])
    phrase = voice.phrase(subject)
    assert phrase == " ".join(phrase.split())
    assert not re.search(r"[{}\[\]]| ,|,,|\bin in\b|,$", phrase)
    unusual = {"red", "orange", "yellow", "green", "pink", "triangle", "clarinet"} & set(attributes(subject).values())
    assert all(value in phrase for value in unusual)


@given(st.text(alphabet="abcdefgh .?", max_size=60), numbers)
def test_typing_changes_few_letters(text: str, number: int) -> None:
    typed = Voice(np.random.default_rng(number), False).typed(text)
    letters, of_typed = (re.sub(r"[^a-h]", "", said.lower()) for said in (text, typed))
    assert abs(len(of_typed) - len(letters)) <= 1
    assert len(typed) <= len(text) + 3


def test_people_write_as_people_do() -> None:
    said = [said_first("make_image", index) for index in range(600)]
    for word in ("center", "centre", "middle", "large", "tiny", "little", "violet", "turquoise", "sketch", "paint"):
        assert any(word in text for text in said), word
    assert sum(text.endswith((".", "!", "?")) for text in said) < 500


DETAIL = re.compile(
    r"\b(big|large|huge|small|little|tiny|left|right|top|bottom|up|down|middle|cent(re|er)(ed)?|\w+wards?|part|edge|side)\b",
    re.I,
)


# As a shipped model once learned: only what it cannot draw was asked for without a size and a place.
@pytest.mark.parametrize(("kind", "least"), [("make_image", 0.15), ("decline", 0.15)])
def test_what_can_be_made_and_what_cannot_is_asked_for_with_details_and_without(kind: str, least: float) -> None:
    asked = [converse(kind, 0, 3 * number).turns[0].parts[0] for number in range(400)]
    bare = [text for text in asked if isinstance(text, str) and not DETAIL.search(text)]
    share = len(bare) / len(asked)
    assert least < share < 0.9
