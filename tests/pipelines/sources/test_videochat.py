"""VideoChat: one medium, many questions."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.sample import Item, Modality, Reject, Sample

Read = Callable[..., list[Any]]


@pytest.mark.parametrize(("name", "modality"), [("video", "video"), ("image", "image"), ("video_name", "video")])
def test_questions_follow_the_medium_and_instructions_stand_before_them(read: Read, name: str, modality: str) -> None:
    pairs = [
        {"i": "Look.", "q": "Who?", "a": "A man."},
        {"q": "Where?", "a": "At sea."},
        {"i": "Describe.", "q": "", "a": "Waves."},
    ]
    (sample,) = read("videochat", [{name: "dir/v_1.mp4", "QA": pairs}])
    assert isinstance(sample, Sample)
    item = Item(modality=Modality(modality), name="dir/v_1.mp4")
    assert [turn.parts for turn in sample.turns] == [
        (item, "Look.\nWho?"),
        ("A man.",),
        ("Where?",),
        ("At sea.",),
        ("Describe.",),
        ("Waves.",),
    ]
    assert sample.key == "v_1-0000000"


def test_rows_about_one_video_have_keys_of_their_own(read: Read) -> None:
    row = {"video": "a.mp4", "QA": [{"q": "Who?", "a": "I."}]}
    assert [sample.key for sample in read("videochat", [row, row])] == ["a-0000000", "a-0000001"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"QA": [{"q": "a", "a": "b"}]}, "missing field: a row needs one video or image"),
        ({"video": "a", "image": "b", "QA": [{"q": "a", "a": "b"}]}, "bad field: a row needs one video or image"),
        ({"video": "a.mp4"}, "missing field: QA"),
        ({"video": "a.mp4", "QA": []}, "bad field: QA is no list of questions and answers"),
        ({"video": "a.mp4", "QA": ["x"]}, "bad field: QA is no list of questions and answers"),
        ({"video": "a.mp4", "QA": [{"q": "a"}]}, "missing field: a"),
        ({"video": "a.mp4", "QA": [{"q": "", "a": "b"}]}, "empty turn: the user says nothing"),
        ({"video": "a.mp4", "QA": [{"q": "a", "a": ""}]}, "empty turn: the assistant says nothing"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(read: Read, row: dict[str, object], reason: str) -> None:
    (reject,) = read("videochat", [row])
    assert isinstance(reject, Reject)
    assert reject.reason == reason
