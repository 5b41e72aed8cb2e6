"""What is drawn, shown and said agrees: judges find every subject again, and captions say what it is."""

import re
from itertools import product

import pytest
from oracles import perceive

from pipelines.media import decode, encode
from pipelines.sample import Image, Item, Modality, Video
from pipelines.world.captions import caption, dialogue, exercise, question, request
from pipelines.world.render import render
from pipelines.world.scenes import (
    COLOURS,
    DIRECTIONS,
    PITCHES,
    PLACES,
    RHYTHMS,
    SHAPES,
    TIMBRES,
    Motion,
    Scene,
    Sound,
    Subject,
    draw,
)

SCENES = [Scene(colour=c, shape=s, place=p) for c, s, p in product(COLOURS, SHAPES, PLACES)]
MOTIONS = [Motion(colour=c, shape=s, direction=d) for c, s, d in product(COLOURS, SHAPES, DIRECTIONS)]
SOUNDS = [Sound(pitch=p, timbre=t, rhythm=r) for p, t, r in product(PITCHES, TIMBRES, RHYTHMS)]
NUM_VARIANTS = 12

TIMBRE_WORDS = {"tone": "sine", "buzz": "square", "hiss": "noise"}
RHYTHM_WORDS = {"pause": "steady", "slow": "slow", "fast": "fast"}
WAYS = {"right": "right", "left": "left", "bottom": "down", "top": "up"}


def words_in(text: str, known: object) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text.lower()) if word in known]  # type: ignore[operator]


def understand(text: str, kind: type[Subject]) -> Subject:
    """What a listener takes from a caption; fails where it names an attribute not at all or twice."""
    if kind is Sound:
        (pitch,), (timbre,), (rhythm,) = (words_in(text, known) for known in (PITCHES, TIMBRE_WORDS, RHYTHM_WORDS))
        return Sound(pitch=pitch, timbre=TIMBRE_WORDS[timbre], rhythm=RHYTHM_WORDS[rhythm])
    (colour,), (shape,) = words_in(text, COLOURS), words_in(text, SHAPES)
    where = words_in(text, ("top", "bottom", "left", "right", "centre"))
    if kind is Scene:
        return Scene(colour=colour, shape=shape, place=" ".join(where))
    start, end = where
    assert re.search(f"from {start} to {end}", text)
    return Motion(colour=colour, shape=shape, direction=WAYS[end])


@pytest.mark.parametrize("subjects", [SCENES, MOTIONS, SOUNDS], ids=["scenes", "motions", "sounds"])
def test_every_caption_says_what_its_subject_is_and_nothing_else(subjects: list[Subject]) -> None:
    for subject, variant in product(subjects, range(NUM_VARIANTS)):
        assert understand(caption(subject, variant), type(subject)) == subject
    assert len({caption(subject, 0) for subject in subjects}) == len(subjects)


@pytest.mark.parametrize("subjects", [SCENES, MOTIONS[::5], SOUNDS], ids=["scenes", "motions", "sounds"])
def test_a_judge_finds_every_subject_in_its_encoded_medium(subjects: list[Subject]) -> None:
    for subject in subjects:
        assert perceive(decode(encode(render(subject)))) == subject


def test_media_have_the_promised_sizes() -> None:
    for modality, subject in draw(0, 0).items():
        decoded = decode(encode(render(subject)))
        if isinstance(decoded, Image):
            assert (modality, decoded.pixels.shape) == (Modality.IMAGE, (128, 128, 3))
        elif isinstance(decoded, Video):
            assert (modality, decoded.frames.shape, decoded.fps) == (Modality.VIDEO, (16, 128, 128, 3), 8)
        else:
            assert (modality, decoded.waveform.shape) == (Modality.AUDIO, (1, 32_000))
            assert decoded.sample_rate == 16_000


def test_draws_depend_on_seed_and_index_alone_and_reach_every_attribute() -> None:
    assert draw(3, 5) == draw(3, 5)
    assert draw(3, 5) != draw(3, 6) != draw(4, 6)
    drawn = [draw(0, index) for index in range(120)]
    scenes, motions, sounds = ([world[modality] for world in drawn] for modality in Modality)
    assert {getattr(scene, "colour", "") for scene in scenes} == set(COLOURS)
    assert {getattr(scene, "place", "") for scene in scenes} == set(PLACES)
    assert {getattr(motion, "shape", "") for motion in motions} == set(SHAPES)
    assert {getattr(motion, "direction", "") for motion in motions} == set(DIRECTIONS)
    assert {*sounds} == {*SOUNDS}


@pytest.mark.parametrize("variant", range(NUM_VARIANTS))
def test_a_dialogue_asks_for_each_modality_once_and_the_answers_hold_what_was_asked(variant: int) -> None:
    captions = {modality: caption(subject, variant) for modality, subject in draw(0, variant).items()}
    turns = dialogue(captions, variant)
    assert [turn.role for turn in turns] == ["user", "assistant"] * 3
    made = []
    for asked, answered in zip(turns[::2], turns[1::2], strict=True):
        (item,) = (part for part in answered.parts if isinstance(part, Item))
        assert item.caption == captions[item.modality]
        assert item.caption in "".join(map(str, asked.parts))
        made.append(item.modality)
    assert sorted(made) == sorted(Modality)


def test_the_answer_of_an_exercise_stands_in_its_input() -> None:
    for index, modality in product(range(NUM_VARIANTS), Modality):
        _, text, answer = exercise(draw(0, index)[modality], index)
        assert re.search(rf"\b{answer}\b", text)


def test_questions_and_requests_name_their_modality_and_leave_no_gap_unfilled() -> None:
    nouns = {Modality.IMAGE: "picture", Modality.VIDEO: "video", Modality.AUDIO: "sound"}
    for modality, variant in product(Modality, range(NUM_VARIANTS)):
        texts = question(modality, variant), request(modality, "so and so", variant)
        assert all(nouns[modality] in text and "{" not in text for text in texts)
        assert "so and so" in texts[1]
