"""Tries an LLM before its weights are loaded: a small copy of it, with random weights, must answer as ours would."""

from copy import deepcopy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from model.core.adapter import lora_targets
from model.core.chat_template import chat_template
from model.core.llm import capped, check_fits
from model.core.tokenizer import load_tokenizer
from model.parts.builtin import is_builtin, resolve
from model.parts.config import ModelConfig
from model.parts.library_logs import quiet_libraries

_TOKENS = 12
_LIVELY = 5  # times as large as they are drawn are the weights, so that all that an LLM reads changes its logits
_ALONE = "use a language model alone, not one that sees or hears as well"
# How large the small copy may be in what its config names; other names keep their values.
_MOST = {
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "ffn_dim": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "vocab_size": 64,
    "vocab_size_per_layer_input": 64,
    "num_kv_shared_layers": 0,
}


def probe_llm(config: ModelConfig, *, adapter: bool) -> list[str]:
    """Checks the LLM, its tokenizer and template, and the `adapter`'s targets; returns notes for the user.

    Reads configuration and tokenizer alone. Raises ValueError, in one line, for an LLM that cannot work here, and
    OSError for one that is not on this machine.
    """
    name = config.llm.name
    described = AutoConfig.from_pretrained(resolve(name))
    if described.is_encoder_decoder:
        raise ValueError(f"{name}: {described.model_type} is an encoder and a decoder; use a causal language model")
    with quiet_libraries():
        llm = _without_weights(config, described)
        check_fits(config, llm)
        if not is_builtin(name):
            _check_alone(name, llm)
            _try(name, llm, described)
    if config.llm.template == "auto" or config.llm.system is not None:
        chat_template(config.llm.template, load_tokenizer(config), config.llm.system)
    return lora_targets(llm, config.lora, name)[1] if adapter else []


def _without_weights(config: ModelConfig, described: Any) -> Any:
    """The whole LLM on the meta device."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(described).train()
    except (ValueError, ImportError) as error:
        if "Unrecognized configuration class" not in str(error):
            raise ValueError(f"{config.llm.name}: {' '.join(str(error).split())}") from None
        raise ValueError(
            f"{config.llm.name}: {described.model_type} is no causal language model in transformers; {_ALONE}"
        ) from None


def _check_alone(name: str, llm: Any) -> None:
    """Raises ValueError for a model that holds more than its language model, such as a tower that sees."""
    try:
        parts = (llm.get_decoder(), llm.get_input_embeddings(), llm.get_output_embeddings())
        own = {id(parameter) for part in parts for parameter in part.parameters()}
    except Exception as error:
        raise _refused(name, llm, error) from None
    for other, parameter in llm.named_parameters():
        if id(parameter) not in own:
            raise ValueError(
                f"{name}: {type(llm).__name__} holds more than a language model ({other.rpartition('.')[0]}); {_ALONE}"
            )


def _refused(name: str, llm: Any, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"{name}: {type(llm).__name__} cannot go on from embeddings alone ({reason}); use another LLM")


def _try(name: str, whole: Any, described: Any) -> None:
    """Runs a small copy both ways, or where none can be made the `whole` on the meta device."""
    ids_BT = torch.arange(1, 1 + _TOKENS)[None]
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        try:
            llm = AutoModelForCausalLM.from_config(_small(described), dtype=torch.float32).eval()
            for weights in llm.parameters():
                weights.add_((_LIVELY - 1) * weights if weights.ndim > 1 else torch.rand_like(weights))
            expected_BTV = llm(input_ids=ids_BT, use_cache=False).logits
        except Exception:  # whatever a family's code raises for widths that do not fit each other
            _try_on_meta(name, whole, ids_BT)
            return
        try:
            for mode in (True, False):  # some ask for more in training
                logits_BTV = _logits(llm.train(mode), ids_BT)
        except Exception as error:
            raise _refused(name, llm, error) from None
    difference_BTV = (logits_BTV - expected_BTV)[:, :-1]
    if float(difference_BTV.abs().max()) > 1e-3 * float(expected_BTV.abs().max()):
        raise ValueError(
            f"{name}: the logits of {type(llm).__name__} are not those of its head on what its decoder makes of "
            "embeddings (it scales them, or needs ids as well); use another LLM"
        )


def _try_on_meta(name: str, llm: Any, ids_BT: torch.Tensor) -> None:
    try:
        _logits(llm, ids_BT.to("meta"))
    except NotImplementedError:  # asks for values, of which there are none: mixtures of experts do
        return
    except Exception as error:
        if "meta" not in str(error).lower():
            raise _refused(name, llm, error) from None


def _logits(llm: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """The logits as `NextGPT` computes them, with the last token an item's embedding, which no token has."""
    embeds_BTH = llm.get_input_embeddings()(ids_BT)
    embeds_BTH[:, -1] = embeds_BTH[:, :-1].mean(1)
    output = llm.get_decoder()(inputs_embeds=embeds_BTH, attention_mask=torch.ones_like(ids_BT), use_cache=False)
    return capped(llm, llm.get_output_embeddings()(output.last_hidden_state))


def _small(described: Any) -> Any:
    """A configuration of the same class with a layer of each kind, two heads and few rows."""
    small = deepcopy(described)
    for part in {id(part): part for part in (small, *_parts(small))}.values():
        _shrink(part)
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    return small


def _parts(config: Any) -> list[Any]:
    return [part for name in config.sub_configs if (part := getattr(config, name, None)) is not None]


def _shrink(config: Any) -> None:
    heads, layers = _value(config, "num_attention_heads"), _value(config, "num_hidden_layers")
    if isinstance(layers, int):
        kinds = _value(config, "layer_types") or range(min(2, layers))
        chosen = sorted({kind: place for place, kind in reversed(list(enumerate(kinds)))}.values())
        for key, value in list(vars(config).items()):
            if isinstance(value, list) and len(value) == layers:
                setattr(config, key, [value[place] for place in chosen])
        config.num_hidden_layers = len(chosen)
    if isinstance(heads, int):
        width = _value(config, "head_dim") or config.hidden_size // heads
        grouped = _value(config, "num_key_value_heads")
        config.num_attention_heads, config.hidden_size = 2, 2 * width
        if grouped is not None:
            config.num_key_value_heads = 1 if grouped < heads else 2
        if _value(config, "word_embed_proj_dim") is not None:
            config.word_embed_proj_dim = 2 * width
    for name, most in _MOST.items():
        value = _value(config, name)
        if isinstance(value, int):
            setattr(config, name, min(value, most))
        elif isinstance(value, list):
            setattr(config, name, [min(one, most) for one in value])
    for name, number in {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}.items():
        if hasattr(config, name):
            setattr(config, name, number)


def _value(config: Any, name: str) -> Any:
    """A value, or None where there is none, or one for each layer."""
    try:
        return getattr(config, name, None)
    except Exception:  # not an AttributeError in transformers
        return None
