"""Whether a row of scores meets its target: one rule for the table in the terminal and for the page."""

from dataclasses import dataclass
from typing import Any

ALLOWANCE = 0.05  # how far making may stay under the decoder that is fed with the text


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict on a row of scores: `met`, `missed`, or `reported` if it has no target."""

    kind: str
    words: str
    reason: str = ""


def verdict(row: dict[str, Any]) -> Verdict:
    """Whether a row of scores reached its target and, where the text was fed too, stayed close to that."""
    value, target, from_text = row["value"], row["target"], row.get("from_text")
    if target is None:
        return Verdict(kind="reported", words="reported")
    if value < target:
        return Verdict(kind="missed", words="MISSED", reason=f"{points(target - value)} under the target")
    if from_text is not None and round(from_text - value, 9) > ALLOWANCE:
        return Verdict(kind="missed", words="MISSED", reason=f"{points(from_text - value)} under from text")
    return Verdict(kind="met", words="met")


def points(share: float) -> str:
    """A difference of shares, in percentage points."""
    return f"{100 * share:.1f} points"
