"""Evaluates a model and its controls on the world's exam; the frozen parts are loaded once for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoints.checkpoint import from_pretrained
from model.checkpoints.description import check_compatible
from model.core.nextgpt import NextGPT
from model.core.tokenizer import encode_text
from model.decoders.rendering import DecoderPool
from model.decoders.wish import Wish
from model.encoders.media_encoders import MediaEncoders
from model.inference.generation import generate_batch
from model.inference.query import Query, Reply, Sampling, in_batches
from model.parts.config import ModelConfig
from model.parts.features import ItemFeatures, first
from pipelines.embed.encoding import VIDEO_FPS
from pipelines.media import codecs
from pipelines.progress import track
from pipelines.sample import Decoded, Item, Part, Turn
from pipelines.world.exam import Attempt, Case, ExamRow, cases, is_lost, shown
from pipelines.world.scenes import modality_of

BATCH = 50  # prompts per batch
MAX_ITEMS = 4  # per reply
MOST_REPORTED = 64  # at most, per row without a target
Features = Mapping[str, ItemFeatures]  # of the media of each case, by its key
Sitting = list[tuple[Case, list[Attempt]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamSettings:
    """What is run: `count` conversations per row, `controls` per row for each control (0: none), and denoising steps.

    Rows without a target have at most 64 conversations.
    """

    rows: Sequence[ExamRow]
    count: int
    controls: int
    shuffled: Path | None
    seed: int
    steps: int | None
    device: str


def sit(checkpoint: Path, config: ModelConfig, plan: ExamSettings) -> dict[str, Sitting]:
    """Runs all arms: `model`, `from_text`, `untrained` and `shuffled`, the last two only if requested.

    `config` is the checkpoint's model with its parts located. `from_text` feeds the decoders their own text encoders'
    embeddings of the captions, with the same noise. `untrained` is the same LLM with freshly initialised projections
    and rows and no adapter, forced to produce the expected items. `shuffled` is a checkpoint that was trained on the
    features and captions of other items.
    """
    model, tokenizer = from_pretrained(checkpoint, device=plan.device, config=config)
    dtype = model.new_input_rows.weight.dtype
    if plan.shuffled is not None:
        check_compatible(config, plan.shuffled)
    parts = FrozenParts(config, plan)
    counts = {row.name: plan.count if row.target else min(plan.count, MOST_REPORTED) for row in plan.rows}
    chosen = [case for row in plan.rows for case in cases(row, counts[row.name], plan.seed)]
    few = [case for case in chosen if case.number < plan.controls]
    features = parts.features(chosen)
    arms = {"model": examine(model, tokenizer, chosen, features, parts, title="model", all_media=True)}
    arms["from_text"] = parts.from_text([case for case in chosen if case.row.name.startswith("make_")])
    if few:
        model = NextGPT.from_config(config, dtype=dtype, device=plan.device).eval()
        arms["untrained"] = examine(model, tokenizer, few, features, parts, title="untrained", forced=True)
        if plan.shuffled is not None:
            model, tokenizer = from_pretrained(plan.shuffled, device=plan.device, config=config)
            arms["shuffled"] = examine(model, tokenizer, few, features, parts, title="shuffled")
    return arms


class FrozenParts:
    """The media encoder and the decoders, shared by all arms."""

    def __init__(self, config: ModelConfig, plan: ExamSettings) -> None:
        self._plan = plan
        self._encoders = MediaEncoders(config.encoder, device=plan.device)
        self._decoders = DecoderPool(config, lambda _: plan.device)

    def features(self, chosen: Sequence[Case]) -> Features:
        """Embeds the media that the user shows in each case, after encoding and decoding them as files."""
        features = dict[str, ItemFeatures]()
        with track("show", len(chosen), "conversations") as bar:
            for batch in in_batches(chosen, BATCH):
                media = [[codecs.decode(m, fps=VIDEO_FPS) for m in shown(case).values()] for case in batch]
                features |= {case.key: made for case, made in zip(batch, self._encoders(media), strict=True)}
                bar.advance(len(batch))
        return features

    def render(self, wishes: Sequence[Wish], title: str) -> list[Decoded]:
        """Renders media in the order of `wishes`."""
        if self._plan.steps:
            wishes = [wish._replace(settings={"steps": self._plan.steps}) for wish in wishes]
        with track(f"{title}: render", len(wishes), "media") as bar:
            return self._decoders.render(wishes, on_done=lambda places, _: bar.advance(len(places)))

    def from_text(self, chosen: Sequence[Case]) -> Sitting:
        """Renders media from the captions themselves."""
        items = [_only_item(case) for case in chosen]
        wishes = [Wish(item.modality, item.caption, noise(case, 0)) for case, item in zip(chosen, items, strict=True)]
        media = self.render(wishes, "from text")
        return [
            (case, [Attempt(parts=(item,), media=(medium,))])
            for case, item, medium in zip(chosen, items, media, strict=True)
        ]


def examine(
    model: NextGPT,
    tokenizer: Any,
    chosen: Sequence[Case],
    features: Features,
    parts: FrozenParts,
    *,
    title: str,
    forced: bool = False,
    all_media: bool = False,
) -> Sitting:
    """Runs the conversations, each reply following the model's own earlier ones, and renders their items.

    With `forced`, replies contain the expected items whether the model produces them or not. Without `all_media`, media
    that cannot change a score are not rendered.
    """
    replies = _replies(model, tokenizer, chosen, features, title, forced)
    sitting = [
        (case, [_response(model, reply) for reply in of_case]) for case, of_case in zip(chosen, replies, strict=True)
    ]
    wishes: list[Wish] = []
    rendered: list[int] = []
    for place, (case, responses) in enumerate(sitting):
        if all_media or not is_lost(case.row, case.conversation, responses):
            rendered.append(place)
            conditions = [(reply, *condition) for reply in replies[place] for condition in reply.conditions]
            wishes += [
                Wish(modality, values, noise(case, n), negative=reply.negatives.get(modality))
                for n, (reply, modality, values) in enumerate(conditions)
            ]
    media = iter(parts.render(wishes, title))
    for place in rendered:
        case, responses = sitting[place]
        sitting[place] = case, [replace(one, media=tuple(next(media) for _ in one.media)) for one in responses]
    return sitting


def _replies(
    model: NextGPT, tokenizer: Any, chosen: Sequence[Case], features: Features, title: str, forced: bool
) -> list[list[Reply]]:
    replies: list[list[Reply]] = [[] for _ in chosen]
    exchanges = [len(case.conversation.answers) for case in chosen]
    with track(f"{title}: answer", sum(exchanges), "prompts") as bar:
        for number in range(max(exchanges)):
            pending = [place for place, length in enumerate(exchanges) if length > number]
            for places in in_batches(pending, BATCH):
                asked = [chosen[place] for place in places]
                # An untrained model does not stop by itself.
                limit = 2 * max(_length(model, tokenizer, case.conversation.turns[2 * number + 1]) for case in asked)
                sampling = Sampling(max_new_tokens=limit, max_items=MAX_ITEMS)
                queries = [_query(chosen[p], replies[p], features[chosen[p].key], forced, sampling) for p in places]
                answers = generate_batch(model, tokenizer, queries)
                for place, reply in zip(places, answers, strict=True):
                    replies[place].append(reply)
                bar.advance(len(places))
    return replies


def _query(case: Case, replies: Sequence[Reply], features: ItemFeatures, forced: bool, sampling: Sampling) -> Query:
    """The next question of a conversation, after the replies so far."""
    asked = case.conversation.turns[: 2 * len(replies) + 1 : 2]
    turns: list[Turn] = []
    for question, reply in zip(asked, replies, strict=False):
        turns += [question, Turn(role="assistant", parts=reply.parts)]
    turns.append(asked[-1])
    shown = first(features, [part for turn in asked for part in turn.parts if isinstance(part, Item)])
    wanted = [modality_of(subject) for subject in case.conversation.answers[len(replies)].made]
    return Query(turns=turns, features=shown, require=wanted if forced else (), sampling=sampling)


def _length(model: NextGPT, tokenizer: Any, turn: Turn) -> int:
    """The number of tokens of an answer."""

    def tokens(part: Part) -> int:
        return len(encode_text(tokenizer, part)) if isinstance(part, str) else model.vocabulary.groups[part.modality]

    return sum(map(tokens, turn.parts))


def _response(model: NextGPT, reply: Reply) -> Attempt:
    """A reply, still without media; well formed if every item has a finite condition and the text no signal token."""
    modalities = [part.modality for part in reply.parts if isinstance(part, Item)]
    whole = [modality for modality, _ in reply.conditions] == modalities
    for modality, values in reply.conditions:
        output = model.config.outputs[modality]
        whole = whole and values.shape == (output.num_queries, output.dim) and bool(np.isfinite(values).all())
    whole = whole and not any(token in reply.text for token in model.vocabulary.tokens)
    return Attempt(parts=reply.parts, media=(None,) * len(modalities), well_formed=whole)


def _only_item(case: Case) -> Item:
    [item] = [part for part in case.conversation.turns[1].parts if isinstance(part, Item)]
    return item


def noise(case: Case, number: int) -> int:
    """The noise seed of item `number` of a conversation, the same in every arm."""
    return 16 * case.number + number
