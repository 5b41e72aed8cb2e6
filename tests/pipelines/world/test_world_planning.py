"""What the world teaches of plans: right ones, about nothing that is held out."""

from collections import Counter

import pytest

from pipelines.sample import Item
from pipelines.scheduling.plan_prompts import media_names
from pipelines.scheduling.tool_plans import from_json, problem
from pipelines.world.conversations import KINDS, converse
from pipelines.world.oracles import read_text
from pipelines.world.planning import converse_in_plans, right_steps
from pipelines.world.scenes import HARD_EVERY, attributes, modality_of

COUNT = 600


def exchanges() -> list[tuple[str, str, str]]:
    found = []
    for number in range(COUNT):
        conversation = converse_in_plans(0, number)
        asked, answered = (turn.parts[0] for turn in conversation.turns)
        assert isinstance(asked, str)
        assert isinstance(answered, str)
        found.append((conversation.kind, asked, answered))
    return found


def test_the_same_number_gives_the_same_exchange() -> None:
    assert [converse_in_plans(0, n) for n in range(20)] == [converse_in_plans(0, n) for n in range(20)]
    assert converse_in_plans(0, 3) != converse_in_plans(1, 3)


def test_all_four_kinds_of_prompts_are_taught_with_answers_that_hold() -> None:
    kinds = Counter(kind for kind, _, _ in exchanges())
    assert kinds == {"plan": COUNT // 2, "reply": COUNT // 6, "words": COUNT // 6, "mend": COUNT // 6}
    tools = Counter[str]()
    for kind, asked, answered in exchanges():
        if kind in ("plan", "mend"):
            steps = from_json(answered)
            names = {word.strip("()") for word in asked.split() if word.startswith("(") and "-" in word}
            assert problem(steps, names) is None
            tools.update(step.tool for step in steps)
        if kind == "mend":
            *_, spoilt, wrong = asked.splitlines()
            assert problem(from_json(spoilt), names) == wrong
    assert len(tools) == 6


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("chat", "question")])
def test_a_right_plan_describes_what_is_shown_and_makes_what_is_wanted(kind: str) -> None:
    for index in range(HARD_EVERY - 1):
        conversation = converse(kind, 3, index)
        for exchange, answer in enumerate(conversation.answers):
            steps = right_steps(conversation, exchange)
            assert problem(steps, media_names(conversation.turns).values()) is None
            shown = [part for part in conversation.turns[2 * exchange].parts if isinstance(part, Item)]
            described = [step.modality for step in steps if step.verb == "describe"]
            assert described == [item.modality for item in shown]
            makes = [step for step in steps if step.verb == "make"]
            assert [step.modality for step in makes] == [modality_of(subject) for subject in answer.made]
            for step, subject in zip(makes, answer.made, strict=True):
                if not step.needs:
                    assert read_text(step.input).items() >= attributes(subject).items()
