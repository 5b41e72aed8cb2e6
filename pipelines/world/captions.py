"""True sentences about the subjects of the synthetic world.

Every text is chosen by a `variant`, any number from 0: equal subject and variant give equal text.
"""

from collections.abc import Sequence
from typing import TypeVar

from pipelines.sample import Modality
from pipelines.world.scenes import Motion, Scene, Sound, Subject, modality_of

T = TypeVar("T")

_PLACES = {
    "left": ("at the left", "on the left side", "to the left"),
    "right": ("at the right", "on the right side", "to the right"),
    "top": ("at the top", "on the top side", "near the top"),
    "bottom": ("at the bottom", "on the bottom side", "near the bottom"),
    "centre": ("in the centre", "at the centre", "in the very centre"),
}
_DIRECTIONS = {
    "right": ("to the right", "rightwards", "towards the right"),
    "left": ("to the left", "leftwards", "towards the left"),
    "down": ("down", "downwards", "down to the ground"),
    "up": ("up", "upwards", "up to the sky"),
}
CAPTIONS: dict[Modality, tuple[str, ...]] = {
    Modality.IMAGE: (
        "{thing} {where}",
        "a picture of {thing} {where}",
        "there is {thing} {where}",
        "{thing} {where} of a plain picture",
        "{where} there is {thing}",
        "one can see {thing} {where}",
        "an image with {thing} {where}",
        "a drawing of {thing} {where}",
        "{thing} is drawn {where}",
        "{thing} stands {where}",
        "{thing} rests {where}",
        "{thing} is {where}",
        "{where} stands {thing}",
        "this shows {thing} {where}",
        "a plain picture with {thing} {where}",
        "{thing} on a plain ground {where}",
        "someone drew {thing} {where}",
        "{thing} appears {where}",
        "{where} one finds {thing}",
        "look at {thing} {where}",
        "a simple drawing, {thing} {where}",
        "here is {thing} {where}",
        "the picture has {thing} {where}",
        "the image shows {thing} {where}",
        "{thing} painted {where}",
        "a card with {thing} {where}",
        "{thing} can be seen {where}",
        "it is {thing} {where}",
        "nothing but {thing} {where}",
        "{where} lies {thing}",
    ),
    Modality.VIDEO: (
        "{thing} moves {where}",
        "a video of {thing} moving {where}",
        "{thing} slides {where}",
        "{thing} travels {where}",
        "{thing} that moves {where}",
        "a clip of {thing} sliding {where}",
        "there is {thing} moving {where}",
        "one can see {thing} go {where}",
        "{thing} goes {where}",
        "{thing} drifts {where}",
        "{thing} is moving {where}",
        "{thing} wanders {where}",
        "{thing} glides {where} over a plain ground",
        "a short film of {thing} that goes {where}",
        "a film in which {thing} moves {where}",
        "this clip shows {thing} gliding {where}",
        "watch {thing} move {where}",
        "{thing} flies {where}",
        "{thing} on its way {where}",
        "{thing} heading {where}",
        "someone moves {thing} {where}",
        "{thing} runs {where}",
        "here {thing} moves {where}",
        "the video shows {thing} going {where}",
        "a moving picture, {thing} goes {where}",
        "{thing} is sliding {where}",
        "a clip with {thing} travelling {where}",
        "{where} moves {thing}",
        "{where} goes {thing}",
        "{thing} makes its way {where}",
    ),
    Modality.AUDIO: (
        "{thing}",
        "the sound of {thing}",
        "{thing} can be heard",
        "{thing} plays",
        "someone plays {thing}",
        "there is {thing}",
        "one can hear {thing}",
        "a recording of {thing}",
        "it is {thing}",
        "listen to {thing}",
        "here is {thing}",
        "this is {thing}",
        "a short sound, {thing}",
        "{thing} sounds",
        "{thing} is played",
        "a tone, {thing}",
        "nothing but {thing}",
        "{thing} rings out",
        "a clip of {thing}",
        "the recording has {thing}",
        "music, {thing}",
        "{thing} for a second",
        "{thing} in a quiet room",
        "we hear {thing}",
        "an instrument plays {thing}",
        "somebody practises {thing}",
        "{thing} all alone",
        "{thing} and then silence",
        "{thing} fills the room",
        "the sound clip holds {thing}",
    ),
}
NOUNS = {Modality.IMAGE: "picture", Modality.VIDEO: "video", Modality.AUDIO: "sound"}


def caption(subject: Subject, variant: int) -> str:
    """Describes a subject: all of its attributes and nothing else."""
    frame = choose(CAPTIONS[modality_of(subject)], variant)
    return frame.format(thing=thing(subject, variant), where=where(subject, variant))


def thing(subject: Subject, variant: int = 0) -> str:
    """What is seen or heard, with its article: `a big red circle`, `a low mi on the flute`."""
    match subject:
        case Scene():
            return with_article(f"{subject.size} {subject.colour} {subject.shape}")
        case Motion():
            return with_article(f"{subject.colour} {subject.shape}")
        case Sound():
            melody = f"{subject.melody} melody from {with_article(subject.pitch)}" if subject.melody else subject.pitch
            return f"{with_article(melody)} on the {subject.timbre}"


def where(subject: Subject, variant: int = 0) -> str:
    """The place or direction of a subject; empty for a sound."""
    number = variant // len(CAPTIONS[Modality.IMAGE])
    match subject:
        case Scene():
            place = choose(_PLACES[subject.place], number)
            if subject.other is None:
                return place
            return f"{place} and {thing(subject.other)} {where(subject.other, variant)}"
        case Motion():
            return " ".join(filter(None, [subject.speed, choose(_DIRECTIONS[subject.direction], number)]))
        case Sound():
            return ""


def with_article(words: str) -> str:
    """Prefixes `a` or `an`, depending on the first letter."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def choose(values: Sequence[T], variant: int) -> T:
    """The value for a variant, which is counted modulo the number of values."""
    return values[variant % len(values)]
