"""Views change how a stage sees a stored sample, and decide which items need an embedding."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.sample import Item, Media, Modality, Part, Sample, Turn, turns_from_json, turns_to_json
from pipelines.views import (
    CAPTION_PROMPT,
    Kind,
    apply_view,
    example,
    input_items,
    num_examples,
    output_items,
    sidecar_counts,
    sidecar_items,
)

IMAGE = Item(modality=Modality.IMAGE, name="jpg", caption="a red cube")
PAIR = Sample(
    key="a",
    source="x.json#0",
    turns=(Turn(role="user", parts=(IMAGE,)), Turn(role="assistant", parts=("a red cube",))),
    media={"jpg": Media(modality=Modality.IMAGE, data=b"1", format="jpg")},
    meta={"n": 1},
)
WORDED = replace(IMAGE, more_captions=("a cube", "red"))
SEVERAL = replace(PAIR, turns=(Turn(role="user", parts=(WORDED,)), PAIR.turns[1]))
SOUND = Item(modality=Modality.AUDIO, caption="rain")
CLIP = Item(modality=Modality.VIDEO, name="mp4", caption="")
DIALOGUE = Sample(
    key="b",
    source="x.json#1",
    turns=(
        Turn(role="user", parts=("see", CLIP, Item(modality=Modality.IMAGE, caption="told, not shown"))),
        Turn(role="assistant", parts=("hear", SOUND, IMAGE, Item(modality=Modality.AUDIO))),
    ),
)


def test_caption_asks_for_the_caption_of_the_item() -> None:
    seen = apply_view("caption", PAIR)
    assert seen.turns == (
        Turn(role="user", parts=(IMAGE, "generate a caption")),
        Turn(role="assistant", parts=("a red cube",)),
    )
    assert CAPTION_PROMPT == "generate a caption"


def test_generate_answers_the_caption_with_caption_and_item() -> None:
    assert apply_view("generate", PAIR).turns == (
        Turn(role="user", parts=("a red cube",)),
        Turn(role="assistant", parts=("a red cube", IMAGE)),
    )


@pytest.mark.parametrize("sample", [PAIR, DIALOGUE])
def test_dialogue_changes_nothing(sample: Sample) -> None:
    assert apply_view("dialogue", sample) == sample


@pytest.mark.parametrize("kind", ["caption", "generate"])
def test_a_view_changes_only_the_turns(kind: Kind) -> None:
    assert replace(apply_view(kind, PAIR), turns=PAIR.turns) == PAIR


@pytest.mark.parametrize("kind", ["caption", "generate"])
def test_a_view_of_pairs_refuses_a_dialogue(kind: Kind) -> None:
    with pytest.raises(ValueError, match=f"^x.json#1: b is no caption pair; a view of kind '{kind}' needs pairs$"):
        apply_view(kind, DIALOGUE)


def test_items_are_told_apart_by_who_speaks() -> None:
    assert [item.modality for item in input_items(DIALOGUE)] == [Modality.VIDEO, Modality.IMAGE]
    assert [item.modality for item in output_items(DIALOGUE)] == [Modality.AUDIO, Modality.IMAGE, Modality.AUDIO]


def test_the_encoder_sidecar_holds_inputs_that_have_a_medium() -> None:
    assert sidecar_items(DIALOGUE, ["dialogue"], None) == [CLIP]
    assert sidecar_items(PAIR, ["caption", "generate"], None) == [IMAGE]
    assert sidecar_items(PAIR, ["generate", "caption"], None) == [IMAGE]
    assert sidecar_items(PAIR, ["generate"], None) == []


def test_a_caption_sidecar_holds_captioned_outputs_of_its_modality() -> None:
    assert sidecar_items(DIALOGUE, ["dialogue"], Modality.AUDIO) == [SOUND]
    assert sidecar_items(DIALOGUE, ["dialogue"], Modality.IMAGE) == [IMAGE]
    assert sidecar_items(DIALOGUE, ["dialogue"], Modality.VIDEO) == []
    assert sidecar_items(PAIR, ["caption", "generate"], Modality.IMAGE) == [IMAGE]
    assert sidecar_items(PAIR, ["caption"], Modality.IMAGE) == []
    assert sidecar_items(PAIR, [], Modality.IMAGE) == []


def test_latents_are_of_the_items_to_be_generated_that_have_a_medium() -> None:
    assert sidecar_items(PAIR, ["caption", "generate"], Modality.IMAGE, of_media=True) == [IMAGE]
    assert sidecar_items(DIALOGUE, ["dialogue"], Modality.IMAGE, of_media=True) == [IMAGE]
    assert sidecar_items(DIALOGUE, ["dialogue"], Modality.AUDIO, of_media=True) == []


def turns() -> st.SearchStrategy[tuple[Turn, ...]]:
    text = st.text(max_size=10)
    more = st.lists(text, max_size=2).map(tuple)
    item = st.builds(Item, modality=st.sampled_from(Modality), name=text, caption=text, more_captions=more)
    parts: st.SearchStrategy[Part] = text | item
    turn = st.builds(Turn, role=st.sampled_from(["user", "assistant"]), parts=st.lists(parts, max_size=3).map(tuple))
    return st.lists(turn, max_size=3).map(tuple)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(turns())
def test_turns_survive_json(said: tuple[Turn, ...]) -> None:
    assert turns_from_json(turns_to_json(said)) == said


@pytest.mark.parametrize(
    ("sample", "kinds"),
    [
        (PAIR, []),
        (PAIR, ["caption"]),
        (PAIR, ["generate"]),
        (PAIR, ["caption", "generate"]),
        (PAIR, ["generate", "caption"]),
        (DIALOGUE, ["dialogue"]),
        (SEVERAL, ["caption"]),
        (SEVERAL, ["caption", "generate"]),
    ],
)
def test_sidecar_counts_are_the_numbers_of_sidecar_items(sample: Sample, kinds: list[Kind]) -> None:
    expected = {modality.value: len(sidecar_items(sample, kinds, modality)) for modality in Modality}
    expected["input"] = len(sidecar_items(sample, kinds, None))

    assert sidecar_counts(sample, kinds) == {name: count for name, count in expected.items() if count}


def test_a_medium_of_several_captions_is_an_example_with_each() -> None:
    assert [num_examples(sample) for sample in (PAIR, SEVERAL, DIALOGUE)] == [1, 3, 1]
    for number, caption in enumerate(("a red cube", "a cube", "red")):
        item = Item(modality=Modality.IMAGE, name="jpg", caption=caption)
        shown = example(SEVERAL, number)
        assert shown == replace(
            PAIR, turns=(Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(caption,)))
        )
        assert apply_view("generate", shown).turns == (
            Turn(role="user", parts=(caption,)),
            Turn(role="assistant", parts=(caption, item)),
        )
    assert example(PAIR, 0) is PAIR


def test_a_caption_sidecar_holds_each_of_several_captions_and_a_media_sidecar_the_medium_once() -> None:
    found = sidecar_items(SEVERAL, ["caption", "generate"], Modality.IMAGE)
    assert [(item.caption, item.more_captions) for item in found] == [("a red cube", ()), ("a cube", ()), ("red", ())]
    assert len(sidecar_items(SEVERAL, ["generate"], Modality.IMAGE, of_media=True)) == 1
    assert len(sidecar_items(SEVERAL, ["caption"], None)) == 1


def test_a_single_caption_is_stored_as_it_was_before_there_could_be_several() -> None:
    assert turns_to_json(PAIR.turns[:1]) == (
        '[{"role":"user","parts":[{"modality":"image","name":"jpg","caption":"a red cube"}]}]'
    )
    assert turns_to_json(SEVERAL.turns[:1]).endswith('"caption":"a red cube","more_captions":["a cube","red"]}]}]')
