"""Dialogues of every kind, examples made of them, and a step of training on these."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.core.batch import Batch, Example
from model.core.dialogue import encode_dialogue
from model.core.losses import Criterion, total
from model.core.nextgpt import NextGPT
from pipelines.sample import Item, Modality, Turn


def item(modality: str, name: str = "x", caption: str = "a red square") -> Item:
    return Item(modality=Modality(modality), name=name, caption=caption)


def dialogue(*turns: tuple[Any, ...]) -> tuple[Turn, ...]:
    """Turns of alternating roles, the user's first."""
    return tuple(Turn(role="assistant" if n % 2 else "user", parts=parts) for n, parts in enumerate(turns))


CAPTION = dialogue((item("image"), "generate a caption"), ("a red square",))
REQUEST = dialogue(("show me a dog",), ("a dog", item("image"), "and its bark", item("audio")))
MIXED = dialogue(
    (item("image"), "and", item("video"), "differ how?"), ("They do.", item("video")), ("Yes?",), (item("image"),)
)


def make_example(turns: tuple[Turn, ...], tokenizer: Any, model: NextGPT, key: str = "k", seed: int = 0) -> Example:
    """An example with random features and targets."""
    config, rng = model.config, np.random.default_rng(seed)
    encoded = encode_dialogue(turns, tokenizer, model.vocabulary, config.input_projection.num_input_tokens, 512)
    targets = {}
    for modality, output in config.outputs.items():
        count = sum(group[0].modality is modality for group in encoded.output_groups)
        lengths = rng.integers(3, 20, count).tolist()
        targets[modality] = (rng.standard_normal((count, output.num_queries, output.dim)), lengths)
    features = {
        modality: rng.standard_normal((count, *encoder.shape)).astype(np.float32)
        for modality, encoder in config.encoder.inputs.items()
        if (count := sum(modality in (None, item.modality) for item, _ in encoded.input_positions)) or modality is None
    }
    return Example(key=key, dialogue=encoded, features=features, targets=targets)


def base_logits(model: NextGPT, ids_BT: Tensor) -> Tensor:
    with torch.inference_mode():
        hidden_BTH = model.run_llm(model.embed(ids_BT)).last_hidden_state
        return model.logits(hidden_BTH)[..., : model.vocabulary.base_size]


def loss_of(model: NextGPT, batch: Batch) -> Tensor:
    criterion = Criterion(vocabulary=model.vocabulary, alignment_variance=dict.fromkeys(Modality, 1.0))
    return total(criterion(model(batch), batch), criterion.count(batch))


def step(model: NextGPT, batch: Batch, learning_rate: float = 0.01) -> None:
    """One update of all that is trainable."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    loss_of(model, batch).backward()
    optimizer.step()
    model.zero_grad()


def snapshot(model: NextGPT) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(model: NextGPT, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
