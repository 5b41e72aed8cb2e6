"""T-T+X: answers with items to generate, of which only captions exist."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.sample import Item, Modality, Reject, Sample

Read = Callable[..., list[Any]]


def talk(answer: str = "Here it is.", **fields: str) -> list[dict[str, str]]:
    return [
        {"from": "human", "value": "Play rain.", "input_modality": "text"},
        {"from": "gpt", "value": answer, **fields},
    ]


@pytest.mark.parametrize("modality", list(Modality))
def test_older_answers_end_with_their_item(read: Read, modality: Modality) -> None:
    row = {
        "mm_name": "t2x0001.wav",
        "output_modality": modality,
        "conversation": talk(caption="rain\r\n", output_modality=modality),
    }
    (sample,) = read("t2x", [row])
    assert isinstance(sample, Sample)
    item = Item(modality=modality, caption="rain")
    assert [turn.parts for turn in sample.turns] == [("Play rain.",), ("Here it is.", item)]
    assert sample.key == "0000000"


@pytest.mark.parametrize("modality", list(Modality))
def test_newer_answers_hold_their_item_where_it_stands(read: Read, modality: Modality) -> None:
    row = {
        f"{modality}_captions": ["rain"],
        f"{modality}_caption_embeddings": ["34706.wav.npy"],
        "conversations": talk(f"Hear <{modality}> now.", caption="rain", output_modality=modality),
    }
    (sample,) = read("t2x", [row])
    assert sample.turns[1].parts == ("Hear", Item(modality=modality, caption="rain"), "now.")


def test_many_turns_may_each_have_an_item(read: Read) -> None:
    row = {
        "conversation": talk(caption="rain", output_modality="audio") + talk("", caption="sun", output_modality="image")
    }
    (sample,) = read("t2x", [row])
    assert [item.caption for item in sample.items("assistant")] == ["rain", "sun"]
    assert sample.turns[3].parts == (Item(modality=Modality.IMAGE, caption="sun"),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversation": talk()}, "missing field: caption of an answer"),
        ({"conversation": talk(output_modality="audio")}, "missing field: caption"),
        ({"conversation": talk(caption="", output_modality="audio")}, "empty caption"),
        (
            {"conversation": talk(caption="x" * 9000, output_modality="audio")},
            "too long caption: 9000 bytes, the limit is 8192",
        ),
        ({"conversation": talk(caption="x", output_modality="text")}, "missing field: caption of an answer"),
        ({"audio_captions": ["x"]}, "missing field: conversations or conversation"),
        ({"audio_captions": [""], "conversations": talk()}, "empty audio caption"),
        (
            {"audio_captions": ["x"], "conversations": talk("<image>")},
            "missing medium: the row names none for a placeholder <image>",
        ),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(read: Read, row: dict[str, object], reason: str) -> None:
    (reject,) = read("t2x", [row])
    assert isinstance(reject, Reject)
    assert reject.reason == reason


def test_the_embeddings_of_captions_are_remembered_in_the_order_of_their_items(read: Read) -> None:
    row = {
        "image_captions": ["sun", "moon"],
        "image_caption_embeddings": ["1.jpg.npy", "2.jpg.npy"],
        "audio_captions": "rain",
        "audio_caption_embeddings": "3.wav.npy",
        "conversations": talk("<image> <audio> <image>"),
    }
    for reader in ("t2x", "conversations", "mosit"):
        (sample,) = read(reader, [row])
        assert isinstance(sample, Sample)
        assert sample.meta == {"embeddings": {"image": ["1.jpg.npy", "2.jpg.npy"], "audio": ["3.wav.npy"]}}
        images = [item.caption for item in sample.items("assistant") if item.modality == Modality.IMAGE]
        assert images == ["sun", "moon"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["1.npy"], "bad field: 1 image_caption_embeddings for 2 image_captions"),
        ([1, 2], "bad field: image embedding must be a string"),
    ],
)
def test_embeddings_that_fit_no_captions_are_rejected(read: Read, names: list[object], reason: str) -> None:
    row = {
        "image_captions": ["sun", "moon"],
        "image_caption_embeddings": names,
        "conversations": talk("<image> <image>"),
    }
    (reject,) = read("t2x", [row])
    assert isinstance(reject, Reject)
    assert reject.reason == reason
