"""Conversations: placeholders become items in place, in both generations' spellings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sample import Item, Modality, Reject, Sample, Turn, turns_from_json, turns_to_json
from pipelines.sources import turn_parts
from pipelines.sources.catalog import load_catalog
from pipelines.sources.readers import READERS

Read = Callable[..., list[Any]]

COUNTS = {"cc3m": 14, "webvid": 11, "audiocap": 14}
IMAGE, VIDEO, AUDIO = Modality.IMAGE, Modality.VIDEO, Modality.AUDIO


def said(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[index % 2], "value": value} for index, value in enumerate(values)]


def parts(result: Sample | Reject) -> list[tuple[str | Item, ...]]:
    assert isinstance(result, Sample), result
    return [turn.parts for turn in result.turns]


@pytest.mark.parametrize("name", COUNTS)
def test_every_real_comprehension_row_is_read(sample_root: Path, name: str) -> None:
    catalog = load_catalog()
    entry, path = catalog.datasets[f"{name}_comprehension"], catalog.find(sample_root)[f"{name}_comprehension"]
    folder = catalog.media_folder(entry, sample_root)
    assert folder is not None
    samples: list[Any] = list(READERS[entry.reader](entry, path))
    assert len({sample.key for sample in samples}) == COUNTS[name]
    for index, sample in enumerate(samples):
        (item, question), (caption,) = parts(sample)
        assert isinstance(item, Item)
        assert (folder / item.name).is_file()
        assert sample.key == f"{Path(item.name).stem}-{index:07d}"
        assert isinstance(question, str)
        assert question == question.strip()
        assert "<" not in question
        assert caption


@pytest.mark.parametrize("name", COUNTS)
def test_every_real_generation_row_is_read(sample_root: Path, name: str) -> None:
    catalog = load_catalog()
    entry, path = catalog.datasets[f"{name}_generation"], catalog.find(sample_root)[f"{name}_generation"]
    samples: list[Any] = list(READERS[entry.reader](entry, path))
    assert len({sample.key for sample in samples}) == COUNTS[name]
    for sample in samples:
        (request,), (answer, item) = parts(sample)
        assert isinstance(item, Item)
        assert isinstance(request, str)
        assert " ".join(request.split()).endswith(item.caption)
        assert sample.key == Path(item.name).stem
        assert isinstance(answer, str)
        assert turns_from_json(turns_to_json(sample.turns)) == sample.turns


def test_placeholders_take_the_rows_media_in_order(read: Read) -> None:
    row = {
        "input_image": ["a.jpg", "b.jpg"],
        "input_audio": "c.wav",
        "conversations": said("see <image>\nand <audio>, then", "yes", "<image> <image>?", "no"),
    }
    (sample,) = read("conversations", [row])
    a, b, c = Item(modality=IMAGE, name="a.jpg"), Item(modality=IMAGE, name="b.jpg"), Item(modality=AUDIO, name="c.wav")
    assert parts(sample) == [("see", a, "and", c, ", then"), ("yes",), (b, b, "?"), ("no",)]
    assert sample.key == "a-0000000"


@pytest.mark.parametrize(
    "names", [("image", "conversations"), ("image_name", "conversation"), ("input_image", "conversations")]
)
def test_llava_reads_the_same_in_every_spelling(read: Read, names: tuple[str, str]) -> None:
    row = {"id": "9", names[0]: "coco/000000033471.jpg", names[1]: said("<image>\nWhat?", "A bus.", "Why?", "It is.")}
    (sample,) = read("conversations", [row])
    item = Item(modality=IMAGE, name="coco/000000033471.jpg")
    assert parts(sample) == [(item, "What?"), ("A bus.",), ("Why?",), ("It is.",)]
    assert sample.key == "000000033471-0000000"


def numbered(modality: Modality, *numbers: int) -> list[Item]:
    return [Item(modality=modality, name=f"{number}.bin") for number in numbers]


@pytest.mark.parametrize("modality", list(Modality))
def test_media_without_a_placeholder_follow_the_last_of_their_kind(read: Read, modality: Modality) -> None:
    """Of three pictures and one `<image>` all are kept, in the row's order."""
    names = [f"{number}.bin" for number in range(3)]
    begun, within, later = (
        {modality.value: names, "conversations": said(*talk)}
        for talk in (
            (f"<{modality}>\nCompare", "Yes."),
            (f"See <{modality}> there", "Yes."),
            ("Hi", "Hello", f"<{modality}> <{modality}> so?", "Yes."),
        )
    )
    found = [parts(sample) for sample in read("conversations", [begun, within, later])]
    zero, one, two = numbered(modality, 0, 1, 2)
    assert found == [
        [(zero, one, two, "Compare"), ("Yes.",)],
        [("See", zero, one, two, "there"), ("Yes.",)],
        [("Hi",), ("Hello",), (zero, one, two, "so?"), ("Yes.",)],
    ]


def test_media_of_a_kind_without_a_placeholder_follow_those_of_the_first_question(read: Read) -> None:
    rows = [
        {
            "image": ["0.bin", "1.bin"],
            "audio": ["2.bin", "3.bin"],
            "conversations": said("Look: <image> well?", "Yes."),
        },
        {"image": "0.bin", "audio": "2.bin", "conversations": said("Hear.", "Yes.", "<image> And now?", "No.")},
        {"image": ["0.bin", "1.bin"], "audio": "2.bin", "conversations": said("Well?", "Yes.")},
    ]
    (zero, one), (two, three) = numbered(IMAGE, 0, 1), numbered(AUDIO, 2, 3)
    assert [parts(sample) for sample in read("conversations", rows)] == [
        [("Look:", zero, one, two, three, "well?"), ("Yes.",)],
        [(two, "Hear."), ("Yes.",), (zero, "And now?"), ("No.",)],
        [(zero, one, two, "Well?"), ("Yes.",)],
    ]


