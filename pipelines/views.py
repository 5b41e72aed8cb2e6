"""How a training stage sees a stored sample, and which of its items need an embedding for that."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, assert_never

from pipelines.sample import Item, Modality, Sample, Turn

Kind = Literal["caption", "generate", "dialogue"]
# A pair's own captions, a new one, or both.
CaptionChoice = Literal["original", "new", "both"]

CAPTION_PROMPT = "generate a caption"


def apply_view(kind: Kind, sample: Sample) -> Sample:
    """The sample as a view of this kind presents it; only its turns change.

    A caption pair is stored as one exchange, user: item, assistant: caption; a caption may tell of several items.
    `caption` asks for the caption of the items, `generate` asks with the caption for caption and items, `dialogue`
    leaves any sample as it is.

    Raises:
        ValueError: `caption` or `generate` of a sample that is not a pair.
    """
    match kind:
        case "dialogue":
            return sample
        case "caption":
            items, caption = _pair(kind, sample)
            return _exchange(sample, (*items, CAPTION_PROMPT), (caption,))
        case "generate":
            items, caption = _pair(kind, sample)
            return _exchange(sample, (caption,), (caption, *items))
        case _:
            assert_never(kind)


def num_examples(sample: Sample) -> int:
    """The number of training examples in a sample: one per caption of a pair's medium, otherwise one."""
    pair = _as_pair(sample)
    return max(1, len(pair[0][0].captions)) if pair else 1


def example(sample: Sample, number: int) -> Sample:
    """The sample's `number`-th example: a pair with only that caption; other samples are unchanged."""
    if num_examples(sample) == 1:
        return sample
    items = tuple(item.each()[number] for item in sample.items())
    return _exchange(sample, items, (items[0].caption,))


def with_caption(sample: Sample, new: str | None, choice: CaptionChoice) -> Sample:
    """A pair with the new caption instead of its own, or behind them; other samples are unchanged.

    A pair without a new caption keeps its own; where new ones are chosen, the first alone.
    """
    pair = _as_pair(sample)
    if pair is None or choice == "original":
        return sample
    items, caption = pair
    own = items[0].captions or (caption,)
    captions = (own if new is None else (*own, new)) if choice == "both" else (new or own[0],)
    worded = tuple(replace(item, caption=captions[0], more_captions=captions[1:]) for item in items)
    return _exchange(sample, worded, captions[:1])


def pair_items(sample: Sample) -> tuple[Item, ...]:
    """The items that the caption of a pair tells of; none of a sample that is no pair."""
    pair = _as_pair(sample)
    return pair[0] if pair else ()


def input_items(sample: Sample) -> list[Item]:
    """The items of the user's turns, in order."""
    return list(sample.items("user"))


def output_items(sample: Sample) -> list[Item]:
    """The items of the assistant's turns, which are to be generated, in order."""
    return list(sample.items("assistant"))


def sidecar_items(
    sample: Sample, kinds: Iterable[Kind], modality: Modality | None, of_media: bool = False
) -> list[Item]:
    """The items a sidecar holds an embedding for, taken from the first of the views' kinds in which there are any.

    An item with several captions is embedded once per caption, and occurs as often.

    With a modality, these are the output items of it with a caption (embedded by the decoder's text encoder), or
    `of_media` those with a medium (encoded by the decoder's VAE); with None, the input items with a medium (embedded by
    the media encoder).
    """
    for kind in kinds:
        view = apply_view(kind, sample)
        if modality is None:
            items = [item for item in input_items(view) if item.name]
        else:
            found = [item for item in output_items(view) if item.modality == modality]
            items = [item for item in found if item.name]
            if not of_media:
                items = [one for item in found for one in item.each()]
        if items:
            return items
    return []


def sidecar_counts(sample: Sample, kinds: Iterable[Kind]) -> dict[str, int]:
    """The number of `sidecar_items` of a sample, by modality of output items and for `input`; zeros are left out."""
    counts: dict[str, int] = {}
    for kind in kinds:
        found: dict[str, int] = {}
        for turn in apply_view(kind, sample).turns:
            for part in turn.parts:
                if isinstance(part, Item) and (part.name if turn.role == "user" else part.caption):
                    name = "input" if turn.role == "user" else part.modality.value
                    found[name] = found.get(name, 0) + (1 if turn.role == "user" else len(part.captions))
        counts = found | counts
    return counts


def _exchange(sample: Sample, user: tuple[str | Item, ...], assistant: tuple[str | Item, ...]) -> Sample:
    turns = Turn(role="user", parts=user), Turn(role="assistant", parts=assistant)
    return replace(sample, turns=turns)


def _as_pair(sample: Sample) -> tuple[tuple[Item, ...], str] | None:
    match sample.turns:
        case (Turn(role="user", parts=(Item(), *_)), Turn(role="assistant", parts=(str() as caption,))):
            items = tuple(sample.items("user"))
            if items == sample.turns[0].parts:
                return items, caption
    return None


def _pair(kind: Kind, sample: Sample) -> tuple[tuple[Item, ...], str]:
    if pair := _as_pair(sample):
        return pair
    raise ValueError(f"{sample.source}: {sample.key} is no caption pair; a view of kind {kind!r} needs pairs")
