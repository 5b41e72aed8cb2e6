"""Scores how well media and their captions fit, by the towers of one ImageBind: the cosine of their embeddings.

Features that jobs/embed.py has stored are read; what has none is encoded here.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import ray

from jobs.common.encoders import EncoderFactory, PreprocessFactory, encoder_factory, preprocess_factory
from model.inference.query import side_by_side
from model.parts.builtin import resolve
from model.parts.config import ModelConfig
from model.parts.families import components, locate
from pipelines.curate.columns import REASON
from pipelines.curate.scorers import Content, Scorer, Values, reason_of
from pipelines.embed.embedding import Pool, identify
from pipelines.embed.encoding import EmbedTask, prepare_media
from pipelines.media.policy import Refused
from pipelines.sample import Item, Modality
from pipelines.storage.files import read_rows
from pipelines.storage.random_access import Range, Ranges
from pipelines.storage.shards import MANIFEST, Manifest, index_path
from pipelines.storage.sidecars import ENCODER, NOT_ENCODED, SidecarManifest, from_npy, sidecar_folder
from pipelines.views import sidecar_items

if TYPE_CHECKING:
    from model.architectures.imagebind_text import ImageBindTextEncoder
    from model.parts.mixed_precision import Precision

VERSION = "1"
NAME = "similarity"
COLUMNS = {NAME: "float"}
_DIGITS = 5
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """Folders or files with the towers of one ImageBind, and with the CLIP tokenizer that its text tower reads."""

    encoder: str
    tokenizer: str


def towers_of(config: ModelConfig) -> Towers:
    """The towers of a model's encoder, and its own tokenizer, else that of the decoder of images.

    ImageBind reads CLIP's tokens, as Stable Diffusion does; the ImageBinds that we train have a tokenizer of their own.

    Raises:
        ValueError: the model takes no ImageBind for all modalities, or there is no tokenizer; one line.
    """
    one, output = config.encoder.inputs.get(None), config.outputs.get(Modality.IMAGE)
    if one is None:
        raise ValueError("they take one ImageBind for all modalities (model.encoder.name)")
    path = resolve(one.name)
    if (Path(path) / "tokenizer").is_dir():
        return Towers(encoder=path, tokenizer=path)
    if output is None or not _has_clip_tokenizer(output.decoder):
        raise ValueError(f"{one.name}: no tokenizer for the encoder's text tower")
    return Towers(encoder=path, tokenizer=locate(Modality.IMAGE, output.decoder))


def _has_clip_tokenizer(decoder: str) -> bool:
    return components(Modality.IMAGE, decoder)["tokenizer"][1].startswith("CLIPTokenizer")


def similarity_scorer(config: ModelConfig, precision: "Precision", pool: Pool) -> Scorer:
    """The scorer by a model's encoder; workers are asked which it is.

    Raises:
        ValueError: the encoder has no text tower, or no tokenizer; one line.
    """
    try:
        towers = towers_of(config)
    except ValueError as error:
        raise ValueError(f"similarities to captions: {error}") from None
    config = config.model_copy(update={"encoder": config.encoder.pooled})
    factory = encoder_factory(config, ENCODER, precision)
    make = MakeSimilarity(encoder=factory, preprocess=preprocess_factory(config, ENCODER), towers=towers)
    task = EmbedTask(kind=ENCODER, factory=factory, dtype="float32", memory=factory.memory)
    identity = identify([task], pool)[ENCODER]
    options = {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus}
    text = ray.get(ray.remote(**options)(_text_identity).remote(make))
    return Scorer(name=NAME, columns=COLUMNS, version=f"{VERSION} {identity.id} {text}", make=make, on_devices=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeSimilarity:
    """Makes the scorer in an actor."""

    encoder: EncoderFactory
    preprocess: PreprocessFactory
    towers: Towers

    def __call__(self) -> "Similarity":
        """Loads the towers."""
        return Similarity(self.encoder(), self.preprocess(), self.text_encoder())

    def text_encoder(self) -> "ImageBindTextEncoder":
        """Loads the text tower alone."""
        from model.parts.devices import best_device

        device = best_device()  # before transformers is imported
        from transformers import CLIPTokenizer

        from model.architectures.imagebind_text import ImageBindTextEncoder

        tokenizer = CLIPTokenizer.from_pretrained(self.towers.tokenizer, subfolder="tokenizer")
        return ImageBindTextEncoder(self.towers.encoder, tokenizer, device=device)


def _text_identity(make: MakeSimilarity) -> str:
    """A hash of the text tower and of the vocabulary of its tokens."""
    from model.parts.weights import weights_hash

    encoder = make.text_encoder()
    vocabulary = json.dumps(sorted(encoder.tokenizer.get_vocab().items())).encode()
    return weights_hash(encoder.tower.state_dict()) + hashlib.sha256(vocabulary).hexdigest()[:16]


class Similarity:
    """The mean cosine of each medium and its captions, over the media of a sample that have captions.

    `encoder` embeds media that `preprocess` prepared; `encode_texts` embeds texts as vectors of norm 1.
    """

    def __init__(self, encoder: Any, preprocess: Any, encode_texts: Any) -> None:
        self._encoder, self._preprocess, self._encode_texts = encoder, preprocess, encode_texts

    def __call__(self, contents: Sequence[Content]) -> list[Values]:
        """The similarity of each sample; null where none of its media has a caption."""
        pairs = [(place, item) for place, content in enumerate(contents) for item in captioned(content)]
        captions = list(dict.fromkeys(caption for _, item in pairs for caption in item.captions))
        texts = dict(zip(captions, np.asarray(self._encode_texts(captions)), strict=True)) if captions else {}
        features = self._features(contents, pairs)
        cosines: list[list[float]] = [[] for _ in contents]
        reasons: list[list[str]] = [[] for _ in contents]
        for (place, item), feature in zip(pairs, features, strict=True):
            if isinstance(feature, str):
                reasons[place].append(feature)
                continue
            unit = feature / max(float(np.linalg.norm(feature)), 1e-12)
            cosines[place].append(float(np.mean([unit @ texts[caption] for caption in item.captions])))
        return [_told(found, why) for found, why in zip(cosines, reasons, strict=True)]

    def _features(self, contents: Sequence[Content], pairs: Sequence[tuple[int, Item]]) -> list[Vectors | str]:
        """The features of the media of pairs, or why there are none: those that are stored, and all others encoded."""
        stored = [stored_features(contents[place], self._encoder.id) for place, _ in pairs]
        found: list[Vectors | str | None] = [
            known.get(item.name) for known, (_, item) in zip(stored, pairs, strict=True)
        ]
        todo = [number for number, feature in enumerate(found) if feature is None]
        media = [contents[pairs[number][0]].sample.media[pairs[number][1].name] for number in todo]
        made = self._encode(prepare_media(media, self._preprocess))
        for number, feature in zip(todo, made, strict=True):
            found[number] = feature
        return [feature if feature is not None else "not encoded" for feature in found]

    def _encode(self, inputs: Sequence[Any]) -> Iterator[Vectors | str]:
        usable = [one for one in inputs if not isinstance(one, Refused)]
        made = iter(side_by_side(self._embed, usable) if usable else ())
        for one in inputs:
            found = one if isinstance(one, Refused) else next(made)
            yield str(found) if isinstance(found, ValueError) else found

    def _embed(self, inputs: Sequence[Any]) -> list[Vectors]:
        try:
            features, _ = self._encoder(self._encoder.send(inputs))
            return list(features)
        except Exception as error:
            raise ValueError(f"not encoded: {reason_of(error)}") from error


def captioned(content: Content) -> list[Item]:
    """The items of a sample with a medium and a caption, each medium once."""
    return list({item.name: item for item in content.items if item.caption}.values())


def _told(cosines: Sequence[float], reasons: Sequence[str]) -> Values:
    if reasons:
        return {REASON: "; ".join(dict.fromkeys(reasons))}
    return {NAME: round(float(np.mean(cosines)), _DIGITS) if cosines else None}


def stored_features(content: Content, encoder_id: str) -> Mapping[str, Vectors]:
    """The features of a sample's media in a sidecar of this encoder, by name; none where there is no such sidecar."""
    sidecar = _sidecar(content.directory, content.shard, encoder_id)
    if sidecar is None:
        return {}
    rows, views = sidecar
    row = rows[content.place]
    names = [item.name for item in sidecar_items(content.sample, views, None)]
    if row["key"] != content.sample.key or NOT_ENCODED in row["lengths"] or len(names) != len(row["lengths"]):
        return {}
    tar = sidecar_folder(content.directory, encoder_id) / content.shard
    [data] = Ranges().read([Range(tar, row["offset"], row["length"])])
    return dict(zip(names, from_npy(data), strict=True))


@lru_cache(maxsize=4)
def _sidecar(directory: Path, shard: str, encoder_id: str) -> tuple[list[dict[str, Any]], list[Any]] | None:
    """The rows of a shard's sidecar and the dataset's views; None where there is none of this shard as it is."""
    folder = sidecar_folder(directory, encoder_id)
    if not (folder / MANIFEST).is_file():
        return None
    sidecar, dataset = SidecarManifest.read(folder), Manifest.read(directory)
    is_current = sidecar.of_shards == [one.sha256 for one in dataset.shards]
    if not is_current or len(sidecar.shape) != 1:
        return None
    rows = read_rows(index_path(folder / shard), ["key", "offset", "length", "lengths"])
    return rows, list(dataset.views.values())
