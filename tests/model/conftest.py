"""A tiny model and its tokenizer."""

from typing import Any

import pytest
import torch

from model.config import ModelConfig, load_preset
from model.nextgpt import NextGPT
from model.tokenizer import load_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    return load_preset("tiny")


@pytest.fixture(scope="session")
def tokenizer(tiny: ModelConfig) -> Any:
    return load_tokenizer(tiny)


@pytest.fixture
def model(tiny: ModelConfig) -> NextGPT:
    return NextGPT.from_config(tiny)
