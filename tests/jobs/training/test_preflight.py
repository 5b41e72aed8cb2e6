"""What is refused before a stage starts, all of it at once."""

from pathlib import Path

import pytest
from chat_families import tokenizer_of
from transformers import AutoConfig, CohereConfig, PreTrainedConfig, Qwen3Config

from jobs.common.settings import load_settings
from jobs.training.preflight import mistakes, notes


def found(tmp_path: Path, *overrides: str, preset: str = "tiny", init: Path | None = None) -> list[str]:
    return list(mistakes(load_settings(2, preset, overrides), [], tmp_path / "run", init))


def test_the_default_settings_have_no_mistake(tmp_path: Path) -> None:
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("workers=3", "workers: 3, but batch_size=8 in micro-batches of 4 gives work to 2; use workers=2 or"),
        ("workers=[1, 16]", "workers: 16, but batch_size=8"),
        ("workers=[2, 1]", "workers: [2, 1] must be the fewest, then the most"),
        ("model.outputs.image.dim=48", "model.outputs.image: 77x48, but builtin:tiny/image_decoder takes 77x64"),
        ("keep_last=1000000000", "GB free, but its checkpoints may take"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(tmp_path: Path, setting: str, told: str) -> None:
    (line,) = found(tmp_path, setting)
    assert told in line
    assert "\n" not in line


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    lines = found(tmp_path, "workers=9", "keep_last=1000000000", init=tmp_path / "absent")
    assert len(lines) == 3
    assert any(str(tmp_path / "absent") in line for line in lines)


def test_going_on_with_another_torch_is_noted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": 2, "versions": {"torch": "1.0", "peft": "0.1"}}')
    assert [line.partition(", here")[0] for line in notes(tmp_path)] == ["the run was begun with torch 1.0"]


SHAPE = {
    "vocab_size": 720,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def with_llm(folder: Path, llm: PreTrainedConfig, template: str | None) -> list[str]:
    """The mistakes of a stage on an LLM of which there are a configuration and a tokenizer."""
    llm.save_pretrained(folder / "llm")
    tokenizer = tokenizer_of("qwen3")
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(folder / "llm")
    if template == "":
        (folder / "llm" / "chat_template.jinja").unlink()
    sizes = [f"model.llm.{name}=null" for name in ("hidden_size", "vocab_size", "num_layers")]
    return found(folder, f"model.llm.name={folder / 'llm'}", "model.llm.template=auto", *sizes)


def test_an_llm_in_its_own_format_has_no_mistake(tmp_path: Path) -> None:
    assert with_llm(tmp_path, Qwen3Config(**SHAPE), None) == []


def test_an_llm_without_a_chat_template_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (line,) = with_llm(tmp_path, Qwen3Config(**SHAPE), "")
    assert line.startswith(f"{tmp_path / 'llm'}: its tokenizer has no chat template; set llm.template: vicuna_v0")


@pytest.mark.parametrize(
    ("llm", "told"),
    [
        (CohereConfig(**SHAPE), "scales its logits by logit_scale"),
        (AutoConfig.for_model("t5"), "t5 is an encoder and a decoder"),
        (AutoConfig.for_model("qwen2_vl"), "qwen2_vl is no causal language model in transformers"),
    ],
)
def test_an_llm_that_cannot_work_is_refused_before_anything_starts(
    tmp_path: Path, llm: PreTrainedConfig, told: str
) -> None:
    (line,) = with_llm(tmp_path, llm, None)
    assert told in line
    assert "\n" not in line
