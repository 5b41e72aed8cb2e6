"""The three diffusion decoders as diffusers folders, each in its published precision and file format.

Tensor names are those of the versions that wrote them: diffusers before 0.18 and transformers before 4.31.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipelines.sample import Modality
from tests.benchmarks.real.layout import Layout, published
from tests.benchmarks.real.vocabularies import write_clip, write_roberta

FOLDERS = {
    Modality.IMAGE: "stable-diffusion-v1-5",
    Modality.VIDEO: "zeroscope_v2_576w",
    Modality.AUDIO: "audioldm-l-full",
}
_FORMATS = {
    Modality.IMAGE: (torch.float32, ".safetensors"),
    Modality.VIDEO: (torch.float16, ".bin"),
    Modality.AUDIO: (torch.float32, ".bin"),
}
_MODEL_FILES = {".safetensors": "model", ".bin": "pytorch_model"}  # of transformers
_OLD_ATTENTION = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def decoder(modality: Modality, *, small: bool = False) -> Layout:
    """A decoder's complete folder, including parts that this project may not use."""
    folder, (dtype, suffix) = FOLDERS[modality], _FORMATS[modality]
    documents, weights = published(folder, small=small), {}
    for name, config in documents.items():
        part, _, file = name.partition("/")
        if file == "config.json":
            library, class_name = documents["model_index.json"][part]
            stem = "diffusion_pytorch_model" if library == "diffusers" else _MODEL_FILES[suffix]
            weights[f"{part}/{stem}{suffix}"] = _tensors(library, class_name, config, dtype)
    write_vocabulary = write_roberta if modality is Modality.AUDIO else write_clip
    return Layout(documents=documents, weights=weights, vocabularies={"tokenizer": write_vocabulary})


def _tensors(library: str, class_name: str, config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """The contents of a component's file: today's tensors under their old names, plus tensors that were stored then."""
    weights = {name: tensor.to(dtype) for name, tensor in _state(library, class_name, config).items()}
    of_its_time = _OF_ITS_TIME.get(class_name)
    return of_its_time(weights) if of_its_time else weights


def _state(library: str, class_name: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    import diffusers
    import transformers
    from diffusers.pipelines.stable_diffusion import safety_checker

    libraries: Mapping[str, Any] = {
        "diffusers": diffusers,
        "transformers": transformers,
        "stable_diffusion": safety_checker,
    }
    kind = getattr(libraries[library], class_name)
    with torch.device("meta"):
        if library == "diffusers":
            module = kind.from_config(dict(config))
        else:
            module = kind(kind.config_class.from_dict(dict(config)))
    state: dict[str, Tensor] = module.state_dict()
    return state


def _clip_text(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {f"text_model.{name}": tensor for name, tensor in weights.items()}
    return weights | {"text_model.embeddings.position_ids": _position_ids(77)}


def _clap_text(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {
        "text_model.embeddings.position_ids": _position_ids(514),
        "text_model.embeddings.token_type_ids": torch.zeros(1, 514, dtype=torch.int64),
    }


def _safety_checker(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {name.replace("vision_model.", "vision_model." * 2): tensor for name, tensor in weights.items()}
    return weights | {
        "vision_model.vision_model.embeddings.position_ids": _position_ids(257),
        # The thresholds: with random ones, every image would be flagged.
        "concept_embeds_weights": torch.full((17,), 0.2),
        "special_care_embeds_weights": torch.full((3,), 0.2),
    }


def _autoencoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        for new, old in _OLD_ATTENTION.items():
            name = name.replace(new, old) if "attentions" in name else name
        renamed[name] = tensor
    return renamed


def _vocoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return weights | {"mean": torch.zeros(64), "scale": torch.ones(64)}


def _position_ids(length: int) -> Tensor:
    return torch.arange(length)[None]


_OF_ITS_TIME: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "CLIPTextModel": _clip_text,
    "ClapTextModelWithProjection": _clap_text,
    "StableDiffusionSafetyChecker": _safety_checker,
    "AutoencoderKL": _autoencoder,
    "SpeechT5HifiGan": _vocoder,
}
