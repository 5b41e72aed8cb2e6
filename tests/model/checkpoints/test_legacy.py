import hashlib
from types import SimpleNamespace

import pytest
import torch
from dialogue_cases import base_logits
from transformers import LlamaConfig, LlamaForCausalLM
from upath import UPath

from model.checkpoints.base_rows import save_base_rows
from model.checkpoints.checkpoint import from_pretrained, load_weights, save_pretrained
from model.checkpoints.released import export_legacy, legacy_delta_shapes, legacy_dtype, load_legacy
from model.core.nextgpt import NextGPT
from model.parts.config import load_preset

LORA = "llama_model.base_model.model.model.layers."
EMBEDDING = "llama_model.model.embed_tokens.weight"
HEAD = "llama_model.lm_head.weight"


def shapes_of(config, stage):
    """What a file of a stage holds, told from the released one of stage 3."""
    released = legacy_delta_shapes(config)
    if stage == 3:
        return released
    parts = "llama_proj." if stage == 1 else "gen_text_hidden_fcs"
    rows = {name: shape for name, shape in released.items() if name.endswith(("embed_tokens.weight", "lm_head.weight"))}
    unwrapped = {name.replace("base_model.model.", ""): shape for name, shape in rows.items()}
    assert list(unwrapped) == [EMBEDDING, HEAD]
    return unwrapped | {name: shape for name, shape in released.items() if name.startswith(parts)}


def random_tensors(shapes, dtype=torch.float16):
    """Small numbers, as weights are; seldom of the kind that any dtype but their own would hold."""
    generator = torch.Generator().manual_seed(7)
    return {name: (torch.randn(shape, generator=generator) * 0.05).to(dtype) for name, shape in shapes.items()}


def write(path, tensors):
    torch.save(tensors, path)
    return path


def bits(tensors):
    return {
        name: (tensor.dtype, tensor.shape, hashlib.sha256(tensor.view(torch.uint8).numpy().data).hexdigest())
        for name, tensor in tensors.items()
    }


