"""Rows that stand in parts, one part after the other, as pieces of equal runs of rows, such as chunks and shards."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows `start` to `stop` of those that part `part` gives: a slice of a chunk or shard."""

    part: int
    start: int
    stop: int


def plan_pieces(counts: Iterable[int], size: int) -> list[list[Piece]]:
    """Which rows of which parts make up each run: exactly `size` each but the last."""
    runs: list[list[Piece]] = []
    room = 0
    for part, count in enumerate(counts):
        start = 0
        while start < count:
            if room == 0:
                runs.append([])
                room = size
            stop = min(count, start + room)
            runs[-1].append(Piece(part=part, start=start, stop=stop))
            room -= stop - start
            start = stop
    return runs
