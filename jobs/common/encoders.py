"""Loads the frozen encoders inside the actors that use them: parts of the model behind the `Encoder` of pipelines.

Torch is imported only where an encoder is loaded; its id may be known without.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from model.parts.builtin import cache_root, is_untrained, resolve
from model.parts.config import ModelConfig
from pipelines.embed.encoding import Embeddings, EmbedTask, Encoder, Preprocess
from pipelines.embed.identities import recall
from pipelines.sample import Modality
from pipelines.storage.files import stamp
from pipelines.storage.sidecars import LATENTS, features_kind, input_modality, is_features, output_modality

if TYPE_CHECKING:
    from model.parts.mixed_precision import Precision
    from pipelines.embed.embedding import Pool

_ROOT = Path(__file__).parents[2]
# What an encoder's id depends on besides its own files and settings.
_PROGRAM = (
    "jobs/common/encoders.py",
    "model/architectures/imagebind.py",
    "model/decoders/conditions.py",
    "model/decoders/decoder.py",
    "model/decoders/latents.py",
    "model/decoders/prompts.py",
    "model/decoders/spectrograms.py",
    "model/decoders/text_encoders.py",
    "model/decoders/tokens.py",
    *(
        f"model/encoders/{name}.py"
        for name in (
            "clap_encoder",
            "clap_inputs",
            "clips",
            "frozen",
            "imagebind_encoder",
            "imagebind_inputs",
            "mel",
            "patches",
            "siglip_encoder",
            "siglip_inputs",
        )
    ),
    "model/parts/encoder_kinds.py",
    "model/parts/families.py",
    "model/parts/family_table.py",
    "model/parts/mixed_precision.py",
    "model/parts/weights.py",
)
POOLED = "pooled"  # instead of a number of patches
_LIBRARIES = ("torch", "transformers", "diffusers", "tokenizers", "safetensors")


def chosen_precision(asked: "Precision | Literal['auto']", pool: "Pool") -> "Precision":
    """The precision of products that was asked for; `auto` is bfloat16 on a GPU, float32 on a CPU."""
    if asked == "auto":
        return "bfloat16" if pool.num_gpus else "float32"
    return asked


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFactory:
    """Loads an encoder: a class of this module, the name of the part, and further arguments of the class."""

    make: Callable[..., Encoder]
    name: str
    settings: tuple[str, ...] = ()
    precision: "Precision" = "float32"

    def __call__(self) -> Encoder:
        """Loads the encoder."""
        return self.make(self.name, *self.settings, precision=self.precision)

    @property
    def exact(self) -> "EncoderFactory | None":
        """That of the same encoder in float32, where it is not."""
        return None if self.precision == "float32" else replace(self, precision="float32")

    def memory(self) -> Path | None:
        """The file that caches the encoder's id on this machine; None where the part's files are not here yet.

        Its name is a hash of the stamps of all files of the part, of the settings, and of the code and libraries that
        the id depends on, so that anything that may change the id gives another file. No file is opened.
        """
        files = _part_files(self.name)
        if not files:
            return None
        stamps = {str(path): stamp(path) for path in files}
        versions = {library: _version(library) for library in _LIBRARIES}
        facts = [self.make.__name__, self.name, self.settings, self.precision, stamps, versions, _program()]
        return cache_root() / "encoders" / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessFactory:
    """Makes what prepares inputs on any CPU: a class of the model, and what it is made of."""

    kind: str
    name: str

    def __call__(self) -> Preprocess:
        """Loads it, without the weights of its encoder."""
        modality = output_modality(self.kind)
        if modality is None:
            from model.encoders.media_inputs import media_inputs

            return media_inputs(self.name)
        if self.kind in LATENTS:
            from model.decoders.latents import LatentInputs

            return LatentInputs(modality, self.name)
        from model.decoders.tokens import caption_inputs

        return caption_inputs(modality, self.name)


def encoder_factory(config: ModelConfig, kind: str, precision: "Precision" = "float32") -> EncoderFactory:
    """The factory of the encoder of a sidecar kind."""
    modality, name = output_modality(kind), part_of(config, kind)
    if modality is None:
        patches = config.encoder.inputs[_encoder_of(config, kind)].patches
        settings = (kind, str(patches or POOLED))
        return EncoderFactory(make=FeatureEncoder, name=name, settings=settings, precision=precision)
    make = MediumEncoder if kind in LATENTS else CaptionTextEncoder
    return EncoderFactory(make=make, name=name, settings=(modality.value,), precision=precision)


def preprocess_factory(config: ModelConfig, kind: str) -> PreprocessFactory:
    """The factory of what prepares the inputs of the encoder of a sidecar kind."""
    return PreprocessFactory(kind=kind, name=part_of(config, kind))


def clips(kind: str) -> dict[Modality, int]:
    """How many clips, or frames, the encoder of a sidecar kind makes of a medium at most; else one, as of a caption."""
    if is_features(kind):
        return {Modality.VIDEO: 15, Modality.AUDIO: 3}
    return {Modality.VIDEO: 16} if kind in LATENTS else {}


def part_of(config: ModelConfig, kind: str) -> str:
    """The name of the part whose encoder a sidecar kind is made by."""
    modality = output_modality(kind)
    return config.outputs[modality].decoder if modality else config.encoder.inputs[_encoder_of(config, kind)].name


def feature_kinds(config: ModelConfig) -> list[str]:
    """The kinds of sidecars that hold what the model's encoders make of input items."""
    return [features_kind(modality) for modality in config.encoder.inputs]


