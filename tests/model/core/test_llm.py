from importlib.util import find_spec

import pytest
import torch
from dialogue_cases import (
    CAPTION,
    MIXED,
    REQUEST,
    base_logits,
    dialogue,
    loss_of,
    make_example,
    moved,
    snapshot,
    step,
)
from llm_families import FAMILIES, build_llm, family_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.training.trainable import num_weights
from model.core.adapter import base_of
from model.core.batch import collate
from model.core.dialogue import encode_dialogue
from model.core.llm import check_loadable, fingerprint
from model.core.nextgpt import NextGPT
from model.core.tokenizer import load_tokenizer
from model.inference.generation import generate
from model.parts.builtin import resolve
from pipelines.sample import Item, Modality

IDS_BT = torch.arange(5, 45)[None]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base_tokenizer(tiny):
    return AutoTokenizer.from_pretrained(resolve(tiny.llm.name))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request, tiny, base_tokenizer, tmp_path_factory):
    return family_config(tmp_path_factory.mktemp(request.param), request.param, tiny, base_tokenizer)


def batch_for(model, tokenizer):
    dialogues = enumerate((CAPTION, REQUEST, MIXED))
    return collate([make_example(turns, tokenizer, model, seed=n) for n, turns in dialogues])


def with_llm(config, **changes):
    return config.model_copy(update={"llm": config.llm.model_copy(update=changes)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_logits_are_bit_for_bit_those_of_the_llm_alone(family, dtype):
    model = NextGPT.from_config(family, dtype=dtype).eval()
    bare = AutoModelForCausalLM.from_pretrained(
        family.llm.name, dtype=dtype, attn_implementation=family.llm.attention
    ).eval()
    with torch.inference_mode():
        assert torch.equal(base_logits(model, IDS_BT), bare(IDS_BT).logits)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_every_stage_moves_its_manifest_and_no_base_row(family):
    tokenizer = load_tokenizer(family)
    model = NextGPT.from_config(family, adapter=True)
    for stage in (1, 2, 3):
        manifest = set(model.set_stage(stage))
        before = snapshot(model)
        for _ in range(2):  # LoRA's A moves only once B is no longer zero
            step(model, batch_for(model, tokenizer))
        assert moved(model, before) == manifest
    bare = AutoModelForCausalLM.from_pretrained(family.llm.name)
    for get in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(base_of(model.llm), get)().weight, getattr(bare, get)().weight)
    rows = [base_of(model.llm).get_input_embeddings().weight, base_of(model.llm).get_output_embeddings().weight]
    assert (rows[0] is rows[1]) == bare.config.tie_word_embeddings


def test_gradient_checkpointing_changes_no_gradient(family):
    tokenizer = load_tokenizer(family)
    gradients = []
    for checkpointing in (False, True):
        model = NextGPT.from_config(family, adapter=True, gradient_checkpointing=checkpointing)
        assert base_of(model.llm).is_activation_checkpointing == checkpointing
        model.set_stage(3)
        loss_of(model, batch_for(model, tokenizer)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*gradients)


def test_replies_hold_text_and_whole_items(family):
    tokenizer = load_tokenizer(family)
    model = NextGPT.from_config(family, adapter=True)
    reply = generate(model, tokenizer, REQUEST[:1], None, max_new_tokens=40, require=[Modality.AUDIO])
    assert Item(modality=Modality.AUDIO) in reply.parts
    assert all(condition.shape[-1] in (64, 48, 32) for _, condition in reply.conditions)


def test_cached_decoding_sees_what_the_whole_sequence_does(family):
    """Also beyond a sliding window."""
    tokenizer = load_tokenizer(family)
    model = NextGPT.from_config(family).eval()
    turns = dialogue(("what do you see in this picture, and why is the sky red in the evening?",))
    ids = encode_dialogue(turns, tokenizer, model.vocabulary, 1, 512, for_generation=True).input_ids
    assert len(ids) > 24
    with torch.inference_mode():
        whole_TH = model.run_llm(model.embed(torch.tensor([ids]))).last_hidden_state[0]
        cache, states = None, []
        for piece in (ids[:20], *([token] for token in ids[20:])):
            output = model.run_llm(model.embed(torch.tensor([piece])), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            states.append(output.last_hidden_state[0])
    torch.testing.assert_close(torch.cat(states), whole_TH, atol=1e-4, rtol=1e-4)


def test_new_input_rows_have_the_size_of_what_the_llm_embeds(family):
    model = NextGPT.from_config(family)
    base = model.embed(torch.arange(model.vocabulary.base_size)[None]).std(dim=1)
    distance = model.new_input_rows.weight - model.embed(torch.arange(model.vocabulary.base_size)[None]).mean(dim=1)
    assert 0 < distance.std() < 0.1 * base.mean()


def test_the_fingerprint_tells_llms_apart_and_not_dtypes(family, tiny):
    full, half = (
        fingerprint(AutoModelForCausalLM.from_pretrained(family.llm.name, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert full == half
    assert full != NextGPT.from_config(tiny).llm_fingerprint


def test_attention_kernels_agree(tiny, tokenizer):
    eager, sdpa = (NextGPT.from_config(with_llm(tiny, attention=kind)).eval() for kind in ("eager", "sdpa"))
    assert eager.llm.config._attn_implementation == "eager"
    torch.testing.assert_close(base_logits(eager, IDS_BT), base_logits(sdpa, IDS_BT), atol=1e-4, rtol=1e-4)


def test_an_llm_without_the_kernel_is_refused_in_one_line(tiny, base_tokenizer, tmp_path):
    config = family_config(tmp_path, "gemma_2", tiny, base_tokenizer)
    with pytest.raises(ValueError, match=r"^llm\.attention: .* does not support sdpa in transformers; use eager$"):
        NextGPT.from_config(with_llm(config, attention="sdpa"))


def test_what_a_way_of_loading_lacks_is_told_at_once_and_before_anything_is_loaded(tiny):
    absent = {name for name in ("flash_attn", "bitsandbytes") if find_spec(name) is None}
    config = with_llm(tiny, name="/nowhere", attention="flash_attention_2", load_in_4bit=True)
    with pytest.raises(ValueError, match="flash_attention_2") as caught:
        NextGPT.from_config(config)
    attention, bits = str(caught.value).splitlines()
    assert attention.endswith("a CUDA device (this is cpu), bf16 weights (these are fp32); use sdpa")
    assert bits.startswith("llm.load_in_4bit: needs ")
    assert bits.endswith("a CUDA device (this is cpu); set it to false")
    assert {name for name in ("flash_attn", "bitsandbytes") if f"the package {name}" in str(caught.value)} == absent
    check_loadable(tiny.llm, torch.float32, CPU)


def test_an_llm_of_other_widths_is_refused(tiny):
    with pytest.raises(ValueError, match=r"hidden_size is 64, but preset tiny expects 65; .* set llm\.hidden_size"):
        NextGPT.from_config(with_llm(tiny, hidden_size=65))
    with pytest.raises(ValueError, match=r"num_hidden_layers is 3, .* set llm\.num_layers"):
        NextGPT.from_config(with_llm(tiny, num_layers=4))


def test_an_llm_that_scales_its_logits_is_refused(tiny, base_tokenizer, tmp_path):
    build_llm(tmp_path, "Granite", base_tokenizer, logits_scaling=8.0)
    with pytest.raises(ValueError, match="scales its logits by logits_scaling"):
        NextGPT.from_config(with_llm(tiny, name=str(tmp_path), hidden_size=None, num_layers=None))


def test_an_llm_without_the_adapters_modules_is_refused(tiny, base_tokenizer, tmp_path):
    build_llm(tmp_path, "GPTNeoX", base_tokenizer)
    config = with_llm(tiny, name=str(tmp_path), hidden_size=None, num_layers=None)
    with pytest.raises(ValueError, match=r"lora\.targets: q_proj, .* do not fit"):
        NextGPT.from_config(config, adapter=True)


@pytest.mark.gpu
def test_a_model_on_the_gpu_is_as_exact_and_trains(family):
    tokenizer = load_tokenizer(family)
    model = NextGPT.from_config(family, adapter=True, dtype=torch.bfloat16, device="cuda")
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    bare = AutoModelForCausalLM.from_pretrained(
        family.llm.name, dtype=torch.bfloat16, attn_implementation=family.llm.attention
    )
    with torch.inference_mode():
        expected = bare.to("cuda").eval()(IDS_BT.to("cuda")).logits
        assert torch.equal(base_logits(model.eval(), IDS_BT.to("cuda")), expected)
    manifest = set(model.train().set_stage(3))
    before = snapshot(model)
    for _ in range(2):
        step(model, batch_for(model, tokenizer).to("cuda", torch.bfloat16), 0.1)
    assert moved(model, before) == manifest


@pytest.mark.gpu
def test_a_model_in_4_bits_trains_and_speaks(tiny):
    pytest.importorskip("bitsandbytes")
    tokenizer = load_tokenizer(tiny)
    config = with_llm(tiny, load_in_4bit=True)
    model = NextGPT.from_config(config, adapter=True, dtype=torch.bfloat16, device="cuda", gradient_checkpointing=True)
    assert model.llm.is_loaded_in_4bit
    assert {p.dtype for name, p in model.named_parameters() if "base_layer" in name} == {torch.uint8}
    plain = NextGPT.from_config(tiny, dtype=torch.bfloat16, device="cuda")
    assert model.llm_fingerprint == plain.llm_fingerprint
    manifest = set(model.set_stage(3))
    assert {p.dtype for name, p in model.named_parameters() if name in manifest} == {torch.bfloat16}
    assert num_weights(model) == num_weights(NextGPT.from_config(tiny, adapter=True))
    before = snapshot(model)
    for _ in range(2):
        step(model, batch_for(model, tokenizer).to("cuda", torch.bfloat16), 0.1)
    assert moved(model, before) == manifest
    reply = generate(model, tokenizer, REQUEST[:1], None, max_new_tokens=40, require=[Modality.IMAGE])
    assert Modality.IMAGE in [modality for modality, _ in reply.conditions]
