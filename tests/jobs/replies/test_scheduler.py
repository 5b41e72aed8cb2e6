"""Carrying out a plan: what is asked side by side, in which order, and what becomes of plans that do not hold."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from jobs.replies.scheduler import NoPlan, Preparation, needs_guides, prepare
from model.inference.query import Query, Reply, Sampling, TooLong
from pipelines.sample import Image, Item, Modality, Turn
from pipelines.scheduling.tool_plans import Step, to_json
from pipelines.views import CAPTION_PROMPT

PIXELS = Image(pixels=np.zeros((8, 8, 3), np.uint8))
LOOK, OTHER = Step(id=1, tool="describe_image", input="image-1"), Step(id=2, tool="describe_image", input="image-2")
BOTH = Step(id=3, tool="make_image", needs=(1, 2), input="both of them")
FREE = Step(id=4, tool="make_audio", input="a low mi on the flute")


def query(*shown: str, text: str = "Show me both.", **fields: Any) -> Query:
    items = [Item(modality=Modality.IMAGE, name=name) for name in shown]
    turns = (Turn(role="user", parts=(*items, text)),)
    return Query(turns=turns, media=dict.fromkeys(shown, PIXELS), **fields)


def reply(text: str) -> Reply:
    return Reply(parts=(text,), conditions=[], prompt_tokens=10, tokens=1, was_cut=False)


def carried_out(asked: Query, *rounds: Sequence[str]) -> tuple[Preparation, list[list[Query]]]:
    """Sends the texts of each round; returns what was prepared, and the queries of each round."""
    asks, queries = prepare(asked, guides=False), []
    queries.append(list(next(asks)))
    for texts in rounds:
        try:
            assert len(texts) == len(queries[-1])
            queries.append(list(asks.send([reply(text) for text in texts])))
        except StopIteration as stop:
            return stop.value, queries
    raise AssertionError(f"more is asked: {queries[-1]}")


def words(asked: Query) -> str:
    return str(asked.turns[-1].parts[-1])


def test_independent_steps_are_asked_side_by_side_and_dependent_ones_after_them() -> None:
    plan = to_json([BOTH, OTHER, FREE, LOOK])
    prepared, (first, second, third) = carried_out(query("a", "b"), [plan], ["a circle", "a square"], ["two shapes"])
    assert words(first[0]).startswith("Plan the reply.\nuser: (image-1) (image-2) Show me both.")
    assert [words(one) for one in second] == [CAPTION_PROMPT] * 2
    assert [list(one.media) for one in second] == [["a"], ["b"]]
    assert words(third[0]).splitlines()[-3:] == [
        "1 describe_image: a circle",
        "2 describe_image: a square",
        "3 make_image: both of them",
    ]
    assert [(wish.modality, wish.condition) for wish in prepared.wishes] == [
        (Modality.IMAGE, "two shapes"),
        (Modality.AUDIO, FREE.input),
    ]
    assert words(prepared.query).splitlines()[-4:] == [
        "3 make_image: two shapes",
        "2 describe_image: a square",
        "4 make_audio: a low mi on the flute",
        "1 describe_image: a circle",
    ]
    assert (prepared.prompt_tokens, prepared.tokens) == (40, 4)
    assert "two shapes" in prepared.plan
    assert prepared.parts(("Here.",)) == ("Here.", Item(modality=Modality.IMAGE), Item(modality=Modality.AUDIO))


def test_all_that_the_llm_is_asked_for_a_reply_is_text() -> None:
    _, rounds = carried_out(query("a"), [to_json([LOOK])], ["a circle"])
    described = [one for asked in rounds for one in asked if one.media]
    assert [words(one) for one in described] == [CAPTION_PROMPT]


def test_a_plan_is_held_to_json_and_may_describe_only_what_is_shown() -> None:
    _, rounds = carried_out(query("a"), [to_json([])])
    schema = json.loads(rounds[0][0].sampling.schema)
    tools = [step["properties"]["tool"]["enum"] for step in schema["properties"]["steps"]["items"]["anyOf"]]
    assert tools == [["describe_image"], ["make_image", "make_video", "make_audio"]]


def test_each_item_has_a_seed_of_its_own_and_its_decoders_settings() -> None:
    settings = {Modality.AUDIO: {"steps": 3}}
    asked = query(text="Sing.", sampling=Sampling(seed=7), settings=settings)
    prepared, _ = carried_out(asked, [to_json([FREE, Step(id=5, tool="make_image", input="a")])])
    assert [(wish.seed, wish.settings) for wish in prepared.wishes] == [(7, {"steps": 3}), (8, {})]


def test_a_plan_that_does_not_hold_is_mended_once() -> None:
    spoilt, good = to_json([Step(id=1, tool="make_image", needs=(5,), input="a")]), to_json([FREE])
    prepared, (_, mending) = carried_out(query(), [spoilt], [good])
    assert words(mending[0]).splitlines()[-2:] == [spoilt, "step 1 needs step 5, which is not there"]
    assert [wish.condition for wish in prepared.wishes] == [FREE.input]
    with pytest.raises(NoPlan, match="the model found no plan: step 1 needs step 5, which is not there"):
        carried_out(query(), [spoilt], [spoilt])
    with pytest.raises(NoPlan, match="it is no plan in JSON"):
        carried_out(query(), ['{"steps":['], ['{"steps":['])
    with pytest.raises(NoPlan, match="it makes 1 media, 0 at most may be"):
        carried_out(query(sampling=Sampling(max_items=0)), [good], [good])


def test_media_that_are_required_get_a_step_whose_words_are_asked_for() -> None:
    asked = query("a", text="What is it?", require=[Modality.VIDEO])
    prepared, (_, _, writing) = carried_out(asked, [to_json([LOOK])], ["a circle"], ["a circle that moves"])
    assert words(writing[0]).splitlines()[-1] == "2 make_video: What is it?"
    assert [(wish.modality, wish.condition) for wish in prepared.wishes] == [(Modality.VIDEO, "a circle that moves")]


def test_words_that_do_not_come_are_those_of_the_plan() -> None:
    prepared, _ = carried_out(
        query("a"), [to_json([LOOK, Step(id=2, tool="make_image", needs=(1,), input="it")])], *2 * [[""]]
    )
    assert [wish.condition for wish in prepared.wishes] == ["it"]


def test_of_a_dialogue_that_is_too_long_the_oldest_exchange_is_left_out() -> None:
    old = Turn(role="user", parts=("old",)), Turn(role="assistant", parts=("older",))
    asked = Query(turns=(*old, *query(text="new").turns))
    asks = prepare(asked, guides=False)
    assert "old" in words(next(asks)[0])
    again = asks.throw(TooLong("too long"))
    assert words(again[0]) == "Plan the reply.\nuser: new"
    with pytest.raises(TooLong):
        asks.throw(TooLong("too long"))


def test_who_was_trained_on_plans_needs_no_guides() -> None:
    assert needs_guides([])
    assert needs_guides([{"stage": 3, "data": {"alpaca_instruction": {}}}])
    assert not needs_guides([{"stage": 1}, {"stage": 3, "data": {"plan_instruction": {}}}])
