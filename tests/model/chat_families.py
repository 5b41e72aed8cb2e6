"""Small tokenizers with the special tokens of published families, and chat templates that write what theirs do."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").splitlines(keepends=True)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SMOLLM2 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n{% endif %}"
    + _CHATML
)
# Thoughts of earlier answers are left out, the last answer has its own or none.
_QWEN3 = """{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}{%- set ns = namespace(last=0) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}{%- set content = m.content %}{%- set thought = '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}
{{- content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
_SMOLLM3 = """{%- set mode = '/think' if enable_thinking is not defined or enable_thinking else '/no_think' %}
{%- set words = messages[0].content.replace('/no_think', '').rstrip() if messages[0].role == 'system' else '' %}
{{- '<|im_start|>system\\n## Metadata\\n\\nToday Date: ' ~ strftime_now('%d %B %Y') ~ '\\nReasoning Mode: ' ~ mode }}
{{- '\\n\\n## Custom Instructions\\n\\n' ~ (words or 'You are a helpful AI assistant named SmolLM.') ~ '\\n\\n' }}
{{- '<|im_end|>\\n' }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n\\n' if mode == '/no_think' else '') }}
{{- m.content.lstrip('\\n') + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n\\n' if mode == '/no_think' else '') }}{%- endif %}"""
_LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
{%- set date_string = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
{%- set words = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set words = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' }}
{{- date_string + '\\n\\n' + words + '<|eot_id|>' }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
_GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}SYSTEM{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for m in loop_messages -%}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}
{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\\n' + (prefix if loop.first else '') }}
{{- m['content'] | trim + '<end_of_turn>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""
_GEMMA_3 = _GEMMA.replace("SYSTEM", "{%- set prefix = messages[0]['content'] + '\\n\\n' -%}")
_GEMMA_2 = _GEMMA.replace("SYSTEM", "{{ raise_exception('System role not supported') }}")
# The system's words stand before the user's last.
_MISTRAL = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}
{%- else %}{%- set rest = messages %}{%- endif %}
{%- for m in rest %}{%- if m['role'] == 'user' %}
{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\\n\\n' + m['content'] + '[/INST]' }}
{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}
{%- else %}{{- ' ' + m['content'] + eos_token }}{%- endif %}{%- endfor %}"""
_LLAMA_2 = """{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}
{%- elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"""
_PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_PHI_4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
_OLMO_2 = """{{ bos_token }}{% for m in messages %}{% if m['role'] != 'assistant' %}
{{- '<|' + m['role'] + '|>\\n' + m['content'] + '\\n' }}
{%- else %}{{ '<|assistant|>\\n' + m['content'] + eos_token + ('' if loop.last else '\\n') }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""
_TINYLLAMA = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A tokenizer of a kind, its special tokens, bos and eos, template, and the token that ends an answer."""

    kind: str
    special: tuple[str, ...]
    template: str
    end: str
    bos: str | None = None
    eos: str | None = None
    plain: tuple[str, ...] = ()  # added, but not special
    takes_spaces: tuple[str, ...] = ()


_IM = ("<|im_start|>", "<|im_end|>")
_TAGS = ("<s>", "</s>")
FAMILIES = {
    "smollm2": Family(
        kind="bytes", special=_IM, template=_SMOLLM2, end="<|im_end|>", bos="<|im_start|>", eos="<|im_end|>"
    ),
    "qwen3": Family(
        kind="bytes",
        special=("<|endoftext|>", *_IM),
        plain=("<think>", "</think>"),
        template=_QWEN3,
        end="<|im_end|>",
        eos="<|im_end|>",
    ),
    "smollm3": Family(
        kind="bytes", special=_IM, plain=("<think>", "</think>"), template=_SMOLLM3, end="<|im_end|>", eos="<|im_end|>"
    ),
    "llama3": Family(
        kind="bytes",
        special=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        template=_LLAMA3,
        end="<|eot_id|>",
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
    "gemma3": Family(
        kind="pieces",
        special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        template=_GEMMA_3,
        end="<end_of_turn>",
        bos="<bos>",
        eos="<eos>",
    ),
    "gemma2": Family(
        kind="pieces",
        special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        template=_GEMMA_2,
        end="<end_of_turn>",
        bos="<bos>",
        eos="<eos>",
    ),
    "mistral": Family(
        kind="first", special=(*_TAGS, "[INST]", "[/INST]"), template=_MISTRAL, end="</s>", bos="<s>", eos="</s>"
    ),
    "mistral_legacy": Family(kind="legacy", special=_TAGS, template=_MISTRAL, end="</s>", bos="<s>", eos="</s>"),
    "llama2": Family(kind="legacy", special=_TAGS, template=_LLAMA_2, end="</s>", bos="<s>", eos="</s>"),
    "tinyllama": Family(kind="first", special=_TAGS, template=_TINYLLAMA, end="</s>", bos="<s>", eos="</s>"),
    "phi3": Family(
        kind="legacy",
        special=(*_TAGS, "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        takes_spaces=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        template=_PHI_3,
        end="<|end|>",
        bos="<s>",
        eos="<|endoftext|>",
    ),
    "phi4": Family(
        kind="bytes",
        special=("<|endoftext|>", *_IM, "<|im_sep|>"),
        template=_PHI_4,
        end="<|im_end|>",
        bos="<|endoftext|>",
        eos="<|im_end|>",
    ),
    "olmo2": Family(
        kind="bytes",
        special=("<|endoftext|>",),
        template=_OLMO_2,
        end="<|endoftext|>",
        bos="<|endoftext|>",
        eos="<|endoftext|>",
    ),
    "deepseek": Family(
        kind="bytes",
        special=("<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>"),
        template=_DEEPSEEK,
        end="<|end|>",
        bos="<|begin|>",
        eos="<|end|>",
    ),
}


@cache
def trained(kind: str, special: tuple[str, ...]) -> str:
    """A tokenizer in JSON, trained on the README: of bytes (GPT-2), or of pieces with a space as SentencePiece's."""
    backend = Tokenizer(models.BPE(byte_fallback=kind != "bytes", unk_token=None if kind == "bytes" else "<unk>"))
    first = [*special, *([] if kind == "bytes" else ["<unk>"])]
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        replaced = normalizers.Replace(" ", "\u2581")
        alphabet = []
        first += [f"<0x{byte:02X}>" for byte in range(256)]
        if kind == "first":
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        elif kind == "legacy":
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replaced])
        else:
            backend.normalizer = replaced
        steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        backend.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * (kind in ("first", "legacy")))
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=first, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    # Words one by one: else a merge may span them, which the published vocabularies do not have.
    words = (piece for line in CORPUS for piece in line.replace(" ", "\n ").split("\n"))
    backend.train_from_iterator(words, trainer)
    values = json.loads(backend.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(values)


def tokenizer_of(name: str) -> Any:
    """A fresh tokenizer of a family."""
    family = FAMILIES[name]
    backend = Tokenizer.from_str(trained(family.kind, family.special))
    for content in family.special:
        backend.add_special_tokens([AddedToken(content, normalized=False, rstrip=content in family.takes_spaces)])
    backend.add_tokens([AddedToken(content, normalized=False) for content in family.plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos)
    tokenizer.chat_template = family.template
    return tokenizer
