"""A decoder that many ask at once."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from decoder_cases import array_of

from model.decoders.decoder import Decoder
from model.decoders.wish import RenderStep, Wish
from model.inference.painter import Painter
from pipelines.sample import Image, Modality


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(Modality.IMAGE, "builtin:tiny/image_decoder")


@pytest.fixture
def painter(decoder: Decoder) -> Iterator[Painter]:
    painter = Painter(decoder, at_once=4)
    yield painter
    painter.close()
    assert not painter.is_alive


def wish(decoder: Decoder, seed: int, **settings: Any) -> Wish:
    condition = np.random.default_rng(seed).standard_normal(decoder.condition_shape).astype(np.float32)
    return Wish(Modality.IMAGE, condition, seed, {"steps": 2, **settings})


def heard(told: "SimpleQueue[Any]") -> tuple[list[RenderStep], Any]:
    steps = []
    while isinstance(event := told.get(timeout=120), RenderStep):
        steps.append(event)
    return steps, event


def test_what_waits_and_is_alike_goes_in_one_batch_and_all_is_as_if_alone(painter: Painter, decoder: Decoder) -> None:
    alone = Decoder(Modality.IMAGE, decoder.name)
    # The first occupies the painter until all others wait.
    begun, gate, first = threading.Event(), threading.Event(), SimpleQueue[Any]()

    def hold(event: Any) -> None:
        begun.set()
        gate.wait(60)
        first.put(event)

    painter.ask(wish(decoder, 99), hold)
    assert begun.wait(60)
    wishes = [wish(decoder, seed, steps=2 + seed % 2) for seed in range(9)]
    queues = [SimpleQueue[Any]() for _ in wishes]
    for asked, told in zip(wishes, queues, strict=True):
        painter.ask(asked, told.put)
    gate.set()
    for asked, told in zip(wishes, queues, strict=True):
        steps, medium = heard(told)
        count = asked.settings["steps"]
        assert steps == [RenderStep(done, count) for done in range(1, count + 1)]
        assert isinstance(medium, Image)
        expected = alone.generate(asked.condition, asked.seed, count)
        assert np.abs(array_of(medium).astype(int) - array_of(expected)).max() <= 1
    assert isinstance(heard(first)[1], Image)
    assert painter.batches == 1 + 2 + 1, "5 of one kind, of which 4 fit into a batch, and 4 of the other"


def test_a_wish_that_cannot_be_fulfilled_is_told_and_the_next_one_is(painter: Painter, decoder: Decoder) -> None:
    for bad in (wish(decoder, 1, num_frames=3), wish(decoder, 1)._replace(condition=np.zeros((1, 3), np.float32))):
        told = SimpleQueue[Any]()
        painter.ask(bad, told.put)
        assert isinstance(heard(told)[1], ValueError)
    told = SimpleQueue[Any]()
    painter.ask(wish(decoder, 1), told.put)
    assert isinstance(heard(told)[1], Image)
