"""What people and the assistant say in conversations about the synthetic world: frames to choose from, plain and short.

`{noun}` is picture, video or sound, `{sense}` see or hear, `{caption}` what is seen or heard, and the other fields are
attributes of a subject. Words that are values of attributes stand in no frame, so that each names what it says.
"""

from pipelines.sample import Modality

SENSES = {Modality.IMAGE: "see", Modality.VIDEO: "see", Modality.AUDIO: "hear"}
# What is seen or heard, as the object of a sentence; the first is how the assistant says it.
PHRASES = {
    Modality.IMAGE: ("{thing} {where}", "{thing} painted {where}"),
    Modality.VIDEO: ("{thing} that moves {where}", "{thing} on its way {where}", "{thing} heading {where}"),
    Modality.AUDIO: ("{thing}",),
}

# For pairs, whose captions are worded in many ways.
ASK_CAPTION = ("Give a caption for this {noun}.", "Which caption fits this {noun}?", "Write a caption for it.")
MAKE_OF_CAPTION = (
    "Make the {noun} of this caption: {caption}.",
    "The caption is: {caption}. Make the {noun}.",
    "Which {noun} fits this caption: {caption}?",
)
MADE_OF_CAPTION = ("This is the caption: {caption}.", "It fits this: {caption}.")

DESCRIBE = (
    "What is this?",
    "What is in this {noun}?",
    "What do you {sense}?",
    "Describe this {noun}.",
    "Please describe it.",
    "Tell me about this {noun}.",
    "Say what this {noun} has.",
    "What can you {sense} here?",
)
DESCRIBED = ("It is {caption}.", "This is {caption}.", "I {sense} {caption}.", "The {noun} has {caption}.")

MAKE = (
    "Make a {noun}: {caption}.",
    "Please make a {noun} of {caption}.",
    "I would like {caption}.",
    "Can you make {caption}?",
    "Let me {sense} {caption}.",
    "Give me a {noun} of {caption}.",
    "I want a {noun} with {caption}.",
    "Create {caption}, please.",
)
MADE = (
    "Here is {caption}.",
    "Sure, here is {caption}.",
    "Done, here is {caption}.",
    "Of course, here is {caption}.",
)

SOUND_OUT = (
    "How does this sound?",
    "What does this {noun} sound like?",
    "Let me hear this {noun}.",
    "Play the sound of this.",
    "Turn this {noun} into a sound.",
    "Make the sound that belongs to this.",
    "Which sound belongs to this {noun}?",
    "I want to hear it.",
)
SOUNDED_OUT = (
    "It is {caption}. It sounds like {sound}.",
    "I see {caption}. It sounds like {sound}.",
    "This is {caption}. Its sound is {sound}.",
)

RECOLOUR_AND_MOVE = (
    "The same in {colour}, and let it move {where}.",
    "Make it {colour}, and let it move {where}.",
    "Show it in {colour}, and a video where it moves {where}.",
    "I want this in {colour}, and then let it go {where}.",
    "Paint it {colour}, then let it slide {where}.",
    "Can you make it {colour} and let it go {where}?",
)
# The text before the picture, and before the video.
RECOLOURED_AND_MOVED = (
    ("Here is {image}.", "Here is {video}."),
    ("Here is {image}.", "And here is {video}."),
    ("Sure, here is {image}.", "And here is {video}."),
)

# Three things that have nothing to do with each other, or one shape that is shown, moves and sounds.
EVERYTHING = (
    "Make a picture, a video and a sound: {image}, {video} and {audio}.",
    "I would like {image}, {video} and {audio}.",
    "Can you make {image}, {video} and {audio}?",
    "Create {image}, then {video}, then {audio}.",
)
ONE_IN_ALL = (
    "Make a picture of {image}, a video where it moves {where}, and its sound.",
    "Show me {image}, let it move {where}, and let me hear it.",
    "I want {image}. Then let it go {where}, and play its sound.",
    "Draw {image}, move it {where}, and tell me how it sounds.",
)
EVERYTHING_MADE = (
    ("Here is {image}.", "Here is {video}.", "Here is {audio}."),
    ("Here is {image}.", "And here is {video}.", "And here is {audio}."),
    ("Sure, here is {image}.", "And here is {video}.", "And here is {audio}."),
)

