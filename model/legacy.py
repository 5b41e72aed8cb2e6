"""The tensors of NExT-GPT's own released weights, `7b_tiva_v0/pytorch_model.pt`, as our modules would name them."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model.adapter import is_adapter_tensor
from model.config import ModelConfig
from model.nextgpt import NextGPT
from pipelines.sample import Modality

_PROJECTIONS = {
    Modality.IMAGE: "gen_text_hidden_fcs.0.",
    Modality.VIDEO: "gen_text_hidden_fcs_video.0.",
    Modality.AUDIO: "gen_text_hidden_fcs_audio.0.",
}
_LLM = "llama_model.base_model.model."
_HEAD_WIDTH = 128  # of every Llama


def legacy_delta_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released file for a Llama-based configuration, in the file's order; allocates nothing.

    The file holds the resized embedding matrices whole, where ours holds only the rows of the new tokens.
    Raises ValueError when the configuration leaves out a width of the LLM.
    """
    with torch.device("meta"):
        model = NextGPT(config, LlamaForCausalLM(_llama(config)))
        model.add_adapter()
    rows = (model.vocabulary.total_size, model.new_input_rows.embedding_dim)
    shapes: dict[str, tuple[int, ...]] = {
        f"{_LLM}model.embed_tokens.weight": rows,
        f"{_LLM}lm_head.weight": rows,
    }
    llm = {f"llama_model.{name}": tensor for name, tensor in model.llm.named_parameters() if is_adapter_tensor(name)}
    projection = {f"llama_proj.{name}": tensor for name, tensor in model.input_projection.linear.named_parameters()}
    outputs = {
        f"{_PROJECTIONS[modality]}{name}": tensor
        for modality in config.outputs
        for name, tensor in model.output_projections[modality.value].named_parameters()
    }
    return shapes | {name: tuple(tensor.shape) for name, tensor in (llm | projection | outputs).items()}


def _llama(config: ModelConfig) -> LlamaConfig:
    llm = config.llm
    if llm.hidden_size is None or llm.vocab_size is None or llm.num_layers is None:
        raise ValueError(
            f"preset {config.preset}: llm needs hidden_size, vocab_size and num_layers to name its tensors"
        )
    return LlamaConfig(
        hidden_size=llm.hidden_size,
        vocab_size=llm.vocab_size,
        num_hidden_layers=llm.num_layers,
        num_attention_heads=max(1, llm.hidden_size // _HEAD_WIDTH),
    )
