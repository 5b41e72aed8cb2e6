"""The account of rejected rows: how many for which reason, whether that is too many, and what can be done about it."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.sample import Reject
from pipelines.storage.files import read_table
from pipelines.storage.shards import REJECTS

_BATCH_ROWS = 4096
_RETRY = "--retry-rejected tries them again"
_RAISE = "if they are wanted, raise the limit: --media limits."
_FIELDS = "the catalog entry's `fields:` names the columns that are meant, as in `fields: {caption: my_text}`"
# What can be done about a reason that begins so; the first that fits counts. For others the data are to be mended.
_ADVICE = {
    "path outside the root: .* is a link ": "give --follow-links, or the folder they lead to as a further --data",
    "path outside the root": "the catalog entry's `media:` is the folder below which media must lie",
    "missing field": _FIELDS,
    r"missing member: no (caption|\.json)": f"where the JSON calls it otherwise, {_FIELDS}",
    "missing file: .* (URL|failed)": "download them first: nothing is fetched here",
    "missing file": f"the catalog entry's `media:` names their folder, `media_name:` their names; then {_RETRY}",
    "too large: .* pixels": f"{_RAISE}max_pixels=N",
    "too large: .* decoded bytes": f"{_RAISE}max_decoded_bytes=BYTES",
    "too large: .* memory": f"{_RAISE}max_memory=BYTES",
    "too large": f"{_RAISE}max_bytes=BYTES",
    "too long: .* frames": f"{_RAISE}max_frames=N",
    "too long: .* s, the limit": f"{_RAISE}max_seconds=N",
    "too short: .* the limit": "if they are wanted, lower the limit: --media audio.min_seconds=SECONDS",
    "duplicate key": "where they differ, name the column that tells them apart: `fields: {id: my_number}`",
    "damaged text": "save the file as UTF-8, from where its text is whole",
    r"unreadable: .*\b(HEIC|HEIF|JPEG XL)\b": f"install a plugin of Pillow that reads them; then {_RETRY}",
    "unreadable: the tar breaks off": "fetch or pack the tar again; what stands before the damage was read",
    "unreadable|empty file|decoder": f"fetch them again; after a bad disk or network, {_RETRY}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """How many rows were rejected for a reason, and one of them: one about which something can be done, if any."""

    count: int
    example: Reject


class TooManyRejected(ValueError):
    """More rows of a dataset were rejected than may be; its shards were not finished."""


def by_reason(rejects: Iterable[Reject]) -> dict[str, int]:
    """How many rows were rejected by the category that begins their reason."""
    return dict(sorted(Counter(reject.reason.partition(":")[0] for reject in rejects).items()))


def accounts(dataset: Path) -> dict[str, Account]:
    """The rejected rows in a dataset's folder, by the category that begins their reason; the commonest first."""
    counts, examples = Counter[str](), dict[str, Reject]()
    for batch in read_table(dataset / REJECTS).to_batches(max_chunksize=_BATCH_ROWS):
        for fields in batch.to_pylist():
            reject = Reject(**fields)
            category = reject.reason.partition(":")[0]
            counts[category] += 1
            known = examples.setdefault(category, reject)
            if known is not reject and not advice(known.reason) and advice(reject.reason):
                examples[category] = reject
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {category: Account(count=count, example=examples[category]) for category, count in ordered}


def advice(reason: str) -> str:
    """What can be done so that rows rejected for a reason come in; empty where it is the data that are to be mended."""
    return next((what for pattern, what in _ADVICE.items() if re.match(pattern, reason)), "")


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
