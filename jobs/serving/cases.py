"""The four cases of NExT-GPT's tutorial, as examples from the synthetic world."""

from functools import cache

from pipelines.media.codecs import encode
from pipelines.sample import Item, Media
from pipelines.world.conversations import converse
from pipelines.world.render import render

# Button labels, and the kind of conversation of each.
CASES = {
    "Picture → sound": "image_to_sound",
    "Video → sound": "video_to_sound",
    "Picture → picture + video": "image_to_video",
    "Words → all three": "everything",
}
_SEED = 7


@cache
def drawn(kind: str) -> tuple[str, tuple[Media, ...]]:
    """The text and the input files of a kind of conversation."""
    conversation = converse(kind, _SEED, 0)
    turn = conversation.turns[0]
    text = " ".join(part for part in turn.parts if isinstance(part, str))
    items = [part for part in turn.parts if isinstance(part, Item)]
    return text.strip(), tuple(encode(render(conversation.media[item.name], _SEED)) for item in items)
