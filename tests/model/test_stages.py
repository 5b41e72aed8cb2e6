"""What a stage moves and what it leaves, by real optimizer steps on batches of everything."""

import pytest
import torch
from dialogue_cases import base_logits, dialogue, item, loss_of, make_example, moved, snapshot
from transformers import AutoModelForCausalLM

from model.core.adapter import base_of
from model.core.batch import collate
from model.core.nextgpt import NextGPT
from model.parts.builtin import resolve
from model.parts.config import load_preset
from pipelines.sample import Modality

EVERYTHING = dialogue(
    ("compare", item("image"), item("video"), item("audio"), "please"),
    ("first", item("image"), "then", item("video"), "at last", item("audio"), "that is all"),
)
TEXT = dialogue(("why is the sky red?",), ("sunlight takes a longer way",), ("and blue?",), ("less of it reaches us",))
PROMPTS_BT = torch.tensor([[1, *range(40, 70)], [1, *range(200, 230)]])


def trained(preset, tokenizer, stage, *, adapter):
    """A model after three steps of a stage, its tensors before them, and the names of what the stage trains."""
    model = NextGPT.from_config(load_preset(preset), adapter=adapter)
    manifest = model.set_stage(stage)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(manifest)
    before = snapshot(model)
    batch = collate([make_example(turns, tokenizer, model, seed=n) for n, turns in enumerate((EVERYTHING, TEXT))])
    assert len(batch.features[None].values_N) == 3
    assert set(batch.targets) == set(Modality)
    # Without weight decay, which would move what has no gradient.
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01, betas=(0.9, 0.95))
    for _ in range(3):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, before, set(manifest)


@pytest.fixture(scope="module")
def bare(tiny):
    return AutoModelForCausalLM.from_pretrained(resolve(tiny.llm.name)).eval().requires_grad_(False)


@pytest.mark.parametrize("preset", ["tiny", "tiny_query"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_moves_all_of_its_manifest_and_nothing_else(tokenizer, bare, preset, stage):
    model, before, manifest = trained(preset, tokenizer, stage, adapter=True)
    assert moved(model, before) == manifest
    for name in ("new_input_rows.weight", "new_output_rows.weight"):
        assert (model.state_dict()[name] != before[name]).any(dim=1).all(), "a row that no token reached"
    base = base_of(model.llm)
    assert torch.equal(base.get_input_embeddings().weight, bare.get_input_embeddings().weight)
    assert torch.equal(base.get_output_embeddings().weight, bare.get_output_embeddings().weight)


@pytest.mark.parametrize("stage", [1, 2])
def test_without_media_the_base_llm_says_what_it_said(tokenizer, bare, stage):
    model, _, _ = trained("tiny", tokenizer, stage, adapter=False)
    model.eval().requires_grad_(False)  # PyTorch chooses matrix kernels, and so the last bit, by this flag among others
    with torch.inference_mode():
        assert torch.equal(base_logits(model, PROMPTS_BT), bare(PROMPTS_BT).logits)
    assert greedy(base_of(model.llm)) == greedy(bare)


def test_stage_3_changes_what_the_llm_says(tokenizer, bare):
    model, _, _ = trained("tiny", tokenizer, 3, adapter=True)
    with torch.inference_mode():
        assert not torch.equal(base_logits(model.eval(), PROMPTS_BT), bare(PROMPTS_BT).logits)


def greedy(llm):
    mask_BT = torch.ones_like(PROMPTS_BT)
    return llm.generate(PROMPTS_BT, attention_mask=mask_BT, do_sample=False, max_new_tokens=12).tolist()
