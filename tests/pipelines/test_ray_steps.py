"""Steps of Ray Data: every row once, and errors as they were raised."""

import errno
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
import ray.data

from pipelines import ray_steps
from pipelines.ray_steps import RowStep, flow_rows, map_rows

Row = dict[str, Any]


def work(row: Row) -> Row:
    if row["number"] == 3:
        raise OSError(errno.ENOSPC, "No space left on device", "/shards/a.tar")
    if row["number"] == 4:
        raise ValueError("a.json: not valid JSON")
    return {"square": row["number"] ** 2}


def works(row: Row) -> Iterator[Row]:
    for number in range(row["number"] + 1):
        yield work({"number": number})


class Actor:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def __call__(self, row: Row) -> Row:
        return work({"number": row["number"] + self._offset})


def flow(rows: list[Row], step: Callable[..., Any], **options: Any) -> Iterator[Row]:
    """A step that gives several rows for one, and one behind it that has nothing to do with what failed."""
    return flow_rows(rows, [RowStep(step, 1, options, several=True), RowStep(copied, 1, {"num_cpus": 0.5})])


def copied(row: Row) -> Row:
    return {"square": row["square"]}


def prepared(row: Row, folder: Path) -> Row:
    return row | {"before": len(list(folder.iterdir()))}


def taken(row: Row, folder: Path) -> Row:
    time.sleep(0.2)
    (folder / str(row["number"])).touch()
    return row


@pytest.mark.ray
def test_a_step_waits_for_the_next_one_so_that_little_is_held(local_ray: None, tmp_path: Path) -> None:
    steps = [
        RowStep(partial(prepared, folder=tmp_path), 2, {"num_cpus": 0.5}),
        RowStep(partial(taken, folder=tmp_path), 1, {"num_cpus": 0.4}),
    ]
    rows = list(flow_rows([{"number": number} for number in range(12)], steps))
    # How many were prepared before each, and not yet taken: two that wait, one that is taken, and one more in a race.
    ahead = [sum(other["before"] <= row["before"] for other in rows) - row["before"] for row in rows]
    assert max(ahead) <= 4


ACTORS: dict[str, Any] = {"fn_constructor_args": (1,), "compute": ray.data.ActorPoolStrategy(size=1)}


@pytest.fixture(autouse=True)
def by_value() -> Iterator[None]:
    """Workers cannot import this module."""
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.mark.ray
def test_very_many_rows_share_tasks(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_steps, "_MOST_TASKS", 2)
    monkeypatch.setattr(ray_steps, "_TASKS_A_CORE", 1)
    rows = [{"number": number} for number in range(5, 60)]
    assert sorted(row["square"] for row in map_rows(rows, work)) == [row["number"] ** 2 for row in rows]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("mapped", "step", "options", "expected"),
    [
        (map_rows, work, {}, [0, 1, 4]),
        (map_rows, Actor, ACTORS, [1, 4]),
        (flow, works, {}, [0, 0, 0, 1, 1, 4]),
    ],
)
def test_every_row_is_worked_on_once_and_a_full_disk_is_told_as_the_system_tells_it(
    local_ray: None,
    capfd: pytest.CaptureFixture[str],
    mapped: Callable[..., Iterator[Row]],
    step: Callable[..., Any],
    options: dict[str, Any],
    expected: list[int],
) -> None:
    good = [{"number": number} for number in range(len(set(expected)))]
    assert sorted(row["square"] for row in mapped(good, step, **options)) == expected
    bad = 2 if step is Actor else 3
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device: '/shards/a\.tar'$"):
        list(mapped([{"number": bad}], step, **options))
    if mapped is map_rows:
        with pytest.raises(ValueError, match=r"^a\.json: not valid JSON$"):
            list(mapped([{"number": bad + 1}], step, **options))
    assert "Traceback" not in capfd.readouterr().err
    assert list(mapped([], step, **options)) == []
