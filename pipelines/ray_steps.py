"""Runs steps over rows on Ray Data, re-raising their errors unchanged; counters for dashboards.

Ray Data logs an error of a step at length and puts words of its own into it. What a person is to be told, such as that
a disk is full, therefore comes out of a step as a row, and is raised where the rows are taken.
"""

import errno
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import ray.data
from ray.data._internal.execution import backpressure_policy
from ray.util.metrics import Counter

Row = dict[str, Any]
_FAILURE = "failure"
_MOST = "nextgpt.most"
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


@dataclass(frozen=True, slots=True)
class RowStep:
    """One step of several: what is done with a row, by a function or an actor's class, and Ray Data's options for it.

    At most so many rows are in it or wait for the next step. With `several` it gives any number of rows for one.
    """

    call: Callable[..., Any]
    most: int
    options: dict[str, Any] = field(default_factory=dict)
    several: bool = False


def flow_rows(rows: list[Row], steps: Sequence[RowStep]) -> Iterator[Row]:
    """Rows through steps that work at the same time, in any order; each row goes on as soon as it is there.

    A step pauses while it has as many rows as it may, which bounds what the object store holds.

    Raises:
        OSError, ValueError: as a step raised them; other errors come as Ray Data tells them.
    """
    if not rows:
        return
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.target_max_block_size = 1
    dataset.context.set_config(_MOST, [step.most for step in steps])
    policies = [*backpressure_policy.ENABLED_BACKPRESSURE_POLICIES, _Paused]
    dataset.context.set_config(backpressure_policy.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    for step in steps:
        apply, call = (dataset.flat_map, _rows) if step.several else (dataset.map, _row)
        dataset = apply(_told(step.call, call), **step.options)
    yield from _raising(dataset.iter_rows())


class _Paused(backpressure_policy.BackpressurePolicy):
    """Ray Data's own budgets would bound memory too, but keep cores from the steps that have work for them."""

    def can_add_input(self, op: Any) -> bool:
        operators = list(self._topology)
        place = operators.index(op)
        waiting = sum(self._topology[after].total_enqueued_input_blocks() for after in op.output_dependencies)
        held = op.num_active_tasks() + self._topology[op].total_enqueued_output_blocks() + waiting
        # The first operator holds the rows that are given.
        return place == 0 or held < self._data_context.get_config(_MOST)[place - 1]


def _told(step: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """A step, or an actor's class, that returns its errors as rows."""
    if not isinstance(step, type):
        return partial(call, step)

    class Told(step):  # type: ignore[misc, valid-type]
        def __call__(self, row: Row) -> Any:
            return call(super().__call__, row)

    return Told


def _row(step: Callable[[Row], Row], row: Row) -> Row:
    if row.get(_FAILURE):  # of a step before
        return row
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
