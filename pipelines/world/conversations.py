"""Conversations about the synthetic world, and what each of the assistant's answers must say and make.

An answer says what an item shows or plays right before the item, in the words of its caption.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar, cast

import numpy as np

from pipelines.sample import Item, Modality, Part, Turn
from pipelines.world import small_talk, wording
from pipelines.world.captions import CAPTIONS, NOUNS, caption, thing, where, with_article
from pipelines.world.phrasing import Voice
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
_SHOWN_BEHIND = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What one assistant turn must do: name these attributes in its text, and make these subjects, one an item.

    An attribute of which the text names two values is not in `named`. Where `replies` are given, the text is one of
    them.
    """

    named: Mapping[str, str]
    made: tuple[Subject, ...]
    replies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns, the subjects of the user's items by the items' names, and an answer for each assistant turn."""

    kind: str
    turns: tuple[Turn, ...]
    media: Mapping[str, Subject]
    answers: tuple[Expected, ...]


def converse(
    kind: str, seed: int, index: int, *, held_out: bool = False, is_newly_worded: bool = False
) -> Conversation:
    """Draws one conversation of a kind; it depends only on the arguments.

    No subject in it, shown, made or only spoken of, is a held-out combination; with `held_out` the first one is, and
    the others are not. `change`, `alter` and `remember` take the modalities by turns of `index`. One in eight
    `describe_*` and `make_*` is about a harder subject, unless held out. With `is_newly_worded` the user speaks in
    frames that are in no other conversation.
    """
    rng = np.random.default_rng([KINDS.index(kind), seed, index, held_out])
    while True:
        talk = _Talk(rng, index, held_out, is_newly_worded)
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
    """A conversation under construction."""

    def __init__(self, rng: np.random.Generator, index: int, held_out: bool, is_newly_worded: bool) -> None:
        self.rng = rng
        self.voice = Voice(rng, is_newly_worded)
        self.held_out = held_out
        self.modality = tuple(Modality)[index % len(Modality)]
        self.hard = index % HARD_EVERY == HARD_EVERY - 1 and not held_out
        self.subjects: list[Subject] = []  # all that came up, the main one first
        self.turns: list[Turn] = []
        self.media: dict[str, Subject] = {}
        self.answers: list[Expected] = []

    def pick(self, values: Sequence[T]) -> T:
        return values[int(self.rng.integers(len(values)))]

    def frame(self, *sets: str) -> str:
        """A frame of one of these sets."""
        return self.voice.frame(wording.FRAMES[self.pick(sets)])

    def about(self, subject: S) -> S:
        """Records that a subject was mentioned."""
        self.subjects.append(subject)
        return subject

    def draw(self, modality: Modality, hard: bool = False) -> Subject:
        held_out = self.held_out and not self.subjects
        number = int(self.rng.integers(2**32))
        return self.about(draw(number, 0, held_out=held_out, hard=hard)[modality])

    def draw_brief(self, modality: Modality) -> Subject:
        """Draws a subject as people ask for it, often with what is usual."""
        held_out = self.held_out and not self.subjects
        number = int(self.rng.integers(2**32))
        return self.about(self.voice.brief(draw(number, 0, held_out=held_out, hard=self.hard)[modality]))

    def scene(self) -> Scene:
        subject = self.draw(Modality.IMAGE)
        assert isinstance(subject, Scene)
        return subject

    def motion(self, scene: Scene) -> Motion:
        """Draws a motion for a still shape."""
        direction = self.pick(ATTRIBUTES[Modality.VIDEO]["direction"])
        return self.about(Motion(colour=scene.colour, shape=scene.shape, direction=direction))

    def user(
        self,
        frame: str,
        subject: Subject | None = None,
        fields: Mapping[str, str] = MappingProxyType({}),
        *,
        shows: bool = False,
        given: str = "",
        is_request: bool = False,
    ) -> None:
        """The user says what a frame says of a subject, perhaps `shows` it, and adds a text as it is.

        Round a request there may be what people say before and after one.
        """
        known: dict[str, str] = {}
        if subject is not None:
            modality = modality_of(subject)
            noun = self.voice.noun(modality)
            known = {**self.voice.values(subject), "noun": noun, "sense": wording.SENSES[modality]}
        said = self.voice.said(frame, {**known, **fields})
        said = self.voice.typed(self.voice.framed(said) if is_request else said)
        parts: list[Part] = [f"{said}\n{given}" if given else said]
        if shows and subject is not None:
            name = str(len(self.media))
            self.media[name] = subject
            item = Item(modality=modality_of(subject), name=name, caption=words(subject))
            # People show first what they speak of, or the other way round.
            parts = [*parts, item] if self.voice.happens(_SHOWN_BEHIND) else [item, *parts]
        self.turns.append(Turn(role="user", parts=tuple(parts)))

    def assistant(self, named: Mapping[str, str], *said: str | Subject) -> None:
        parts = (
            part if isinstance(part, str) else Item(modality=modality_of(part), caption=words(part)) for part in said
        )
        self.turns.append(Turn(role="assistant", parts=tuple(parts)))
        self.answers.append(Expected(named=named, made=tuple(part for part in said if not isinstance(part, str))))

    def describe(self, subject: Subject) -> None:
        """The user shows a subject, the assistant describes it."""
        modality = modality_of(subject)
        self.user(self.frame("describe", f"describe_{modality}"), subject, shows=True)
        self.assistant(_named(subject), _fill(self.pick(wording.DESCRIBED), subject))

    def make(self, subject: Subject) -> None:
        """The user asks for a subject, the assistant makes it."""
        frame = self.frame("make", f"make_{modality_of(subject)}")
        fields = {"thing": self.voice.phrase(subject, is_named="{noun}" in frame)}
        self.user(frame, subject, fields, is_request=True)
        self.assistant(_named(subject), _fill(self.pick(wording.MADE), subject), subject)

    def ask(self, subject: Subject, attribute: str, *, before: str = "", given: str = "", shows: bool = False) -> None:
        """The user asks for one attribute of a subject, the assistant names it."""
        self.user(f"{before} {self.frame(f'ask_{attribute}')}", subject, given=given, shows=shows)
        self.assistant({attribute: attributes(subject)[attribute]}, _fill(wording.ASKED[attribute], subject))

    def ask_whether(self, subject: Subject, attribute: str, *, shows: bool = False) -> None:
        """The user asks whether an attribute has a value, the assistant agrees or names the right one.

        Where the user names two values, one is right, and the assistant names it.
        """
        right = attributes(subject)[attribute]
        wrong = self.pick([value for value in ATTRIBUTES[modality_of(subject)][attribute] if value != right])
        said, other = (right, wrong) if self.voice.happens(0.5) else (wrong, right)
        frame = self.frame(f"ask_whether_{attribute}")
        fields = {name: self.voice.value(attribute, value) for name, value in (("value", said), ("other", other))}
        self.user(frame, subject, fields, shows=shows)
        answer = _fill(wording.ASKED[attribute], subject)
        if "{other}" not in frame:
            answer = ("Yes, it" if said == right else "No, it") + answer.removeprefix("It")
        self.assistant({attribute: right}, answer)

    def ask_in_turn(self, subject: Subject, least: int, *, shows: bool = False) -> None:
        """The user asks for at least so many attributes of a subject and at most two, or whether they have a value."""
        names = list(ATTRIBUTES[modality_of(subject)])
        asked = map(str, self.rng.permutation(names)[: self.rng.integers(least, 3)])
        for number, attribute in enumerate(asked):
            ask = self.ask_whether if self.voice.happens(0.3) else self.ask
            ask(subject, attribute, shows=shows and number == 0)

    def chat(self) -> None:
        said = self.pick(tuple(small_talk.CHAT))
        self.user(self.frame(said))
        self.reply(small_talk.CHAT[said])

    def reply(self, texts: Sequence[str], others: Sequence[str] = ()) -> None:
        """The assistant says one of these texts; others would do as well."""
        self.turns.append(Turn(role="assistant", parts=(self.pick(texts),)))
        self.answers.append(Expected(named={}, made=(), replies=(*texts, *others)))


def words(subject: Subject) -> str:
    """The assistant's words for a subject, and the caption of its items."""
    return wording.PHRASES[modality_of(subject)].format(thing=thing(subject), where=where(subject))


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
            talk.ask_in_turn(subject, 0)

    return script


