"""Conversations about the synthetic world as NExT-GPT's instruction sets hold them: which are in which, and their rows.

Eight formats: Alpaca (plans too), LLaVA-Instruct, VideoChat, T-T+X of the older and the newer generation, MosIT with
media, and (in `dataset`) pairs as questions about a medium and as requests for one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines.sample import Item, Modality, Part, Turn
from pipelines.world.conversations import Conversation, converse, converse_by_turns
from pipelines.world.planning import converse_in_plans

Row = dict[str, Any]
_SPEAKERS = {"user": "human", "assistant": "gpt"}
# Here alone are several media of one request, and what came up turns ago: the hardest of all, so more of them.
_MOSIT_KINDS = (
    "describe_audio",
    "remember",
    "image_to_sound",
    "two",
    "everything",
    "video_to_sound",
    "image_to_video",
    "alter",
    "remember",
    "alike",
    "ask_audio",
    "animate",
    "remember",
    "two",
    "everything",
    "describe_audio",
    "alter",
    "alike",
    "ask_audio",
    "animate",
)
_WORDS_KINDS = ("question", "chat", "decline", "question", "beyond", "decline")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionSet:
    """One file of rows, `share` times as many as pairs of a modality; media lie beside it in `images`, `videos` ...

    `draw` takes a seed and the number of a row; `row` a conversation, the row's stem, and the files of its media.
    """

    path: str
    draw: Callable[[int, int], Conversation]
    row: Callable[[Conversation, str, Mapping[str, str]], Row]
    share: int = 1


def _made(modality: Modality) -> Callable[[int, int], Conversation]:
    """Requests for a medium, and by turns such that change it."""

    def draw(seed: int, number: int) -> Conversation:
        if number % 2 == 0:
            return converse(f"make_{modality}", seed, number // 2)
        # `change` takes the modalities by turns.
        return converse("change", seed, number // 2 * len(Modality) + list(Modality).index(modality))

    return draw


def _alpaca_row(conversation: Conversation, stem: str, files: Mapping[str, str]) -> Row:
    asked, answer = (_text(turn) for turn in conversation.turns)
    instruction, _, given = asked.partition("\n")
    return {"instruction": instruction, "input": given, "output": answer}


def _llava_row(conversation: Conversation, stem: str, files: Mapping[str, str]) -> Row:
    (file,) = files.values()
    return {"id": stem, "image": file, "conversations": _speeches(conversation, _placeholder)}


def _videochat_row(conversation: Conversation, stem: str, files: Mapping[str, str]) -> Row:
    """Text that is not a question is an instruction."""
    (file,) = files.values()
    texts = [_text(turn) for turn in conversation.turns]
    exchanges = [
        {"i": "", "q": asked, "a": answer} if asked.endswith("?") else {"i": asked, "q": "", "a": answer}
        for asked, answer in zip(texts[::2], texts[1::2], strict=True)
    ]
    return {"video": file, "QA": exchanges}


def _older_t2x_row(conversation: Conversation, stem: str, files: Mapping[str, str]) -> Row:
    said: list[Row] = []
    for turn in conversation.turns:
        said.append({"from": _SPEAKERS[turn.role], "value": _text(turn)})
        if turn.role == "user":
            said[-1]["input_modality"] = "text"
        for item in _items(turn):
            said[-1] |= {"caption": item.caption, "output_modality": item.modality.value}
    modality = said[1]["output_modality"]
    return {"mm_name": stem, "output_modality": modality, "conversation": said}


def _newer_t2x_row(conversation: Conversation, stem: str, files: Mapping[str, str]) -> Row:
    items = [item for turn in conversation.turns for item in _items(turn)]
    modality = items[0].modality
    return {
        f"{modality}_captions": [item.caption for item in items],
        f"{modality}_caption_embeddings": [f"{stem}-{number}.npy" for number in range(len(items))],
        "conversations": _speeches(conversation, _placeholder),
    }


def _mosit_row(conversation: Conversation, stem: str, files: Mapping[str, str]) -> Row:
    """Of the older generation: a tag holds the file name of a user's medium, and the caption of one to make."""
    lists: Row = {f"{modality}_list": [] for modality in Modality}
    for turn in conversation.turns:
        for item in _items(turn):
            if item.name:
                medium = {f"{item.modality}_name": files[item.name], "data_source": "world", "caption": item.caption}
                lists[f"{item.modality}_list"].append(medium)

    def tag(item: Item) -> str:
        name = item.modality.capitalize()
        return f"<{name}>{files[item.name] if item.name else item.caption}</{name}>"

    return lists | {"conversation": _speeches(conversation, tag)}


def _speeches(conversation: Conversation, written: Callable[[Item], str]) -> list[Row]:
    def text(part: Part) -> str:
        return part if isinstance(part, str) else written(part)

    return [
        {"from": _SPEAKERS[turn.role], "value": ("\n" if turn.role == "user" else " ").join(map(text, turn.parts))}
        for turn in conversation.turns
    ]


def _placeholder(item: Item) -> str:
    return f"<{item.modality}>"


def _items(turn: Turn) -> list[Item]:
    return [part for part in turn.parts if isinstance(part, Item)]


def _text(turn: Turn) -> str:
    return " ".join(part for part in turn.parts if isinstance(part, str))


# By their names in the catalog.
INSTRUCTION_SETS: Mapping[str, InstructionSet] = {
    "alpaca_instruction": InstructionSet(
        path="T+X-T_data/alpaca/alpaca.json",
        draw=partial(converse_by_turns, _WORDS_KINDS),
        row=_alpaca_row,
        share=3,
    ),
    "plan_instruction": InstructionSet(
        path="T+X-T_data/plans/plans.json", draw=converse_in_plans, row=_alpaca_row, share=2
    ),
    "llava_instruction": InstructionSet(
        path="T+X-T_data/llava/llava.json",
        draw=partial(converse_by_turns, ("describe_image", "ask_image")),
        row=_llava_row,
    ),
    "videochat_instruction": InstructionSet(
        path="T+X-T_data/videochat/videochat.json",
        draw=partial(converse_by_turns, ("describe_video", "ask_video")),
        row=_videochat_row,
    ),
    "image_instruction": InstructionSet(
        path="T-T+X_data/image_t2x.json", draw=_made(Modality.IMAGE), row=_newer_t2x_row
    ),
    "video_instruction": InstructionSet(
        path="T-T+X_data/video_t2x.json", draw=_made(Modality.VIDEO), row=_older_t2x_row
    ),
    "audio_instruction": InstructionSet(
        path="T-T+X_data/audio_t2x.json", draw=_made(Modality.AUDIO), row=_older_t2x_row
    ),
    "mosit_instruction": InstructionSet(
        path="MosIT_data/mosit.json", draw=partial(converse_by_turns, _MOSIT_KINDS), row=_mosit_row, share=6
    ),
}
