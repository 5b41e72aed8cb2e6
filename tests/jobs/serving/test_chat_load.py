"""Fifty visitors at once."""

import asyncio

import pytest

from tests.benchmarks.chat_server import ChatServer
from tests.benchmarks.load import press

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("chat"), pytest.mark.slow, pytest.mark.timeout(900)]


def test_fifty_visitors_get_their_own_replies_and_nothing_fails(chat: ChatServer) -> None:
    load = asyncio.run(press(chat, seconds=60, visitors=50))
    assert load.outcomes["right"] > 50
    assert set(load.outcomes) <= {"right", "429 with Retry-After"}
    assert load.memory[-1] < 1.1 * load.memory[0]


def test_who_finds_no_place_is_told_when_to_come_again_and_the_others_are_answered(chat: ChatServer) -> None:
    load = asyncio.run(press(chat, seconds=30, visitors=90))  # of 64 places
    assert load.outcomes["429 with Retry-After"] > 0
    assert set(load.outcomes) == {"right", "429 with Retry-After"}
