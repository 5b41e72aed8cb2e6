"""Scores a model on the held-out samples of prepared shards: text against references, media by their embeddings.

The model generates the last answer of each sample from the turns before it; the items of the reference are required, so
that each has a counterpart. The split is the one used in training, by the hash of a sample's key.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.common.similarity import towers_of
from jobs.replies.options import decoder_settings
from jobs.scoring.exam_report import Scored
from jobs.scoring.figures import caption_scores, cosine_similarities, frechet_distance
from model.core.tokenizer import encode_text
from model.encoders.media_encoders import MediaEncoders
from model.encoders.text_towers import TextEncoder, load_text_tower
from model.inference.query import Query, Sampling, text_of
from model.inference.responder import Responder
from model.parts.config import ModelConfig
from pipelines.embed.encoding import VIDEO_FPS
from pipelines.handover.survey import hash_key, held_out
from pipelines.media import codecs
from pipelines.progress import track
from pipelines.sample import Decoded, Item, Modality, Sample, Turn
from pipelines.storage.files import read_range, read_table
from pipelines.storage.shards import Manifest, from_members, index_path, split_members
from pipelines.views import Kind, apply_view, example, num_examples

BATCH = 8  # samples per batch
MAX_NEW_TOKENS = 256
Embeddings = npt.NDArray[np.float32]


@dataclass(slots=True)
class _Pairs:
    """Pairs of model output and data; `references` are pairs of media, where the data have media.

    A medium of several captions has as many references as that.
    """

    texts: list[tuple[str, list[str]]] = field(default_factory=list)
    captions: dict[Modality, list[tuple[Decoded, str]]] = field(default_factory=lambda: {m: [] for m in Modality})
    references: dict[Modality, list[tuple[Decoded, Decoded]]] = field(default_factory=lambda: {m: [] for m in Modality})


def score_shards(
    checkpoint: Path,
    config: ModelConfig,
    datasets: Mapping[Path, Manifest],
    *,
    fraction: float,
    count: int,
    steps: int | None,
    device: str,
) -> tuple[list[Scored], list[str]]:
    """Scores each view of each dataset on up to `count` of its held-out samples; also returns notes for the user.

    * `bleu_4`, `chrf`, `rouge_l`: as in `jobs.scoring.figures.caption_scores`, for the text of the answers, except in
      views that generate from captions, where the question contains the text.
    * `<modality>_to_text`: the mean cosine similarity of the ImageBind embeddings of a generated medium and its
      caption, like CLIP and CLAP scores (see `figures.cosine_similarities`); only if the encoder has a text tower.
    * `<modality>_to_medium`: the same for a generated medium and the data's own medium for that caption, by the pooled
      vectors of the modality's encoder.
    * `<modality>_frechet`: the Frechet distance of these two sets of embeddings (`figures.frechet_distance`), lower is
      better. Not comparable with FID, FVD or FAD, which use other networks.

    `chance` is the same metric with each answer paired with the reference of the next sample.
    """
    model = Responder.from_pretrained(checkpoint, device=device, config=config)
    text_encoder, notes = _text_encoder(config, device)
    pooled = config.encoder.pooled
    encoders = model.encoder if pooled == config.encoder else MediaEncoders(pooled, device=device)
    rows: list[Scored] = []
    for directory, manifest in datasets.items():
        samples = list(_held_out(directory, manifest, fraction, count))
        if not samples:
            notes.append(f"{manifest.dataset}: no sample is held out of training; not scored")
            continue
        for view, kind in sorted(manifest.views.items()):
            pairs = _answer(model, samples, view, kind, steps)
            rows += _score(view, pairs, encoders, text_encoder)
    return rows, notes


def _held_out(directory: Path, manifest: Manifest, fraction: float, count: int) -> Iterator[Sample]:
    """Reads at most `count` held-out samples, spread evenly over the shards."""
    places: list[tuple[Path, int, int]] = []
    for shard in manifest.shards:
        tar = directory / shard.name
        index = read_table(index_path(tar), ["key", "offset", "length"]).to_pylist()
        hashes = np.array([hash_key(row["key"]) for row in index], np.uint64)
        apart = np.flatnonzero(held_out(hashes, fraction)).tolist()
        places += [(tar, index[number]["offset"], index[number]["length"]) for number in apart]
    kept = min(count, len(places))
    for number in range(kept):
        yield from_members(split_members(read_range(*places[number * len(places) // kept])))


def _answer(model: Responder, samples: Sequence[Sample], view: str, kind: Kind, steps: int | None) -> _Pairs:
    pairs = _Pairs()
    with track(view, len(samples), "samples") as bar:
        for start in range(0, len(samples), BATCH):
            batch = [apply_view(kind, sample) for sample in samples[start : start + BATCH]]
            queries = [_query(model, sample, start + place, steps) for place, sample in enumerate(batch)]
            responses = model.respond_batch(queries)
            for stored, sample, response in zip(samples[start : start + BATCH], batch, responses, strict=True):
                if kind != "generate":
                    pairs.texts.append((response.text, _references(stored)))
                made = [part.modality for part in response.parts if isinstance(part, Item)]
                _pair_media(pairs, sample, list(zip(made, response.media, strict=True)))
            bar.advance(len(batch))
    return pairs


def _references(sample: Sample) -> list[str]:
    """The words of its last answer, by each caption where it has several; views that do not generate keep them."""
    answers = (example(sample, number).turns[-1] for number in range(num_examples(sample)))
    return [text_of(answer.parts) for answer in answers]


def _query(model: Responder, sample: Sample, seed: int, steps: int | None) -> Query:
    named = {item.name for turn in sample.turns[:-1] if turn.role == "user" for item in _items(turn) if item.name}
    media = {name: codecs.decode(sample.media[name], fps=VIDEO_FPS) for name in named}
    return Query(
        turns=sample.turns[:-1],
        media=media,
        require=[item.modality for item in _items(sample.turns[-1])],
        # Only the required items.
        sampling=Sampling(max_new_tokens=_limit(model, sample.turns[-1]), max_items=0, seed=seed),
        settings=decoder_settings(steps),
    )


def _limit(model: Responder, wanted: Turn) -> int:
    """Twice the tokens of the reference's text, up to the limit, and the tokens of its items."""
    words = sum(len(encode_text(model.tokenizer, part)) for part in wanted.parts if isinstance(part, str))
    groups = sum(model.model.vocabulary.groups[item.modality] for item in _items(wanted))
    return max(1, min(2 * words, MAX_NEW_TOKENS) + groups)


