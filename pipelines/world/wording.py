"""What people and the assistant say in conversations about the synthetic world: frames to choose from.

What people say stands in `frames.yaml`, by what is said. There `[one|another]` stands for any of them (see `phrasing`),
and every sixth frame of a set is kept from training. `{noun}` is picture, video or sound, `{sense}` see or hear,
`{thing}` what is seen or heard in a person's words, `{caption}` in the assistant's, and the other fields are attributes
of a subject. Words that are values of attributes stand in no frame, so that each names what it says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import yaml

from pipelines.sample import Modality

_FILE = Path(__file__).with_name("frames.yaml")
FRAMES: Mapping[str, Sequence[str]] = MappingProxyType(
    {name: tuple(frames) for name, frames in yaml.load(_FILE.read_text(encoding="utf-8"), yaml.CSafeLoader).items()}
)

SENSES = {Modality.IMAGE: "see", Modality.VIDEO: "see", Modality.AUDIO: "hear"}
# What is seen or heard, as the assistant says it.
PHRASES = {Modality.IMAGE: "{thing} {where}", Modality.VIDEO: "{thing} that moves {where}", Modality.AUDIO: "{thing}"}

# For pairs, whose captions are worded in many ways.
ASK_CAPTION = ("Give a caption for this {noun}.", "Which caption fits this {noun}?", "Write a caption for it.")
MAKE_OF_CAPTION = (
    "Make the {noun} of this caption: {caption}.",
    "The caption is: {caption}. Make the {noun}.",
    "Which {noun} fits this caption: {caption}?",
)
MADE_OF_CAPTION = ("This is the caption: {caption}.", "It fits this: {caption}.")

DESCRIBED = ("It is {caption}.", "This is {caption}.", "I {sense} {caption}.", "The {noun} has {caption}.")

MADE = (
    "Here is {caption}.",
    "Sure, here is {caption}.",
    "Done, here is {caption}.",
    "Of course, here is {caption}.",
)

SOUNDED_OUT = (
    "It is {caption}. It sounds like {sound}.",
    "I see {caption}. It sounds like {sound}.",
    "This is {caption}. Its sound is {sound}.",
)

# The text before the picture, and before the video.
RECOLOURED_AND_MOVED = (
    ("Here is {image}.", "Here is {video}."),
    ("Here is {image}.", "And here is {video}."),
    ("Sure, here is {image}.", "And here is {video}."),
)

EVERYTHING_MADE = (
    ("Here is {image}.", "Here is {video}.", "Here is {audio}."),
    ("Here is {image}.", "And here is {video}.", "And here is {audio}."),
    ("Sure, here is {image}.", "And here is {video}.", "And here is {audio}."),
)
TWO_MADE = (
    ("Here is {first}.", "Here is {second}."),
    ("Here is {first}.", "And here is {second}."),
    ("Sure, here is {first}.", "And here is {second}."),
)

# The sentence that names an attribute.
ASKED = {
    "colour": "It is {colour}.",
    "shape": "It is a {shape}.",
    "size": "It is {size}.",
    "place": "It is {where}.",
    "direction": "It moves {where}.",
    "pitch": "It is a {pitch}.",
    "timbre": "It is the {timbre}.",
}

SIZERS = {"big": "[bigger|larger]", "small": "[smaller|tinier]"}
RESIZES = {"big": "[enlarge|grow|expand|magnify]", "small": "[shrink|reduce|downsize]"}
CHANGES = {
    Modality.IMAGE: ("colour", "shape", "size", "place"),
    Modality.VIDEO: ("colour", "shape", "direction"),
    Modality.AUDIO: ("pitch", "timbre"),
}

RECALLED = ("It was {caption}.", "The {noun} was {caption}.", "The first {noun} was {caption}.")

REPEAT = ("Say it again.", "Repeat this.", "Please repeat the words.", "Write the same once more.")
REPEATED = ("You said: {text}.", "It says: {text}.", "Here it is again: {text}.")
NAME_ALL = {
    Modality.IMAGE: (
        "Name colour, shape, size and place.",
        "Colour: {colour}. Shape: {shape}. Size: {size}. It is {where}.",
    ),
    Modality.VIDEO: ("Name colour, shape and direction.", "Colour: {colour}. Shape: {shape}. It moves {where}."),
    Modality.AUDIO: ("Name note and instrument.", "Note: {pitch}. Instrument: {timbre}."),
}
RULED = ("It sounds like {sound}.", "Its sound is {sound}.")
