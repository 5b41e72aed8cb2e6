"""Prompts for an LLM that schedules tools: for a plan, a repaired plan, the text of a step, and the reply."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.sample import Item, Modality, Part, Turn
from pipelines.scheduling.tool_plans import Step

# The first lines of the four kinds of prompts. A model that has learnt plans knows them by these alone.
PLAN, MEND, WRITE, REPLY = (
    "Plan the reply.",
    "Mend the plan.",
    "Write what step {} makes.",
    "Reply to the user.",
)
# Others are told more.
GUIDES = {
    PLAN: """\
You answer a user with the help of tools. Write the plan of tool calls as JSON, nothing else.
The tools describe_image, describe_video and describe_audio tell in words what the user has shown; their input is the
name of the medium. The tools make_image, make_video and make_audio make a medium from words; their input says what to
make. "needs" lists the numbers of the steps whose results a step builds on. Make a medium only where the user wants
one; where words are enough, the plan has no steps.
Example. user: Draw a cat on a roof.
{"steps":[{"id":1,"tool":"make_image","needs":[],"input":"a cat on a roof"}]}
Example. user: (image-1) What would this sound like?
{"steps":[{"id":1,"tool":"describe_image","needs":[],"input":"image-1"},\
{"id":2,"tool":"make_audio","needs":[1],"input":"its sound"}]}
Example. user: Thank you!
{"steps":[]}

""",
    MEND: """\
A plan of tool calls as JSON has a mistake, which the last line tells. Write the plan without it, nothing else.

""",
    WRITE: """\
Write a short caption of the medium that the last line asks for, using the results before it. Nothing else.

""",
    REPLY: """\
Reply to the user in words. The numbered lines tell what tools found in the user's media and what they made, which the
user sees. Do not mention the tools.

""",
}


def media_names(turns: Sequence[Turn]) -> dict[str, str]:
    """The names of the user's media in plans, by item name: `image-1`, `video-1`, `image-2` ..."""
    names: dict[str, str] = {}
    counts = dict.fromkeys(Modality, 0)
    for item in (part for turn in turns if turn.role == "user" for part in turn.parts if isinstance(part, Item)):
        if item.name and item.name not in names:
            counts[item.modality] += 1
            names[item.name] = f"{item.modality}-{counts[item.modality]}"
    return names


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks about one dialogue: `turns`, the last the user's, with its media by their names in plans.

    Each turn is one line, so that no user's words can pass for something else. With `guides` the prompts say what is
    to be done to an LLM that has not learnt it.
    """

    turns: Sequence[Turn]
    names: Mapping[str, str]
    guides: bool = False

    def plan(self) -> str:
        """The prompt for a plan."""
        return self._prompt(PLAN)

    def mend(self, written: str, wrong: str) -> str:
        """The prompt for a repaired plan, with what is wrong with the one that was written."""
        return self._prompt(MEND, lines=[_line(written), wrong])

    def words(self, step: Step, needed: Iterable[tuple[Step, str]]) -> str:
        """The prompt for the text of a step, given the results of the steps that it needs."""
        return self._prompt(WRITE, step.id, lines=[*map(_result, needed), _result((step, step.input))])

    def reply(self, results: Iterable[tuple[Step, str]]) -> str:
        """The prompt for the reply, given what the steps found and made."""
        return self._prompt(REPLY, lines=[*map(_result, results)])

    def _prompt(self, title: str, *values: object, lines: Iterable[str] = ()) -> str:
        said = [f"{turn.role}: {_line(' '.join(self._part(turn, part) for part in turn.parts))}" for turn in self.turns]
        guide = GUIDES[title] if self.guides else ""
        return guide + "\n".join([title.format(*values), *said, *lines])

    def _part(self, turn: Turn, part: Part) -> str:
        if isinstance(part, str):
            return part
        if turn.role == "user":
            return f"({self.names[part.name]})" if part.name in self.names else part.caption
        return f"({part.modality})"


def _result(of_step: tuple[Step, str]) -> str:
    step, result = of_step
    return f"{step.id} {step.tool}: {_line(result)}"


def _line(text: str) -> str:
    return " ".join(text.split())
