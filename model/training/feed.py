"""Turns rows into each step's micro-batches, prefetched by a thread."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from queue import Queue
from threading import Event, Thread
from typing import Any, TypeVar

from model.core.batch import Batch, Example, collate
from model.parts.features import ItemFeatures
from pipelines.sample import Modality

Row = Mapping[str, Any]
T = TypeVar("T")
_END = object()


def features_of(row: Row) -> ItemFeatures:
    """The embeddings of a row's input items: from one sidecar of all, or from one of each modality."""
    found: dict[Modality | None, Any] = {None: row["encoder"]}
    found.update({modality: row.get(f"{modality}_features") for modality in Modality})
    return {key: values for key, values in found.items() if values is not None}


def micro_batches(
    rows: Iterable[Row], encode: Callable[[Row], Example], steps: range, number: int, pad_id: int
) -> Iterator[list[Batch]]:
    """Yields `number` micro-batches for each step; `rows` are sorted by `step` and `micro`.

    All ranks take the same number of micro-batches per step: a rank with fewer samples takes empty ones.
    """
    groups = groupby(rows, key=lambda row: int(row["step"]))
    pending = next(groups, None)
    for step in steps:
        batches = []
        if pending is not None and pending[0] == step:
            for _, members in groupby(pending[1], key=lambda row: int(row["micro"])):
                batches.append(collate([encode(row) for row in members], pad_id))
            pending = next(groups, None)
        assert len(batches) <= number, f"step {step} has {len(batches)} micro-batches, more than {number}"
        yield batches + [collate([], pad_id) for _ in range(number - len(batches))]
    assert pending is None, "rows must be sorted by step, with none beyond the last"


def prefetch(items: Iterable[T], size: int = 2) -> Iterator[T]:
    """Yields the same items, prefetched by a thread up to `size` ahead; its errors are raised here."""
    queue: Queue[Any] = Queue(size)
    stopped = Event()

    def work() -> None:
        try:
            for item in items:
                queue.put((item, None))
                if stopped.is_set():
                    return
            queue.put((_END, None))
        except BaseException as error:
            queue.put((_END, error))

    Thread(target=work, daemon=True, name="feed").start()
    try:
        while True:
            item, error = queue.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        while not queue.empty():
            queue.get_nowait()
