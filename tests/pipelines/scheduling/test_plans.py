"""Plans: read back as written, and refused with the reason where they are no graph of tool calls."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sample import Modality
from pipelines.scheduling.tool_plans import MOST_STEPS, TOOLS, Step, from_json, problem, schema, to_json

NAMES = ("image-1", "image-2", "video-1", "audio-1")


def describe(number: int, name: str = "image-1", **fields: Any) -> Step:
    return Step(id=number, tool=f"describe_{name.partition('-')[0]}", input=name, **fields)


def make(number: int, *needs: int, tool: str = "make_image", text: str = "a red circle") -> Step:
    return Step(id=number, tool=tool, needs=needs, input=text)


@st.composite
def plans(draw: st.DrawFn) -> list[Step]:
    """Graphs without circles: each step needs only steps that come before it in some order of their numbers."""
    numbers = draw(st.permutations(range(1, draw(st.integers(0, MOST_STEPS)) + 1)))
    steps = []
    for place, number in enumerate(numbers):
        before = numbers[:place]
        needs = draw(st.lists(st.sampled_from(before), unique=True)) if before else []
        if draw(st.booleans()):
            steps.append(describe(number, draw(st.sampled_from(NAMES)), needs=tuple(needs)))
        else:
            words = draw(st.text(min_size=1).map(lambda text: " ".join(text.split())).filter(bool))
            steps.append(make(number, *needs, tool=f"make_{draw(st.sampled_from(Modality))}", text=words))
    return draw(st.permutations(steps))


def test_there_are_six_tools() -> None:
    assert len(TOOLS) == 6
    assert {TOOLS[tool] for tool in TOOLS} == {(verb, m) for verb in ("describe", "make") for m in Modality}


@given(plans())
def test_a_graph_without_circles_holds_and_is_read_back_as_written(steps: list[Step]) -> None:
    assert problem(steps, NAMES) is None
    assert list(from_json(to_json(steps))) == steps


@given(plans().filter(bool), st.data())
def test_a_step_that_needs_itself_or_one_that_needs_it_is_refused(steps: list[Step], data: st.DataObject) -> None:
    by_number = {step.id: step for step in steps}
    last = data.draw(st.sampled_from(steps))
    first = last
    while first.needs:
        first = by_number[first.needs[0]]
    circle = [
        Step(id=step.id, tool=step.tool, needs=(*step.needs, last.id), input=step.input) if step is first else step
        for step in steps
    ]
    wrong = problem(circle, NAMES)
    assert wrong is not None
    assert "needs itself" in wrong if first is last else "need each other" in wrong


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        ([describe(1), describe(1)], "two steps have the number 1"),
        ([make(1, 4)], "step 1 needs step 4, which is not there"),
        ([describe(2, "image-9")], "step 2 describes image-9, which is no image shown"),
        ([Step(id=1, tool="describe_video", input="image-1")], "step 1 describes image-1, which is no video shown"),
        ([Step(id=1, tool="describe_video", input="")], "step 1 describes nothing, which is no video shown"),
        ([Step(id=1, tool="delete_disk", input="all")], "step 1 uses delete_disk, which is no tool"),
        ([make(1, text="")], "step 1 does not say what to make"),
        ([make(1), make(2), make(3)], "it makes 3 media, 2 at most may be"),
        ([describe(n) for n in range(1, MOST_STEPS + 2)], "there are 13 steps, 12 at most may be"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(steps: list[Step], wrong: str) -> None:
    assert problem(steps, NAMES, max_items=2) == wrong


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a picture, please",
        "[]",
        "{}",
        '{"steps":[{"id":1',
        '{"steps":[{"id":1,"tool":"make_image"}]}',
        '{"steps":[{"id":"one","tool":"make_image","needs":[],"input":"x"}]}',
        '{"steps":7}',
    ],
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="it is no plan in JSON"):
        from_json(text)


def test_the_schema_offers_only_what_is_shown() -> None:
    offered = json.dumps(schema(["image-1", "image-2"]))
    assert "image-2" in offered
    assert "describe_image" in offered
    assert "describe_audio" not in offered
    assert "describe" not in json.dumps(schema([]))
