"""What people and the assistant say in conversations about the synthetic world: frames to choose from.

In what people say, `[one|another]` stands for any of them (see `phrasing`), and every sixth frame of a set is kept from
training. `{noun}` is picture, video or sound, `{sense}` see or hear, `{thing}` what is seen or heard in a person's
words, `{caption}` in the assistant's, and the other fields are attributes of a subject. Words that are values of
attributes stand in no frame, so that each names what it says.
"""

from collections.abc import Mapping, Sequence

from pipelines.sample import Modality

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

DESCRIBE = (
    "What is this?",
    "What is in this {noun}?",
    "What do you {sense}?",
    "[Describe|Please describe|Can you describe|Could you describe] this {noun}.",
    "[Describe|Please describe|Can you describe] [it|this].",
    "[What is shown|What is going on|What is happening] [in this {noun}|here]?",
    "Tell me [about|something about] this {noun}.",
    "Say what [this|the] {noun} has.",
    "What can you {sense} [here|in it|in this {noun}]?",
    "[Tell me|Please tell me|Can you tell me] what you {sense}.",
    "[What does this {noun} show?|What does the {noun} have?|What does it show?]",
    "[Look at this|Have a look|Take a look at this {noun}|Listen to this]. [What is it?|What do you {sense}?]",
    "[I do not know what this is|I wonder what this is]. [Can you help?|Can you tell me?|What is it?]",
    "{noun}?",
    "[Explain|Summarise|Summarize] this {noun} [for me|in a sentence|in a few words|briefly].",
    "[Give me|I need|I would like] a [description|short description|one-line description] of [this|the] {noun}.",
    "[What is this a {noun} of?|What is the {noun} about?|What is it about?]",
    "[What have I got here|What did I send you|What did I upload|What is that]?",
)
DESCRIBED = ("It is {caption}.", "This is {caption}.", "I {sense} {caption}.", "The {noun} has {caption}.")

MAKE = (
    "[Make|Create|Generate|Produce] a {noun}: {thing}.",
    "[Please|] [make|create|generate] a {noun} of {thing}.",
    "[I would like|I want|I need|I would love] {thing}.",
    "[Can|Could|Would] you [make|create|generate|do] {thing}?",
    "[Let me {sense}|Show me|Give me|Get me] {thing}.",
    "[How about|What about] a {noun} [of|with] {thing}?",
    "[Give|Make|Get] me a {noun} [of|with] {thing}.",
    "I [want|need|would like] a {noun} [with|of] {thing}[.|, please.| please.]",
    "[Create|Make|Generate|Produce] {thing}[, please.| please.|.]",
    "{thing}",
    "{thing}[, please| please|!|.]",
    "A {noun} of {thing}[.|, please.| please.]",
    "[Can|Could] you [make|create|generate|give] me a {noun} [of|with|that has] {thing}?",
    "[Hi|Hello|Hey], [can you make|please make|I would like|make me] {thing}.",
    "[Make|Do] one {noun} for me: {thing}.",
    "[I am looking for|I am after|It should be] a {noun} [of|with] {thing}.",
    "{noun}: {thing}",
    "[Now make|Next, make|Then make] [me |]{thing}[.|, please.]",
    "[May I have|Could I have|Can I get|Can I have] [a {noun} of |]{thing}?",
    "[Would you mind making|Would you be so kind and make] [a {noun} of |]{thing}?",
    "[One|Just] {noun} of {thing}, nothing else.",
)
MAKE_ONE: Mapping[Modality, Sequence[str]] = {
    Modality.IMAGE: (
        "[Draw|Paint|Sketch] {thing}.",
        "[Draw|Paint|Sketch] me {thing}[.|, please.| please.]",
        "[Can|Could|Would] you [draw|paint|sketch] [me |]{thing}?",
        "[Please|Pls] [draw|paint|sketch] {thing}.",
        "I want [you to draw|you to paint|to see] {thing}.",
        "[Sketch|Draw|Paint] [something|a {noun}] for me: {thing}.",
        "[Draw|Paint] a {noun} [of|with|that has|showing] {thing}.",
        "[Show|Display] {thing}.",
        "A {noun} [with|showing|that shows|of] {thing}[.|, please.]",
        "[Let us draw|Let me see|Let me look at] {thing}.",
        "[Put|Place] {thing} [in a {noun}|on a card|on the canvas].",
        "[I need you to draw|Please sketch for me|Go and paint] {thing}.",
    ),
    Modality.VIDEO: (
        "[Show|Animate|Film] {thing}.",
        "[Show me|Let me watch|Let me see] {thing}[.|, please.]",
        "[Can|Could] you [animate|film|show] [me |]{thing}?",
        "[Make|Create|Generate] [a {noun}|an animation] [where one sees|that shows|showing|with] {thing}.",
        "I want to [see|watch] {thing}.",
        "[Animate|Film] this [for me|please]: {thing}.",
        "A {noun} [in which one sees|that shows|showing|where there is] {thing}[.|, please.]",
        "[Let there be|Let us see|Let us watch] {thing}.",
        "[Render|Shoot|Record] a {noun} [of|with|showing] {thing}.",
        "[Please|Pls] [animate|show me] {thing}.",
        "[Play|Start] a {noun} of {thing}.",
        "[I need you to animate|Please film for me|Go and film] {thing}.",
    ),
    Modality.AUDIO: (
        "[Play|Play me] {thing}.",
        "[Can|Could|Would] you play [me |]{thing}?",
        "[Let me hear|I want to hear|I would like to hear] {thing}.",
        "[Please|Pls] play {thing}[.|for me.]",
        "[Play|Make] a {noun}: {thing}.",
        "[What does|How does] {thing} sound[ like|]? [Play it.|Let me hear.|]",
        "[Play|Perform|Sound] {thing}[, please.| please.|.]",
        "I want to listen to {thing}.",
        "[Make|Play|Generate] the sound of {thing}.",
        "A {noun} of {thing}[.|, please.]",
        "[Let us hear|Give us|Let us listen to] {thing}.",
        "[Perform for me|Play something:|Strike up] {thing}.",
    ),
}
MADE = (
    "Here is {caption}.",
    "Sure, here is {caption}.",
    "Done, here is {caption}.",
    "Of course, here is {caption}.",
)