def known_ids(config: ModelConfig, kind: str) -> list[str]:
    """The ids of a sidecar kind's encoder that this machine remembers, without that of the precision."""
    factories = [encoder_factory(config, kind, precision) for precision in ("float32", "bfloat16")]
    tasks = [EmbedTask(kind=kind, factory=one, dtype="float32", memory=one.memory) for one in factories]
    found = [identity.id.removesuffix("-bfloat16") for task in tasks if (identity := recall(task))]
    return list(dict.fromkeys(found))


def is_pooled(config: ModelConfig, kind: str) -> bool:
    """Whether a kind of sidecar holds one vector of features for each item."""
    return is_features(kind) and config.encoder.inputs[_encoder_of(config, kind)].patches is None


def _encoder_of(config: ModelConfig, kind: str) -> Modality | None:
    """The key, in `EncoderConfig.inputs`, of the encoder of a kind of features."""
    modality = input_modality(kind)
    return modality if modality in config.encoder.inputs else None


def _part_files(name: str) -> list[Path]:
    """The files of a part: one file, those of a folder, or those of a repository's latest commit in the hub's cache."""
    place = Path(resolve(name))
    if place.is_file():
        return [place.resolve()]
    if not place.is_dir():
        folder = _snapshot(name)
        if folder is None:
            return []
        place = folder
    return sorted(path for path in place.resolve().rglob("*") if path.is_file())


def _snapshot(repo_id: str) -> Path | None:
    """The folder of a repository's latest commit in the hub's cache; offline, of the last one seen."""
    from huggingface_hub import hf_hub_download

    for file in ("model_index.json", "config.json"):  # of a pipeline, and of an encoder
        try:
            return Path(hf_hub_download(repo_id, file)).parent
        except (OSError, ValueError):  # loading the encoder reports what is wrong
            continue
    return None


@cache
def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _program() -> str:
    digest = hashlib.sha256()
    for name in _PROGRAM:
        digest.update((_ROOT / name).read_bytes())
    return digest.hexdigest()


class _SidecarEncoder:
    """An encoder of the model as the pipelines call it: media with one position each."""

    def __init__(self, encoder: Any, kind: str, name: str, precision: str) -> None:
        self._encoder = encoder
        self.name, self.untrained = name, is_untrained(name)
        self.precision = precision
        self.id = f"{kind}-{encoder.id}"
        self.send = encoder.send

    def __call__(self, sent: Any) -> Embeddings:
        """Embeddings (N, ...), each with one position."""
        embeddings = self._encoder.embed(sent)
        return embeddings, np.ones(len(embeddings), np.int32)


class CaptionTextEncoder(_SidecarEncoder):
    """A decoder's own text encoder; see model.decoders.text_encoders.CaptionEncoder."""

    def __init__(self, name: str, modality: str, precision: "Precision" = "float32") -> None:
        from model.parts.devices import best_device

        device = best_device()  # before transformers is imported
        from model.decoders.text_encoders import CaptionEncoder

        encoder = CaptionEncoder(Modality(modality), name, device=device, precision=precision)
        super().__init__(encoder, modality, name, precision)

    def __call__(self, sent: Any) -> Embeddings:
        """Caption embeddings (N, L, D), and how many of the L positions belong to each caption."""
        result = self._encoder.embed(sent)
        return result.embeddings, result.lengths


class MediumEncoder(_SidecarEncoder):
    """A decoder's own VAE on media: latents (N, C, ...); see model.decoders.latents.LatentEncoder."""

    def __init__(self, name: str, modality: str, precision: "Precision" = "float32") -> None:
        from model.parts.devices import best_device

        device = best_device()
        from model.decoders.latents import LatentEncoder

        encoder = LatentEncoder(Modality(modality), name, device=device, precision=precision)
        super().__init__(encoder, f"{modality}_latents", name, precision)


class FeatureEncoder(_SidecarEncoder):
    """An encoder of input media: features (N, E), or with a number of patches (N, P, E); see model.encoders."""

    def __init__(self, name: str, kind: str, patches: str, precision: "Precision" = "float32") -> None:
        from model.parts.devices import best_device

        device = best_device()
        from model.encoders.media_encoders import load_encoder

        kept = None if patches == POOLED else int(patches)
        encoder = load_encoder(name, patches=kept, device=device, precision=precision)
        super().__init__(encoder, kind, name, precision)
