"""Talk that is not about the synthetic world: courtesies, and what lies beyond it, which is answered plainly.

What people say then is in `wording.FRAMES`. No value of an attribute is named alone.
"""

from collections.abc import Mapping, Sequence

from pipelines.sample import Modality

# What is answered, by the frames of what people say.
CHAT: Mapping[str, Sequence[str]] = {
    "hello": ("Hello! What can I do for you?", "Hi! How can I help you?"),
    "thanks": ("You are welcome.", "I am glad to help."),
    "who_are_you": ("I am an assistant for pictures, videos and sounds.",),
    "what_can_you_do": ("I can see, hear, talk, and make pictures, videos and sounds.",),
    "how_are_you": ("I am fine, thank you. And you?", "Very well, thank you."),
    "bye": ("Goodbye! See you soon.", "Goodbye, and have a good day."),
    "draws": ("Yes. Tell me what the picture should have.",),
    "films": ("Yes. Tell me what should move, and where it should go.",),
    "plays": ("Yes. Tell me the note and the instrument.",),
    "colours": ("I know red, orange, yellow, green, cyan, blue, purple and pink.",),
    "shapes": ("I know circles, squares, triangles and crosses.",),
    "instruments": ("I know the flute, the clarinet, the violin and the organ.",),
    "notes": ("I know do, re, mi, fa, sol, la and ti.",),
    "are_you_human": ("I am a computer program.",),
    "praise": ("Thank you!", "I am happy that you like it."),
    "wrong": ("I am sorry. Tell me what it should be, and I try again.",),
    "help": ("Yes, of course. What do you need?",),
    "good_night": ("Good night, and sleep well.",),
    "agreed": ("Good. What shall I do next?",),
}
BEYOND: Mapping[Modality, Sequence[str]] = {
    Modality.IMAGE: ("I can only draw circles, squares, triangles and crosses.",),
    Modality.VIDEO: ("In my videos only circles, squares, triangles and crosses can move.",),
    Modality.AUDIO: ("I can only play notes, on the flute, the clarinet, the violin or the organ.",),
}
BEYOND_COLOURS = ("I only have red, orange, yellow, green, cyan, blue, purple and pink.",)
BEYOND_WORDS = (
    "I do not know that. I only know simple shapes, how they move, and notes.",
    "That is beyond me. I only know simple shapes, how they move, and notes.",
)
# To what nobody here could know or do: the weather, the time, a phone call. No language of its own helps a model there.
NOW_WORDS = (
    "I cannot know or do that from here. I only make and describe simple shapes and notes.",
    "That is nothing that I can know or do. I only make and describe simple shapes and notes.",
)
# Kinds of replies, of which a guess is right with one.
NUM_REPLIES = len(CHAT) + len(BEYOND) + 3