SOUND_OUT = (
    "How does [this|it|that] sound?",
    "What does [this|the] {noun} sound like?",
    "[Let me hear|I want to hear|I would like to hear] [this {noun}|it|this|how it sounds].",
    "[Play|Make|Give me] the sound [of|for] [this|it|this {noun}].",
    "Turn [this {noun}|this|it] into [a sound|sound|music|a note].",
    "[How would|What would] [this|the] {noun} sound[ like|]?",
    "[Make|Create|Generate] the sound that belongs to [this|it|this {noun}].",
    "[Which|What] sound [belongs to|goes with|fits|matches] [this|this {noun}|it]?",
    "[Can|Could] you play [this|it|this {noun}|its sound]?",
    "[Make|Generate|Create|Add] [a sound|the sound|audio] [for|to] [it|this|this {noun}].",
    "[Play it|Sound please|Its sound, please|Audio please].",
    "[If this {noun} were a sound|If one could hear this], [how would it be?|what would it be?]",
)
SOUNDED_OUT = (
    "It is {caption}. It sounds like {sound}.",
    "I see {caption}. It sounds like {sound}.",
    "This is {caption}. Its sound is {sound}.",
)

RECOLOUR_AND_MOVE = (
    "The same in {colour}, and let it move {where}.",
    "[Make|Paint|Colour|Turn] it {colour}, [and|then] [let|make] it [move|go|slide] {where}.",
    "Show it in {colour}, and a [video|clip|movie] where it [moves|goes|slides] {where}.",
    "I want [this|it] in {colour}, and then let it go {where}.",
    "[Paint|Make] it {colour}. Then [let it slide|move it|a video of it going] {where}.",
    "[Same but|The same thing but] {colour}, [also|and] [moving|going|sliding] {where}.",
    "[Can|Could] you make it {colour} and [let it go|move it|let it slide] {where}?",
    "[In {colour}|{colour}] please, and [a video of it|then a clip where it is|an animation of it] moving {where}.",
    "[Recolour|Repaint] it in {colour} and [animate|move] it {where}.",
    "A {colour} one, and a [video|clip|film] in which [it|that one] goes {where}.",
    "[Change|Switch] the colour to {colour} and make it [move|go] {where}.",
    "[Turn this|Turn the thing] {colour}, and [afterwards|next] [send it|let it travel] {where}.",
)
# The text before the picture, and before the video.
RECOLOURED_AND_MOVED = (
    ("Here is {image}.", "Here is {video}."),
    ("Here is {image}.", "And here is {video}."),
    ("Sure, here is {image}.", "And here is {video}."),
)