# Questions for one attribute, and the sentence that names it.
ASK = {
    "colour": ("Which colour is it?", "What colour does it have?", "Tell me the colour."),
    "shape": ("Which shape is it?", "What shape does it have?", "Tell me the shape."),
    "size": ("Which size is it?", "What size does it have?", "Tell me the size."),
    "place": ("Where is it?", "At which place is it?", "Tell me the place."),
    "direction": ("Where does it move?", "Which way does it go?", "Tell me the direction."),
    "pitch": ("Which note is it?", "What note do you hear?", "Tell me the note."),
    "timbre": ("Which instrument is it?", "What plays it?", "Tell me the instrument."),
}
ASKED = {
    "colour": "It is {colour}.",
    "shape": "It is a {shape}.",
    "size": "It is {size}.",
    "place": "It is {where}.",
    "direction": "It moves {where}.",
    "pitch": "It is a {pitch}.",
    "timbre": "It is the {timbre}.",
}

CHANGE = {
    "colour": ("Now the same in {colour}.", "Make it {colour}.", "And in {colour}?"),
    "shape": ("Now the same as a {shape}.", "Make it a {shape}.", "And as a {shape}?"),
    "size": ("Now the same but {size}.", "Make it {size}.", "And how is it when it is {size}?"),
    "place": ("Now the same {where}.", "Put it {where}.", "And {where}?"),
    "direction": ("Now let it move {where}.", "Let it go {where}.", "And if it moves {where}?"),
    "pitch": ("Now the same as a {pitch}.", "Make it a {pitch}.", "And as a {pitch}?"),
    "timbre": ("Now the same on the {timbre}.", "Play it on the {timbre}.", "And on the {timbre}?"),
}
CHANGES = {
    Modality.IMAGE: ("colour", "shape", "size", "place"),
    Modality.VIDEO: ("colour", "direction"),
    Modality.AUDIO: ("pitch", "timbre"),
}

RECALL = (
    "What was the {noun} before?",
    "What was in the first {noun}?",
    "Tell me about the first {noun} again.",
    "Do you remember the {noun}?",
    "Describe the {noun} from before.",
    "Say again what the first {noun} was.",
)
RECALLED = ("It was {caption}.", "The {noun} was {caption}.", "The first {noun} was {caption}.")
THINK_BACK = ("Think of the first {noun}.", "Back to the {noun} before.", "Do you remember the {noun}?")

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
RULE = (
    "How does {thing} sound?",
    "What does {thing} sound like?",
    "Which sound has {thing}?",
    "What would I hear from {thing}?",
)
RULED = ("It sounds like {sound}.", "Its sound is {sound}.")

# Ways to say a thing, and what is said to it.
CHAT = (
    (("Hello!", "Hi there!", "Good morning."), ("Hello! What can I do for you?", "Hi! How can I help you?")),
    (("Thank you.", "Thanks a lot!", "That is very kind."), ("You are welcome.", "I am glad to help.")),
    (("Who are you?", "What is your name?"), ("I am an assistant for pictures, videos and sounds.",)),
    (("What can you do?", "How can you help me?"), ("I can see, hear, talk, and make pictures, videos and sounds.",)),
    (("How are you?", "Are you well?"), ("I am fine, thank you. And you?", "Very well, thank you.")),
    (("Goodbye!", "See you soon.", "I have to go now."), ("Goodbye! See you soon.", "Goodbye, and have a good day.")),
    (("Can you make a picture?", "Do you draw?"), ("Yes. Tell me what the picture should have.",)),
    (("Can you make a video?", "Do you make films?"), ("Yes. Tell me what should move, and where it should go.",)),
    (("Can you make a sound?", "Do you play music?"), ("Yes. Tell me the note and the instrument.",)),
    (("Which colours do you know?", "How many colours are there?"), ("I know eight colours.",)),
    (("Are you a human?", "Are you a person?"), ("No, I am a program.", "No, I am a computer program.")),
    (("Well done!", "That was good.", "I like that."), ("Thank you!", "I am happy that you like it.")),
    (("Can you help me?", "I need some help."), ("Yes, of course. What do you need?",)),
    (("Good night.", "I am tired."), ("Good night, and sleep well.",)),
)
