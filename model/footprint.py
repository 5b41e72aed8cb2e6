"""How large a model's trained part is, from its configuration alone."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from model.checkpoint import trained_state
from model.config import ModelConfig
from model.nextgpt import NextGPT
from model.parts import resolve


def trained_weights(config: ModelConfig) -> int:
    """How many weights a checkpoint holds once all stages ran; nothing is allocated, and of the LLM its config read.

    Raises OSError when the LLM is not on this machine.
    """
    described = AutoConfig.from_pretrained(resolve(config.llm.name), local_files_only=True)
    with torch.device("meta"):
        model = NextGPT(config, AutoModelForCausalLM.from_config(described))
        model.add_adapter()
    return sum(tensor.numel() for tensor in trained_state(model).values())