def _pair_media(pairs: _Pairs, sample: Sample, made: list[tuple[Modality, Decoded]]) -> None:
    """Pairs each expected item with the next generated medium of its modality."""
    for item in _items(sample.turns[-1]):
        place = [modality for modality, _ in made].index(item.modality)  # it was required
        _, medium = made.pop(place)
        if item.caption:
            pairs.captions[item.modality].append((medium, item.caption))
        if item.name:
            reference = codecs.decode(sample.media[item.name], fps=VIDEO_FPS)
            pairs.references[item.modality].append((medium, reference))


def _score(view: str, pairs: _Pairs, encoders: MediaEncoders, text_encoder: TextEncoder | None) -> Iterator[Scored]:
    if pairs.texts:
        texts, references = [text for text, _ in pairs.texts], [known for _, known in pairs.texts]
        chance = caption_scores(texts, [*references[1:], references[0]])
        for name, value in caption_scores(texts, references).items():
            yield _row(view, name, value, len(texts), chance[name])
    for modality in Modality:
        described, known, encoder = pairs.captions[modality], pairs.references[modality], encoders.of(modality)
        if encoder is None:
            continue
        if described and text_encoder is not None:
            captions_NE = text_encoder([caption for _, caption in described]).numpy()
            yield _similarity(view, f"{modality}_to_text", encoder([medium for medium, _ in described]), captions_NE)
        if known:
            made_NE, references_NE = (encoder([pair[side] for pair in known]) for side in (0, 1))
            yield _similarity(view, f"{modality}_to_medium", made_NE, references_NE)
            if len(known) > 1:
                yield _row(view, f"{modality}_frechet", frechet_distance(made_NE, references_NE), len(known), None)


def _similarity(view: str, name: str, made_NE: Embeddings, references_NE: Embeddings) -> Scored:
    value = float(cosine_similarities(made_NE, references_NE).mean())
    chance = float(cosine_similarities(made_NE, np.roll(references_NE, -1, axis=0)).mean())
    return _row(view, name, value, len(made_NE), chance)


def _row(view: str, name: str, value: float, count: int, chance: float | None) -> Scored:
    return Scored(
        row=f"{view}/{name}",
        title=f"{view}: {name.replace('_', ' ')}",
        value=value,
        n=count,
        chance=chance if count > 1 else None,  # with one sample there is no other reference
    )


def _items(turn: Turn) -> Iterator[Item]:
    return (part for part in turn.parts if isinstance(part, Item))


def _text_encoder(config: ModelConfig, device: str) -> tuple[TextEncoder | None, list[str]]:
    """The text tower of the encoder of all modalities, or a note where there is none."""
    if None not in config.encoder.inputs:
        return None, ["similarities to captions are left out: they take one encoder for all modalities"]
    try:
        towers = towers_of(config)
        return load_text_tower(towers.encoder, tokenizer=towers.tokenizer, device=device), []
    except ValueError as error:
        return None, [f"similarities to captions are left out: {error}"]
