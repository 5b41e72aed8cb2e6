"""OpenAI's format: what a request asks of the model, and how a reply is told."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from jobs.serving.requests import openai_answers as answers
from jobs.serving.requests import openai_format as wire
from model.inference.query import Response, Sampling
from pipelines.media.codecs import decode, encode
from pipelines.sample import Audio, Image, Item, Media, Modality, Turn, Video

PICTURE = encode(Image(pixels=np.full((32, 48, 3), 200, np.uint8)))
VIDEO = encode(Video(frames=np.full((4, 32, 32, 3), 90, np.uint8), fps=8.0))
SOUND = encode(Audio(waveform=np.zeros((1, 8000), np.float32), sample_rate=8000))
IMAGE_URL = {"type": "image_url", "image_url": {"url": answers.data_uri(PICTURE), "detail": "low"}}
SOUND_DATA = {"type": "input_audio", "input_audio": {"data": base64.b64encode(SOUND.data).decode(), "format": "wav"}}

NO_SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA"}}
NO_VIDEO = {"type": "video_url", "video_url": {"url": answers.data_uri(SOUND)}}
ELSEWHERE = {"type": "image_url", "image_url": {"url": "http://a.example/x.png"}}


def request(*messages: Any, **more: Any) -> wire.ChatRequest:
    return wire.ChatRequest.model_validate({"messages": list(messages), **more})


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if len(content) == 1 and isinstance(content[0], str) else content}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def test_media_stand_where_the_user_put_them() -> None:
    video = {"type": "video_url", "video_url": {"url": answers.data_uri(VIDEO)}}
    query = wire.to_query(request(user(text("look:"), IMAGE_URL, text("and hear:"), SOUND_DATA, video)))
    [turn] = query.turns
    assert [part if isinstance(part, str) else part.modality for part in turn.parts] == [
        "look:",
        Modality.IMAGE,
        "and hear:",
        Modality.AUDIO,
        Modality.VIDEO,
    ]
    kinds = [type(query.media[part.name]) for part in turn.parts if isinstance(part, Item)]
    assert kinds == [Image, Audio, Video]
    assert query.sampling == Sampling(max_items=4)


def test_a_system_message_becomes_the_beginning_of_the_users_and_messages_of_one_speaker_are_one() -> None:
    query = wire.to_query(
        request({"role": "system", "content": "Be brief."}, user("hello"), user(IMAGE_URL), user("what is it?"))
    )
    [turn] = query.turns
    assert [part for part in turn.parts if isinstance(part, str)] == ["Be brief.", "hello", "what is it?"]
    between = request(user("hello"), {"role": "system", "content": "Be brief."}, user("what is it?"))
    assert wire.to_query(between).turns[0].parts == ("hello", "Be brief.", "what is it?")


def test_a_system_message_is_never_lost_and_never_put_into_the_models_mouth() -> None:
    system = {"role": "system", "content": "Be brief."}
    answer = {"role": "assistant", "content": "hi"}
    assert wire.to_query(request(user("hello"), system)).turns == [Turn(role="user", parts=("hello", "Be brief."))]
    assert list(wire.to_query(request(user("hello"), system)).system) == ["Be brief."]
    query = wire.to_query(request(user("hello"), system, answer, user("again")))
    assert [turn.parts for turn in query.turns] == [("hello", "Be brief."), ("hi",), ("again",)]
    with pytest.raises(wire.Mistake, match="a system message is followed by no user"):
        wire.to_query(request(user("hello"), answer, system))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": answers.data_uri(PICTURE)},
        {"type": "input_image", "image_url": answers.data_uri(PICTURE)},
        {"type": "image", "image": answers.data_uri(PICTURE)},
        {"type": "image", "image": {"data": base64.b64encode(PICTURE.data).decode()}},
    ],
)
def test_a_medium_is_understood_under_the_spellings_that_readers_know(part: dict[str, Any]) -> None:
    query = wire.to_query(request(user(text("look:"), part)))
    assert query.turns[0].parts == ("look:", Item(modality=Modality.IMAGE, name="0"))
    [picture] = query.media.values()
    assert isinstance(picture, Image)
    assert picture.pixels.shape == (32, 48, 3)


def test_what_is_no_content_is_refused_in_one_line_that_names_the_field() -> None:
    for content, reason in {
        "file": "a part of type 'file'; it may be text, image, video or audio",
        "image": "missing field: image_url",
    }.items():
        with pytest.raises(ValidationError, match=reason) as refused:
            request(user({"type": content}))
        [mistake] = refused.value.errors()
        assert mistake["loc"] == ("messages", 0, "content")


def test_the_description_of_content_names_the_parts_that_clients_send() -> None:
    schema = wire.ChatRequest.model_json_schema()["$defs"]["Message"]["properties"]["content"]
    [parts] = [kind for kind in schema["anyOf"] if kind["type"] == "array"]
    kinds = {part["properties"]["type"]["const"] for part in parts["items"]["anyOf"]}
    assert kinds == {"text", "image_url", "video_url", "audio_url", "input_audio"}


def test_a_reply_can_be_sent_back_as_it_came() -> None:
    finished = Response(
        parts=("Here:", Item(modality=Modality.IMAGE), "and", Item(modality=Modality.AUDIO)),
        media=(PICTURE, SOUND),
        prompt_tokens=5,
        tokens=9,
        was_cut=False,
    )
    whole = answers.completion(answers.head("id", "model"), finished)
    message = whole["choices"][0]["message"]
    assert message["content"] == "Here: and"
    assert whole["usage"]["total_tokens"] == 14
    assert whole["choices"][0]["finish_reason"] == "stop"
    url = message["parts"][1]["image_url"]["url"]
    assert decode(Media(modality=Modality.IMAGE, data=base64.b64decode(url.partition(",")[2]), format="png"))
    json.dumps(whole)
    query = wire.to_query(request(user("show"), message, user("again")))
    assert query.turns[1] == Turn(
        role="assistant", parts=("Here:", Item(modality=Modality.IMAGE), "and", Item(modality=Modality.AUDIO))
    )
    assert not query.media, "what the model made it knows from what was said"


def test_settings_reach_the_query() -> None:
    query = wire.to_query(
        request(
            user("hi"),
            temperature=0.7,
            top_p=0.9,
            seed=5,
            max_completion_tokens=33,
            modalities=["text", "audio", "image", "audio"],
            max_items=1,
            decoders={"image": {"steps": 7, "guidance": 2.5}, "video": {"num_frames": 4}},
            frequency_penalty=1,
            stop="END",
            user="me",
        )
    )
    assert query.sampling == Sampling(
        temperature=0.7, top_p=0.9, seed=5, max_new_tokens=33, max_items=2, stops=("END",)
    )
    assert query.require == [Modality.AUDIO, Modality.IMAGE]
    assert query.settings == {Modality.IMAGE: {"steps": 7, "guidance": 2.5}, Modality.VIDEO: {"num_frames": 4}}


@pytest.mark.parametrize(
    ("messages", "param", "reason"),
    [
        ([user("a"), {"role": "assistant", "content": "b"}], "messages", "last message must be a user's"),
        ([user(text(" "))], "messages", "says nothing"),
        ([{"role": "system", "content": [IMAGE_URL]}, user("a")], "messages[0]", "system message holds a medium"),
        ([user("a"), user(text("b"), NO_SOUND)], "messages[1].content[1]", "unreadable"),
        ([user(ELSEWHERE)], "messages[0].content[0]", "not allowed"),
        ([user(NO_VIDEO)], "messages[0].content[0]", "no video"),
    ],
    ids=["assistant-last", "silent", "system-medium", "no-sound", "url", "sound-as-video"],
)
def test_a_mistake_names_the_field_and_the_reason(messages: Any, param: str, reason: str) -> None:
    with pytest.raises(wire.Mistake, match=reason) as mistake:
        wire.to_query(request(*messages))
    assert mistake.value.param == param


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"n": 9},
        {"max_tokens": 0},
        {"stop": ["a", "b", "c", "d", "e"]},
        {"stop": ""},
        {"response_format": {"type": "yaml"}},
        {"modalities": ["smell"]},
        {"decoders": {"image": {"height": 4000}}},
        {"decoders": {"image": {"steps": 10**6}}},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
    ],
    ids=str,
)
def test_values_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        wire.ChatRequest.model_validate({"messages": [user("a")], **wrong})


def test_an_assistant_who_greets_first_follows_a_user_who_has_not_said_anything() -> None:
    greeting = {"role": "assistant", "content": "Hello!"}
    query = wire.to_query(request({"role": "developer", "content": "Be brief."}, greeting, user("hi")))
    assert [(turn.role, turn.parts) for turn in query.turns] == [
        ("user", ("Be brief.",)),
        ("assistant", ("Hello!",)),
        ("user", ("hi",)),
    ]
    assert wire.to_query(request(greeting, user("hi"))).turns[0] == Turn(role="user", parts=())


def test_tools_and_what_they_found_are_words() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
    query = wire.to_query(
        request(
            user("what is it?"),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "a circle"},
        )
    )
    assert [turn.parts for turn in query.turns] == [("what is it?",), ('look({"at": "x"})',), ("a circle",)]


def test_the_first_choice_has_the_seed_and_the_others_seeds_of_their_own() -> None:
    query = wire.to_query(request(user("hi"), seed=7))
    seeds = [choice.sampling.seed for choice in wire.choices(query, 8)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 8
    assert seeds[:3] == [choice.sampling.seed for choice in wire.choices(query, 3)]


def test_any_integer_leads_to_a_seed_of_its_own() -> None:
    numbers = [0, 2**31 - 1, -1, 2**31, 2**32, 2**63, -(2**63), 2**64 - 1]
    seeds = [wire.to_query(request(user("hi"), seed=number)).sampling.seed for number in numbers]
    assert seeds[:2] == numbers[:2]
    assert len(set(seeds)) == len(numbers)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_what_is_to_be_said_of_a_medium_stands_beside_it() -> None:
    withheld = encode(Image(pixels=np.zeros((32, 32, 3), np.uint8), note="withheld by the safety checker"))
    assert answers.part_of(withheld)["note"] == "withheld by the safety checker"
    assert "note" not in answers.part_of(PICTURE)
