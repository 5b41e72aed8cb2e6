"""MosIT: items of any modality in any turn, as tags, names or placeholders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.sample import Item, Modality, Reject, Sample
from pipelines.sources.catalog import load_catalog
from pipelines.sources.readers import READERS

Read = Callable[..., list[Any]]

IMAGE, VIDEO, AUDIO = Modality.IMAGE, Modality.VIDEO, Modality.AUDIO
COUNTS = {"T_A": (7, 1, 3), "T_A_I": (5, 4, 6), "T_I": (1, 0, 3), "T_I_V_A": (6, 3, 13), "T_V": (2, 1, 1)}


def said(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)]


def parts(result: Sample | Reject) -> list[tuple[str | Item, ...]]:
    assert isinstance(result, Sample), result
    return [turn.parts for turn in result.turns]


@pytest.mark.parametrize("name", COUNTS)
def test_every_real_demonstration_is_read(shared: Path, name: str) -> None:
    path = shared / "data" / "mosit-demonstrations" / f"{name}.txt"
    entry = load_catalog().datasets["mosit_instruction"]
    samples: list[Any] = list(READERS[entry.reader](entry, path))
    assert all(isinstance(sample, Sample) for sample in samples)
    inputs = [item for sample in samples for item in sample.items("user")]
    outputs = [item for sample in samples for item in sample.items("assistant")]
    assert (len(samples), len(inputs), len(outputs)) == COUNTS[name]
    assert all(item.caption and not item.name for item in inputs + outputs)
    assert samples[0].source == f"{name}.txt#0"
    assert not [
        part for s in samples for turn in s.turns for part in turn.parts if isinstance(part, str) and "<" in part
    ]


def test_tags_with_captions_become_items_without_names(read: Read) -> None:
    row = {
        "conversation": said(
            "See <Image>a\r\ncat</Image> there", "Hear <Audio>purr</Audio>.", "Film?", "<Video>run</Video>"
        )
    }
    (sample,) = read("mosit", [row])
    assert parts(sample) == [
        ("See", Item(modality=IMAGE, caption="a cat"), "there"),
        ("Hear", Item(modality=AUDIO, caption="purr"), "."),
        ("Film?",),
        (Item(modality=VIDEO, caption="run"),),
    ]
    assert sample.key == "0000000"


def test_tags_with_names_become_the_listed_media(read: Read) -> None:
    row = {
        "image_list": [{"image_name": "mosit_i_1.jpg", "data_source": "web", "caption": "a cat"}],
        "video_list": [],
        "audio_list": [{"audio_name": "mosit_a_1.wav", "data_source": "web", "caption": "purr"}],
        "conversation": said(
            "See <Image>mosit_i_1.jpg</Image>", "Hear <audio>a purr</audio> <Audio>mosit_a_1.wav</Audio>"
        ),
    }
    (sample,) = read("mosit", [row])
    assert parts(sample) == [
        ("See", Item(modality=IMAGE, name="images/mosit_i_1.jpg", caption="a cat")),
        ("Hear", Item(modality=AUDIO, name="audios/mosit_a_1.wav", caption="purr")),
    ]


def test_newer_rows_have_captions_and_placeholders(read: Read) -> None:
    row = {
        "image_captions": ["a cat", "a dog"],
        "image_caption_embeddings": ["mosit_i_1.jpg.npy", "mosit_i_2.jpg.npy"],
        "video_captions": ["run"],
        "conversations": said("Draw", "<image> and <video>", "More", "Ok <image>"),
    }
    (sample,) = read("mosit", [row])
    a, b = Item(modality=IMAGE, caption="a cat"), Item(modality=IMAGE, caption="a dog")
    assert parts(sample) == [("Draw",), (a, "and", Item(modality=VIDEO, caption="run")), ("More",), ("Ok", b)]


def test_written_dialogues_keep_their_lines_and_lose_what_is_no_turn(read: Read) -> None:
    lines = ["\ufeffDialogue 1", "Human:  Hi", "GPT: One", "<Image>a</Image>", "----", "", "---"]
    lines += ["Human: Bye", "GPT\uff1aSo", "long", ""]
    one, other = read("mosit", "\n".join(lines).encode(), name="rows.txt")
    assert parts(one) == [("Hi",), ("One", Item(modality=IMAGE, caption="a"))]
    assert parts(other) == [("Bye",), ("So\nlong",)]
    assert (one.source, other.source) == ("rows.txt#0", "rows.txt#1")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversation": said("Hi", "<Image></Image>")}, "empty caption"),
        ({"conversation": said("Hi", "<Image>a<Image>")}, "bad tag: <Image> has no partner"),
        ({"conversation": said("Hi", "a</Video>")}, "bad tag: </Video> has no partner"),
        ({"conversation": said("Hi", "<Image>mosit_i_9.jpg</Image>")}, "missing field: caption of mosit_i_9.jpg"),
        ({"image_list": [{"image_name": "a.jpg"}], "conversation": said("Hi", "Yes")}, "missing field: caption"),
        ({"image_list": ["a.jpg"], "conversation": said("Hi", "Yes")}, "bad field: image_list is no list of media"),
        (
            {"image_captions": [], "conversations": said("Hi", "<image>")},
            "missing medium: the row names none for a placeholder <image>",
        ),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(read: Read, row: dict[str, object], reason: str) -> None:
    (reject,) = read("mosit", [row])
    assert isinstance(reject, Reject)
    assert reject.reason == reason
