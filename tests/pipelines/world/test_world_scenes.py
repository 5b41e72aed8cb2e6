"""What there is to draw, show and say: from seeds alone, with combinations held out, and each caption true."""

from collections.abc import Iterable
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sample import Audio, Image, Modality, Video
from pipelines.world.captions import CAPTIONS, caption, thing
from pipelines.world.render import render
from pipelines.world.scenes import (
    ATTRIBUTES,
    COLOURS,
    HARD_EVERY,
    MELODIES,
    PITCHES,
    SHAPES,
    Motion,
    Scene,
    Sound,
    Subject,
    attributes,
    draw,
    is_held_out,
    modality_of,
    notes,
    sound_of,
)
from tests.model.decoder_cases import array_of

TYPES = {Modality.IMAGE: Scene, Modality.VIDEO: Motion, Modality.AUDIO: Sound}
NUM_DRAWN = 400
NUM_CAPTIONS = 90  # every template with every word for a place or direction

seeds = st.integers(0, 2**31)
indices = st.integers(0, 10_000)


def every(modality: Modality) -> list[Subject]:
    names = ATTRIBUTES[modality]
    return [TYPES[modality](**dict(zip(names, values, strict=True))) for values in product(*names.values())]


def drawn(modality: Modality, *, held_out: bool = False, hard: bool | None = None) -> list[Subject]:
    return [draw(0, index, held_out=held_out, hard=hard)[modality] for index in range(NUM_DRAWN)]


def values(subjects: Iterable[Subject]) -> set[tuple[str, str]]:
    return {item for subject in subjects for item in attributes(subject).items()}


@given(seed=seeds, index=indices, held_out=st.booleans())
def test_draws_depend_on_their_arguments_alone_and_keep_the_splits_apart(seed: int, index: int, held_out: bool) -> None:
    subjects = draw(seed, index, held_out=held_out)
    assert subjects == draw(seed, index, held_out=held_out)
    assert {modality: modality_of(subject) for modality, subject in subjects.items()} == {m: m for m in Modality}
    assert all(is_held_out(subject) == held_out for subject in subjects.values())


@pytest.mark.parametrize("modality", Modality)
def test_every_single_value_is_in_training_and_among_the_held_out(modality: Modality) -> None:
    subjects = every(modality)
    assert values(filter(is_held_out, subjects)) == values(subjects)
    assert values(subject for subject in subjects if not is_held_out(subject)) == values(subjects)
    assert 0.05 < np.mean([is_held_out(subject) for subject in subjects]) < 0.3


@pytest.mark.parametrize("modality", Modality)
def test_draws_reach_every_value(modality: Modality) -> None:
    assert values(drawn(modality)) == values(every(modality))
    assert values(drawn(modality, held_out=True)) == values(every(modality))


def test_one_draw_in_eight_is_harder_unless_asked() -> None:
    def is_hard(subject: Subject) -> bool:
        return any(getattr(subject, name, None) for name in ("other", "speed", "melody"))

    for modality in Modality:
        expected = [index % HARD_EVERY == HARD_EVERY - 1 for index in range(NUM_DRAWN)]
        assert [is_hard(subject) for subject in drawn(modality)] == expected
        assert all(map(is_hard, drawn(modality, hard=True)))
        assert not any(map(is_hard, drawn(modality, hard=False)))


def test_a_scene_is_held_out_with_either_of_its_objects() -> None:
    held_out, trained = (draw(0, 0, held_out=side, hard=False)[Modality.IMAGE] for side in (True, False))
    assert isinstance(trained, Scene)
    assert is_held_out(Scene(**attributes(trained), other=held_out))  # type: ignore[arg-type]
    assert is_held_out(Scene(**attributes(held_out), other=trained))


def test_melodies_stay_on_the_scale_and_begin_with_their_pitch() -> None:
    pitches = tuple(PITCHES)
    for sound in drawn(Modality.AUDIO, hard=True):
        assert isinstance(sound, Sound)
        numbers = [pitches.index(note) for note in notes(sound)]
        assert pitches[numbers[0]] == sound.pitch
        assert tuple(number - numbers[0] for number in numbers) == MELODIES[sound.melody]


def test_each_coloured_shape_has_a_sound_of_its_own() -> None:
    assert len({sound_of(*both) for both in product(COLOURS, SHAPES)}) == len(COLOURS) * len(SHAPES)


@given(seed=seeds, index=indices, variant=st.integers(0, 10_000) | st.none())
def test_a_subject_and_a_variant_are_always_rendered_alike_and_in_the_promised_size(
    seed: int, index: int, variant: int | None
) -> None:
    for subject in draw(seed, index).values():
        decoded = render(subject, variant)
        assert (array_of(decoded) == array_of(render(subject, variant))).all()
        match decoded:
            case Image():
                assert (decoded.pixels.dtype, decoded.pixels.shape) == (np.uint8, (32, 32, 3))
            case Video():
                assert (decoded.frames.dtype, decoded.frames.shape) == (np.uint8, (8, 32, 32, 3))
                assert decoded.fps == 8
            case Audio():
                assert (decoded.waveform.dtype, decoded.waveform.shape) == (np.float32, (1, 20_480))
                assert decoded.sample_rate == 16_000
                assert abs(decoded.waveform).max() <= 1


@pytest.mark.parametrize("modality", Modality)
def test_variants_and_subjects_are_rendered_differently(modality: Modality) -> None:
    subjects = every(modality)
    assert len({array_of(render(subjects[0], variant)).tobytes() for variant in (None, *range(20))}) == 21
    assert len({array_of(render(subject)).tobytes() for subject in subjects}) == len(subjects)


@pytest.mark.parametrize("modality", Modality)
def test_there_are_thirty_ways_to_say_everything(modality: Modality) -> None:
    assert len(set(CAPTIONS[modality])) >= 30
    subjects = every(modality)
    for variant in range(NUM_CAPTIONS):
        assert len({caption(subject, variant) for subject in subjects}) == len(subjects)
    assert len({caption(subjects[0], variant) for variant in range(NUM_CAPTIONS)}) >= 30


@given(seed=seeds, index=indices, variant=st.integers(0, 10_000))
def test_captions_also_name_what_is_harder(seed: int, index: int, variant: int) -> None:
    subjects = draw(seed, index, hard=True)
    texts = {modality: caption(subject, variant) for modality, subject in subjects.items()}
    assert all("{" not in text and "  " not in text for text in texts.values())
    for modality, subject in subjects.items():
        for name in ("speed", "melody"):
            assert getattr(subject, name, "") in texts[modality]
        if isinstance(subject, Scene) and subject.other:
            assert thing(subject.other) in texts[modality]
