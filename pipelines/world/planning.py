"""Plans about the synthetic world: prompts for an LLM that schedules tools, and the right answers.

Each is one exchange of text: a plan, a repaired plan, the text of a step, or the reply.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pipelines.sample import Item, Turn
from pipelines.scheduling.plan_prompts import Asking, media_names
from pipelines.scheduling.tool_plans import Step, problem, to_json
from pipelines.world.captions import caption, where
from pipelines.world.conversations import Conversation, converse_by_turns, words
from pipelines.world.scenes import Motion, Scene, Subject, modality_of

# Those of several steps more often.
_KINDS = (
    *("describe_image", "make_image", "image_to_sound", "change", "everything", "remember"),
    *("describe_video", "make_video", "video_to_sound", "change", "image_to_video", "question"),
    *("describe_audio", "make_audio", "image_to_video", "two", "everything", "chat"),
)
_TASKS = ("plan", "reply", "plan", "words", "plan", "mend")
_FIRST = 1_000_000  # of the conversations: none that another set holds
_WORDINGS = 90


def converse_in_plans(seed: int, number: int) -> Conversation:
    """The `number`-th exchange; it depends only on the arguments, and contains no held-out combination."""
    task, index = _TASKS[number % len(_TASKS)], number // len(_TASKS) * len(_TASKS)
    while True:
        rng = np.random.default_rng([seed, index, number])
        whole = converse_by_turns(_KINDS, seed, _FIRST + int(rng.integers(_FIRST)))
        asked, answered = _exchange(task, whole, rng) or ("", "")
        if asked:
            turns = Turn(role="user", parts=(asked,)), Turn(role="assistant", parts=(answered,))
            return Conversation(kind=task, turns=turns, media={}, answers=())
        index += 1


def right_steps(conversation: Conversation, exchange: int) -> list[Step]:
    """The plan of one exchange: describe what is shown, then make what is wanted of it."""
    turn, names = conversation.turns[2 * exchange], media_names(conversation.turns)
    shown = [part for part in turn.parts if isinstance(part, Item)]
    steps = [Step(id=n, tool=f"describe_{i.modality}", input=names[i.name]) for n, i in enumerate(shown, start=1)]
    needs = tuple(step.id for step in steps)
    for subject in conversation.answers[exchange].made:
        wanted = _wanted(subject) if needs else words(subject)
        steps.append(Step(id=len(steps) + 1, tool=f"make_{modality_of(subject)}", needs=needs, input=wanted))
    return steps


def _wanted(subject: Subject) -> str:
    """What is wanted of what is shown."""
    match subject:
        case Scene():
            return f"it in {subject.colour}"
        case Motion():
            return f"it in {subject.colour} that moves {where(subject)}"
    return "its sound"


def _exchange(task: str, conversation: Conversation, rng: np.random.Generator) -> tuple[str, str] | None:
    """The prompt and the answer; None if the task does not apply."""
    exchange = int(rng.integers(len(conversation.answers)))
    steps = right_steps(conversation, exchange)
    turns = conversation.turns[: 2 * exchange + 1]
    names = media_names(turns)
    asking = Asking(turns, names)
    results = list(zip(steps, _results(conversation, exchange, rng), strict=True))
    match task:
        case "plan":
            return asking.plan(), to_json(steps)
        case "mend":
            spoilt = _spoilt(steps, rng)
            wrong = problem(spoilt, names.values())
            return (asking.mend(to_json(spoilt), wrong), to_json(steps)) if wrong else None
        case "words":
            open_steps = [(step, made) for step, made in results if step.verb == "make"]
            if not open_steps:
                return None
            step, made = open_steps[int(rng.integers(len(open_steps)))]
            if not step.needs:  # as one that is added because the reply must hold its medium
                step = replace(step, input=" ".join(part for part in turns[-1].parts if isinstance(part, str)))
            return asking.words(step, [found for found in results if found[0].id in step.needs]), made
    said = [part for part in conversation.turns[2 * exchange + 1].parts if isinstance(part, str)]
    return asking.reply(results), " ".join(said)


def _results(conversation: Conversation, exchange: int, rng: np.random.Generator) -> Iterator[str]:
    """The result of each step."""
    for part in conversation.turns[2 * exchange].parts:
        if isinstance(part, Item):
            yield caption(conversation.media[part.name], int(rng.integers(_WORDINGS)))
    for subject in conversation.answers[exchange].made:
        yield words(subject)


def _spoilt(steps: list[Step], rng: np.random.Generator) -> list[Step]:
    """A plan with a mistake, if one can be made."""
    if not steps:
        return []
    place = int(rng.integers(len(steps)))
    step, spoilt = steps[place], list(steps)
    match rng.integers(3):
        case 0:
            spoilt[place] = replace(step, needs=(len(steps) + int(rng.integers(1, 4)),))
        case 1:
            spoilt[place] = replace(step, needs=(step.id,))
        case _:
            spoilt[place] = replace(step, id=steps[place - 1].id)
    return spoilt
