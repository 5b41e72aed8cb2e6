"""Talk that is not about the synthetic world: courtesies, and what lies beyond it, which is answered plainly.

Alternatives and frames kept from training are those of `phrasing`. No value of an attribute is named alone.
"""

from collections.abc import Mapping, Sequence

from pipelines.sample import Modality

# Ways to say a thing, and what is said to it.
CHAT: Sequence[tuple[Sequence[str], Sequence[str]]] = (
    (
        ("Hello!", "Hi there!", "Good morning.", "[Hi|Hey|Hello]", "[Good evening|Good afternoon|Greetings]."),
        ("Hello! What can I do for you?", "Hi! How can I help you?"),
    ),
    (
        (
            "Thank you.",
            "Thanks[ a lot|]!",
            "That is very kind.",
            "[Many thanks|Thank you so much|thx]",
            "Thanks, [great|perfect].",
        ),
        ("You are welcome.", "I am glad to help."),
    ),
    (
        (
            "Who are you?",
            "What is your name?",
            "[What|Who] [are|is] [you|this]?",
            "[Introduce yourself|Tell me about yourself].",
        ),
        ("I am an assistant for pictures, videos and sounds.",),
    ),
    (
        (
            "What can you do?",
            "How can you help me?",
            "[What are you able to do|What do you know|What can I ask you|help]?",
            "[What are you good for|What should I ask|How does this work|How do I use you]?",
            "[Tell me|Show me] what you can do.",
        ),
        ("I can see, hear, talk, and make pictures, videos and sounds.",),
    ),
    (
        ("How are you[| today| doing]?", "Are you well?", "[How is it going|What is up|How do you feel]?"),
        ("I am fine, thank you. And you?", "Very well, thank you."),
    ),
    (
        ("[Goodbye|Bye|Bye bye|See you]!", "See you soon.", "I have to go now.", "[That is all|I am done] for today."),
        ("Goodbye! See you soon.", "Goodbye, and have a good day."),
    ),
    (
        ("Can you [make|draw] [a picture|pictures|images]?", "Do you draw?", "[Are you able to|Could you] draw?"),
        ("Yes. Tell me what the picture should have.",),
    ),
    (
        (
            "Can you make [a video|videos|films]?",
            "Do you make films?",
            "[Are you able to|Could you] make a [video|clip]?",
        ),
        ("Yes. Tell me what should move, and where it should go.",),
    ),
    (
        ("Can you make [a sound|sounds|music]?", "Do you play music?", "[Are you able to|Could you] play something?"),
        ("Yes. Tell me the note and the instrument.",),
    ),
    (
        ("[Which|What] colours do you know?", "How many colours are there?", "[List|Name] [the|your] colours."),
        ("I know red, orange, yellow, green, cyan, blue, purple and pink.",),
    ),
    (
        ("[Which|What] shapes do you know?", "[Which|What] shapes can you draw?", "[List|Name] [the|your] shapes."),
        ("I know circles, squares, triangles and crosses.",),
    ),
    (
        ("[Which|What] instruments do you [know|play]?", "[List|Name] [the|your] instruments.", "What can you play?"),
        ("I know the flute, the clarinet, the violin and the organ.",),
    ),
    (
        ("[Which|What] notes do you [know|play]?", "[List|Name] [the|your] notes.", "How many notes are there?"),
        ("I know do, re, mi, fa, sol, la and ti.",),
    ),
    (
        (
            "Are you a [human|person|robot|machine]?",
            "Are you [real|alive|human|an AI]?",
            "[Is this|Am I talking to] a person?",
        ),
        ("I am a computer program.",),
    ),
    (
        ("Well done!", "That was good.", "I like [that|it|this].", "[Great|Nice|Perfect|Cool|Wonderful|Wow|Good job]!"),
        ("Thank you!", "I am happy that you like it."),
    ),
    (
        ("[That is|This is|It is] wrong.", "That is not [right|what I wanted].", "[No|Nope], [try again|not that]."),
        ("I am sorry. Tell me what it should be, and I try again.",),
    ),
    (
        ("Can you help me?", "I need some help.", "[Help me|I have a question|I have a request]."),
        ("Yes, of course. What do you need?",),
    ),
    (("Good night.", "I am tired.", "[Sleep well|I am going to bed]."), ("Good night, and sleep well.",)),
    (("[Yes|OK|Okay|Sure|Alright].", "[Fine|Right|I see|Got it]."), ("Good. What shall I do next?",)),
)

