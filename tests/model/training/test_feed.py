import itertools
import time
from collections.abc import Iterator

import pytest
from training_cases import BATCH, MICRO, make_rows, make_trainer

from model.training.engine import Rank, accumulation
from model.training.feed import prefetch


def test_micro_batches_are_those_of_the_plan_whatever_the_number_of_ranks(tmp_path, process_group) -> None:
    trainer = make_trainer(3, tmp_path)
    whole = [[batch.keys for batch in step] for step in trainer._micro_batches(make_rows(), range(4))]
    assert [len(step) for step in whole] == [BATCH // MICRO] * 4
    for world_size in (2, 3, 4):
        shares = []
        for number in range(world_size):
            rank = Rank(rank=number, world_size=world_size, device="cpu")
            trainer.accumulation = accumulation(trainer.job.settings, world_size)
            steps = trainer._micro_batches(make_rows(rank), range(4))
            shares.append([[batch.keys for batch in step] for step in steps])
        for step, expected in enumerate(whole):
            turns = itertools.chain.from_iterable(zip(*(share[step] for share in shares), strict=True))
            assert [keys for keys in turns if keys] == expected


def test_prefetching_gives_the_same_items_and_raises_their_errors_in_turn() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    feed = prefetch(items())
    assert list(itertools.islice(feed, 5)) == list(range(5))
    with pytest.raises(OSError, match="the disk is gone"):
        next(feed)


def test_prefetching_runs_ahead_but_not_far() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    feed = prefetch(items(), size=2)
    assert next(feed) == 0
    time.sleep(0.3)
    assert 2 <= len(made) <= 4
    feed.close()