@given(st.lists(st.sampled_from(list(Modality)), max_size=8), st.data())
def test_no_medium_is_lost_and_none_overtakes_another_of_its_kind(kinds: list[Modality], data: st.DataObject) -> None:
    items = [Item(modality=kind, name=f"{number}.bin") for number, kind in enumerate(kinds)]
    row = {
        kind.value: [item.name for item in items if item.modality == kind] for kind in Modality if kind in set(kinds)
    }
    marks = data.draw(st.permutations([f"<{item.modality}>" for item in items if data.draw(st.booleans())]))
    cut = data.draw(st.integers(0, len(marks)))
    talk = said(f"a {' b '.join(marks[:cut])}", "Yes.", f"c {' d '.join(marks[cut:])}", "No.")
    turns = turn_parts.turns(row | {"conversations": talk}, items).turns
    found = [part for turn in turns for part in turn.parts if isinstance(part, Item)]
    for kind in Modality:
        assert [item for item in found if item.modality == kind] == [item for item in items if item.modality == kind]


def test_an_item_without_placeholder_stands_first(read: Read) -> None:
    (sample,) = read("conversations", [{"video": "a.mp4", "conversations": said("What?", "That.")}])
    assert parts(sample) == [(Item(modality=VIDEO, name="a.mp4"), "What?"), ("That.",)]


def test_an_output_without_placeholder_stands_last(read: Read) -> None:
    row = {"output_video": "a.mp4", "video_captions": ["a\r\ncat"], "conversations": said("Draw.", "Here.")}
    (sample,) = read("conversations", [row])
    assert parts(sample) == [("Draw.",), ("Here.", Item(modality=VIDEO, name="a.mp4", caption="a cat"))]


def test_outputs_may_have_captions_alone(read: Read) -> None:
    row = {"image_captions": ["a", "b"], "conversations": said("Draw.", "<image>", "More.", "<image> so")}
    (sample,) = read("conversations", [row])
    a, b = Item(modality=IMAGE, caption="a"), Item(modality=IMAGE, caption="b")
    assert parts(sample) == [("Draw.",), (a,), ("More.",), (b, "so")]
    assert sample.key == "0000000"


def test_text_alone_is_a_dialogue(read: Read) -> None:
    (sample,) = read("conversations", [{"id": "x", "conversations": said("Hi\r\nthere", "  Hello  you ")}])
    assert parts(sample) == [("Hi\nthere",), ("Hello  you",)]


def test_chat_spelling_of_speakers_is_understood(read: Read) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (sample,) = read("conversations", [{"conversations": chat}])
    assert [turn.role for turn in sample.turns] == ["user", "assistant"]


def test_a_last_question_without_answer_is_left_out(read: Read) -> None:
    (sample,) = read("conversations", [{"image": "a.jpg", "conversations": said("<image>", "Yes.", "<image> And?")}])
    assert sample.turns == (
        Turn(role="user", parts=(Item(modality=IMAGE, name="a.jpg"),)),
        Turn(role="assistant", parts=("Yes.",)),
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "missing field: conversations or conversation"),
        ({"conversations": "x"}, "bad field: conversations is no list of turns"),
        ({"conversations": ["x"]}, "bad field: conversations is no list of turns"),
        ({"conversations": []}, "bad conversation: user and assistant must take turns, the user first"),
        ({"conversations": said("Hi")}, "bad conversation: user and assistant must take turns, the user first"),
        (
            {"conversations": said("a", "b")[::-1]},
            "bad conversation: user and assistant must take turns, the user first",
        ),
        (
            {"conversations": [{"from": "system", "value": "x"}]},
            "bad conversation: user and assistant must take turns, the user first",
        ),
        ({"conversations": [{"from": "Tool", "value": "x"}]}, "bad conversation: unknown speaker 'Tool'"),
        ({"conversations": [{"from": "human"}]}, "missing field: value or content"),
        ({"conversations": [{"value": "x"}]}, "missing field: from or role"),
        ({"conversations": said("Hi", " ")}, "empty turn: the assistant says nothing"),
        ({"conversations": said("Hi", "x" * 40_960)}, "too long text: 40960 bytes, the limit is 32768"),
        (
            {"conversations": said("<image> Hi", "Hello")},
            "missing medium: the row names none for a placeholder <image>",
        ),
        (
            {"input_image": "a.jpg", "conversations": said("<image>", "<image>")},
            "missing medium: the row names none for a placeholder <image>",
        ),
        (
            {"image_captions": "a", "conversations": said("Draw.", "<image> <image>")},
            "missing medium: the row names none for a placeholder <image>",
        ),
        (
            {"output_image": "a.jpg", "conversations": said("Draw.", "<image>")},
            "missing field: image_captions for every output_image",
        ),
        (
            {"output_image": "a.jpg", "image_captions": "", "conversations": said("Draw.", "<image>")},
            "empty image caption",
        ),
        ({"input_image": 5, "conversations": said("Hi", "Hello")}, "bad field: image name must be a string"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(read: Read, row: dict[str, object], reason: str) -> None:
    (reject,) = read("conversations", [row])
    assert isinstance(reject, Reject)
    assert reject.reason == reason
