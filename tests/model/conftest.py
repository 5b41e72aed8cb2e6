"""A tiny model and its tokenizer."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from model.core.nextgpt import NextGPT
from model.core.tokenizer import load_tokenizer
from model.parts.config import ModelConfig, load_preset

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


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of this process alone, which DeepSpeed's engines need."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setenv("LOCAL_RANK", "0")  # as torchrun and Ray Train set it
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        yield
        import deepspeed  # late, so that it is told of the CPU first

        # Its own groups end with its own call; without, the next group of this process would meet them.
        (deepspeed.comm if deepspeed.comm.is_initialized() else dist).destroy_process_group()
