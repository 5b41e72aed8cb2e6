"""The exam on the synthetic world: its conversations, their grading, and the scores of guessing.

The caller runs the model; its attempts are graded by what oracles see, hear and read in them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Literal

from pipelines.media.codecs import encode
from pipelines.sample import Decoded, Item, Media, Modality, Part
from pipelines.world.captions import NOUNS
from pipelines.world.conversations import Conversation, Expected, converse
from pipelines.world.oracles import grade as grade_medium
from pipelines.world.oracles import read, read_text
from pipelines.world.render import render
from pipelines.world.scenes import (
    ATTRIBUTES,
    HARD_EVERY,
    MELODIES,
    SPEEDS,
    Motion,
    Scene,
    Sound,
    Subject,
    attributes,
    modality_of,
)
from pipelines.world.small_talk import NUM_REPLIES

SEED = 1_000_000  # far from those that worlds to train on are drawn from
_FIRST_VARIANT = 10_000_000  # likewise of what is drawn
Grades = dict[str, bool]
Grading = Literal["attributes", "whole", "modalities", "well_formed"]
_NUM_VALUES = {name: len(values) for of_one in ATTRIBUTES.values() for name, values in of_one.items()}
# The additional attributes of harder subjects, and their values.
_HARDER = {"speed": tuple(filter(None, SPEEDS)), "melody": tuple(filter(None, MELODIES))}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamRow:
    """One row of the table: how many of the answers in conversations of `kinds` are right; of all where it has none.

    By `grading` a conversation counts for

    * `attributes`: the share of attributes that are right in its first answer: read from the medium where one is to be
      made, else named in the words;
    * `whole`: 1 where all is right in all answers: the attributes that the words must name, those of every medium, and
      the modalities; else 0;
    * `modalities`: the share of answers that hold the right number of items of each modality, and words if none;
    * `well_formed`: the share of answers whose signal tokens are whole groups.

    A row's value is the mean over its conversations. Where `is_newly_worded`, users speak in frames that are in no
    training data, and the row stands beside one of frames that are. One without a `target` is reported, not required;
    `hard` ones are about two objects in a scene, melodies and unusual speeds. A model that is through stage 1 alone has
    a target of its own.
    """

    name: str
    title: str
    kinds: tuple[str, ...] = ()
    grading: Grading = "attributes"
    target: float | None = None
    stage_1_target: float | None = None
    hard: bool = False
    is_newly_worded: bool = False


_CASES = {
    "image_to_sound": "T+I to T+A",
    "video_to_sound": "T+V to T+A",
    "image_to_video": "T+I to T+I+V",
    "everything": "T to T+I+V+A",
}
_HARD = {Modality.IMAGE: "hard: two objects", Modality.VIDEO: "hard: speeds", Modality.AUDIO: "hard: melodies"}


def _rows() -> Iterator[ExamRow]:
    for modality, noun in NOUNS.items():
        kinds = (f"describe_{modality}",)
        yield ExamRow(
            name=f"understand_{modality}", title=f"{noun} to words", kinds=kinds, target=0.9, stage_1_target=0.7
        )
    for modality, noun in NOUNS.items():
        yield ExamRow(name=f"make_{modality}", title=f"words to {noun}", kinds=(f"make_{modality}",), target=0.9)
    yield ExamRow(name="modalities", title="right modalities", grading="modalities", target=0.99)
    yield ExamRow(name="well_formed", title="whole signal groups", grading="well_formed", target=1.0)
    for kind, title in _CASES.items():
        yield ExamRow(name=f"case_{kind}", title=title, kinds=(kind,), grading="whole", target=0.85)
    yield ExamRow(name="case_two", title="two media at once", kinds=("two",), grading="whole", target=0.85)
    yield ExamRow(name="case_alike", title="two of one modality", kinds=("alike",), grading="whole", target=0.85)
    asked = tuple(f"ask_{modality}" for modality in Modality)
    yield ExamRow(name="turns_ask", title="one attribute asked for", kinds=asked, grading="whole", target=0.85)
    yield ExamRow(name="turns_animate", title="T+I to T+V", kinds=("animate",), grading="whole", target=0.85)
    yield ExamRow(name="turns_alter", title="T+X to T+X, changed", kinds=("alter",), grading="whole", target=0.85)
    talk = ("chat", "decline")
    yield ExamRow(name="talk", title="talk, and what lies beyond", kinds=talk, grading="whole", target=0.85)
    # A model with a language of its own answers these; none makes a medium.
    yield ExamRow(
        name="general",
        title="general questions, words alone",
        kinds=("beyond",),
        grading="modalities",
        target=0.99,
    )
    for kind in ("change", "remember"):
        title = f"several turns: {kind}"
        yield ExamRow(name=f"turns_{kind}", title=title, kinds=(kind,), grading="whole", target=0.85)
    for modality, title in _HARD.items():
        yield ExamRow(
            name=f"hard_{modality}", title=title, kinds=(f"describe_{modality}", f"make_{modality}"), hard=True
        )


def _beside(row: ExamRow) -> Iterator[ExamRow]:
    """A row, and the one of the same in new words."""
    yield row
    if row.kinds and not row.hard:
        title = f"{row.title}, new wordings"
        yield replace(row, name=f"{row.name}_new", title=title, is_newly_worded=True, stage_1_target=None)


ROWS: Mapping[str, ExamRow] = {each.name: each for row in _rows() for each in _beside(row)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A conversation of the exam: the `number`-th of its row."""

    key: str
    number: int
    row: ExamRow
    conversation: Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A model's answer: texts and items in order, and the medium of each item, if it was rendered."""

    parts: tuple[Part, ...]
    media: tuple[Decoded | None, ...]
    well_formed: bool = True

    @property
    def text(self) -> str:
        """The texts, joined by spaces."""
        return " ".join(part for part in self.parts if isinstance(part, str))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities of its items, in order."""
        return tuple(part.modality for part in self.parts if isinstance(part, Item))


def cases(row: ExamRow, count: int, seed: int = SEED) -> list[Case]:
    """The first `count` conversations of a row; the main subject of each is a combination held out of all training.

    Harder subjects have their own combinations; none of them are held out, but `seed` draws them anew.
    """
    found = []
    for number in range(count):
        kind, index = row.kinds[number % len(row.kinds)], number
        if row.hard:
            index = HARD_EVERY * (number + 1) - 1
        conversation = converse(kind, seed, index, held_out=not row.hard, is_newly_worded=row.is_newly_worded)
        if row.grading == "attributes":
            conversation = replace(conversation, turns=conversation.turns[:2], answers=conversation.answers[:1])
        found.append(Case(key=f"{row.name}-{number}", number=number, row=row, conversation=conversation))
    return found


def shown(case: Case) -> dict[str, Media]:
    """The files that the user shows in a conversation, by the names of its items."""
    return {
        name: encode(render(subject, _FIRST_VARIANT + len(Modality) * case.number + int(name)))
        for name, subject in case.conversation.media.items()
    }


def grade(row: ExamRow, conversation: Conversation, responses: Sequence[Attempt]) -> Grades:
    """Grades each attribute; one that occurs in several answers must be right in all of them."""
    grades: Grades = {}
    for number, (answer, response) in enumerate(zip(conversation.answers, responses, strict=True)):
        match row.grading:
            case "attributes":
                found = _grade_attributes(conversation, answer, response)
            case "whole":
                found = dict(chain(_grade_said(answer, response), _grade_made(answer, response)))
            case "modalities":
                found = {f"answer {number + 1}": _modalities_right(answer, response)}
            case "well_formed":
                found = {f"answer {number + 1}": response.well_formed}
        grades |= {name: right and grades.get(name, True) for name, right in found.items()}
    return grades


def is_lost(row: ExamRow, conversation: Conversation, responses: Sequence[Attempt]) -> bool:
    """Whether a conversation scores 0 whatever its media show."""
    if row.grading != "whole":
        return False
    pairs = zip(conversation.answers, responses, strict=True)
    return not all(right for answer, response in pairs for _, right in _grade_said(answer, response))


def score(row: ExamRow, grades: Grades) -> float:
    """The score of a conversation, from 0 to 1."""
    return float(all(grades.values())) if row.grading == "whole" else sum(grades.values()) / len(grades)


def chance(row: ExamRow, conversation: Conversation) -> float | None:
    """The expected score of a conversation if each value is guessed, uniformly among the V values of an attribute.

    * `attributes`: the mean over attributes of 1 / V, and of 1 / V^2 where it is asked of two objects. Speed and melody
      have two values.
    * `whole`: the product of 1 / V over all attributes of all media to be made, and over those that only the words must
      name: who guesses says what he makes. He knows the modalities. Of replies he says one in `NUM_REPLIES`.
    * `modalities`: 1/8, as each of the three is there or not.
    * `well_formed`: None, since nothing is guessed.
    """
    match row.grading:
        case "attributes":
            wanted = [*conversation.answers[0].made, *conversation.media.values()][0]
            guesses = [1 / _NUM_VALUES[name] ** len(_objects(wanted)) for name in attributes(wanted)]
            guesses += [1 / len(_HARDER[name]) for name in _harder(wanted)]
            return sum(guesses) / len(guesses)
        case "whole":
            values = prod(1 / _NUM_VALUES[name] for answer in conversation.answers for name in _guessed(answer))
            return values / prod(NUM_REPLIES for answer in conversation.answers if answer.replies)
        case "modalities":
            return 2.0 ** -len(Modality)
        case "well_formed":
            return None


def _guessed(answer: Expected) -> list[str]:
    made = [name for subject in answer.made for name in attributes(subject)]
    return made + [name for name in answer.named if name not in made]


def _grade_attributes(conversation: Conversation, answer: Expected, response: Attempt) -> Grades:
    if answer.made:
        [(wanted, medium)] = _pairs(answer, response)
        return _grade_medium(wanted, medium)
    [shown] = conversation.media.values()
    return _grade_words(shown, response.text)


def _grade_said(answer: Expected, response: Attempt) -> Iterator[tuple[str, bool]]:
    named = read_text(response.text)
    for name, value in answer.named.items():
        yield f"said {name}", named.get(name) == value
    if answer.replies:
        yield "reply", response.text in answer.replies
    yield "modalities", _modalities_right(answer, response)


def _grade_made(answer: Expected, response: Attempt) -> Iterator[tuple[str, bool]]:
    for wanted, medium in _pairs(answer, response):
        for name, right in _grade_medium(wanted, medium).items():
            yield f"{modality_of(wanted)} {name}", right


def _modalities_right(answer: Expected, response: Attempt) -> bool:
    """Whether it makes as many of each modality as asked for, and says something where it makes nothing."""
    if not answer.made and not response.text.strip():
        return False
    return Counter(response.modalities) == Counter(map(modality_of, answer.made))


def _pairs(answer: Expected, response: Attempt) -> Iterator[tuple[Subject, Decoded | None]]:
    """Each subject to be made, and the next medium of its modality, if there is one."""
    media = {
        m: iter([d for d, of in zip(response.media, response.modalities, strict=True) if of is m]) for m in Modality
    }
    for subject in answer.made:
        yield subject, next(media[modality_of(subject)], None)


def _grade_medium(wanted: Subject, medium: Decoded | None) -> Grades:
    found = None if medium is None else read(medium)
    harder = {name: getattr(found, name, None) == value for name, value in _harder(wanted).items()}
    return grade_medium(wanted, found) | harder


def _grade_words(wanted: Subject, text: str) -> Grades:
    """Texts about two objects name the first, `and`, the second."""
    objects = _objects(wanted)
    said = [read_text(part) for part in (text.split(" and ") if len(objects) > 1 else [text])]
    grades = {
        name: [named.get(name) for named in said] == [attributes(one)[name] for one in objects]
        for name in attributes(wanted)
    }
    words = set(text.lower().replace(".", " ").split())
    return grades | {name: words & set(_HARDER[name]) == {value} for name, value in _harder(wanted).items()}


def _objects(subject: Subject) -> list[Subject]:
    return [subject, subject.other] if isinstance(subject, Scene) and subject.other else [subject]


def _harder(subject: Subject) -> dict[str, str]:
    match subject:
        case Motion(speed=str(speed)) if speed:
            return {"speed": speed}
        case Sound(melody=str(melody)) if melody:
            return {"melody": melody}
    return {}
