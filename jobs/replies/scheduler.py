"""The other architecture of the tutorial: the LLM plans tool calls, and only text passes between it and the tools.

The tools are parts of the same model: its encoder and LLM describe a medium, its decoders make one from a prompt by
their own text encoders. Nothing is run here: `prepare` yields queries, and a driver sends it the replies.
"""

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from typing import Any

from model.decoders.wish import Wish
from model.inference.query import Query, Reply, Sampling, TooLong, text_of
from pipelines.sample import Item, Part, Turn
from pipelines.scheduling.plan_prompts import Asking, media_names
from pipelines.scheduling.tool_plans import Step, from_json, problem, schema, to_json
from pipelines.views import CAPTION_PROMPT

DATASET = "plan_instruction"  # of the catalog: a model trained on it knows the format of plans
_PLAN_TOKENS = 384
_WORDS_TOKENS = 64  # of a description, and of a prompt for a decoder


class NoPlan(ValueError):
    """The LLM wrote no valid plan, even after it was told what was wrong."""

    def __init__(self, wrong: str) -> None:
        super().__init__(f"the model found no plan: {wrong}")


@dataclass(frozen=True, slots=True)
class Preparation:
    """How to ask for a reply: the last query, the media to make meanwhile, and the plan that was carried out in JSON.

    `prompt_tokens` and `tokens` count what the LLM read and wrote so far.
    """

    query: Query
    wishes: tuple[Wish, ...] = ()
    plan: str = ""
    prompt_tokens: int = 0
    tokens: int = 0

    def parts(self, said: tuple[Part, ...]) -> tuple[Part, ...]:
        """The reply in parts: what the last query gave, then the media made meanwhile."""
        return (*said, *(Item(modality=wish.modality) for wish in self.wishes))


Asks = Generator[Sequence[Query], Sequence[Reply], Preparation]


def needs_guides(stages: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an LLM needs instructions on how to plan: unless one of its training stages included plans."""
    return not any(DATASET in stage.get("data", ()) for stage in stages)


def prepare(query: Query, *, guides: bool) -> Asks:
    """Plans a reply and carries the plan out, up to making the media and writing the final text.

    Yields queries that may be answered side by side, and is sent their replies. An invalid plan is repaired once.
    Required media that no step makes get a step of their own.

    Raises NoPlan.
    """
    return (yield from _Scheduler(query, guides).run())


class _Scheduler:
    """The state of one reply."""

    def __init__(self, query: Query, guides: bool) -> None:
        self._query = query
        self._asking = Asking(query.turns, media_names(query.turns), guides)
        self._prompt_tokens = self._tokens = 0

    def run(self) -> Asks:
        steps, added = yield from self._plan()
        results = yield from self._carry_out(steps, added)
        made = [step for step in steps if step.verb == "make"]
        seed, settings = self._query.sampling.seed, self._query.settings
        words = replace(self._query.sampling, max_items=0)
        return Preparation(
            query=_words_query(self._asking.reply((step, results[step.id]) for step in steps), words),
            wishes=tuple(
                Wish(step.modality, results[step.id], seed + number, settings.get(step.modality, {}))
                for number, step in enumerate(made)
            ),
            # As it was carried out: what is made is described in its final words.
            plan=to_json([replace(step, input=results[step.id]) if step in made else step for step in steps]),
            prompt_tokens=self._prompt_tokens,
            tokens=self._tokens,
        )

    def _ask(self, queries: Sequence[Query]) -> Generator[Sequence[Query], Sequence[Reply], list[str]]:
        replies = yield queries
        self._prompt_tokens += sum(reply.prompt_tokens for reply in replies)
        self._tokens += sum(reply.tokens for reply in replies)
        return [reply.text for reply in replies]

    def _plan(self) -> Generator[Sequence[Query], Sequence[Reply], tuple[list[Step], set[int]]]:
        """The steps, and which of them were added because the query requires their media."""
        while True:
            try:
                [written] = yield from self._ask([self._plan_query(self._asking.plan())])
                break
            except TooLong:  # Drop the oldest exchange, as in any dialogue.
                turns = self._asking.turns[2:]
                if not turns:
                    raise
                self._asking = replace(self._asking, turns=turns)
        steps, wrong = self._read(written)
        if wrong:
            [written] = yield from self._ask([self._plan_query(self._asking.mend(written, wrong))])
            steps, wrong = self._read(written)
        if wrong:
            raise NoPlan(wrong)
        return self._with_required(steps)

    def _plan_query(self, asked: str) -> Query:
        shown = schema(name for item, name in self._asking.names.items() if item in self._query.media)
        sampling = Sampling(max_new_tokens=_PLAN_TOKENS, least_room=_PLAN_TOKENS, schema=json.dumps(shown))
        return _words_query(asked, sampling)

    def _read(self, written: str) -> tuple[list[Step], str | None]:
        try:
            steps = list(from_json(written))
        except ValueError as error:
            return [], str(error)
        return steps, problem(steps, self._asking.names.values(), self._query.sampling.max_items)

    def _with_required(self, steps: list[Step]) -> tuple[list[Step], set[int]]:
        made = [step.modality for step in steps if step.verb == "make"]
        missing = [modality for modality in self._query.require if modality not in made]
        first = max((step.id for step in steps), default=0) + 1
        needs = tuple(step.id for step in steps if step.verb == "describe")
        said = text_of(self._query.turns[-1].parts)
        added = [
            Step(id=number, tool=f"make_{modality}", needs=needs, input=said)
            for number, modality in enumerate(missing, start=first)
        ]
        return steps + added, {step.id for step in added}

    def _carry_out(
        self, steps: Sequence[Step], added: set[int]
    ) -> Generator[Sequence[Query], Sequence[Reply], dict[int, str]]:
        """The result of each step, by its number; steps whose needs are met run side by side."""
        by_number = {step.id: step for step in steps}
        results = {step.id: step.input for step in steps if step.verb == "make"}
        sorter = TopologicalSorter({step.id: step.needs for step in steps})
        sorter.prepare()
        while sorter.is_active():
            ready = sorted(sorter.get_ready())
            asked: dict[int, Query] = {}
            for step in map(by_number.__getitem__, ready):
                if step.verb == "describe":
                    asked[step.id] = self._describing(step)
                elif step.needs or step.id in added:
                    needed = [(by_number[need], results[need]) for need in step.needs]
                    asked[step.id] = _words_query(self._asking.words(step, needed), _WORDS)
            if asked:
                texts = [text.strip('" ') for text in (yield from self._ask(list(asked.values())))]
                results |= {number: text or results.get(number, "-") for number, text in zip(asked, texts, strict=True)}
            sorter.done(*ready)
        return results

    def _describing(self, step: Step) -> Query:
        name = next(item for item, name in self._asking.names.items() if name == step.input)
        parts = (Item(modality=step.modality, name=name), CAPTION_PROMPT)
        media = {name: self._query.media[name]}
        return Query(turns=[Turn(role="user", parts=parts)], media=media, sampling=_WORDS)


_WORDS = Sampling(max_new_tokens=_WORDS_TOKENS, max_items=0)


def _words_query(asked: str, sampling: Sampling) -> Query:
    return Query(turns=[Turn(role="user", parts=(asked,))], sampling=sampling)
