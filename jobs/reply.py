"""Runs a request on a worker that has what the model needs: encode the inputs, generate, decode the conditions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from pipelines.sample import Item, Media, Modality, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt with its input media, the media the reply must hold, and how to sample."""

    checkpoint: str | Path
    prompt: str
    inputs: Sequence[Media]
    require: Sequence[Modality]
    max_items: int
    max_new_tokens: int
    temperature: float
    seed: int
    steps: int | None


def answer(request: Request) -> dict[str, Any]:
    """The reply's `text`, its `media` in the order they stand, and the names of `untrained` parts it came through."""
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    return ray.get(ray.remote(num_gpus=gpus, num_cpus=1)(_answer).remote(request))


def _answer(request: Request) -> dict[str, Any]:
    import numpy as np

    from jobs.cli import quiet
    from model.devices import best_device

    quiet()
    device = best_device()
    from model.checkpoint import from_pretrained
    from model.decoders import Decoder
    from model.generation import generate
    from model.imagebind_inputs import ImageBindEncoder
    from model.parts import is_untrained
    from pipelines import media as media_files
    from pipelines.shard_embedder import VIDEO_FPS

    model, tokenizer = from_pretrained(request.checkpoint, device=device)
    used = [model.config.llm.name]
    features = np.zeros((0, model.config.encoder.dim), np.float32)
    if request.inputs:
        used.append(model.config.encoder.name)
        encoder = ImageBindEncoder(model.config.encoder.name, device=device)
        features = encoder([media_files.decode(medium, fps=VIDEO_FPS) for medium in request.inputs])
    items = [Item(modality=medium.modality, name=str(place)) for place, medium in enumerate(request.inputs)]
    reply = generate(
        model,
        tokenizer,
        [Turn(role="user", parts=(*items, request.prompt))],
        features,
        max_items=request.max_items,
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        seed=request.seed,
        require=request.require,
    )
    decoders: dict[Modality, Decoder] = {}
    media = []
    for number, (modality, condition_LD) in enumerate(reply.conditions):
        if modality not in decoders:
            decoders[modality] = Decoder(modality, model.config.outputs[modality].decoder, device=device)
            used.append(decoders[modality].name)
        decoded = decoders[modality].generate(condition_LD, seed=request.seed + number, steps=request.steps)
        media.append(media_files.encode(decoded))
    return {"text": reply.text, "media": media, "untrained": [name for name in used if is_untrained(name)]}
