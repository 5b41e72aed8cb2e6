"""Counts for a cluster's dashboards: rows, rejects and bytes, by dataset, through Ray's own metrics."""

from functools import cache

from ray.util.metrics import Counter

DESCRIPTIONS = {
    "rows": "rows that became samples",
    "rejects": "rows that were rejected",
    "bytes": "bytes written to shards",
    "items": "captions and media that were embedded",
}


def count(dataset: str, **amounts: int) -> None:
    """Adds to the counters `nextgpt_<name>` of a dataset, from inside a task or actor of Ray."""
    for name, amount in amounts.items():
        if amount:
            _counter(name).inc(amount, tags={"dataset": dataset})


@cache
def _counter(name: str) -> Counter:
    return Counter(f"nextgpt_{name}", description=DESCRIPTIONS[name], tag_keys=("dataset",))
