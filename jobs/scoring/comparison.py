"""Compares the architectures on the world's exam: accuracy and cost on the same conversations, one at a time.

A third arm feeds the decoders the true captions: an upper bound for an LLM that controls them by text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

from jobs.common.cli import aligned
from jobs.replies.options import ARCHITECTURES, Architecture, decoder_settings
from jobs.replies.respond import respond_batch
from jobs.scoring.exam_run import MAX_ITEMS, noise
from jobs.scoring.figures import wilson
from model.decoders.wish import Wish
from model.inference.query import Query, Sampling
from pipelines.embed.encoding import VIDEO_FPS
from pipelines.media import codecs
from pipelines.progress import track
from pipelines.sample import Decoded, Item, Modality, Turn
from pipelines.world.exam import Attempt, Case, ExamRow, cases, grade, score, shown

if TYPE_CHECKING:
    from model.inference.responder import Responder

CAPTIONS = "captions"
_WARM_UP = 2  # conversations per row before timing starts
_LONGEST_ANSWER = 128  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One arm on one row: the share of correct conversations with its 95 % interval, and the cost of a reply.

    `seconds` and `seconds_p95` are the median and the 95th percentile of the time of a whole reply; `read` and
    `written` are the LLM's mean tokens per reply. `failures` counts failed replies, which also count as wrong.
    """

    row: str
    title: str
    arm: str
    value: float
    low: float
    high: float
    n: int
    replies: int
    seconds: float
    seconds_p95: float
    read: float
    written: float
    failures: int


@dataclass(frozen=True, slots=True)
class _Held:
    """A reply: what is graded, its time in seconds, tokens read and written, and whether it failed."""

    response: Attempt
    seconds: float
    read: int = 0
    written: int = 0
    failed: bool = False


_Settings = Mapping[Modality, Mapping[str, int]]
_Hold = Callable[[Case, Mapping[str, Decoded]], list[_Held]]


def compare(
    responder: "Responder", rows: Sequence[ExamRow], count: int, seed: int, steps: int | None
) -> list[Compared]:
    """Runs the first `count` conversations of each row in all arms, interleaved so that load affects all alike."""
    compared = []
    with track("compare", len(rows) * count, "conversations") as bar:
        for row in rows:
            chosen = cases(row, count, seed)
            arms = _arms(chosen, responder, steps)
            for case in chosen[:_WARM_UP]:
                for hold in arms.values():
                    hold(case, _shown(case))
            held: dict[str, list[list[_Held]]] = {arm: [] for arm in arms}
            for case in chosen:
                media = _shown(case)
                for arm, hold in arms.items():
                    held[arm].append(hold(case, media))
                bar.advance(1)
            compared += [_compared(row, arm, chosen, held[arm]) for arm in arms]
    return compared


def table(rows: Sequence[Compared]) -> str:
    """The rows as an aligned table; shares in per cent."""
    head = ("", "arm", "right", "95 %", "n", "s p50", "s p95", "read", "written", "failed")
    lines = [head]
    for row in rows:
        interval = f"[{100 * row.low:.1f}, {100 * row.high:.1f}]"
        costs = (f"{row.seconds:.2f}", f"{row.seconds_p95:.2f}", f"{row.read:.0f}", f"{row.written:.0f}")
        title = row.title if row.arm == ARCHITECTURES[0] else ""
        lines.append((title, row.arm, f"{100 * row.value:.1f}", interval, str(row.n), *costs, str(row.failures)))
    return "\n".join(aligned(lines, left=(0, 1)))


def _shown(case: Case) -> dict[str, Decoded]:
    return {name: codecs.decode(medium, fps=VIDEO_FPS) for name, medium in shown(case).items()}


def _arms(chosen: Sequence[Case], responder: "Responder", steps: int | None) -> dict[str, _Hold]:
    settings = decoder_settings(steps)
    arms: dict[str, _Hold] = {name: _converse(name, responder, settings) for name in ARCHITECTURES}
    if any(answer.made for case in chosen for answer in case.conversation.answers):
        arms[CAPTIONS] = _captions(responder, settings)
    return arms


def _converse(architecture: Architecture, responder: "Responder", settings: _Settings) -> _Hold:
    """Conversations in which each reply follows the arm's own earlier replies."""

    def hold(case: Case, media: Mapping[str, Decoded]) -> list[_Held]:
        held, turns = list[_Held](), list[Turn]()
        for asked in case.conversation.turns[::2]:
            turns.append(asked)
            made = sum(len(one.response.media) for one in held)
            query = Query(
                turns=tuple(turns),
                media=media,
                sampling=Sampling(max_new_tokens=_LONGEST_ANSWER, max_items=MAX_ITEMS, seed=noise(case, made)),
                settings=settings,
            )
            started = perf_counter()
            [found] = respond_batch(architecture, responder, [query])
            seconds = perf_counter() - started
            if isinstance(found, ValueError):
                held.append(_Held(Attempt(parts=(), media=()), seconds, failed=True))
            else:
                response = Attempt(parts=found.parts, media=found.media)
                held.append(_Held(response, seconds, found.prompt_tokens, found.tokens))
            turns.append(Turn(role="assistant", parts=held[-1].response.parts))
        return held

    return hold


def _captions(responder: "Responder", settings: _Settings) -> _Hold:
    """The expected replies, with media made from their captions."""

    def hold(case: Case, media: Mapping[str, Decoded]) -> list[_Held]:
        held, number = list[_Held](), 0
        for turn in case.conversation.turns[1::2]:
            items = [part for part in turn.parts if isinstance(part, Item)]
            wishes = [
                Wish(item.modality, item.caption, noise(case, place), settings.get(item.modality, {}))
                for place, item in enumerate(items, start=number)
            ]
            started, number = perf_counter(), number + len(items)
            made = tuple(responder.render(wishes))
            held.append(_Held(Attempt(parts=turn.parts, media=made), perf_counter() - started))
        return held

    return hold


def _compared(row: ExamRow, arm: str, chosen: Sequence[Case], held: Sequence[list[_Held]]) -> Compared:
    scores = [
        score(row, grade(row, case.conversation, [one.response for one in of_case]))
        for case, of_case in zip(chosen, held, strict=True)
    ]
    replies = [one for of_case in held for one in of_case]
    value, seconds = sum(scores) / len(scores), sorted(one.seconds for one in replies)
    low, high = wilson(value, len(scores))
    return Compared(
        row=row.name,
        title=row.title,
        arm=arm,
        value=value,
        low=low,
        high=high,
        n=len(scores),
        replies=len(replies),
        seconds=median(seconds),
        seconds_p95=seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))],
        read=sum(one.read for one in replies) / len(replies),
        written=sum(one.written for one in replies) / len(replies),
        failures=sum(one.failed for one in replies),
    )
