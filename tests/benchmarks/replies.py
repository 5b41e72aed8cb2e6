"""Latencies seen by a visitor over HTTP: to the first word and to the whole reply of each case, first and later."""

import json
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any

import httpx

from tests.benchmarks import Row
from tests.benchmarks.chat_server import cases, chat_server

REPEATS = 7


def run(scale: float, checkpoint: str) -> list[Row]:
    """Seconds to the whole reply (`ours`) and to its first word (`peer`) of each case; the second against the first.

    The very first reply comes from a server that has not answered anything yet.
    """
    rows, firsts = list[Row](), dict[str, float]()
    with chat_server("--checkpoint", checkpoint) as server, httpx.Client(base_url=server.url, timeout=300) as client:
        for title, messages in cases().items():
            times = [_reply(client, messages) for _ in range(1 + max(2, round(REPEATS * scale)))]
            (_, firsts[title]), later = times[0], times[1:]
            word, whole = (median(values) for values in zip(*later, strict=True))
            rows.append(
                Row(
                    name=f"{title}: whole reply / first word",
                    ours=whole,
                    peer=word,
                    ratio=whole / word,
                    target=None,
                    unit="s",
                    note=f"{len(later)} replies, one after the other",
                )
            )
            rows.append(
                Row(
                    name=f"{title}: second reply / first",
                    ours=later[0][1],
                    peer=firsts[title],
                    ratio=later[0][1] / firsts[title],
                    target=1.1,
                    unit="s",
                    at_most=True,
                    note="nothing is reloaded",
                )
            )
    return rows


def _reply(client: httpx.Client, messages: Sequence[Any]) -> tuple[float, float]:
    """Seconds to the first word and to the end of a streamed reply."""
    started, first = perf_counter(), 0.0
    with client.stream("POST", "/v1/chat/completions", json={"messages": messages, "stream": True}) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not first and line.startswith("data: {") and _has_word(json.loads(line[6:])):
                first = perf_counter() - started
    return first, perf_counter() - started


def _has_word(chunk: dict[str, Any]) -> bool:
    return any(choice["delta"].get("content") for choice in chunk.get("choices", ()))
