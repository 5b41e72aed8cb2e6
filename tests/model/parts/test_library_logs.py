"""Loading with transformers and diffusers, which change themselves meanwhile: by one thread at a time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from model.parts.builtin import resolve
from model.parts.library_logs import quiet_libraries

THREADS = 4


def test_one_thread_loads_at_a_time_and_may_load_within_a_load() -> None:
    inside, most, start = [0], list[int](), Barrier(THREADS)

    def load(_: int) -> None:
        start.wait()
        with quiet_libraries():
            inside[0] += 1
            resolve("builtin:tiny/llm")
            most.append(inside[0])
            inside[0] -= 1

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(load, range(THREADS)))
    assert most == [1] * THREADS


def test_an_llm_with_tied_rows_loads_after_threads_that_loaded_side_by_side(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config.tie_word_embeddings = True
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    ties = PreTrainedModel.tie_weights

    def load(_: int) -> None:
        with quiet_libraries():
            LlamaForCausalLM.from_pretrained(tmp_path)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(load, range(8 * THREADS)))
    assert PreTrainedModel.tie_weights is ties
    assert not transformers.AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight.is_meta
