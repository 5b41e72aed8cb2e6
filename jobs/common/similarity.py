"""Scores how well media and their captions fit: the cosine of their embeddings by the two towers of an encoder.

Those of an ImageBind for all modalities, or of each modality's own: SigLIP of pictures and videos, CLAP of sounds.
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
from model.parts.encoder_kinds import IMAGEBIND, read_encoder
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
from pipelines.storage.sidecars import NOT_ENCODED, SidecarManifest, features_kind, from_npy, sidecar_folder
from pipelines.views import sidecar_items

if TYPE_CHECKING:
    from model.parts.mixed_precision import Precision

VERSION = "1"
NAME = "similarity"
COLUMNS = {NAME: "float"}
_DIGITS = 5
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Towers:
    """An encoder by name, and for an ImageBind the folder with the CLIP tokenizer that its text tower reads."""

    encoder: str
    tokenizer: str | None = None


def towers_of(config: ModelConfig, key: Modality | None = None) -> Towers:
    """The towers of a model's encoder under a key of `EncoderConfig.inputs`.

    ImageBind reads CLIP's tokens, as Stable Diffusion does; the ImageBinds that we train have a tokenizer of their own,
    others take that of the decoder of images.

    Raises:
        ValueError: there is no such encoder, or no tokenizer; one line.
    """
    one, output = config.encoder.inputs[key], config.outputs.get(Modality.IMAGE)
    if read_encoder(one.name)[0] is not IMAGEBIND:
        return Towers(encoder=one.name)
    path = resolve(one.name)
    if (Path(path) / "tokenizer").is_dir():
        return Towers(encoder=one.name, tokenizer=path)
    if output is None or not _has_clip_tokenizer(output.decoder):
        raise ValueError(f"{one.name}: no tokenizer for the encoder's text tower")
    return Towers(encoder=one.name, tokenizer=locate(Modality.IMAGE, output.decoder))


def _has_clip_tokenizer(decoder: str) -> bool:
    return components(Modality.IMAGE, decoder)["tokenizer"][1].startswith("CLIPTokenizer")


def similarity_scorer(config: ModelConfig, precision: "Precision", pool: Pool) -> Scorer:
    """The scorer by a model's encoders; workers are asked which these are.

    Raises:
        ValueError: an encoder has no text tower, or no tokenizer; one line.
    """
    pooled = config.model_copy(update={"encoder": config.encoder.pooled})
    made, tasks = list[MakeTower](), list[EmbedTask]()
    for keys in config.encoder.shared.values():
        kind = features_kind(keys[0])
        try:
            towers = towers_of(config, keys[0])
        except ValueError as error:
            raise ValueError(f"similarities to captions: {error}") from None
        factory = encoder_factory(pooled, kind, precision)
        modalities = tuple(filter(None, keys)) or tuple(Modality)
        preprocess = preprocess_factory(pooled, kind)
        made.append(MakeTower(encoder=factory, preprocess=preprocess, towers=towers, modalities=modalities))
        tasks.append(EmbedTask(kind=kind, factory=factory, dtype="float32", memory=factory.memory))
    seen = identify(tasks, pool)
    read = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)(_text_identity)
    texts = ray.get([read.remote(make) for make in made])
    version = " ".join([VERSION, *(f"{seen[task.kind].id} {text}" for task, text in zip(tasks, texts, strict=True))])
    return Scorer(name=NAME, columns=COLUMNS, version=version, make=MakeSimilarity(towers=tuple(made)), on_devices=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeTower:
    """Loads both towers of the encoder of some modalities."""

    encoder: EncoderFactory
    preprocess: PreprocessFactory
    towers: Towers
    modalities: tuple[Modality, ...] = tuple(Modality)

    def __call__(self) -> "Tower":
        """Loads the towers."""
        return Tower(self.encoder(), self.preprocess(), self.text_encoder(), self.modalities)

    def text_encoder(self) -> Any:
        """Loads the text tower alone."""
        from model.parts.devices import best_device

        device = best_device()  # before transformers is imported
        from model.encoders.text_towers import load_text_tower

        return load_text_tower(self.towers.encoder, tokenizer=self.towers.tokenizer, device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeSimilarity:
    """Makes the scorer in an actor."""

    towers: tuple[MakeTower, ...]

    def __call__(self) -> "Similarity":
        """Loads the towers."""
        return Similarity([make() for make in self.towers])


def _text_identity(make: MakeTower) -> str:
    """A hash of the text tower and of the vocabulary of its tokens."""
    from model.parts.weights import weights_hash

    encoder = make.text_encoder()
    vocabulary = json.dumps(sorted(encoder.tokenizer.get_vocab().items())).encode()
    return weights_hash(encoder.tower.state_dict()) + hashlib.sha256(vocabulary).hexdigest()[:16]


class Tower:
    """The cosines of media of some modalities and their captions.

    `encoder` embeds media that `preprocess` prepared; `encode_texts` embeds texts as vectors of norm 1.
    """

    def __init__(
        self, encoder: Any, preprocess: Any, encode_texts: Any, modalities: Sequence[Modality] = tuple(Modality)
    ) -> None:
        self._encoder, self._preprocess, self._encode_texts = encoder, preprocess, encode_texts
        self._modalities = modalities

    def cosines(self, contents: Sequence[Content]) -> Iterator[tuple[int, float | str]]:
        """The place of each captioned medium of its modalities, and its mean cosine, or why there is none."""
        pairs = [
            (place, item)
            for place, content in enumerate(contents)
            for item in captioned(content)
            if item.modality in self._modalities
        ]
        captions = list(dict.fromkeys(caption for _, item in pairs for caption in item.captions))
        texts = dict(zip(captions, np.asarray(self._encode_texts(captions)), strict=True)) if captions else {}
        for (place, item), feature in zip(pairs, self._features(contents, pairs), strict=True):
            if isinstance(feature, str):
                yield place, feature
                continue
            unit = feature / max(float(np.linalg.norm(feature)), 1e-12)
            yield place, float(np.mean([unit @ texts[caption] for caption in item.captions]))

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


class Similarity:
    """The mean cosine of each medium and its captions, over the media of a sample that have captions and an encoder."""

    def __init__(self, towers: Sequence[Tower]) -> None:
        self._towers = towers

    def __call__(self, contents: Sequence[Content]) -> list[Values]:
        """The similarity of each sample; null where none of its media has a caption."""
        cosines: list[list[float]] = [[] for _ in contents]
        reasons: list[list[str]] = [[] for _ in contents]
        for tower in self._towers:
            for place, found in tower.cosines(contents):
                if isinstance(found, str):
                    reasons[place].append(found)
                else:
                    cosines[place].append(found)
        return [_told(found, why) for found, why in zip(cosines, reasons, strict=True)]


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
