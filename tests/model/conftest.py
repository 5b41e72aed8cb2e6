"""A tiny model, its tokenizer, and dialogues of every kind."""

from typing import Any

import numpy as np
import pytest
import torch

from model.batch import Example
from model.config import ModelConfig, load_preset
from model.dialogue import encode_dialogue
from model.nextgpt import NextGPT
from model.tokenizer import load_tokenizer
from pipelines.sample import Item, Modality, Turn

torch.set_num_threads(1)


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
    features = rng.standard_normal((len(encoded.input_positions), config.encoder.dim)).astype(np.float32)
    return Example(key=key, dialogue=encoded, features_NE=features, targets=targets)


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    return load_preset("tiny")


@pytest.fixture(scope="session")
def tokenizer(tiny: ModelConfig) -> Any:
    return load_tokenizer(tiny)


@pytest.fixture
def model(tiny: ModelConfig) -> NextGPT:
    return NextGPT.from_config(tiny)
