"""Conversations about the synthetic world, and what each of the assistant's answers must say and make.

An answer says what an item shows or plays right before the item, in the words of its caption.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np

from pipelines.sample import Item, Modality, Part, Turn
from pipelines.world import wording
from pipelines.world.captions import CAPTIONS, NOUNS, caption, thing, where, with_article
from pipelines.world.scenes import (
    ATTRIBUTES,
    COLOURS,
    HARD_EVERY,
    SHAPES,
    Motion,
    Scene,
    Sound,
    Subject,
    attributes,
    draw,
    is_held_out,
    modality_of,
    sound_of,
)

T = TypeVar("T")
S = TypeVar("S", bound=Subject)
_NUM_FRAMES = len(CAPTIONS[Modality.IMAGE])
_NUM_WAYS = 3  # to say a place or direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What one assistant turn must do: name these attributes in its text, and make these subjects, one an item.

    An attribute of which the text names two values is not in `named`.
    """

    named: Mapping[str, str]
    made: tuple[Subject, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns, the subjects of the user's items by the items' names, and an answer for each assistant turn."""

    kind: str
    turns: tuple[Turn, ...]
    media: Mapping[str, Subject]
    answers: tuple[Expected, ...]


def converse(kind: str, seed: int, index: int, *, held_out: bool = False) -> Conversation:
    """Draws one conversation of a kind; it depends on the arguments alone.

    No subject in it, shown, made or only spoken of, is a held-out combination; with `held_out` the first one is, and
    the others are not. `change` and `remember` take the modalities by turns of `index`. One in eight `describe_*` and
    `make_*` is about a harder subject, unless held out.
    """
    rng = np.random.default_rng([KINDS.index(kind), seed, index, held_out])
    while True:
        talk = _Talk(rng, index, held_out)
        _SCRIPTS[kind](talk)
        if all(is_held_out(subject) == (held_out and not number) for number, subject in enumerate(talk.subjects)):
            return Conversation(kind=kind, turns=tuple(talk.turns), media=talk.media, answers=tuple(talk.answers))


def converse_by_turns(kinds: Sequence[str], seed: int, number: int, *, held_out: bool = False) -> Conversation:
    """The `number`-th of kinds in turn, the conversations of each in order; a kind may stand there more than once."""
    rounds, place = divmod(number, len(kinds))
    kind = kinds[place]
    index = rounds * kinds.count(kind) + kinds[:place].count(kind)
    return converse(kind, seed, index, held_out=held_out)


class _Talk:
    """A conversation on its way."""

    def __init__(self, rng: np.random.Generator, index: int, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out
        self.modality = tuple(Modality)[index % len(Modality)]
        self.hard = index % HARD_EVERY == HARD_EVERY - 1 and not held_out
        self.subjects: list[Subject] = []  # all that came up, the main one first
        self.turns: list[Turn] = []
        self.media: dict[str, Subject] = {}
        self.answers: list[Expected] = []

    def pick(self, values: Sequence[T]) -> T:
        return values[int(self.rng.integers(len(values)))]

    def about(self, subject: S) -> S:
        """Notes that a subject came up."""
        self.subjects.append(subject)
        return subject

    def draw(self, modality: Modality, hard: bool = False) -> Subject:
        held_out = self.held_out and not self.subjects
        number = int(self.rng.integers(2**32))
        return self.about(draw(number, 0, held_out=held_out, hard=hard)[modality])

    def scene(self) -> Scene:
        subject = self.draw(Modality.IMAGE)
        assert isinstance(subject, Scene)
        return subject

    def motion(self, scene: Scene) -> Motion:
        """How a still shape could move."""
        direction = self.pick(ATTRIBUTES[Modality.VIDEO]["direction"])
        return self.about(Motion(colour=scene.colour, shape=scene.shape, direction=direction))

    def phrase(self, subject: Subject) -> str:
        """A user's words for a subject."""
        frame = self.pick(wording.PHRASES[modality_of(subject)])
        return frame.format(thing=thing(subject), where=self.where(subject))

    def where(self, subject: Subject) -> str:
        """A user's words for a place or direction."""
        return where(subject, _NUM_FRAMES * int(self.rng.integers(_NUM_WAYS)))

    def user(self, text: str, shown: Subject | None = None) -> None:
        parts: list[Part] = [text]
        if shown is not None:
            name = str(len(self.media))
            self.media[name] = shown
            parts.insert(0, Item(modality=modality_of(shown), name=name, caption=words(shown)))
        self.turns.append(Turn(role="user", parts=tuple(parts)))

    def assistant(self, named: Mapping[str, str], *said: str | Subject) -> None:
        parts = (
            part if isinstance(part, str) else Item(modality=modality_of(part), caption=words(part)) for part in said
        )
        self.turns.append(Turn(role="assistant", parts=tuple(parts)))
        self.answers.append(Expected(named=named, made=tuple(part for part in said if not isinstance(part, str))))

    def describe(self, subject: Subject) -> None:
        """The user shows a subject, the assistant describes it."""
        self.user(_fill(self.pick(wording.DESCRIBE), subject), shown=subject)
        self.assistant(_named(subject), _fill(self.pick(wording.DESCRIBED), subject))

    def make(self, subject: Subject) -> None:
        """The user asks for a subject, the assistant makes it."""
        self.user(_fill(self.pick(wording.MAKE), subject, caption=self.phrase(subject)))
        self.assistant(_named(subject), _fill(self.pick(wording.MADE), subject), subject)

    def ask(self, subject: Subject, attribute: str, before: str = "", behind: str = "") -> None:
        """The user asks for one attribute of a subject, the assistant names it."""
        self.user(f"{before}{self.pick(wording.ASK[attribute])}{behind}")
        self.assistant({attribute: attributes(subject)[attribute]}, _fill(wording.ASKED[attribute], subject))

    def chat(self) -> None:
        said, answered = self.pick(wording.CHAT)
        self.user(self.pick(said))
        self.assistant({}, self.pick(answered))


def words(subject: Subject) -> str:
    """The assistant's words for a subject, and the caption of its items."""
    return wording.PHRASES[modality_of(subject)][0].format(thing=thing(subject), where=where(subject))


def _fill(frame: str, subject: Subject, **fields: str) -> str:
    modality = modality_of(subject)
    known = {"noun": NOUNS[modality], "sense": wording.SENSES[modality], "caption": words(subject)}
    return frame.format(**{**attributes(subject), **known, "where": where(subject), **fields})


def _named(*subjects: Subject) -> dict[str, str]:
    """The attributes of which the descriptions of these subjects name one value."""
    values: dict[str, set[str]] = {}
    others = [subject.other for subject in subjects if isinstance(subject, Scene) and subject.other]
    for subject in (*subjects, *others):
        for name, value in attributes(subject).items():
            values.setdefault(name, set()).add(value)
    return {name: min(named) for name, named in values.items() if len(named) == 1}


def _describe(modality: Modality) -> Callable[[_Talk], None]:
    def script(talk: _Talk) -> None:
        subject = talk.draw(modality, talk.hard)
        talk.describe(subject)
        if not talk.hard:
            for attribute in map(str, talk.rng.permutation(list(ATTRIBUTES[modality]))[: talk.rng.integers(3)]):
                talk.ask(subject, attribute)

    return script


def _make(modality: Modality) -> Callable[[_Talk], None]:
    return lambda talk: talk.make(talk.draw(modality, talk.hard))


def _sound_out(modality: Modality) -> Callable[[_Talk], None]:
    def script(talk: _Talk) -> None:
        subject = talk.draw(modality)
        assert not isinstance(subject, Sound)
        sound = talk.about(sound_of(subject.colour, subject.shape))
        talk.user(_fill(talk.pick(wording.SOUND_OUT), subject), shown=subject)
        text = _fill(talk.pick(wording.SOUNDED_OUT), subject, sound=words(sound))
        talk.assistant(_named(subject, sound), text, sound)

    return script


def _image_to_video(talk: _Talk) -> None:
    shown = talk.scene()
    scene = talk.about(replace(shown, colour=talk.pick([colour for colour in COLOURS if colour != shown.colour])))
    motion = talk.motion(scene)
    talk.user(_fill(talk.pick(wording.RECOLOUR_AND_MOVE), scene, where=talk.where(motion)), shown=shown)
    _present(talk, talk.pick(wording.RECOLOURED_AND_MOVED), scene, motion)


def _everything(talk: _Talk) -> None:
    scene = talk.scene()
    motion: Subject
    sound: Subject
    if talk.rng.integers(2):
        motion, sound = talk.motion(scene), talk.about(sound_of(scene.colour, scene.shape))
        text = talk.pick(wording.ONE_IN_ALL).format(image=talk.phrase(scene), where=talk.where(motion))
    else:
        motion, sound = talk.draw(Modality.VIDEO), talk.draw(Modality.AUDIO)
        phrases = {modality_of(subject).value: talk.phrase(subject) for subject in (scene, motion, sound)}
        text = talk.pick(wording.EVERYTHING).format(**phrases)
    talk.user(text)
    _present(talk, talk.pick(wording.EVERYTHING_MADE), scene, motion, sound)


def _present(talk: _Talk, frames: Sequence[str], *subjects: Subject) -> None:
    """The assistant makes several things, and says before each what it is."""
    captions = {modality_of(subject).value: words(subject) for subject in subjects}
    texts = (frame.format(**captions) for frame in frames)
    talk.assistant(_named(*subjects), *(part for pair in zip(texts, subjects, strict=True) for part in pair))


def _change(talk: _Talk) -> None:
    subject = talk.draw(talk.modality)
    talk.make(subject)
    for attribute in map(str, talk.rng.permutation(wording.CHANGES[talk.modality])[: talk.rng.integers(1, 3)]):
        old = attributes(subject)[attribute]
        new = talk.pick([value for value in ATTRIBUTES[talk.modality][attribute] if value != old])
        subject = talk.about(cast(Subject, replace(cast(Any, subject), **{attribute: new})))
        talk.user(_fill(talk.pick(wording.CHANGE[attribute]), subject, where=talk.where(subject)))
        talk.assistant(_named(subject), _fill(talk.pick(wording.MADE), subject), subject)


def _remember(talk: _Talk) -> None:
    subject = talk.draw(talk.modality)
    talk.pick((talk.make, talk.describe))(subject)
    if talk.rng.integers(3):
        other = talk.pick([modality for modality in Modality if modality != talk.modality])
        talk.pick((talk.make, talk.describe))(talk.draw(other))
    else:
        talk.chat()
    if talk.rng.integers(2):
        talk.user(_fill(talk.pick(wording.RECALL), subject))
        talk.assistant(_named(subject), _fill(talk.pick(wording.RECALLED), subject))
    else:
        back = _fill(talk.pick(wording.THINK_BACK), subject)
        talk.ask(subject, talk.pick(tuple(attributes(subject))), before=f"{back} ")


def _question(talk: _Talk) -> None:
    if not talk.rng.integers(4):
        colour, shape = talk.pick(tuple(COLOURS)), talk.pick(SHAPES)
        sound = talk.about(sound_of(colour, shape))
        talk.user(talk.pick(wording.RULE).format(thing=with_article(f"{colour} {shape}")))
        talk.assistant(_named(sound), talk.pick(wording.RULED).format(sound=words(sound)))
        return
    subject = talk.draw(talk.pick(tuple(Modality)))
    text = caption(subject, int(talk.rng.integers(_NUM_FRAMES * _NUM_WAYS)))
    match talk.rng.integers(3):
        case 0:
            talk.ask(subject, talk.pick(tuple(attributes(subject))), behind=f"\n{text}")
        case 1:
            talk.user(f"{talk.pick(wording.REPEAT)}\n{text}")
            talk.assistant(_named(subject), talk.pick(wording.REPEATED).format(text=text))
        case _:
            asked, answered = wording.NAME_ALL[modality_of(subject)]
            talk.user(f"{asked}\n{text}")
            talk.assistant(_named(subject), _fill(answered, subject))


_SCRIPTS: Mapping[str, Callable[[_Talk], None]] = {
    **{f"describe_{modality}": _describe(modality) for modality in Modality},
    **{f"make_{modality}": _make(modality) for modality in Modality},
    "image_to_sound": _sound_out(Modality.IMAGE),
    "video_to_sound": _sound_out(Modality.VIDEO),
    "image_to_video": _image_to_video,
    "everything": _everything,
    "change": _change,
    "remember": _remember,
    "question": _question,
    "chat": lambda talk: talk.chat(),
}
KINDS: tuple[str, ...] = tuple(_SCRIPTS)