def _ask(modality: Modality) -> Callable[[_Talk], None]:
    """The user shows a medium, and does not ask what it is but for one attribute after the other."""
    return lambda talk: talk.ask_in_turn(talk.draw(modality), 1, shows=True)


def _make(modality: Modality) -> Callable[[_Talk], None]:
    return lambda talk: talk.make(talk.draw_brief(modality))


def _sound_out(modality: Modality) -> Callable[[_Talk], None]:
    def script(talk: _Talk) -> None:
        subject = talk.draw(modality)
        assert not isinstance(subject, Sound)
        sound = talk.about(sound_of(subject.colour, subject.shape))
        talk.user(talk.frame("sound_out"), subject, shows=True)
        text = _fill(talk.pick(wording.SOUNDED_OUT), subject, sound=words(sound))
        talk.assistant(_named(subject, sound), text, sound)

    return script


def _image_to_video(talk: _Talk) -> None:
    shown = talk.scene()
    scene = talk.about(replace(shown, colour=talk.pick([colour for colour in COLOURS if colour != shown.colour])))
    motion = talk.motion(scene)
    fields = {"colour": talk.voice.value("colour", scene.colour), "where": talk.voice.values(motion)["where"]}
    talk.user(talk.frame("recolour_and_move"), shown, fields, shows=True)
    _present(talk, talk.pick(wording.RECOLOURED_AND_MOVED), scene, motion)


