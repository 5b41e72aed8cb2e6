"""Trains an ImageBind, and text encoders of decoders: media and the texts that describe them are drawn together.

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
_NOISE = 0.15  # deviations, on inputs: what decoders make is not as clean as what the world draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Items of a modality as the encoder takes them, of shape (N, ...); captions of each, and what they are about.

    Items of equal `topics` have the same meaning, so neither is a wrong answer for the other's caption. `aspects` are
    texts that each tell one thing, and which of them is true of each item (N), -100 where none is: by them, what was
    never seen together is understood too.
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

    The loss is CLIP's (Radford et al. 2021, arXiv:2103.00020) with all captions of an item's topic as right ones, and
    the choice of each aspect's true text.
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
    """Trains the text model that a diffusion pipeline expects: CLAP's where it is `pooled`, else CLIP's.

    Of CLAP it is the vector, of CLIP the state at any position from a caption's end on, so that each of these knows the
    whole caption (Wu et al. 2023, arXiv:2211.06687; Radford et al. 2021, arXiv:2103.00020). `pairs.inputs` are media
    (N, ...). The model that looks at them is left behind: nothing needs it later.
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
