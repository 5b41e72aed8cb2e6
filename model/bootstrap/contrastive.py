"""Trains an ImageBind: pictures, videos and sounds are drawn to the texts that describe them.

Shape suffixes: N items, E embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.bootstrap.loop import train
from model.imagebind import ImageBind
from model.imagebind_text import TextTower, text_ids

_NOISE = 0.15  # deviations, on inputs: what decoders make is not as clean as what the world draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Items of a modality as the encoder takes them, of shape (N, ...); captions of each, and what they are about.

    Items of equal `topics` have the same meaning, so neither is a wrong answer for the other's caption.
    """

    inputs: Tensor
    captions: Sequence[Sequence[str]]
    topics: Tensor


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

    The loss is CLIP's (Radford et al. 2021, arXiv:2103.00020) with all captions of an item's topic as right ones.
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
            variants = torch.rand(batch_size, generator=generator).tolist()
            inputs = found.inputs[rows].float()
            inputs = inputs + _NOISE * torch.rand((), generator=generator) * torch.randn(
                inputs.shape, generator=generator
            )
            captions = [found.captions[row] for row in rows.tolist()]
            texts = [several[int(variant * len(several))] for several, variant in zip(captions, variants, strict=True)]
            items_NE, texts_NE = forward[modality](inputs), text(text_ids(tokenizer, texts, text.length))
            total = total + _contrast(items_NE, texts_NE, found.topics[rows], scale.exp().clamp(max=100.0))
        return total / len(pairs)

    train(state.stem, trained, loss, steps=steps, learning_rate=1.5e-3, state=state)
    model.requires_grad_(False)


def _contrast(items_NE: Tensor, texts_NE: Tensor, topics_N: Tensor, scale: Tensor) -> Tensor:
    right_NN = (topics_N[:, None] == topics_N).float()
    right_NN = right_NN / right_NN.sum(dim=1, keepdim=True)
    logits_NN = scale * items_NE @ texts_NE.T
    return 0.5 * (F.cross_entropy(logits_NN, right_NN) + F.cross_entropy(logits_NN.T, right_NN))
