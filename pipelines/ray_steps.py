"""Runs steps over rows on Ray Data, re-raising their errors unchanged; counters for dashboards.

Ray Data logs an error of a step at length and puts words of its own into it. What a person is to be told, such as that
a disk is full, therefore comes out of a step as a row, and is raised where the rows are taken.
"""

import errno
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any

import ray.data
from ray.util.metrics import Counter

Row = dict[str, Any]
_FAILURE = "failure"
# Counters of rows, rejects and bytes for the dashboards of a cluster.
_COUNTERS = {
    "rows": "rows that became samples",
    "rejects": "rows that were rejected",
    "bytes": "bytes written to shards",
    "items": "captions and media that were embedded",
}

_MOST_TASKS = 512
_TASKS_A_CORE = 8


def map_rows(rows: list[Row], step: Callable[..., Any], **options: Any) -> Iterator[Row]:
    """A step on every row, in any order: a task a row, or where there are very many, a task for several.

    The driver holds some 40 KB a task, whatever it does.

    Raises:
        OSError, ValueError: as the step raised them; other errors come as Ray Data tells them.
    """
    if rows:
        most = max(_MOST_TASKS, _TASKS_A_CORE * int(ray.cluster_resources().get("CPU", 1)))
        dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), most))
        yield from _raising(dataset.map(_told(step, _row), **options).iter_rows())


def stream_rows(rows: list[Row], step: Callable[..., Any], **options: Any) -> Iterator[Row]:
    """A step that gives several rows for one: each comes as soon as it is there, not with the last of its task.

    Raises:
        OSError, ValueError: as the step raised them; other errors come as Ray Data tells them.
    """
    if rows:
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        dataset.context.target_max_block_size = 1
        yield from _raising(dataset.flat_map(_told(step, _rows), **options).iter_rows())


def _told(step: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """A step, or an actor's class, that returns its errors as rows."""
    if not isinstance(step, type):
        return partial(call, step)

    class Told(step):  # type: ignore[misc, valid-type]
        def __call__(self, row: Row) -> Any:
            return call(super().__call__, row)

    return Told


def _row(step: Callable[[Row], Row], row: Row) -> Row:
    try:
        return step(row)
    except (OSError, ValueError) as error:
        return _failure(error)


def _rows(step: Callable[[Row], Iterable[Row]], row: Row) -> Iterator[Row]:
    try:
        yield from step(row)
    except (OSError, ValueError) as error:
        yield _failure(error)


def _failure(error: OSError | ValueError) -> Row:
    told: list[Any] = [str(error)]
    if isinstance(error, OSError):
        told = [error.errno or errno.EIO, error.strerror or str(error), error.filename and str(error.filename)]
    return {_FAILURE: json.dumps(told)}


def _raising(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        if row.get(_FAILURE):
            told = json.loads(row[_FAILURE])
            raise ValueError(*told) if len(told) == 1 else OSError(*told)
        yield row


def count(dataset: str, **amounts: int) -> None:
    """Adds to the counters `nextgpt_<name>` of a dataset, from inside a task or actor of Ray."""
    for name, amount in amounts.items():
        if amount:
            _counter(name).inc(amount, tags={"dataset": dataset})


@cache
def _counter(name: str) -> Counter:
    return Counter(f"nextgpt_{name}", description=_COUNTERS[name], tag_keys=("dataset",))
