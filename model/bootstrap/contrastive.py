"""Contrastive training of an ImageBind and of decoders' text encoders, on media and their captions.

Shape suffixes: N items, E embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.architectures.imagebind import ImageBind
from model.architectures.imagebind_text import TextTower, text_ids
from model.bootstrap.loop import train, worded

_ASPECT_SCALE = 15.0
_NOISE = 0.15  # standard deviations, on inputs: decoders' media are noisier than the world's


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Encoder inputs of one modality, (N, ...), with the captions and topic of each item.

    Items of equal `topics` have the same meaning, so they are not negatives for each other. Each of the `aspects` has
    texts for a single attribute's values, and the index of the true one for each item (N), or -100 if none applies:
    they teach combinations that are not in the data.
    """

    inputs: Tensor
    captions: Sequence[Sequence[str]]
    topics: Tensor
    aspects: Sequence[tuple[Sequence[str], Tensor]]


def train_imagebind(
    model: ImageBind,
    text: TextTower,
    tokenizer: Any,
    pairs: Mapping[str, Pairs],
    *,
    steps: int,
    batch_size: int,
    state: Path,
) -> None:
    """Trains vision, audio and text towers together; `pairs` by modality, `batch_size` of each in a step.

    The loss is CLIP's (Radford et al. 2021, arXiv:2103.00020) with all captions of an item's topic as positives, plus
    classification of each aspect.
    """
    forward: dict[str, Callable[[Tensor], Tensor]] = {
        "image": model.forward_vision,
        "video": lambda clips: model.forward_vision(clips[:, None]),
        "audio": lambda clips: model.forward_audio(clips[:, None]),
    }
    scale = nn.Parameter(torch.tensor(2.7))
    trained = nn.ModuleDict({"model": model, "text": text, "scale": nn.ParameterList([scale])})
    model.requires_grad_(True)

    def loss(generator: torch.Generator) -> Tensor:
        total = torch.zeros(())
        for modality, found in pairs.items():
            rows = torch.randint(len(found.inputs), (batch_size,), generator=generator)
            texts = worded(found.captions, rows, generator)
            inputs = found.inputs[rows].float()
            inputs = inputs + _NOISE * torch.rand((), generator=generator) * torch.randn(
                inputs.shape, generator=generator
            )
            items_NE, texts_NE = forward[modality](inputs), text(text_ids(tokenizer, texts, text.length))
            total = total + _contrast(items_NE, texts_NE, found.topics[rows], scale.exp().clamp(max=100.0))
            for values, right_N in found.aspects:
                values_VE = text(text_ids(tokenizer, values, text.length))
                total = total + _choice(items_NE, values_VE, right_N[rows])
        return total / len(pairs)

    train(state.stem, trained, loss, steps=steps, learning_rate=1.5e-3, state=state)
    model.requires_grad_(False)


def train_text_encoder(
    text_encoder: Any,
    tokenizer: Any,
    pairs: Pairs,
    *,
    pooled: bool,
    steps: int,
    batch_size: int,
    state: Path,
) -> None:
    """Trains the text model that a diffusion pipeline expects: CLAP's if `pooled`, else CLIP's.

    The embedding is CLAP's pooled vector, or CLIP's state at a random position from the caption's end onwards, so that
    all of these encode the whole caption (Wu et al. 2023, arXiv:2211.06687; Radford et al. 2021, arXiv:2103.00020).
    `pairs.inputs` are media (N, ...). The media encoder is discarded afterwards.
    """
    width = text_encoder.config.projection_dim
    eye = nn.Sequential(nn.Flatten(), nn.Linear(pairs.inputs[0].numel(), 64), nn.GELU(), nn.Linear(64, width))

    def embed(texts: Sequence[str], generator: torch.Generator) -> Tensor:
        tokens = tokenizer(list(texts), padding="longest" if pooled else "max_length", return_tensors="pt")
        if pooled:
            vectors_NE = text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).text_embeds
        else:
            states_NLE = text_encoder(tokens.input_ids).last_hidden_state
            ends_N = tokens.attention_mask.sum(dim=1) - 1
            behind_N = torch.rand(len(ends_N), generator=generator) * (states_NLE.shape[1] - ends_N)
            vectors_NE = states_NLE[torch.arange(len(ends_N)), ends_N + behind_N.long()]
        return F.normalize(vectors_NE, dim=-1)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pairs.inputs), (batch_size,), generator=generator)
        texts = worded(pairs.captions, rows, generator)
        items_NE, texts_NE = F.normalize(eye(pairs.inputs[rows]), dim=-1), embed(texts, generator)
        total = _contrast(items_NE, texts_NE, pairs.topics[rows], torch.tensor(10.0))
        for values, right_N in pairs.aspects:
            values_VE = embed(values, generator)
            for either_NE in (items_NE, texts_NE):
                total = total + _choice(either_NE, values_VE, right_N[rows])
        return total

    trained = nn.ModuleDict({"text_encoder": text_encoder, "ear": eye})
    train(state.stem, trained, loss, steps=steps, learning_rate=1e-3, state=state)


def _contrast(items_NE: Tensor, texts_NE: Tensor, topics_N: Tensor, scale: Tensor) -> Tensor:
    right_NN = (topics_N[:, None] == topics_N).float()
    right_NN = right_NN / right_NN.sum(dim=1, keepdim=True)
    logits_NN = scale * items_NE @ texts_NE.T
    return 0.5 * (F.cross_entropy(logits_NN, right_NN) + F.cross_entropy(logits_NN.T, right_NN))


def _choice(items_NE: Tensor, values_VE: Tensor, right_N: Tensor) -> Tensor:
    return F.cross_entropy(_ASPECT_SCALE * items_NE @ values_VE.T, right_N, ignore_index=-100)
