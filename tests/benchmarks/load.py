"""Load test: many concurrent conversations for minutes, with their replies, latencies and the server's memory."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import httpx

from tests.benchmarks import Row, say
from tests.benchmarks.chat_server import ChatServer, chat_server

VISITORS = 50
SECONDS = 300.0
WARM_UP = 15.0
_SUBJECTS = [f"{colour} {shape}" for colour in ("red", "green", "blue", "yellow") for shape in ("circle", "square")]
# Each visitor's requests in turn: text only, and each modality.
_KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Hello! Do you know what a {} is?", {"max_items": 0}),
    ("Draw a small {} at the left.", {"modalities": ["image"], "max_items": 1}),
    ("Make a video of a {} moving to the left.", {"modalities": ["video"], "max_items": 1}),
    ("Let me hear the sound of a {}.", {"modalities": ["audio"], "max_items": 1}),
)


@dataclass(slots=True)
class Load:
    """The outcomes of all requests."""

    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    took: float = 0.0

    @property
    def rate(self) -> float:
        """Complete replies per second."""
        return self.outcomes["right"] / self.took


def run(scale: float, checkpoint: str) -> list[Row]:
    """Reply latencies, memory at the end against the beginning, and replies per second with and without batching."""
    with chat_server("--checkpoint", checkpoint, "--no-page") as server:
        load = asyncio.run(press(server, SECONDS * scale))
    with chat_server("--checkpoint", checkpoint, "--no-page", "--batch", "1") as server:
        single = asyncio.run(press(server, max(20.0, SECONDS * scale / 5)))
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(load.outcomes.items()))
    bad = sum(count for outcome, count in load.outcomes.items() if outcome not in ("right", "429 with Retry-After"))
    half, p95 = median(load.seconds), quantiles(load.seconds, n=20)[-1]
    first, last = _edges(load.memory)
    return [
        Row(
            name=f"{VISITORS} visitors, p95 / p50",
            ours=p95,
            peer=half,
            ratio=p95 / half,
            target=None,
            unit="s",
            note=told,
        ),
        Row(
            name="wrong, mixed-up or failed replies / all",
            ours=bad,
            peer=sum(load.outcomes.values()),
            ratio=bad / sum(load.outcomes.values()),
            target=0.0,
            unit="replies",
            at_most=True,
        ),
        Row(
            name="memory of the replicas, last fifth / first fifth",
            ours=last / 1e6,
            peer=first / 1e6,
            ratio=last / first,
            target=1.05,
            unit="MB",
            at_most=True,
        ),
        Row(
            name="replies, decoders in batches / one medium at a time",
            ours=load.rate,
            peer=single.rate,
            ratio=load.rate / single.rate,
            target=1.0,
            unit="replies/s",
        ),
    ]


def _edges(values: Sequence[int]) -> tuple[float, float]:
    part = max(1, len(values) // 5)
    return median(values[:part]), median(values[-part:])


async def press(server: ChatServer, seconds: float, visitors: int = VISITORS) -> Load:
    """Runs visitors that ask again as soon as they are answered; compares replies with those given without load."""
    load, limits = Load(), httpx.Limits(max_connections=visitors + 1)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
        expected = {}
        for question, settings in _questions():
            answer = await client.post("/v1/chat/completions", json=_body(question, settings))
            answer.raise_for_status()
            expected[question] = _heard(answer.json())
        started = perf_counter()
        until = started + seconds
        tasks = [_visit(client, load, expected, visitor, until) for visitor in range(visitors)]
        await asyncio.gather(*tasks, _watch(server, load, min(WARM_UP, seconds / 3), until))
        load.took = perf_counter() - started
    return load


def _questions() -> Iterator[tuple[str, dict[str, Any]]]:
    for subject in _SUBJECTS:
        for words, settings in _KINDS:
            yield words.format(subject), settings


async def _visit(client: httpx.AsyncClient, load: Load, expected: dict[str, Any], visitor: int, until: float) -> None:
    questions = list(_questions())
    for place in itertools.count(visitor * 7):
        if perf_counter() >= until:
            return
        question, settings = questions[place % len(questions)]
        asked = perf_counter()
        try:
            answer = await client.post("/v1/chat/completions", json=_body(question, settings))
        except httpx.HTTPError as error:
            load.outcomes[type(error).__name__] += 1
            continue
        if answer.status_code != 200:
            after = answer.headers.get("retry-after")
            load.outcomes[f"{answer.status_code}{' with Retry-After' if after else ''}"] += 1
            await asyncio.sleep(float(after or 1))
            continue
        load.seconds.append(perf_counter() - asked)
        heard = _heard(answer.json())
        others = [heard for other, heard in expected.items() if other != question and heard != expected[question]]
        outcome = "right" if heard == expected[question] else "mixed up" if heard in others else "changed"
        load.outcomes[outcome] += 1


async def _watch(server: ChatServer, load: Load, pause: float, until: float) -> None:
    await asyncio.sleep(pause)
    while perf_counter() < until:
        load.memory.append(await asyncio.to_thread(server.memory))
        if len(load.memory) % 30 == 1:
            held, left = load.memory[-1] / 1e6, until - perf_counter()
            say(f"load: {sum(load.outcomes.values())} replies, {held:.0f} MB, {left:.0f} s left")
        await asyncio.sleep(1.0)


def _body(question: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], **settings}


def _heard(document: dict[str, Any]) -> str:
    """A reply's identity: its words, and the modalities of its media."""
    message = document["choices"][0]["message"]
    return json.dumps([message["content"], [part["type"] for part in message["parts"]]])
