"""Content parts: whoever wrote them, they say the same to readers and to the API."""

from typing import Any

import pytest

from pipelines.sample import Modality
from pipelines.sources.content_parts import Medium, parse

IMAGE, VIDEO, AUDIO = Modality.IMAGE, Modality.VIDEO, Modality.AUDIO
URI = "data:image/png;base64,AAAA"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": URI, "detail": "low"}},
        {"type": "image_url", "image_url": URI},
        {"type": "input_image", "image_url": URI},
        {"type": "image", "image": URI, "text": None},
        {"type": "image", "image": {"path": URI, "bytes": None}},
        {"type": "image", "url": URI},
        {"image_url": {"url": URI}},
        {"image": URI},
    ],
)
def test_a_picture_is_where_any_of_the_usual_spellings_says(part: dict[str, Any]) -> None:
    assert parse([part]) == [Medium(modality=IMAGE, place=URI)]


def test_parts_keep_their_order_and_texts_their_white_space() -> None:
    content = [
        {"type": "text", "text": " look:\n"},
        {"type": "video_url", "video_url": {"url": "a.mp4"}},
        "and",
        {"type": "input_text", "text": "hear"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": "b.wav"}, "caption": "rain"},
        {"type": "text", "text": {"value": "end", "annotations": []}},
        {"type": "image"},
    ]
    assert parse(content) == [
        " look:\n",
        Medium(modality=VIDEO, place="a.mp4"),
        "and",
        "hear",
        Medium(modality=AUDIO, data="AAAA"),
        Medium(modality=AUDIO, place="b.wav", caption="rain"),
        "end",
        Medium(modality=IMAGE),
    ]
    assert parse("hello") == ["hello"]
    assert parse([]) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "bad field: content is neither text nor a list of parts"),
        ([["a"]], "bad field: content is neither text nor a list of parts"),
        ([{"type": "file", "file": {}}], "bad field: a part of type 'file'; it may be text, image, video or audio"),
        ([{}], "bad field: a part of type ''; it may be text, image, video or audio"),
        ([{"type": ["text"]}], "bad field: the type of a part must be a string"),
        ([{"type": "text", "text": 5}], "bad field: text must be a string"),
        ([{"type": "text", "text": {"text": {"text": "deep"}}}], "bad field: text must be a string"),
        ([{"type": "image", "image": 5}], "bad field: image name must be a string"),
        ([{"type": "input_audio", "input_audio": {"data": 5}}], "bad field: audio data must be a string"),
        ([{"type": "video_url", "video_url": {}}], "missing field: the file of a video"),
    ],
)
def test_what_is_no_content_is_refused_with_its_reason(content: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^(bad|missing) field: ") as refused:
        parse(content)
    assert str(refused.value) == reason
