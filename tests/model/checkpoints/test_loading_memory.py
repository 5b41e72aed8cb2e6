"""An LLM is in memory once, whatever precision it is published in."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from model.checkpoints.checkpoint import save_pretrained
from model.core.llm import load_llm
from model.core.nextgpt import NextGPT
from model.parts.config import ModelConfig
from tests.model.llm_families import build_llm

LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 8}
MOST = 1.25
# Beside weights of 200 MB a reply holds a few, and 34 where a layer's are widened for the product (CPUs without
# bfloat16). A second copy of all would make it 2, one in float32 3.
LOAD = """
import json, sys
from pathlib import Path

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

from jobs.common.cli import quiet
from model.inference.query import Query, Sampling
from model.inference.responder import Responder
from pipelines.sample import Turn

def reply(checkpoint):
    responder = Responder.from_pretrained(checkpoint)
    if sys.argv[2] == "merged":
        responder.model.merge_adapter()
    turns = (Turn(role="user", parts=("Show a dog.",)),)
    responder.respond(Query(turns=turns, sampling=Sampling(max_new_tokens=2, max_items=0)))
    return responder

reply("builtin:world")  # all that a reply imports is no matter of the weights
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
responder = reply(sys.argv[1])
weights = sum(one.nbytes for one in responder.model.parameters())
print(json.dumps({"peak": (kilobytes("VmHWM") - before) * 1024, "weights": weights}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux says how much memory a process takes")
@pytest.mark.parametrize(("stored", "how"), [("bfloat16", "merged"), ("float16", "apart")])
def test_a_reply_takes_little_more_memory_than_the_weights(
    stored: str, how: str, tiny: ModelConfig, tokenizer: Any, tmp_path: Path
) -> None:
    build_llm(tmp_path / "llm", "Llama", tokenizer, dtype=stored, **LARGE)
    config = tiny.model_copy(
        update={
            "llm": tiny.llm.model_copy(update={"name": str(tmp_path / "llm"), "hidden_size": 1024, "num_layers": 6})
        }
    )
    model = NextGPT.from_config(config, adapter=how == "merged", dtype=torch.bfloat16)
    save_pretrained(model, tmp_path / "checkpoint", tokenizer, stages=[])
    command = [sys.executable, "-c", LOAD, str(tmp_path / "checkpoint"), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["weights"] > 150e6
    assert 0.8 < found["peak"] / found["weights"] < MOST


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_converted_weights_are_those_that_transformers_converts(
    stored: torch.dtype, tiny: ModelConfig, tokenizer: Any, tmp_path: Path
) -> None:
    build_llm(tmp_path, "Llama", tokenizer, dtype=stored)
    ours = load_llm(tiny.llm.model_copy(update={"name": str(tmp_path)}), torch.bfloat16, torch.device("cpu"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert ours.config.dtype == torch.bfloat16
    expected = theirs.state_dict() | dict(theirs.named_buffers())
    found = ours.state_dict() | dict(ours.named_buffers())
    assert found.keys() == expected.keys()
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: t.dtype for name, t in expected.items()}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
