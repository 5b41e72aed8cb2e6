"""A model that many ask at once, from many threads."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from dialogue_cases import dialogue
from generation_cases import lively

from model.core.nextgpt import NextGPT
from model.inference.query import Query, Reply, Sampling, TooLong
from model.inference.responder import Responder
from model.inference.speaker import Speaker
from model.parts.config import ModelConfig
from pipelines.sample import Audio, Item, Modality, Turn


@pytest.fixture(scope="module")
def responder(tiny: ModelConfig, tokenizer: Any) -> Responder:
    return Responder(lively(NextGPT.from_config(tiny), tokenizer), tokenizer)


@pytest.fixture
def speaker(responder: Responder) -> Iterator[Speaker]:
    speaker = Speaker(responder, at_once=3)
    yield speaker
    speaker.close()
    assert not speaker.is_alive


def query(number: int, **sampling: Any) -> Query:
    return Query(
        turns=dialogue((f"show me {number} dogs",)),
        sampling=Sampling(**{"max_new_tokens": 60, "temperature": 1.0, "seed": number, **sampling}),
    )


def listen(speaker: Speaker, asked: Query) -> tuple[list[Any], Any]:
    told: SimpleQueue[Any] = SimpleQueue()
    speaker.ask(asked, told.put)
    parts = []
    while not isinstance(event := told.get(timeout=120), Reply | Exception):
        parts.append(event)
    return parts, event


def test_many_who_ask_at_once_each_get_their_own_reply_as_if_alone(speaker: Speaker, responder: Responder) -> None:
    queries = [query(number) for number in range(12)]
    alone = [responder.reply_batch([asked])[0] for asked in queries]
    with ThreadPoolExecutor(12) as pool:
        heard = list(pool.map(lambda asked: listen(speaker, asked), queries))
    assert len({reply.text for reply in alone}) > 3
    for (parts, reply), expected in zip(heard, alone, strict=True):
        assert reply.parts == expected.parts
        assert "".join(part for part in parts if isinstance(part, str)) == expected.text
        assert [part for part in parts if isinstance(part, Item)] == [
            part for part in expected.parts if isinstance(part, Item)
        ]
        assert (reply.tokens, reply.prompt_tokens) == (expected.tokens, expected.prompt_tokens)


def test_a_reply_says_how_many_tokens_it_took_and_whether_the_limit_cut_it(speaker: Speaker) -> None:
    cut = [listen(speaker, query(number, max_new_tokens=3))[1] for number in range(4)]
    assert [(reply.was_cut, reply.tokens) for reply in cut] == [(True, 3)] * 4
    whole = [listen(speaker, query(number, max_new_tokens=400))[1] for number in range(12)]
    assert any(not reply.was_cut and reply.tokens < 400 for reply in whole)
    assert all(reply.prompt_tokens > 3 for reply in (*cut, *whole))


def test_who_asks_what_cannot_be_answered_is_told_and_nobody_else(speaker: Speaker) -> None:
    bad = Query(turns=[Turn(role="user", parts=(Item(modality=Modality.IMAGE, name="a"),))])
    long = Query(turns=dialogue(("word " * 5000,)))
    with ThreadPoolExecutor(4) as pool:
        good = pool.submit(listen, speaker, query(1))
        errors = [pool.submit(listen, speaker, asked).result()[1] for asked in (bad, long)]
    assert isinstance(good.result()[1], Reply)
    assert [type(error) for error in errors] == [ValueError, TooLong]
    assert "a: a turn refers to this item" in str(errors[0])
    assert "shorten it" in str(errors[1])


def test_media_are_heard_in_the_same_thread(speaker: Speaker) -> None:
    sound = Audio(waveform=np.zeros((1, 8000), np.float32), sample_rate=16000)
    asked = Query(
        turns=[Turn(role="user", parts=(Item(modality=Modality.AUDIO, name="a"), "what is it?"))],
        media={"a": sound},
        sampling=Sampling(max_new_tokens=20),
    )
    assert isinstance(listen(speaker, asked)[1], Reply)


def test_who_has_gone_is_forgotten_and_makes_room(speaker: Speaker) -> None:
    begun = threading.Event()
    endless = query(0, max_new_tokens=400)
    tickets = [speaker.ask(endless, lambda _: begun.set()) for _ in range(3)]  # all the room there is
    assert begun.wait(60)
    for ticket in tickets:
        speaker.drop(ticket)
    assert isinstance(listen(speaker, query(2))[1], Reply)


def test_a_failure_is_told_to_those_it_hits_and_the_next_are_answered(
    speaker: Speaker, responder: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(responder.model, "run_llm", fail)
        assert str(listen(speaker, query(1))[1]) == "out of memory"
    assert isinstance(listen(speaker, query(1))[1], Reply)


def test_closing_tells_those_who_wait(responder: Responder) -> None:
    speaker, told = Speaker(responder), SimpleQueue[Any]()
    speaker.ask(query(0, max_new_tokens=400), told.put)
    told.get(timeout=60)
    speaker.close()
    while not isinstance(event := told.get(timeout=60), Reply | Exception):
        pass
    assert isinstance(event, Reply) or "shut down" in str(event)
