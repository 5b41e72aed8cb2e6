"""Plans of tool calls: their format, and whether they are valid.

A tool describes a medium that the user has shown, or makes one from words; text is all that goes between them. A step
that needs what others found has its words written once these are there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal

from pipelines.sample import Modality

MOST_STEPS = 12
LONGEST_INPUT = 400  # characters of a step's input
Verb = Literal["describe", "make"]
TOOLS: Mapping[str, tuple[Verb, Modality]] = {
    f"{verb}_{modality}": (verb, modality) for verb in ("describe", "make") for modality in Modality
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One use of a tool, after the steps that it `needs`.

    `input` is the name of a medium to be described, or what to make: the words of it where it needs nothing, else what
    is wanted of what the other steps find.
    """

    id: int
    tool: str
    needs: tuple[int, ...] = ()
    input: str

    @property
    def verb(self) -> Verb:
        """Whether the step describes or makes a medium."""
        return TOOLS[self.tool][0]

    @property
    def modality(self) -> Modality:
        """The modality of the medium that the step describes or makes."""
        return TOOLS[self.tool][1]


def to_json(steps: Iterable[Step]) -> str:
    """A plan as the LLM writes it."""
    return json.dumps({"steps": [asdict(step) for step in steps]}, ensure_ascii=False, separators=(",", ":"))


def from_json(text: str) -> tuple[Step, ...]:
    """Parses a plan; raises ValueError if it is invalid, for example cut off."""
    try:
        steps = json.loads(text)["steps"]
        return tuple(
            Step(
                id=int(step["id"]),
                tool=str(step["tool"]),
                needs=tuple(int(need) for need in step["needs"]),
                input=" ".join(str(step["input"]).split()),
            )
            for step in steps
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"it is no plan in JSON: {type(error).__name__}") from None


def problem(steps: Sequence[Step], names: Iterable[str], max_items: int | None = None) -> str | None:
    """What is wrong with a plan about media of these names, in one line; None if it is valid.

    It must be a graph without circles, whose steps have numbers of their own, describe media that are there, and make
    no more than `max_items`.
    """
    numbers, known = [step.id for step in steps], set(names)
    if len(steps) > MOST_STEPS:
        return f"there are {len(steps)} steps, {MOST_STEPS} at most may be"
    if doubled := next((number for number in numbers if numbers.count(number) > 1), None):
        return f"two steps have the number {doubled}"
    for step in steps:
        if step.tool not in TOOLS:
            return f"step {step.id} uses {step.tool}, which is no tool"
        if missing := next((need for need in step.needs if need not in numbers), None):
            return f"step {step.id} needs step {missing}, which is not there"
        if step.verb == "describe" and (step.input not in known or not step.input.startswith(step.modality)):
            return f"step {step.id} describes {step.input or 'nothing'}, which is no {step.modality} shown"
        if not step.input:
            return f"step {step.id} does not say what to make"
    try:
        TopologicalSorter({step.id: step.needs for step in steps}).prepare()
    except CycleError as error:
        circle = sorted(set(error.args[1]))
        if len(circle) == 1:
            return f"step {circle[0]} needs itself"
        return f"steps {', '.join(map(str, circle))} need each other"
    made = sum(step.verb == "make" for step in steps)
    if max_items is not None and made > max_items:
        return f"it makes {made} media, {max_items} at most may be"
    return None


def schema(names: Iterable[str]) -> dict[str, Any]:
    """The JSON schema of plans about the media of these names: it leaves no choice but tools, needs and inputs."""
    shown: dict[Modality, list[str]] = {}
    for name in names:
        shown.setdefault(Modality(name.partition("-")[0]), []).append(name)
    words = {"type": "string", "minLength": 1, "maxLength": LONGEST_INPUT}
    steps = [_step_schema([f"describe_{modality}"], {"enum": found}) for modality, found in shown.items()]
    steps.append(_step_schema([f"make_{modality}" for modality in Modality], words))
    return _object({"steps": {"type": "array", "maxItems": MOST_STEPS, "items": {"anyOf": steps}}})


def _step_schema(tools: list[str], given: dict[str, Any]) -> dict[str, Any]:
    number = {"type": "integer", "minimum": 1, "maximum": MOST_STEPS}
    needs = {"type": "array", "items": number, "maxItems": MOST_STEPS}
    return _object({"id": number, "tool": {"enum": tools}, "needs": needs, "input": given})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