# What the world does not have, by what one would make of it.
THINGS: Sequence[str] = (
    *("a cat", "a dog", "a horse", "a bird", "a fish", "an elephant", "a lion", "a tiger", "a rabbit", "a mouse"),
    *("a cow", "a sheep", "a snake", "a frog", "a bee", "a butterfly", "a spider", "a bear", "a wolf", "a dragon"),
    *("a unicorn", "a house", "a castle", "a church", "a tower", "a bridge", "a city", "a street", "a village"),
    *("a car", "a bus", "a train", "a bicycle", "a plane", "a ship", "a rocket", "a boat", "a truck", "a robot"),
    *("a man", "a woman", "a child", "a baby", "a face", "a king", "a queen", "a doctor", "a knight", "people"),
    *("a tree", "a flower", "a rose", "a forest", "a mountain", "a river", "a lake", "the sea", "a beach", "a desert"),
    *("the sun", "the moon", "the stars", "the sky", "clouds", "rain", "snow", "a rainbow", "a sunset", "a storm"),
    *("an apple", "a banana", "a pizza", "a cake", "bread", "coffee", "a bottle", "a cup", "a table", "a chair"),
    *("a book", "a phone", "a computer", "a clock", "a lamp", "a hat", "a shoe", "a map", "a flag", "a logo"),
    *("a star", "a heart", "a hexagon", "a rectangle", "an arrow", "a spiral", "a cube", "a line", "a diamond"),
    *("the Eiffel Tower", "the Mona Lisa", "a wedding", "a football match", "a dinosaur", "a monster", "a ghost"),
    *("a pig", "a goat", "a duck", "a chicken", "an owl", "an eagle", "a penguin", "a whale", "a shark", "a turtle"),
    *("a monkey", "a giraffe", "a kangaroo", "a fox", "a squirrel", "a snail", "an ant", "a crocodile", "a camel"),
    *("a motorbike", "a helicopter", "a balloon", "a tractor", "a taxi", "a tram", "a submarine", "a spaceship"),
    *("a farm", "a garden", "a kitchen", "a room", "an island", "a volcano", "a waterfall", "a cave", "a windmill"),
    *("a leaf", "a mushroom", "an oak", "a cactus", "a palm tree", "grass", "fire", "smoke", "lightning"),
    *("a strawberry", "a sandwich", "an egg", "cheese", "a glass of wine", "soup", "a spoon", "a knife", "a plate"),
    *("a door", "a window", "a bed", "a sofa", "a mirror", "a key", "an umbrella", "a bag", "a ladder", "a hammer"),
    *("a soldier", "a dancer", "a teacher", "a pirate", "a wizard", "an angel", "my mother", "a crowd", "a couple"),
    *("a pentagon", "an oval", "a crescent", "a ring", "a pyramid", "a cylinder", "an octagon", "a zigzag", "a dot"),
    *("a skull", "an eye", "a hand", "a smile", "a skeleton", "a portrait", "a landscape", "a cartoon", "a poster"),
)
TUNES: Sequence[str] = (
    *("a song", "some jazz", "rock music", "a symphony", "happy birthday", "a lullaby", "a waltz", "techno", "a march"),
    *("a piano", "a guitar", "a drum", "drums", "a trumpet", "a saxophone", "a harp", "a cello", "a bell", "a choir"),
    *("a dog barking", "a cat", "rain", "thunder", "the sea", "the wind", "a car", "a train", "birds singing"),
    *("someone laughing", "applause", "footsteps", "a baby crying", "a phone ringing", "a voice", "an alarm"),
    *("Beethoven", "Mozart", "the Beatles", "a pop song", "the national anthem", "a motor", "a crowd", "a whistle"),
    *("a banjo", "an accordion", "a harmonica", "a tuba", "a trombone", "an oboe", "a bass", "a xylophone", "a gong"),
    *("a ukulele", "a keyboard", "an electric guitar", "a tambourine", "bagpipes", "a synthesizer", "a horn"),
    *("a lion roaring", "a horse", "a cow", "a bird", "a frog", "bees", "a river", "fire crackling", "a storm"),
    *("a clock ticking", "a door closing", "a helicopter", "a siren", "an engine", "a train horn", "fireworks"),
    *("someone speaking", "a child singing", "a scream", "whispering", "a speech", "a rap", "a ballad", "an opera"),
)
COLOURS: Sequence[str] = (
    "black",
    "white",
    "brown",
    "grey",
    "gray",
    "golden",
    "silver",
    "beige",
    "transparent",
    "striped",
    "maroon",
    "magenta",
    "ivory",
    "bronze",
    "checkered",
    "invisible",
)
QUESTIONS: Sequence[str] = (
    "[What|Which] is the capital of [France|Germany|Japan|Italy|Spain|China|Brazil|India|Egypt]?",
    "[What is|How much is] [two|three|7|12|5] [plus|times|minus] [two|4|8|6|nine]?",
    "Who [wrote|painted|invented|discovered] [it|Hamlet|the telephone|America|the Mona Lisa|Faust]?",
    "[What is the weather|How is the weather|Will it rain] [today|tomorrow|like|in Paris]?",
    "Tell me a [joke|story|secret|poem|fairy tale|riddle].",
    "[What time|Which day|What date] is it[ today| now|]?",
    "Who is the [president|king|queen|chancellor|pope] [of France|of England|of Spain|now|]?",
    "[When|In which year] [did|was] [the war end|Rome founded|Napoleon born|the wall fall|the moon landing]?",
    "[Write|Compose] [a poem|a letter|an essay|a story|an e-mail] [about love|about spring|to my boss|for me].",
    "[Translate|Say] [hello|this|good morning|I love you] [into French|into German|in Spanish|in Chinese].",
    "[How far|How high|How old|How heavy] is [the moon|the sun|Mount Everest|the earth|Rome]?",
    "[What is|Explain] [gravity|democracy|a black hole|photosynthesis|the internet|an atom|love|inflation].",
    "[How do I|How can I|How does one] [cook rice|bake bread|learn French|lose weight|make money|fix a bike]?",
    "[Write|Give me] [some code|a Python function|a program|a script] [that sorts a list|for a website|].",
    "[What is|What was] the [meaning of life|best film|longest river|fastest animal|largest city|first computer]?",
    "[Recommend|Suggest] [a book|a film|a restaurant|a hotel|some music] [to me|in Paris|for tonight|].",
    "[Do you like|Do you know|Have you seen] [football|chess|my brother|Star Wars|Paris|the news]?",
    "Why [is the sky so|do cats purr|do we sleep|is water wet|do birds sing|is it cold]?",
    "[Where is|Where can I find] [Paris|the nearest station|my phone|a good doctor|Berlin|the toilet]?",
    "[Solve|Calculate] [the equation|x plus two is five|the root of nine|this sum|12 times 12].",
    "[What do you think|What is your opinion] [about politics|of me|of the war|on taxes|of this film]?",
    "[Sing|Dance|Cook|Order a pizza|Call my mother|Book a flight|Send an e-mail] [for me|now|please].",
    "[How many|Count the] [people live in China|days are in a year|planets are there|legs has a spider].",
    "[Who won|Who is winning] [the match|the world cup|the election|the race|last night]?",
    "[asdf|qwerty|blah blah|hmm|xyz 123|lorem ipsum dolor|foo bar|test test]",
)
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
# Kinds of replies, of which a guess is right with one.
NUM_REPLIES = len(CHAT) + len(BEYOND) + 2