def _animate(talk: _Talk) -> None:
    """The user shows a picture or asks for one, and wants its shape to move."""
    scene = talk.scene()
    motion = talk.motion(scene)
    is_made = talk.voice.happens(0.5)
    if is_made:
        talk.make(scene)
    talk.user(talk.frame("animate"), scene, {"where": talk.voice.values(motion)["where"]}, shows=not is_made)
    talk.assistant(_named(motion), _fill(talk.pick(wording.MADE), motion), motion)


def _everything(talk: _Talk) -> None:
    scene = talk.scene()
    motion: Subject
    sound: Subject
    if talk.rng.integers(2):
        motion, sound = talk.motion(scene), talk.about(sound_of(scene.colour, scene.shape))
        where_to = talk.voice.values(motion)["where"]
        fields = {"image": talk.voice.phrase(scene), "where": where_to}
        talk.user(talk.frame("one_in_all"), fields=fields, is_request=True)
    else:
        motion, sound = talk.draw(Modality.VIDEO), talk.draw(Modality.AUDIO)
        phrases = {modality_of(subject).value: talk.voice.phrase(subject) for subject in (scene, motion, sound)}
        talk.user(talk.frame("everything"), fields=phrases, is_request=True)
    _present(talk, talk.pick(wording.EVERYTHING_MADE), scene, motion, sound)


def _two(talk: _Talk) -> None:
    """Two media of different modalities, in one sentence or two."""
    modalities = [modality for modality in Modality if modality is not talk.modality]
    if talk.voice.happens(0.5):
        modalities.reverse()
    nouns = {"noun": talk.voice.noun(modalities[0]), "other": talk.voice.noun(modalities[1])}
    first, second = (talk.draw(modality) for modality in modalities)
    _both(talk, "two", first, second, nouns)


def _alike(talk: _Talk) -> None:
    """Two media of one modality."""
    first, second = talk.draw(talk.modality), talk.draw(talk.modality)
    _both(talk, "two_alike", first, second, {"noun": talk.voice.noun(talk.modality)})


def _both(talk: _Talk, frames: str, first: Subject, second: Subject, nouns: Mapping[str, str]) -> None:
    phrases = {"first": _wanted(talk, first), "second": _wanted(talk, second)}
    talk.user(talk.frame(frames), fields={**nouns, **phrases}, is_request=True)
    texts = talk.pick(wording.TWO_MADE)
    captions = {"first": words(first), "second": words(second)}
    talk.assistant(_named(first, second), texts[0].format(**captions), first, texts[1].format(**captions), second)


def _wanted(talk: _Talk, subject: Subject) -> str:
    """A phrase that also tells the modality: of a shape that stands still or moves, and of a sound that is heard."""
    phrase = talk.voice.phrase(subject)
    if modality_of(subject) is Modality.IMAGE and talk.voice.happens(0.3):
        return f"a {talk.voice.noun(Modality.IMAGE)} of {phrase}"
    return phrase


def _present(talk: _Talk, frames: Sequence[str], *subjects: Subject) -> None:
    """The assistant makes several things, and says before each what it is."""
    captions = {modality_of(subject).value: words(subject) for subject in subjects}
    texts = (frame.format(**captions) for frame in frames)
    talk.assistant(_named(*subjects), *(part for pair in zip(texts, subjects, strict=True) for part in pair))


def _change(talk: _Talk) -> None:
    subject = talk.draw(talk.modality)
    talk.make(subject)
    for attribute in map(str, talk.rng.permutation(wording.CHANGES[talk.modality])[: talk.rng.integers(1, 3)]):
        subject = _changed(talk, subject, attribute, shows=False)


def _alter(talk: _Talk) -> None:
    """The user shows a medium, perhaps asks what it is, and wants it in another way."""
    subject = talk.draw(talk.modality)
    is_asked = talk.voice.happens(0.25)
    if is_asked:
        talk.ask(subject, talk.pick(tuple(attributes(subject))), shows=True)
    _changed(talk, subject, talk.pick(wording.CHANGES[talk.modality]), shows=not is_asked)


