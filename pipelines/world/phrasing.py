"""How people word things: synonyms, spellings, orders of words, what they leave out, and how they type.

A text in which `[one|another]` stands means any of them; `known` and `new` frames are worded for training and for
examination alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import numpy as np

from pipelines.sample import Modality
from pipelines.world.captions import with_article
from pipelines.world.scenes import Motion, Scene, Sound, Subject, attributes
from pipelines.world.wording import FRAMES

T = TypeVar("T")
_NEW_EVERY = 6

NOUNS: Mapping[Modality, str] = {
    Modality.IMAGE: "[picture|image|drawing|painting|picture|image|photo|pic]",
    Modality.VIDEO: "[video|clip|movie|animation|video|film|short video]",
    Modality.AUDIO: "[sound|tone|note|sound|recording|sound clip|audio clip]",
}
# What people call a value; the first stands in captions, and comes more often.
SYNONYMS: Mapping[str, str] = {
    "big": "[big|big|large|huge|great big]",
    "small": "[small|small|little|tiny]",
    "cyan": "[cyan|cyan|turquoise]",
    "purple": "[purple|purple|violet]",
    "circle": "[circle|circle|circle|disc|ball]",
    "square": "[square|square|square|box]",
    "cross": "[cross|cross|cross|plus sign]",
    "violin": "[violin|violin|violin|fiddle]",
    "organ": "[organ|organ|pipe organ]",
    "slowly": "[slowly|slowly|at a slow pace]",
    "quickly": "[quickly|fast|rapidly]",
    "rising": "[rising|rising|ascending]",
    "falling": "[falling|falling|descending]",
}
PLACES: Mapping[str, str] = {
    side: f"[at the {side}|on the {side}|on the {side} side|to the {side}|at the {side}-hand side|{side}|on the {side}]"
    for side in ("left", "right")
} | {
    "top": "[at the top|on top|near the top|in the upper part|at the upper edge|top|up top|on the upper side|above]",
    "bottom": "[at the bottom|near the bottom|in the lower part|at the lower edge|bottom|on the lower side|below]",
    "centre": "[in the centre|at the centre|in the middle|middle|centre|centred|right in the middle|in the center]",
}
DIRECTIONS: Mapping[str, str] = {
    "right": "[to the right|rightwards|towards the right|right|from left to right|to the right side]",
    "left": "[to the left|leftwards|towards the left|left|from right to left|to the left side]",
    "down": "[down|downwards|to the bottom|towards the bottom|from top to bottom|downward]",
    "up": "[up|upwards|to the top|towards the top|from bottom to top|upward]",
}
_NOTES = {"do": "C", "re": "D", "mi": "E", "fa": "F", "sol": "G", "la": "A", "ti": "B"}
_OCTAVES = {"low": "[low|low|low|deep]", "high": "[high|high|high|high-pitched]"}
# What is meant where people do not say it.
_DEFAULTS: Mapping[str, str] = {
    "shape": "circle",
    "size": "big",
    "place": "centre",
    "colour": "blue",
    "direction": "right",
    "pitch": "low do",
    "timbre": "flute",
}
_LEFT_OUT = {"shape": 0.05, "size": 0.35, "place": 0.3, "colour": 0.15, "direction": 0.15, "pitch": 0.15, "timbre": 0.2}
# How people say that any value will do.
_ANY: Mapping[str, str] = {
    "shape": "[any shape|whatever shape|no matter which shape|the shape does not matter]",
    "colour": "[any colour|in any colour|whatever colour|no matter which colour|the colour does not matter]",
    "size": "[any size|of any size|whatever size|the size does not matter]",
    "place": "[anywhere|no matter where|wherever you like|the place does not matter]",
    "direction": "[any direction|in any direction|no matter where to|whichever way]",
    "pitch": "[any note|whatever note|no matter which note|the note does not matter]",
    "timbre": "[any instrument|on any instrument|whatever instrument|the instrument does not matter]",
}
_SHAPELESS = "[shape|thing|object|figure|form]"
# What people say last: many name a colour and a shape, or a note, and no more.
_INCIDENTAL = ("size", "place", "direction", "timbre")
_MOTIONS = "[that moves|moving|that goes|going|sliding|on its way|heading|that slides|travelling|flying]"
_ORDERS = (
    ("{size} {colour} {shape} {where}", True),
    ("{size} {colour} {shape} {where}", True),
    ("{colour} {shape}, {size}, {where}", True),
    ("{colour} {size} {shape} {where}", True),
    ("{shape} in {colour}, {size}, {where}", True),
    ("{where} a {size} {colour} {shape}", False),
    ("{size} {shape} in {colour} {where}", True),
    ("{where}: {size} {colour} {shape}", False),
    ("{shape} that is {size} and {colour} {where}", True),
    ("{size}, {colour} {shape} {where}", True),
)


def known(frames: Sequence[T]) -> Sequence[T]:
    """The frames for training: all but every sixth."""
    return [frame for number, frame in enumerate(frames, start=1) if number % _NEW_EVERY]


def new(frames: Sequence[T]) -> Sequence[T]:
    """The frames that are in no training data; all where there are too few to keep any back."""
    return frames[_NEW_EVERY - 1 :: _NEW_EVERY] or frames


class Voice:
    """A person who words things by chance: in frames for training, or `is_new` in those that are kept back."""

    def __init__(self, rng: np.random.Generator, is_new: bool) -> None:
        self._rng, self._choose = rng, new if is_new else known

    def pick(self, values: Sequence[T]) -> T:
        """Any of them."""
        return values[int(self._rng.integers(len(values)))]

    def happens(self, probability: float) -> bool:
        """True in so many cases."""
        return bool(self._rng.random() < probability)

    def frame(self, frames: Sequence[T]) -> T:
        """A frame of those that this voice may use."""
        return self.pick(self._choose(frames))

    def said(self, text: str, fields: Mapping[str, str]) -> str:
        """A text with its alternatives chosen and its fields filled in."""
        filled = re.sub(r"\{(\w+)\}", lambda field: fields.get(field[1], field[0]), self._chosen(text))
        return re.sub(r"\b([Aa])(?= [aeiou])", r"\1n", " ".join(self._chosen(filled).split()).replace(" ,", ","))

    def _chosen(self, text: str) -> str:
        return re.sub(r"\[([^\[\]]*)\]", lambda found: self.pick(found[1].split("|")), text)

    def noun(self, modality: Modality) -> str:
        """A word for a medium."""
        return self._chosen(NOUNS[modality])

    def value(self, name: str, value: str) -> str:
        """A word for the value of an attribute."""
        if name == "place":
            return self._chosen(PLACES[value])
        if name == "direction":
            return self._chosen(DIRECTIONS[value])
        if name == "pitch":
            octave, note = value.split()
            return f"{self._chosen(_OCTAVES[octave])} {_NOTES[note] if self.happens(0.15) else note}"
        return self._chosen(SYNONYMS.get(value, value))

    def values(self, subject: Subject) -> dict[str, str]:
        """Words for all attributes of a subject, by name; `where` is its place or direction."""
        found = {name: self.value(name, value) for name, value in attributes(subject).items()}
        return found | {"where": found.get("place") or found.get("direction") or ""}

    def brief(self, subject: Subject) -> Subject:
        """The subject, perhaps with usual values where people would name none."""
        if not _is_plain(subject):
            return subject
        is_bare = self.happens(0.25)
        left_out = [
            name
            for name in attributes(subject)
            if self.happens(_LEFT_OUT.get(name, 0.0)) or (is_bare and name in _INCIDENTAL)
        ]
        return cast(Subject, replace(cast(Any, subject), **{name: _DEFAULTS[name] for name in left_out}))

    def phrase(self, subject: Subject, *, is_named: bool = False) -> str:
        """What is to be seen or heard, as the object of a sentence; values that are usual may be missing.

        `is_named` says that the sentence has a word for the medium: that a video's subject moves need not be said then.
        """
        words = self.values(subject)
        is_bare = self.happens(0.4)
        for name, value in attributes(subject).items():
            # A shape is what people leave out last.
            is_unsaid = self.happens(0.15) if name == "shape" else self.happens(0.5) or is_bare
            if value == _DEFAULTS.get(name) and _is_plain(subject) and is_unsaid:
                words[name] = ""
                if name in ("place", "direction"):
                    words["where"] = ""
        unsaid = [_ANY[name] for name in attributes(subject) if not words[name]]
        any_of = f", {self._chosen(self.pick(unsaid))}" if unsaid and self.happens(0.1) else ""
        if "shape" in words:
            words["shape"] = words["shape"] or self._chosen(_SHAPELESS)
        match subject:
            case Scene():
                return self._scene(subject, words) + any_of
            case Motion():
                return self._motion(subject, words, is_named) + any_of
            case Sound():
                return self._sound(subject, words) + any_of

    def detailed(self, thing: str, like: Subject) -> str:
        """A thing of which is told what is otherwise told of subjects: its size and its place, or where it goes."""
        words, (article, _, noun) = self.values(like), thing.partition(" ")
        match like:
            case Scene():
                is_sized = article in ("a", "an") and self.happens(0.5)
                found = with_article(f"{words['size']} {noun}") if is_sized else thing
                return f"{found} {words['place']}" if not is_sized or self.happens(0.5) else found
            case Motion():
                return f"{thing} {self._chosen(_MOTIONS)} {words['direction']}"
            case Sound():
                return f"{with_article(words['pitch'])} on {thing}" if article in ("a", "an") else thing

    def _scene(self, scene: Scene, words: Mapping[str, str]) -> str:
        order, has_article = self.pick(_ORDERS if scene.other is None else _ORDERS[:1])
        found = _tidy(order.format(**words))
        if has_article and self.happens(0.85):
            found = with_article(found)
        return found if scene.other is None else f"{found} and {self.phrase(scene.other)}"

    def _motion(self, motion: Motion, words: Mapping[str, str], is_named: bool) -> str:
        order = "{colour} {shape}" if self.happens(0.85) else "{shape} in {colour}"
        found = _tidy(order.format(**words))
        if self.happens(0.85):
            found = with_article(found)
        speed = self._chosen(SYNONYMS.get(motion.speed, motion.speed))
        if is_named and not words["where"] and not speed and self.happens(0.6):
            return found
        return " ".join(filter(None, [found, self._chosen(_MOTIONS), speed, words["where"]]))

    def _sound(self, sound: Sound, words: Mapping[str, str]) -> str:
        pitch, timbre = words["pitch"], words["timbre"]
        if sound.melody:
            pitch = f"{self._chosen(SYNONYMS[sound.melody])} melody from {with_article(pitch or 'low do')}"
        if not pitch:
            return f"{self._chosen('[the sound of|some note on|a note on|the]')} {timbre or 'flute'}"
        if sound.pitch.startswith("low") and not sound.melody and self.happens(0.25):
            pitch = pitch.split()[-1]
        found = with_article(pitch) if self.happens(0.85) else pitch
        if not timbre:
            return found
        if self.happens(0.12):
            return f"{timbre} {self._chosen('[playing|with|on]')} {found}"
        return f"{found} {self._chosen('[on|on|on|played on|from]')} the {timbre}"

    def framed(self, text: str) -> str:
        """A request, perhaps with what people say before it or after it."""
        if self.happens(0.2):
            text = f"{self.said(self.frame(FRAMES['opener']), {})} {text}"
        if self.happens(0.2):
            closer = self.said(self.frame(FRAMES["closer"]), {})
            # Only a sentence can follow a whole sentence.
            text = text if closer[0].isupper() else text.rstrip(" .!?")
            text += closer if closer[0] in ",.;:!?" else f" {closer}"
        return text

    def typed(self, text: str) -> str:
        """A text as people type it: often in lower case, without its last stop, in American spelling, with a slip."""
        if self.happens(0.5):
            for british, american in _AMERICAN:
                text = text.replace(british, american)
        if self.happens(0.3):
            for full, short in _SHORT:
                text = re.sub(rf"\b{full}\b", short, text)
        if self.happens(0.1):
            for full, short in _TEXTED:
                text = re.sub(rf"\b{full}\b", short, text, flags=re.IGNORECASE) if self.happens(0.5) else text
        if self.happens(0.1):
            text = self._slipped(text)
        if self.happens(0.05):
            return text.rstrip(" .!?") + self.pick(("!!", "!!!", "...", "??", " :)"))
        if self.happens(0.05):  # dictated
            return " ".join(re.sub(r"[.,:;!?]", " ", text).lower().split())
        if self.happens(0.35):
            text = text.rstrip(" .!?")
        if self.happens(0.35):
            return text.lower()
        return text.upper() if self.happens(0.03) else text

    def _slipped(self, text: str) -> str:
        """A text in which one letter within a longer word is missing, doubled, or changes places with the next."""
        words = text.split(" ")
        long = [number for number, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
        if not long:
            return text
        number = self.pick(long)
        word = words[number]
        at = int(self._rng.integers(1, len(word) - 2))
        slips = (word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:], _swapped(word, at))
        words[number] = self.pick(slips)
        return " ".join(words)


_AMERICAN = (("olour", "olor"), ("centred", "centered"), ("centre", "center"), ("Centre", "Center"))
_SHORT = (
    ("What is", "What's"),
    ("what is", "what's"),
    ("It is", "It's"),
    ("it is", "it's"),
    ("I am", "I'm"),
    ("I would", "I'd"),
    ("Let us", "Let's"),
    ("does not", "doesn't"),
    ("do not", "don't"),
    ("cannot", "can't"),
)
# As on a phone.
_TEXTED = (
    ("you", "u"),
    ("your", "ur"),
    ("are", "r"),
    ("please", "plz"),
    ("thanks", "thx"),
    ("want to", "wanna"),
    ("give me", "gimme"),
    ("let me", "lemme"),
    ("going to", "gonna"),
    ("picture", "pic"),
    ("video", "vid"),
    ("with", "w/"),
    ("and", "n"),
    ("because", "cuz"),
    ("what is", "whats"),
    ("do not", "dont"),
    ("does not", "doesnt"),
    ("I", "i"),
)


def _swapped(word: str, at: int) -> str:
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _is_plain(subject: Subject) -> bool:
    return not any(getattr(subject, name, None) for name in ("other", "melody", "speed"))


def _tidy(text: str) -> str:
    """Text without what missing words leave: doubled spaces and commas, and links to nothing."""
    text = " ".join(text.split())
    for wrong, right in (
        (" ,", ","),
        (",,", ","),
        (" in,", ","),
        ("is and ", "is "),
        (" and in ", " in "),
        (" that is in ", " in "),
    ):
        text = text.replace(wrong, right)
    text = re.sub(
        r" in(?=$| (?:at|on|in|to|near|up|right|left|top|bottom|middle|centre|above|below|centred)\b)", "", text
    )
    text = re.sub(r"\b(?:that is and|that is)(?=$| (?:at|on|in|to|near|up)\b)", "", text)
    return " ".join(text.strip(" ,:").replace("and  ", "and ").split())