@pytest.fixture
def files(tiny, tmp_path):
    return {s: write(tmp_path / f"stage_{s}.pt", random_tensors(shapes_of(tiny, s))) for s in (1, 2, 3)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_file_of_every_stage_comes_out_as_it_went_in(tiny, files, tmp_path, stage, dtype):
    model = NextGPT.from_config(tiny, dtype=dtype)
    entry = load_legacy(model, files[stage])
    assert (entry["stage"], entry["imported"]) == (stage, f"stage_{stage}.pt")
    assert list(model.stages) == [entry]
    assert model.has_adapter == (stage == 3)
    assert export_legacy(model, tmp_path / "out.pt", stage=stage) == shapes_of(tiny, stage)
    given, written = (torch.load(path, weights_only=True) for path in (files[stage], tmp_path / "out.pt"))
    assert list(written) == list(given)
    assert bits(written) == bits(given)


def test_the_same_model_is_exported_with_the_same_bytes(tiny, files, tmp_path):
    model = NextGPT.from_config(tiny)
    load_legacy(model, files[3])
    for folder in "ab":
        export_legacy(model, tmp_path / folder / "pytorch_model.pt")
    assert len({(tmp_path / folder / "pytorch_model.pt").read_bytes() for folder in "ab"}) == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["pytorch_model.pt"]


def test_every_tensor_finds_its_place(tiny, files):
    model = NextGPT.from_config(tiny)
    load_legacy(model, files[3])
    given = torch.load(files[3], weights_only=True)
    base = model.vocabulary.base_size
    named = dict(model.named_parameters())
    embedding = given["llama_model.base_model.model.model.embed_tokens.weight"].float()
    assert torch.equal(model.embed(torch.arange(len(embedding))[None])[0], embedding)
    head = given["llama_model.base_model.model.lm_head.weight"].float()
    assert torch.equal(named["new_output_rows.weight"], head[base:])
    hidden = torch.randn(3, 64)
    assert torch.allclose(model.logits(hidden), hidden @ head.T, atol=1e-5)
    assert torch.equal(
        named["output_projections.video.query_embs"], given["gen_text_hidden_fcs_video.0.query_embs"].float()
    )
    lora = "model.layers.1.self_attn.k_proj.lora_A.default.weight"
    assert torch.equal(named[f"llm.base_model.model.{lora}"], given[f"llama_model.base_model.model.{lora}"].float())
    assert torch.equal(named["input_projection.linear.bias"], given["llama_proj.bias"].float())


def test_stages_add_up(tiny, files):
    model = NextGPT.from_config(tiny)
    for stage in (1, 2):
        load_legacy(model, files[stage])
    one, two = (torch.load(files[stage], weights_only=True) for stage in (1, 2))
    assert [entry["stage"] for entry in model.stages] == [1, 2]
    assert torch.equal(model.input_projection.linear.weight, one["llama_proj.weight"].float())
    assert torch.equal(model.embed(torch.arange(550)[None])[0], two[EMBEDDING].float())


def test_a_file_of_stage_2_may_hold_the_input_projection_too(tiny, tmp_path):
    tensors = random_tensors(shapes_of(tiny, 1) | shapes_of(tiny, 2))
    model = NextGPT.from_config(tiny)
    assert load_legacy(model, write(tmp_path / "both.pt", tensors))["stage"] == 2
    assert torch.equal(model.input_projection.linear.weight, tensors["llama_proj.weight"].float())
    del tensors["llama_proj.bias"]
    with pytest.raises(ValueError, match=r"llama_proj\.bias is missing"):
        load_legacy(model, write(tmp_path / "both.pt", tensors))


NEEDED = {
    1: "llama_proj.bias",
    2: "gen_text_hidden_fcs_audio.0.fc.weight",
    3: f"{LORA}2.self_attn.o_proj.lora_B.default",
}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("fault", ["missing", "unexpected", "shape", "rows", "several"])
def test_every_tensor_that_does_not_fit_is_named(tiny, files, stage, fault):
    tensors = torch.load(files[stage], weights_only=True)
    needed = next(name for name in tensors if name.startswith(NEEDED[stage]))
    rows = next(iter(tensors))
    if fault == "missing":
        del tensors[needed]
        expected = f"{needed} is missing;"
    elif fault == "unexpected":
        tensors["llama_model.extra"] = torch.zeros(1)
        expected = "llama_model.extra is unexpected;"
    elif fault == "shape":
        was = tuple(tensors[needed].shape)
        tensors[needed] = torch.zeros(2, 3)
        expected = f"{needed} is (2, 3), not {was};"
    elif fault == "rows":  # as users of the legacy code met it: another number of tokens (its issues 47 and 118)
        tensors[rows] = torch.zeros(554, 64)
        expected = f"{rows} is (554, 64), not (550, 64);"
    else:
        del tensors[needed], tensors[rows]
        tensors |= {f"extra.{n}": torch.zeros(1) for n in range(4)}
        expected = f"{rows} is missing, {needed} is missing, extra.0 is unexpected and 3 more;"
    model = NextGPT.from_config(tiny)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with pytest.raises(ValueError, match="not a stage") as caught:
        load_legacy(model, write(files[stage], tensors))
    assert str(files[stage]) in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    after = {
        name.replace("base_model.model.", "").replace("base_layer.", ""): p for name, p in model.named_parameters()
    }
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 damaged"])
def test_a_damaged_file_is_told_in_one_line(model, tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pt: cannot be read as tensors") as caught:
        load_legacy(model, tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


def test_a_file_that_would_run_code_or_holds_no_tensors_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        load_legacy(model, write(tmp_path / "x.pt", SimpleNamespace()))
    with pytest.raises(ValueError, match="not a mapping of names to tensors"):
        load_legacy(model, write(tmp_path / "x.pt", {"epoch": 1}))
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_legacy(model, tmp_path / "absent.pt")


def test_what_would_lose_bits_is_refused(tiny, files, tmp_path):
    with pytest.raises(ValueError, match="float16, which a model in bfloat16 cannot hold exactly; load it in float32"):
        load_legacy(NextGPT.from_config(tiny, dtype=torch.bfloat16), files[1])
    model = NextGPT.from_config(tiny)
    model.input_projection.linear.bias[0] = 1e6
    with pytest.raises(ValueError, match=r"llama_proj\.bias: has values too large for float16"):
        export_legacy(model, tmp_path / "x.pt", stage=1)
    assert not list(tmp_path.glob("*x.pt*"))
    export_legacy(model, tmp_path / "x.pt", stage=1, dtype=torch.float32)
    assert (legacy_dtype(files[1]), legacy_dtype(tmp_path / "x.pt")) == (torch.float16, torch.float32)


def test_a_model_with_a_connector_is_no_legacy_file(tiny, tmp_path):
    values = tiny.model_dump(mode="json")
    values["outputs"]["image"]["kind"] = "connector"
    with pytest.raises(ValueError, match="legacy files hold output projections; use a preset without connectors"):
        export_legacy(NextGPT.from_config(type(tiny).model_validate(values)), tmp_path / "x.pt", stage=2)


def test_a_model_without_an_adapter_is_no_stage_3(model, tmp_path):
    with pytest.raises(ValueError, match="holds a LoRA adapter, but this model has none"):
        export_legacy(model, tmp_path / "x.pt")


# --- Base rows -------------------------------------------------------------------------------------------------------


@pytest.fixture
def imported(tiny, files):
    model = NextGPT.from_config(tiny)
    load_legacy(model, files[3])
    return model.eval()


IDS = torch.arange(5, 45)[None]


def test_a_checkpoint_keeps_the_base_rows_that_came_with_a_file(imported, files, tokenizer, tmp_path):
    fingerprint = imported.llm_fingerprint
    save_pretrained(imported, tmp_path / "a", tokenizer)
    loaded, _ = from_pretrained(tmp_path / "a")
    assert loaded.llm_fingerprint == fingerprint
    assert torch.equal(base_logits(loaded, IDS), base_logits(imported, IDS))
    export_legacy(loaded, tmp_path / "out.pt")
    given, written = (torch.load(path, weights_only=True) for path in (files[3], tmp_path / "out.pt"))
    assert bits(written) == bits(given)


def test_base_rows_are_known_again_in_every_dtype_that_holds_them(tiny, imported, files, tokenizer, tmp_path):
    half = NextGPT.from_config(tiny, dtype=torch.float16)
    load_legacy(half, files[3])
    assert half.base_rows == imported.base_rows
    save_pretrained(imported, tmp_path / "a", tokenizer)
    rounded, _ = from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    assert rounded.base_rows not in ("", imported.base_rows)
    save_pretrained(rounded, tmp_path / "b", tokenizer)
    assert from_pretrained(tmp_path / "b")[0].base_rows == rounded.base_rows


def test_rows_of_the_base_llm_itself_are_in_no_checkpoint(tiny, tokenizer, tmp_path):
    model = NextGPT.from_config(tiny)
    export_legacy(model, tmp_path / "x.pt", stage=1, dtype=torch.float32)
    load_legacy(model, tmp_path / "x.pt")
    save_pretrained(model, tmp_path / "saved", tokenizer)
    assert model.base_rows == ""
    assert not (tmp_path / "saved" / "base_rows.safetensors").exists()


def test_the_checkpoints_of_a_run_share_one_file_of_base_rows(tiny, imported, tokenizer, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    save_base_rows(imported, run)
    for name in ("checkpoint-1", "checkpoint-2"):
        save_pretrained(imported, run / name, tokenizer, base_rows=False)
    assert [path.parent for path in run.rglob("base_rows.safetensors")] == [run]
    assert torch.equal(base_logits(from_pretrained(run)[0], IDS), base_logits(imported, IDS))
    start = NextGPT.from_config(tiny)
    for _ in range(2):  # the second time, the rows are there already
        load_weights(start, run)
    assert torch.equal(base_logits(start.eval(), IDS), base_logits(imported, IDS))


def test_a_run_behind_a_url_shares_its_base_rows_too(imported, tokenizer, tmp_path):
    run = UPath("memory://legacy/run")
    save_pretrained(imported, tmp_path / "saved", tokenizer, base_rows=False)
    run.fs.put(f"{tmp_path / 'saved'}/", f"{run.path}/checkpoint-1/", recursive=True)
    save_base_rows(imported, run)
    assert torch.equal(base_logits(from_pretrained(str(run))[0], IDS), base_logits(imported, IDS))


def test_base_rows_that_are_missing_or_others_are_told(tiny, imported, tokenizer, tmp_path):
    save_pretrained(imported, tmp_path / "run" / "checkpoint-1", tokenizer, base_rows=False)
    with pytest.raises(
        FileNotFoundError, match=r"checkpoint-1/base_rows\.safetensors: missing, also from .*run; copy it"
    ):
        from_pretrained(tmp_path / "run")
    (tmp_path / "run" / "base_rows.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"base_rows\.safetensors: damaged"):
        from_pretrained(tmp_path / "run")
    other = NextGPT.from_config(tiny)
    load_legacy(other, write(tmp_path / "other.pt", random_tensors(shapes_of(tiny, 1))))
    other.base_rows = "other"
    with torch.no_grad():
        other.llm.lm_head.weight[0] += 1
    save_base_rows(other, tmp_path / "run")
    with pytest.raises(ValueError, match="not the base rows that checkpoint-1 was trained on"):
        from_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match="other base rows than the model already took over"):
        load_weights(other, tmp_path / "run")


# --- Full size -------------------------------------------------------------------------------------------------------


def seven_billion():
    """The 7B model in float16; of its LLM, only what a file fills takes memory."""
    config = load_preset("nextgpt_7b")
    with torch.device("meta"):
        llm = LlamaForCausalLM(LlamaConfig(num_hidden_layers=32, hidden_size=4096, vocab_size=32000))
        model = NextGPT(config, llm).half()
        model.add_adapter()
    filled = [
        module for name, module in model.named_modules() if name.endswith(("embed_tokens", "lm_head", ".default"))
    ]
    own = [model.new_input_rows, model.new_output_rows, model.input_projection, model.output_projections]
    for module in [*filled, *own]:
        module.to_empty(device="cpu")
        for parameter in module.parameters():
            torch.nn.init.zeros_(parameter)
    return model


@pytest.mark.slow
def test_a_file_of_full_size_comes_out_as_it_went_in(shared, tmp_path):
    lines = (shared / "facts" / "delta_7b_tiva_v0.tsv").read_text().splitlines()[1:]
    shapes = {name: tuple(map(int, shape.split("x"))) for name, shape in (line.split("\t") for line in lines)}
    tensors = random_tensors(shapes)
    path, out = write(tmp_path / "pytorch_model.pt", tensors), tmp_path / "out.pt"
    try:
        given = bits(tensors)
        del tensors
        assert 0.79e9 < path.stat().st_size < 0.8e9
        model = seven_billion()
        assert load_legacy(model, path)["stage"] == 3
        assert export_legacy(model, out) == shapes
        written = bits(torch.load(out, weights_only=True, mmap=True))
        assert list(written) == list(given)
        assert written == given
        cut = dict(list(torch.load(path, weights_only=True, mmap=True).items())[:-1])
        lost = list(shapes)[-1]
        with pytest.raises(ValueError, match=f"{lost} is missing;"):
            load_legacy(model, write(out, cut))
    finally:
        path.unlink()
        out.unlink(missing_ok=True)
