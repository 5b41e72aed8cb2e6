"""The results of an exam: rows with intervals, chance and controls as a table, and examples to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs.common.cli import aligned
from jobs.scoring.exam_run import Sitting
from jobs.scoring.figures import wilson
from pipelines.inspect.verdicts import Verdict, verdict
from pipelines.media.codecs import encode
from pipelines.sample import Item, Media, Modality
from pipelines.storage.files import remove_tree, write_json
from pipelines.world.exam import Attempt, Case, ExamRow, Grades, chance, grade, score, shown

EXAMPLES = "examples"
MOST_EXAMPLES = 6  # per row: so many right ones, and as many wrong ones
_FIGURES = ("chance", "untrained", "shuffled", "from_text", "target")
_HEADS = ("n", *(name.replace("_", " ") for name in _FIGURES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The scores of a row, from 0 to 1: the mean over `n` conversations, its 95 % interval, chance and the other arms.

    None means not run or not applicable. `attributes` are the shares of conversations with each attribute right.
    """

    row: str
    title: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int
    chance: float | None = None
    untrained: float | None = None
    shuffled: float | None = None
    from_text: float | None = None
    target: float | None = None
    attributes: dict[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Whether the row reached its target."""
        return verdict(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """A conversation with its replies and their grades."""

    case: Case
    responses: Sequence[Attempt]
    grades: Grades


def grade_row(row: ExamRow, arms: Mapping[str, Sitting]) -> dict[str, list[Graded]]:
    """Grades a row's conversations in all arms; a row without kinds of its own grades those of all rows.

    The arm `untrained` is forced to produce the items, so it is not graded for producing them.
    """
    if not row.kinds:
        arms = {name: arms[name] for name in arms if name != "from_text"}
    if row.grading == "modalities":
        arms = {name: arms[name] for name in arms if name != "untrained"}
    return {
        name: [
            Graded(case=case, responses=responses, grades=grade(row, case.conversation, responses))
            for case, responses in sitting
            if case.row is row or not row.kinds
        ]
        for name, sitting in arms.items()
    }


def score_row(row: ExamRow, graded: Mapping[str, Sequence[Graded]]) -> Scored:
    """The scores of a row in all arms."""
    means = {name: _mean([score(row, one.grades) for one in found]) for name, found in graded.items()}
    found, value = graded["model"], means["model"]
    guesses = [chance(row, one.case.conversation) for one in found]
    assert value is not None
    low, high = wilson(value, len(found))
    return Scored(
        row=row.name,
        title=row.title,
        value=value,
        low=low,
        high=high,
        n=len(found),
        chance=_mean([guess for guess in guesses if guess is not None]),
        untrained=means.get("untrained"),
        shuffled=means.get("shuffled"),
        from_text=means.get("from_text"),
        target=row.target,
        attributes=_shares([one.grades for one in found]),
    )


def table(rows: Sequence[Scored], *, per_cent: bool = True) -> str:
    """The rows as an aligned table, in per cent or as plain values."""

    def cell(figure: float | None) -> str:
        if figure is None:
            return "-"
        if not per_cent:
            return f"{figure:.3f}"
        return f"{100 * figure:.1f}" if figure == 0 or figure >= 0.001 else f"{100 * figure:.1g}"

    lines: list[tuple[str, ...]] = [("%" if per_cent else "", "value", "95 %", *_HEADS, "")]
    for row in rows:
        interval = "-" if row.low is None else f"[{cell(row.low)}, {cell(row.high)}]"
        others = [cell(getattr(row, name)) for name in _FIGURES]
        lines.append((row.title, cell(row.value), interval, str(row.n), *others, row.verdict.words))
    return "\n".join(aligned(lines, left=(0, len(lines[0]) - 1)))


def write_examples(folder: Path, graded: Mapping[str, Sequence[Graded]]) -> None:
    """Writes up to six right and six wrong conversations of each row, with their media.

    Media shared by several rows are written once. Earlier contents of the folder are deleted.
    """
    if folder.exists():
        remove_tree(folder)
    folder.mkdir(parents=True)
    documents = []
    for row, conversations in graded.items():
        for right in (True, False):
            alike = [one for one in conversations if all(one.grades.values()) == right]
            documents += [{"row": row, **_example(folder, one)} for one in alike[:MOST_EXAMPLES]]
    write_json(folder / "examples.json", documents)


def _example(folder: Path, one: Graded) -> dict[str, Any]:
    asked, expected = one.case.conversation.turns[::2], one.case.conversation.turns[1::2]
    files, turns = shown(one.case), list[dict[str, Any]]()
    for question, answer, response in zip(asked, expected, one.responses, strict=True):
        captions = [(item.modality, item.caption) for item in answer.parts if isinstance(item, Item)]
        media = iter([encode(medium) for medium in response.media if medium is not None])
        spoken: list[list[str | tuple[Media, str]]] = [
            [(files[part.name], part.caption) if isinstance(part, Item) else part for part in question.parts],
            [
                (next(media), _taken(captions, part.modality)) if isinstance(part, Item) else part
                for part in response.parts
            ],
        ]
        for role, parts in zip(("user", "assistant"), spoken, strict=True):
            stem = f"{one.case.key}-{len(turns)}"
            turns.append({"role": role, "parts": [_part(folder, f"{stem}-{n}", p) for n, p in enumerate(parts)]})
    wanted = [part for turn in expected for part in turn.parts if isinstance(part, str)]
    return {
        "right": all(one.grades.values()),
        "grades": dict(one.grades),
        "wanted": " ".join(wanted),
        "turns": turns,
    }


def _taken(captions: list[tuple[Modality, str]], modality: Modality) -> str:
    """Pops the next caption of a modality; empty for an item that was not expected."""
    place = next((place for place, (of, _) in enumerate(captions) if of is modality), None)
    return "" if place is None else captions.pop(place)[1]


def _part(folder: Path, stem: str, part: str | tuple[Media, str]) -> dict[str, str]:
    if isinstance(part, str):
        return {"text": part}
    medium, caption = part
    file = folder / f"{stem}.{medium.format}"
    file.write_bytes(medium.data)
    return {"modality": medium.modality.value, "file": file.name, "caption": caption}


def _mean(values: Sequence[float]) -> float | None:
    # Rounded, so that a sum of thirds that equals the target reaches it.
    return round(sum(values) / len(values), 12) if values else None


def _shares(graded: Sequence[Grades]) -> dict[str, float]:
    """For each graded attribute, the share of right ones among the conversations that have it."""
    found: dict[str, list[bool]] = {}
    for grades in graded:
        for name, right in grades.items():
            found.setdefault(name, []).append(right)
    return {name: sum(rights) / len(rights) for name, rights in found.items()}