# Two or three things that have nothing to do with each other, or one shape that is shown, moves and sounds.
TWO = (
    "[Make|Create|Generate|Give me] {first} and {second}.",
    "[Make|Create|Give me|I want] a {noun} of {first} and a {other} of {second}.",
    "[I would like|I want|I need] {first}[,| and| and also| as well as] {second}[.|, please.]",
    "[Can|Could] you [make|create|give me] {first} and {second}?",
    "[Make|Create|Give me] {first}. [Then|Also|And] {second}[.|, please.]",
    "[First|To begin with] {first}, [then|and then|after that] {second}.",
    "A {noun} of {first} and [also |]a {other} of {second}[.|, please.]",
    "{noun}: {first}. {other}: {second}.",
    "{first} [and|and also|plus] {second}",
    "[Show me|Let me have] {first}[,| and] then {second}.",
    "[Make|Create] a {noun} and a {other}: {first}, and {second}.",
    "[Two things|Two requests], please: {first} [and|,] {second}.",
)
EVERYTHING = (
    "[Make|Create|Generate] a picture, a video and a sound: {image}, {video} and {audio}.",
    "[I would like|I want|I need] {image}, {video} and {audio}.",
    "[Can|Could] you make {image}, {video} and {audio}?",
    "[Create|Make|Generate] {image}, then {video}, then {audio}.",
    "[Give me|Show me|Let me have] {image}, {video} and {audio}[.|, please.]",
    "[Three things|All three], please: {image}, {video} and {audio}.",
    "A picture of {image}, a [video|clip] of {video} and the sound of {audio}[.|, please.]",
    "{image}. {video}. {audio}.",
    "[First|Make] {image}. Then {video}. [Then|And] {audio}.",
    "[Draw|Paint] {image}, [show|animate] {video}, [and play|play] {audio}.",
    "Picture: {image}. Video: {video}. Sound: {audio}.",
    "[Also I want|Let me see and hear] {image}, [plus|and] {video}, [plus|and] {audio}.",
)
ONE_IN_ALL = (
    "[Make|Create|Give me] a picture of {image}, a video where it moves {where}, and its sound.",
    "[Show|Draw] me {image}, let it move {where}, and let me hear it.",
    "I want {image}. Then let it [go|move] {where}, and play its sound.",
    "[Draw|Paint|Sketch] {image}, move it {where}, and [tell me how it sounds|play it|play its sound].",
    "[Draw|Make] {image}, a [clip|video|film] of it going {where} and the sound [that belongs to it|it makes].",
    "[Give me|I need] {image}, [moving|its move] {where} too, and with sound.",
    "[Can|Could] you draw {image}, [move|animate] it {where} and play [it|its sound]?",
    "{image}, [then|and] a video of it moving {where}, [then|and] its sound[.|, please.]",
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

# Questions for one attribute, and the sentence that names it.
ASK = {
    "colour": (
        "[Which|What] colour is [it|this|that|the thing]?",
        "What colour does it have?",
        "Tell me the colour.",
        "[Its|The] colour?",
        "[And the colour|And its colour|And what colour]?",
        "[How is it coloured|In which colour is it painted]?",
    ),
    "shape": (
        "[Which|What] shape is [it|this|that]?",
        "What shape does it have?",
        "Tell me the shape.",
        "[Its|The] shape?",
        "What [kind|sort] of shape [is it|is this|do you see]?",
        "[Which form|What form] [has it|does it have]?",
    ),
    "size": (
        "[Which|What] size is [it|this|that]?",
        "What size does it have?",
        "Tell me the size.",
        "How large is [it|this|that|the thing]?",
        "[Its|The] size?",
        "[Of which size is it|What about its size]?",
    ),
    "place": (
        "Where is [it|this|that|the thing]?",
        "At which place is it?",
        "Tell me the place.",
        "Where [in the picture|on the picture] is it?",
        "[Its|The] [place|position]?",
        "[Where can I find it|Where does it stand|What is its position]?",
    ),
    "direction": (
        "Where does [it|this|that] [move|go]?",
        "Which way does it [go|move]?",
        "Tell me the direction.",
        "[In which|What] direction does it [move|go]?",
        "Where is it [going|moving|heading]?",
        "[Where to|Which way is it headed|What is its direction]?",
    ),
    "pitch": (
        "[Which|What] note is [it|this|that]?",
        "[What|Which] note do you hear?",
        "Tell me the note.",
        "[Its|The] [note|pitch]?",
        "[Which|What] note is [played|playing|sounding]?",
        "[Which tone is it|What is its pitch|Can you name the note]?",
    ),
    "timbre": (
        "[Which|What] instrument is [it|this|that]?",
        "What plays [it|this|here]?",
        "Tell me the instrument.",
        "[Its|The] instrument?",
        "[Which|What] instrument [plays|do you hear|is playing|was used]?",
        "[On what is it played|Who plays it|Can you name the instrument]?",
    ),
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
# `{value}` may be right or not.
ASK_WHETHER = {
    "colour": ("Is it {value}?", "Is [this|that|the thing] {value}?", "It is {value}, [right|is it not]?"),
    "shape": ("Is it a {value}?", "Is [this|that] a {value}?", "It is a {value}, [right|is it not]?"),
    "size": ("Is it {value}?", "Is [this|that|the thing] {value}?", "It is {value}, [right|is it not]?"),
    "place": ("Is it {value}?", "Is [this|that|the thing] {value}?", "It is {value}, [right|is it not]?"),
    "direction": ("Does it [move|go] {value}?", "Is it [moving|going] {value}?", "It moves {value}, [right|yes]?"),
    "pitch": ("Is it a {value}?", "Is [this|that] a {value}?", "Do you hear a {value}?"),
    "timbre": ("Is it [a|the] {value}?", "Is [this|that] [a|the] {value}?", "Does [a|the] {value} play?"),
}

CHANGE = {
    "colour": (
        "Now the same in {colour}.",
        "Make it {colour}.",
        "[And|Now|Then] in {colour}[?|.|, please.]",
        "[Same but|The same but|Same thing but|Again but|But] {colour}[.|, please.]",
        "[In {colour} please|{colour} please|{colour} instead|Not that one, {colour}|What about {colour}?|{colour}]",
        "[Can|Could] you [make|paint|turn|do] it [in |]{colour}?",
        "[Change|Switch] [the colour|it|its colour] to {colour}.",
        "[I want|I would like|I need|I prefer] it in {colour}[.|, please.]",
        "[Paint|Colour|Turn|Do] it {colour}[.|, please.| instead.]",
        "[Now|And now] [a {colour} one|{colour}][.|, please.]",
        "[How about|What about|Try] [{colour}|it in {colour}|a {colour} one]?",
        "[Let it be|It should be|Could it be] {colour}.",
    ),
    "shape": (
        "Now the same as a {shape}.",
        "Make it a {shape}.",
        "[And|Now|Then] as a {shape}[?|.|, please.]",
        "[Same but|The same but|Same thing but|But] [a|as a] {shape}[.|, please.]",
        "[A {shape} please|A {shape} instead|{shape} instead|What about a {shape}?|{shape}]",
        "[Can|Could] you [make|turn] it [into |]a {shape}?",
        "[Change|Switch|Turn] [it|the shape|this] [to|into] a {shape}.",
        "[I want|I would like|I need|I prefer] a {shape}[.| instead.|, please.]",
        "[Now|And now] a {shape}[.|, please.]",
        "[With|Use] a {shape} [instead|this time|now].",
        "[How about|Try] a {shape}?",
        "[Let it be|It should be|Could it be] a {shape}.",
    ),
    "size": (
        "Now the same but {size}.",
        "Make it {size}.",
        "And how is it when it is {size}?",
        "[Same but|The same but|Again but|But] [{size}|{sizer}][.|, please.]",
        "{sizer}[.|, please| please|!]",
        "[Can|Could] you make it {sizer}?",
        "[Make|Do|Draw] it [{sizer}|a bit {sizer}|much {sizer}|{size}][.|, please.]",
        "[Now|And now|And] [{size}|{sizer}][.|, please.|?]",
        "[A {sizer} one|A {size} one|{size} instead|{sizer} please]",
        "[I want|I would like|I need] it {sizer}[.|, please.]",
        "[It should be|It must be] {sizer}.",
        "[Let it be|Could it be|How about] [{sizer}|{size}]?",
    ),
    "place": (
        "Now the same {where}.",
        "Put it {where}.",
        "[And|Now|Then] {where}[?|.|, please.]",
        "[Same but|The same but|Again but|But] {where}[.|, please.]",
        "[{where} please|{where} instead|Not there, {where}|What about {where}?|{where}]",
        "[Can|Could] you [put|move|place|draw] it {where}?",
        "[Put|Place|Draw|Paint] it {where}[.|, please.| instead.]",
        "[I want|I would like|I need] it {where}[.|, please.]",
        "[Shift|Change] [it|its place|the position] [so that it is |]{where}.",
        "[Now|And now] {where}[.|, please.]",
        "[It should be|It belongs] {where}.",
        "[Let it be|How about|Could it be] {where}?",
    ),
    "direction": (
        "Now let it move {where}.",
        "Let it go {where}.",
        "And if it moves {where}?",
        "[Same but|The same but|Again but|But] [moving|going] {where}[.|, please.]",
        "[Move it|Send it|Slide it] {where}[.| instead.|, please.]",
        "[Can|Could] you [move it|let it go|make it go|send it] {where}?",
        "[Now|And now|And] [moving|going] {where}[.|, please.|?]",
        "[Change|Switch] [its|the] direction, it [should go|goes|moves] {where}.",
        "[I want|I would like] it to [move|go] {where}.",
        "[It should|It must|Make it] [move|go] {where}.",
        "[Moving|Going] {where} [instead|this time|please].",
        "[How about|What about|Try] [moving|going] {where}?",
    ),
    "pitch": (
        "Now the same as a {pitch}.",
        "Make it a {pitch}.",
        "[And|Now|Then] as a {pitch}[?|.|, please.]",
        "[Same but|The same but|Again but|But] [a |with a ]{pitch}[.|, please.]",
        "[A {pitch} please|A {pitch} instead|{pitch} instead|What about a {pitch}?|{pitch}]",
        "[Can|Could] you [make it|play] a {pitch}?",
        "[Play|Now play|Then play] a {pitch}[.| instead.|, please.]",
        "[Now|And now] a {pitch}[.|, please.]",
        "[Change|Switch] the note to a {pitch}.",
        "[I want|I would like] a {pitch} [instead|now|please].",
        "[It should be|It must be] a {pitch}.",
        "[How about|Try|Could it be] a {pitch}?",
    ),
    "timbre": (
        "Now the same on the {timbre}.",
        "Play it on the {timbre}.",
        "[And|Now|Then] on the {timbre}[?|.|, please.]",
        "[Same but|The same but|Again but|But] on [the|a] {timbre}[.|, please.]",
        "[On the {timbre} please|{timbre} instead|{timbre} please|What about the {timbre}?|{timbre}]",
        "[Can|Could] you play [it|this|that] on [the|a] {timbre}?",
        "[Again|Once more|The same note] on [the|a] {timbre}[.|, please.]",
        "[Now|And now] [with|on] [the|a] {timbre}[.|, please.]",
        "[Change|Switch] the instrument to [the|a] {timbre}.",
        "[Use|Take] [the|a] {timbre} [instead|this time|now].",
        "[I want|I would like] [it on the|to hear the|a] {timbre}[.|, please.]",
        "[How about|Try] [the|a] {timbre}?",
    ),
}
SIZERS = {"big": "[bigger|larger]", "small": "[smaller|tinier]"}
CHANGES = {
    Modality.IMAGE: ("colour", "shape", "size", "place"),
    Modality.VIDEO: ("colour", "direction"),
    Modality.AUDIO: ("pitch", "timbre"),
}

RECALL = (
    "What was the {noun} before?",
    "What was in the [first|earlier] {noun}?",
    "Tell me about the [first|earlier] {noun} again.",
    "[Do|Can] you remember the {noun}?",
    "Describe the {noun} from before.",
    "[Go back to|What about] the [first|earlier] {noun}: what was it?",
    "Say again what the first {noun} was.",
    "[What did I send|What came|What was there] [first|before], in the {noun}?",
    "[And the|What was that] {noun} [from before|earlier|of before]?",
)
RECALLED = ("It was {caption}.", "The {noun} was {caption}.", "The first {noun} was {caption}.")
THINK_BACK = (
    "Think of the first {noun}.",
    "Back to the {noun} before.",
    "Do you remember the {noun}?",
    "[In|About] the {noun} from before:",
    "[One more question about|Again] the [first|earlier] {noun}.",
    "[Let us return to|Once more] the {noun} from before.",
)

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
    "[Which|What] sound [has|does] {thing}[| make| have]?",
    "What would I hear from {thing}?",
    "[Tell me|Do you know] how {thing} sounds[.|?]",
    "[Describe|What is] the sound of {thing}[.|?]",
)
RULED = ("It sounds like {sound}.", "Its sound is {sound}.")
