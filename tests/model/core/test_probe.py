"""LLMs of transformers' real classes, tried before their weights are loaded."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from chat_families import tokenizer_of
from transformers import AutoModelForCausalLM

from model.core.adapter import CONFIG, add_adapter, lora_targets, read_adapter, save_adapter
from model.core.probe import probe_llm
from model.parts.config import LoraSettings, ModelConfig
from pipelines.storage.files import read_json

_SHAPE = {
    "vocab_size": 720,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MLA = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
_SPLIT = ("q_proj", "k_proj", "v_proj", "o_proj")
FAMILIES = {
    "Llama": ({}, _SPLIT),
    "Qwen3": ({"head_dim": 8}, _SPLIT),
    "Gemma3Text": ({"head_dim": 8, "sliding_window": 8}, _SPLIT),
    "Phi3": ({}, ("o_proj", "qkv_proj")),
    "Olmo2": ({}, _SPLIT),
    "SmolLM3": ({}, _SPLIT),
    "Mistral": ({}, _SPLIT),
    "DeepseekV3": (_MLA, ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")),
    "GPTNeoX": ({}, ("query_key_value", "dense")),
    "GPT2": ({"n_embd": 32, "n_layer": 3, "n_head": 4}, ("c_attn", "attn.c_proj")),
}
REFUSED = {
    "Granite": ({"logits_scaling": 8.0}, "scales its logits by logits_scaling"),
    "Gemma4Text": ({"head_dim": 8}, "Gemma4ForCausalLM cannot go on from embeddings alone"),
    "Gemma3": ({}, "holds more than a language model (model.vision_tower"),
    "Qwen2_5_VL": ({}, "qwen2_5_vl is no causal language model in transformers; use a language model alone"),
    "T5": ({}, "t5 is an encoder and a decoder; use a causal language model"),
    "Llama4Text": ({"num_local_experts": 2, "intermediate_size_mlp": 48}, "Llama4ForCausalLM cannot go on from"),
}


def described(family, **changes):
    shape = {} if family in ("Gemma3", "Qwen2_5_VL", "T5") else _SHAPE
    return getattr(transformers, f"{family}Config")(**(shape | changes))


def written(folder: Path, tiny: ModelConfig, config, tokenizer=None, **settings) -> ModelConfig:
    """A model on an LLM of which there are a configuration and a tokenizer, and no weights."""
    config.save_pretrained(folder)
    (tokenizer or tokenizer_of("qwen3")).save_pretrained(folder)
    llm = {"name": str(folder), "template": "auto"} | settings
    return ModelConfig.model_validate(tiny.model_dump(mode="json") | {"llm": llm, "lora": {"targets": "auto"}})


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_that_work_pass_and_auto_adapts_their_attention(family, tiny, tmp_path):
    changes, targets = FAMILIES[family]
    config = written(tmp_path, tiny, described(family, **changes))
    assert probe_llm(config, adapter=True) == []
    llm = AutoModelForCausalLM.from_config(described(family, **changes))
    assert lora_targets(llm, config.lora, family) == (targets, [])
    wrapped = add_adapter(llm, config.lora, family)
    adapted = {name for name, module in wrapped.named_modules() if hasattr(module, "lora_A") and module.lora_A}
    inside = [name for name in adapted if "attn" in name or "attention" in name]
    assert len(inside) == len(adapted) == 3 * len(targets)
    state = {name: p for name, p in wrapped.named_parameters() if "lora_" in name}
    save_adapter(wrapped, state, tmp_path / "adapter")
    assert read_json(tmp_path / "adapter" / CONFIG)["target_modules"] == sorted(targets)
    read = read_adapter(tmp_path / "adapter", wrapped)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in read)


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_loaded(family, tiny, tmp_path):
    changes, said = REFUSED[family]
    config = written(tmp_path, tiny, described(family, **changes))
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        probe_llm(config, adapter=False)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_head_that_scales_under_any_name_is_found_by_trying(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("model.core.llm._SCALES", ())
    with pytest.raises(ValueError, match="the logits of CohereForCausalLM are not those of its head"):
        probe_llm(written(tmp_path, tiny, described("Cohere")), adapter=False)


def test_an_llm_without_a_template_is_refused_unless_told_to_take_vicunas(tiny, tmp_path):
    tokenizer = tokenizer_of("qwen3")
    tokenizer.chat_template = None
    config = written(tmp_path, tiny, described("Llama"), tokenizer)
    with pytest.raises(ValueError, match=r"has no chat template; set llm\.template: vicuna_v0"):
        probe_llm(config, adapter=False)
    config = written(tmp_path, tiny, described("Llama"), tokenizer, template="vicuna_v0")
    assert probe_llm(config, adapter=False) == []


def test_a_target_that_is_nowhere_is_refused_and_one_found_in_part_is_noted():
    kinds = ["linear_attention", "linear_attention", "full_attention"]
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(
            described("Qwen3Next", layer_types=kinds, num_experts=4, head_dim=8, moe_intermediate_size=16)
        )
    with pytest.raises(ValueError, match=r"^lora\.targets: c_attn does not fit x, which has no .*; use auto, here in_"):
        lora_targets(llm, LoraSettings(targets=("q_proj", "c_attn")), "x")
    targets, notes = lora_targets(llm, LoraSettings(targets=("q_proj", "out_proj", "gate_proj")), "x")
    assert targets == ("q_proj", "out_proj", "gate_proj")
    assert notes == [
        "lora.targets: q_proj is in 1 of the 3 layers of x, and adapts these",
        "lora.targets: out_proj is in 2 of the 3 layers of x, and adapts these",
    ]
    assert set(_SPLIT) < set(lora_targets(llm, LoraSettings(targets="auto"), "x")[0])
