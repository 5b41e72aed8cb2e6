"""Tiny LLMs of the families that people use, with random weights and the tiny tokenizer."""

from pathlib import Path
from typing import Any

import torch
import transformers

from model.parts.config import ModelConfig

_SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
_GROUPED = {"num_key_value_heads": 2}
_LLAMA_3 = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Qwen's matrices have more rows than its tokenizer has tokens.
_PADDED = {"vocab_size": 576}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vicuna": ("Llama", {}),
    "llama_3": ("Llama", {**_GROUPED, "rope_parameters": _LLAMA_3, "tie_word_embeddings": False}),
    "llama_3_tied": ("Llama", {**_GROUPED, "rope_parameters": _LLAMA_3, "tie_word_embeddings": True}),
    "qwen_2": ("Qwen2", {**_GROUPED, **_PADDED, "tie_word_embeddings": True}),
    "qwen_3": ("Qwen3", {**_GROUPED, **_PADDED, "head_dim": 16, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**_GROUPED, "sliding_window": 16}),
    # Scales what it embeds, caps its logits, and every other layer has a sliding window.
    "gemma_2": ("Gemma2", {**_GROUPED, "head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 0.5}),
    # Names everything differently.
    "pythia": ("GPTNeoX", {}),
}
_TARGETS = {"pythia": ["query_key_value", "dense"]}


def build_llm(directory: Path, model_class: str, tokenizer: Any, **changes: Any) -> None:
    """Writes an LLM with random weights and a tokenizer into a directory."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = getattr(transformers, f"{model_class}Config")(**(_SHAPE | ids | changes))
    torch.manual_seed(0)
    llm = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in llm.parameters():  # at the usual 0.02 all logits are alike
            if parameter.ndim > 1:
                parameter.mul_(10)
    llm.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def family_config(directory: Path, family: str, tiny: ModelConfig, base_tokenizer: Any) -> ModelConfig:
    """`tiny` on an LLM of a family, built into `directory`."""
    model_class, changes = FAMILIES[family]
    build_llm(directory, model_class, base_tokenizer, **changes)
    values = tiny.model_dump(mode="json")
    attention = "eager" if family == "gemma_2" else "sdpa"
    values["llm"] |= {"name": str(directory), "hidden_size": 32, "num_layers": 2, "attention": attention}
    values["llm"]["vocab_size"] = None
    values["lora"] |= {"dropout": 0.0, "targets": _TARGETS.get(family, values["lora"]["targets"])}
    return ModelConfig.model_validate(values)
