"""The account of rejected rows: how many for which reason, and whether that is too many."""

from collections import Counter
from collections.abc import Iterable, Mapping

from pipelines.sample import Reject
from pipelines.storage.shards import REJECTS


class TooManyRejected(ValueError):
    """More rows of a dataset were rejected than may be; its shards were not finished."""


def by_reason(rejects: Iterable[Reject]) -> dict[str, int]:
    """How many rows were rejected by the category that begins their reason."""
    return dict(sorted(Counter(reject.reason.partition(":")[0] for reject in rejects).items()))


def check_rejected(dataset: str, rows: int, rejected: Mapping[str, int], limit: float) -> None:
    """Does nothing while at most `limit` (0 to 1) of the rows are rejected.

    Raises:
        TooManyRejected: there are more; its message has the three commonest reasons.
    """
    total = sum(rejected.values())
    if total <= limit * rows:
        return
    commonest = sorted(rejected.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
    reasons = ", ".join(f"{count} {reason}" for reason, count in commonest)
    raise TooManyRejected(
        f"{dataset}: {total} of {rows} rows rejected, --max-rejected allows {limit:.0%}; most for: {reasons}"
        f" (each row with its reason in {dataset}/{REJECTS})"
    )
