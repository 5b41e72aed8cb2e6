"""Alpaca: text in, text out."""

from collections.abc import Callable
from typing import Any

import pytest

from pipelines.sample import Reject, Sample

Read = Callable[..., list[Any]]


def spoken(result: Sample | Reject) -> list[tuple[object, ...]]:
    assert isinstance(result, Sample), result
    return [turn.parts for turn in result.turns]


def test_the_input_stands_below_the_instruction(read: Read) -> None:
    rows = [
        {"instruction": "Add.", "input": "1\r\n2", "output": "3\n"},
        {"instruction": "Sing.", "input": "", "output": "La"},
        {"instruction": "Dance.", "output": "Hop"},
    ]
    samples = read("alpaca", rows)
    assert [spoken(sample) for sample in samples] == [
        [("Add.\n1\n2",), ("3",)],
        [("Sing.",), ("La",)],
        [("Dance.",), ("Hop",)],
    ]
    assert [sample.key for sample in samples] == ["0000000", "0000001", "0000002"]


@pytest.mark.parametrize("name", ["conversation", "conversations"])
def test_the_same_as_conversations_is_read(read: Read, name: str) -> None:
    row = {"image_name": "000", name: [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    assert spoken(read("alpaca", [row])[0]) == [("Hi",), ("Hello",)]


def test_html_is_text(read: Read) -> None:
    row = {"instruction": "Embed a film.", "input": "", "output": "Use <video> and <image>."}
    talk = [{"from": "human", "value": "<audio>?"}, {"from": "gpt", "value": "<video>"}]
    one, other = read("alpaca", [row, {"conversations": talk}])
    assert spoken(one) == [("Embed a film.",), ("Use <video> and <image>.",)]
    assert spoken(other) == [("<audio>?",), ("<video>",)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "a", "input": ""}, "missing field: output"),
        ({"instruction": "a", "output": " "}, "empty turn: the assistant says nothing"),
        ({"instruction": "", "input": "", "output": "x"}, "empty turn: the user says nothing"),
        ({"instruction": 1, "output": "x"}, "bad field: instruction must be a string"),
        ({"instruction": "a", "input": ["b"], "output": "x"}, "bad field: input must be a string"),
        ({"input": "b", "output": "x"}, "missing field: conversations or conversation"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(read: Read, row: dict[str, object], reason: str) -> None:
    (reject,) = read("alpaca", [row])
    assert isinstance(reject, Reject)
    assert (reject.reason, reject.key) == (reason, "0000000")
