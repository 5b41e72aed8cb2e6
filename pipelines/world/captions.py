"""What people say about the synthetic world: captions, questions, requests, exercises and a dialogue.

Every text is chosen by a `variant`, any number from 0: equal subject and variant give equal text.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from pipelines.sample import Item, Modality, Part, Turn
from pipelines.world.scenes import Motion, Scene, Sound, Subject

T = TypeVar("T")

_PLACES = {
    "top left": "in the top left corner",
    "top": "at the top",
    "top right": "in the top right corner",
    "left": "on the left",
    "centre": "in the centre",
    "right": "on the right",
    "bottom left": "in the bottom left corner",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right corner",
}
_DIRECTIONS = {
    "right": "from left to right",
    "left": "from right to left",
    "down": "from top to bottom",
    "up": "from bottom to top",
}
_TIMBRES = {"sine": "tone", "square": "buzz", "noise": "hiss"}
_RHYTHMS = {"steady": "without a pause", "slow": "in slow beats", "fast": "in fast beats"}

_CAPTIONS = {
    Modality.IMAGE: (
        "{thing} {where}",
        "a picture of {thing} {where}",
        "there is {thing} {where}",
        "{thing} {where} of a plain picture",
    ),
    Modality.VIDEO: (
        "{thing} moves {where}",
        "a video of {thing} moving {where}",
        "{thing} slides {where} over a plain ground",
        "{thing} that travels {where}",
    ),
    Modality.AUDIO: (
        "{thing} {where}",
        "the sound of {thing} {where}",
        "{thing} can be heard {where}",
        "{thing} plays {where}",
    ),
}
_NOUNS = {Modality.IMAGE: "picture", Modality.VIDEO: "video", Modality.AUDIO: "sound"}
_QUESTIONS = (
    "What is in this {noun}?",
    "Describe the {noun} in a few words.",
    "Please say what the {noun} is about.",
    "Tell me what you notice in this {noun}.",
    "Give a short caption for the {noun}.",
)
_REQUESTS = (
    "Please make a {noun} for me: {caption}.",
    "I would like a {noun}: {caption}.",
    "Can you produce a {noun}? It is this: {caption}.",
    "A {noun}, please: {caption}.",
    "Create this {noun}: {caption}.",
    "Let me have a {noun} like this: {caption}.",
    "I need a {noun} as follows: {caption}.",
)
_REPLIES = ("Here you are.", "Of course, here it is.", "Done.", "This is what you asked for.", "Sure!", "Gladly.")
_GREETINGS = ("Hello! ", "", "Good morning. ")
_ORDERS = (
    (Modality.IMAGE, Modality.VIDEO, Modality.AUDIO),
    (Modality.AUDIO, Modality.IMAGE, Modality.VIDEO),
    (Modality.VIDEO, Modality.AUDIO, Modality.IMAGE),
)


def caption(subject: Subject, variant: int) -> str:
    """Describes the subject truly: every one of its attributes and nothing else."""
    match subject:
        case Scene():
            modality, thing, where = Modality.IMAGE, f"{subject.colour} {subject.shape}", _PLACES[subject.place]
        case Motion():
            modality, thing, where = Modality.VIDEO, f"{subject.colour} {subject.shape}", _DIRECTIONS[subject.direction]
        case Sound():
            modality, thing, where = (
                Modality.AUDIO,
                f"{subject.pitch} {_TIMBRES[subject.timbre]}",
                _RHYTHMS[subject.rhythm],
            )
    return _choose(_CAPTIONS[modality], variant).format(thing=_with_article(thing), where=where)


def question(modality: Modality, variant: int) -> str:
    """Asks for a description of a medium that is shown."""
    return _choose(_QUESTIONS, variant).format(noun=_NOUNS[modality])


def request(modality: Modality, wanted: str, variant: int) -> str:
    """Asks for a medium with the caption `wanted`."""
    return _choose(_REQUESTS, variant).format(noun=_NOUNS[modality], caption=wanted)


def reply(variant: int) -> str:
    """What the assistant says beside a medium it made."""
    return _choose(_REPLIES, variant)


def dialogue(captions: Mapping[Modality, str], variant: int) -> tuple[Turn, ...]:
    """A user asks for one medium of each modality in turn, and the assistant answers each time with an item."""
    turns: list[Turn] = []
    for position, modality in enumerate(_choose(_ORDERS, variant)):
        greeting = _choose(_GREETINGS, variant) if position == 0 else ""
        wanted = captions[modality]
        answer: tuple[Part, ...] = (reply(variant + position) + " ", Item(modality=modality, caption=wanted))
        turns.append(Turn(role="user", parts=(greeting + request(modality, wanted, variant + position),)))
        turns.append(Turn(role="assistant", parts=answer))
    return tuple(turns)


def exercise(subject: Subject, variant: int) -> tuple[str, str, str]:
    """A text-only task about a caption: instruction, input, output."""
    match subject:
        case Scene():
            asked = {"Which colour does this text name?": subject.colour, "Where is the shape?": _PLACES[subject.place]}
        case Motion():
            asked = {"Which shape moves?": subject.shape, "How does the shape move?": _DIRECTIONS[subject.direction]}
        case Sound():
            asked = {"Is the pitch low, middle or high?": subject.pitch, "How is it played?": _RHYTHMS[subject.rhythm]}
    instruction, output = _choose(tuple(asked.items()), variant)
    return instruction, caption(subject, variant), output


def _choose(values: Sequence[T], variant: int) -> T:
    return values[variant % len(values)]


def _with_article(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
