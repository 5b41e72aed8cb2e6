"""Chats in content parts: media under any usual spelling, in any turn, and nothing dropped without a word."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.sample import Item, Modality, Reject, Sample

Read = Callable[..., list[Any]]

IMAGE, VIDEO, AUDIO = Modality.IMAGE, Modality.VIDEO, Modality.AUDIO
CAT = Item(modality=IMAGE, name="cat.jpg")


def chat(*contents: Any, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]} | fields


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def parts(sample: Sample | Reject) -> list[tuple[str | Item, ...]]:
    assert isinstance(sample, Sample), sample
    return [turn.parts for turn in sample.turns]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "cat.jpg"},
        {"type": "image", "image": "cat.jpg", "text": None, "video": None},
        {"type": "image", "url": "cat.jpg"},
        {"type": "image", "path": "cat.jpg"},
        {"type": "image", "image": {"path": "cat.jpg", "bytes": None}},
        {"type": "image_url", "image_url": {"url": "cat.jpg"}},
        {"type": "image_url", "image_url": "cat.jpg"},
        {"type": "input_image", "image_url": "cat.jpg"},
        {"image": "cat.jpg"},
    ],
)
def test_a_part_names_its_file_under_any_usual_spelling(read: Read, part: dict[str, Any]) -> None:
    (sample,) = read("chats", [chat([part, text("What is it?")], [text("A cat.")])])
    assert parts(sample) == [(CAT, "What is it?"), ("A cat.",)]


@pytest.mark.parametrize("modality", list(Modality))
def test_an_assistants_medium_is_an_item_to_generate(read: Read, modality: Modality) -> None:
    part = {"type": modality.value, modality.value: "out.bin", "caption": " rain\r\n"}
    named = chat("Make it.", [text("Here:"), part])
    nameless = chat("Make it.", [{"type": modality.value, "caption": "rain"}], **{f"{modality}s": ["row.bin"]})
    fileless = chat("Make it.", [{"type": modality.value, "caption": "rain"}])
    one, other, third = read("chats", [named, nameless, fileless])
    assert parts(one)[1] == ("Here:", Item(modality=modality, name="out.bin", caption="rain"))
    assert parts(other)[1] == (Item(modality=modality, name="row.bin", caption="rain"),)
    assert parts(third)[1] == (Item(modality=modality, caption="rain"),)


def test_parts_and_placeholders_without_a_name_take_the_rows_media_in_order(read: Read) -> None:
    row = chat([{"type": "image"}, text("This?"), {"type": "audio"}], "A cat.", "And <image> there?", "Two.")
    (sample,) = read("chats", [row | {"images": ["cat.jpg", "b.jpg", "c.jpg"], "audios": ["d.wav"]}])
    b, c, d = (Item(modality=kind, name=name) for kind, name in ((IMAGE, "b.jpg"), (IMAGE, "c.jpg"), (AUDIO, "d.wav")))
    assert parts(sample) == [(CAT, "This?", d), ("A cat.",), ("And", b, c, "there?"), ("Two.",)]


def test_what_looks_like_a_placeholder_is_text_where_the_row_has_no_media(read: Read) -> None:
    (sample,) = read("chats", [chat("How do I close <video> in HTML?", "With </video>.")])
    assert parts(sample) == [("How do I close <video> in HTML?",), ("With </video>.",)]


@pytest.mark.parametrize("field", ["messages", "conversations", "conversation"])
def test_both_spellings_of_speakers_are_read(read: Read, field: str) -> None:
    row = {field: [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    (sample,) = read("chats", [row])
    assert parts(sample) == [("Hi",), ("Hello",)]
    assert sample.key == "0000000"


def test_a_system_message_begins_the_users_turn_behind_it(read: Read) -> None:
    row = chat([text("Hi"), {"type": "image", "image": "cat.jpg"}], "Hello", "Bye", "So long")
    row["messages"].insert(0, {"role": "system", "content": "Be kind."})
    row["messages"].insert(3, {"role": "system", "content": [text("Be brief.")]})
    (sample,) = read("chats", [row])
    assert parts(sample) == [("Be kind.\nHi", CAT), ("Hello",), ("Be brief.\nBye",), ("So long",)]


@pytest.mark.parametrize(
    ("reader", "row"),
    [
        ("chats", chat("Hi", "Hello", "And?")),
        ("alpaca", {"conversations": chat("Hi", "Hello", "And?")["messages"]}),
        ("conversations", {"conversations": chat("Hi", "Hello", "And?")["messages"]}),
        ("videochat", {"video": "a.mp4", "QA": [{"q": "What?", "a": "That."}]}),
    ],
)
def test_a_question_left_without_an_answer_is_left_out_and_said_so(
    read: Read, reader: str, row: dict[str, Any]
) -> None:
    (sample,) = read(reader, [row])
    assert len(sample.turns) == 2
    assert sample.meta == ({} if reader == "videochat" else {"unanswered": True})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "missing field: messages or conversations or conversation"),
        ({"messages": "x"}, "bad field: messages is no list of turns"),
        ({"messages": []}, "bad conversation: user and assistant must take turns, the user first"),
        (chat("Hi"), "bad conversation: user and assistant must take turns, the user first"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "bad conversation: unknown speaker 'tool'"),
        ({"messages": [{"role": "user"}]}, "missing field: content or value"),
        ({"messages": [{"content": "x"}]}, "missing field: role or from"),
        ({"messages": [*chat("Hi", "Yes")["messages"], {"role": "system", "content": "x"}]},
         "bad conversation: a system message is followed by no user"),
        ({"messages": [{"role": "system", "content": [{"type": "image", "image": "a.jpg"}]}]},
         "bad conversation: a system message holds a medium"),
        (chat("Hi", [text(" ")]), "empty turn: the assistant says nothing"),
        (chat("Hi", 5), "bad field: content is neither text nor a list of parts"),
        (chat([5], "Hi"), "bad field: content is neither text nor a list of parts"),
        (chat([{"type": "file", "file": "a"}], "Hi"),
         "bad field: a part of type 'file'; it may be text, image, video or audio"),
        (chat([{"type": 5}], "Hi"), "bad field: the type of a part must be a string"),
        (chat([{"type": "text"}], "Hi"), "missing field: text or value or content"),
        (chat([{"type": "image"}], "Hi"), "missing medium: the row names none for a placeholder <image>"),
        (chat([{"type": "image", "image": {"x": 1}}], "Hi"), "missing field: the file of an image"),
        (chat([{"type": "image", "image": ["a.jpg"]}], "Hi"), "bad field: image name must be a string"),
        (chat([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}], "Hi"),
         "missing field: the file of an audio"),
        (chat([{"type": "image_url", "image_url": {"url": "https://a/b.jpg"}}], "Hi"),
         "missing file: image name is a https URL, and nothing is downloaded"),
        (chat("Draw", [{"type": "image", "image": "a.jpg"}]), "missing field: caption of the image to generate"),
        (chat("x" * 40_960, "Hi"), "too long text: 40960 bytes, the limit is 32768"),
    ],
)  # fmt: skip
def test_a_bad_chat_is_rejected_with_its_reason(read: Read, row: dict[str, Any], reason: str) -> None:
    (reject,) = read("chats", [row])
    assert isinstance(reject, Reject)
    assert reject.reason == reason
