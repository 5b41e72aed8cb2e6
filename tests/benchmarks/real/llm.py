"""Vicuna-7B v1.5, and the weights that NExT-GPT released on top of Vicuna."""

from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from model.checkpoints.released import legacy_delta_shapes
from model.parts.config import ModelConfig
from tests.benchmarks.real.layout import Layout, published
from tests.benchmarks.real.vocabularies import write_llama

VICUNA = "vicuna-7b-v1.5"
LAYERS = 32
DELTA_FILE = "pytorch_model.pt"
# Vicuna is published in shards of 10 GB, 13.5 GB in total.
_FIRST_SHARD = 0.74


def vicuna(layers: int = LAYERS, *, small: bool = False) -> Layout:
    """float16, in two `.bin` shards with an index; `tokenizer.model` and no `tokenizer.json`."""
    documents = published(VICUNA, small=small)
    config = documents["config.json"]
    config["num_hidden_layers"] = layers
    weights = _llama(config)
    total = sum(tensor.nbytes for tensor in weights.values())
    shards = split_torch_state_dict_into_shards(
        weights, filename_pattern="pytorch_model{suffix}.bin", max_shard_size=int(_FIRST_SHARD * total)
    )
    index = {"metadata": {"total_size": total}, "weight_map": shards.tensor_to_filename}
    return Layout(
        documents={**documents, "pytorch_model.bin.index.json": index},
        weights={file: {n: weights[n] for n in names} for file, names in shards.filename_to_tensors.items()},
        vocabularies={"": write_llama},
    )


def delta(config: ModelConfig) -> Layout:
    """`7b_tiva_v0/pytorch_model.pt` in float16, for a preset's sizes."""
    shapes = legacy_delta_shapes(config)
    weights = {name: torch.empty(shape, dtype=torch.float16, device="meta") for name, shape in shapes.items()}
    return Layout(weights={DELTA_FILE: weights})


def _llama(config: dict[str, Any]) -> dict[str, Tensor]:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    weights = {name: tensor.to(torch.float16) for name, tensor in model.state_dict().items()}
    # Buffers that transformers of that time stored in each layer, and no longer reads.
    head_width = config["hidden_size"] // config["num_attention_heads"]
    frequencies = (1.0 / 10_000 ** (torch.arange(0, head_width, 2) / head_width)).half()
    names = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(config["num_hidden_layers"])]
    return weights | {name: frequencies for name in names}