def _changed(talk: _Talk, subject: Subject, attribute: str, *, shows: bool) -> Subject:
    """The user wants a subject, shown or made before, with another value of an attribute."""
    old = attributes(subject)[attribute]
    new = talk.pick([value for value in ATTRIBUTES[talk.modality][attribute] if value != old])
    changed = talk.about(cast(Subject, replace(cast(Any, subject), **{attribute: new})))
    value = talk.voice.value(attribute, new)
    resizing = {"sizer": wording.SIZERS.get(new, ""), "resize": wording.RESIZES.get(new, "")}
    fields = {attribute: value, "where": value, **resizing}
    talk.user(talk.frame(f"change_{attribute}"), subject, fields, shows=shows)
    talk.assistant(_named(changed), _fill(talk.pick(wording.MADE), changed), changed)
    return changed


def _beyond(talk: _Talk) -> None:
    """The user asks what the world does not know."""
    if talk.voice.happens(0.2):
        talk.user(talk.frame("beyond_now"))
        talk.reply(small_talk.NOW_WORDS)
    else:
        talk.user(talk.frame("beyond"))
        talk.reply(small_talk.BEYOND_WORDS)


def _decline(talk: _Talk) -> None:
    """The user asks for a medium of what the world does not have."""
    modality = talk.pick(tuple(Modality))
    nouns = {"noun": talk.voice.noun(modality), "sense": wording.SENSES[modality]}
    answers: Sequence[str] = small_talk.BEYOND[modality]
    if modality is Modality.AUDIO:
        thing = talk.frame("tunes")
    elif talk.voice.happens(0.3):
        shape = talk.voice.value("shape", talk.pick(SHAPES))
        thing, answers = with_article(f"{talk.frame('beyond_colours')} {shape}"), small_talk.BEYOND_COLOURS
    else:
        thing = talk.frame("things")
        if talk.voice.happens(0.3):
            article, _, noun = thing.rpartition(" ")
            thing = f"{article or 'a'} {talk.voice.value('colour', talk.pick(tuple(COLOURS)))} {noun}"
    # As much is told of these as of what can be made, so that this alone decides nothing.
    if talk.voice.happens(0.5):
        thing = talk.voice.detailed(thing, draw(int(talk.rng.integers(2**32)), 0)[modality])
    frame = talk.frame("make", f"make_{modality}")
    talk.user(frame, fields={**nouns, "thing": thing}, is_request=True)
    # Of a video, too, it is right that only some shapes can be drawn, and of a picture that only these can move.
    alike = (modality,) if modality is Modality.AUDIO else (Modality.IMAGE, Modality.VIDEO)
    talk.reply(answers, (*(text for each in alike for text in small_talk.BEYOND[each]), *small_talk.BEYOND_WORDS))


def _remember(talk: _Talk) -> None:
    subject = talk.draw(talk.modality)
    talk.pick((talk.make, talk.describe))(subject)
    if talk.rng.integers(3):
        other = talk.pick([modality for modality in Modality if modality != talk.modality])
        talk.pick((talk.make, talk.describe))(talk.draw(other))
    else:
        talk.pick((_Talk.chat, _beyond, _decline))(talk)
    if talk.rng.integers(2):
        talk.user(talk.frame("recall"), subject, {"noun": NOUNS[talk.modality]})
        talk.assistant(_named(subject), _fill(talk.pick(wording.RECALLED), subject))
    else:
        back = talk.frame("think_back").replace("{noun}", NOUNS[talk.modality])
        talk.ask(subject, talk.pick(tuple(attributes(subject))), before=back)


def _question(talk: _Talk) -> None:
    if not talk.rng.integers(4):
        colour, shape = talk.pick(tuple(COLOURS)), talk.pick(SHAPES)
        sound = talk.about(sound_of(colour, shape))
        named = {"thing": with_article(f"{talk.voice.value('colour', colour)} {talk.voice.value('shape', shape)}")}
        talk.user(talk.frame("rule"), fields=named)
        talk.assistant(_named(sound), talk.pick(wording.RULED).format(sound=words(sound)))
        return
    subject = talk.draw(talk.pick(tuple(Modality)))
    text = caption(subject, int(talk.rng.integers(_NUM_FRAMES * _NUM_WAYS)))
    match talk.rng.integers(3):
        case 0:
            talk.ask(subject, talk.pick(tuple(attributes(subject))), given=text)
        case 1:
            talk.user(talk.pick(wording.REPEAT), given=text)
            talk.assistant(_named(subject), talk.pick(wording.REPEATED).format(text=text))
        case _:
            asked, answered = wording.NAME_ALL[modality_of(subject)]
            talk.user(asked, given=text)
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
    "two": _two,
    "alter": _alter,
    "beyond": _beyond,
    "decline": _decline,
    "alike": _alike,
    **{f"ask_{modality}": _ask(modality) for modality in Modality},
    "animate": _animate,
}
KINDS: tuple[str, ...] = tuple(_SCRIPTS)
