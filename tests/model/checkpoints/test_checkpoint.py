import json
from importlib.metadata import version

import pytest
import torch
from dialogue_cases import CAPTION, MIXED, REQUEST, base_logits, make_example, moved, snapshot, step
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from upath import UPath

from model.checkpoints.checkpoint import (
    finish,
    from_pretrained,
    load_weights,
    save_pretrained,
    trained_state,
    write_files,
)
from model.checkpoints.description import check_compatible, latest_checkpoint, read_config
from model.core.batch import collate
from model.core.nextgpt import NextGPT
from model.core.tokenizer import load_tokenizer
from model.parts.builtin import resolve
from pipelines.sample import Modality
from pipelines.storage.files import read_json, write_json


def train(model, tokenizer, stage):
    model.train().set_stage(stage)
    batch = collate(
        [make_example(turns, tokenizer, model, seed=n) for n, turns in enumerate((CAPTION, REQUEST, MIXED))]
    )
    step(model, batch)


@pytest.fixture
def trained(tiny, tokenizer):
    model = NextGPT.from_config(tiny, adapter=True)
    for _ in range(2):
        train(model, tokenizer, 3)
    return model.eval()


@pytest.fixture
def saved(trained, tokenizer, tmp_path):
    save_pretrained(trained, tmp_path / "saved", tokenizer, stages=[{"stage": 3, "steps": 2}])
    return tmp_path / "saved"


def test_a_loaded_model_gives_the_same_outputs_bit_for_bit(trained, tokenizer, saved):
    loaded, _ = from_pretrained(saved)
    trained.requires_grad_(False)  # PyTorch chooses matrix kernels, and so the last bit, by this flag among others
    batch = collate([make_example(turns, tokenizer, trained) for turns in (CAPTION, REQUEST, MIXED)])
    with torch.inference_mode():
        one, two = trained(batch), loaded(batch)
    assert torch.equal(one.logits_PV, two.logits_PV)
    assert all(torch.equal(one.conditions[m], two.conditions[m]) for m in one.conditions)
    assert not loaded.training


def test_a_connector_comes_back_with_the_scale_that_was_measured_for_it(tiny, tmp_path):
    values = tiny.model_dump(mode="json")
    values["outputs"]["image"] |= {"kind": "connector", "num_signal_tokens": 7, "layers": 2, "null": "learned"}
    model = NextGPT.from_config(type(tiny).model_validate(values))
    tokenizer = load_tokenizer(model.config)  # with as many tokens as the connector takes
    model.measure_scales({Modality.IMAGE: 0.25})
    train(model, tokenizer, 2)
    save_pretrained(model, tmp_path / "saved", tokenizer)
    assert load_file(tmp_path / "saved" / "model.safetensors")["output_projections.image.gain"].tolist() == [0.25]
    described = read_config(tmp_path / "saved")["model"]["outputs"]["image"]
    assert (described["kind"], described["layers"], described["null"]) == ("connector", 2, "learned")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "| image connector | 2 layers, 7 signal tokens to 77 x 64 |" in card
    loaded, _ = from_pretrained(tmp_path / "saved")
    model.eval().requires_grad_(False)
    batch = collate([make_example(REQUEST, tokenizer, model)])
    assert torch.equal(loaded(batch).conditions[Modality.IMAGE], model(batch).conditions[Modality.IMAGE])
    with pytest.raises(ValueError, match="outputs of the checkpoint"):
        load_weights(NextGPT.from_config(tiny), tmp_path / "saved")
    values["outputs"]["image"]["null"] = "encoder"  # no tensor depends on it
    load_weights(NextGPT.from_config(type(tiny).model_validate(values)), tmp_path / "saved")


def test_the_loaded_tokenizer_gives_the_same_ids(tokenizer, saved):
    _, loaded = from_pretrained(saved)
    text = "show me [IMG0] a dog\n### "
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.convert_tokens_to_ids("[AUD7]") == tokenizer.convert_tokens_to_ids("[AUD7]") == 549
    assert len(loaded) == len(tokenizer)


def test_only_what_is_trained_is_written(saved, trained):
    names = set(load_file(saved / "model.safetensors"))
    assert names == {name for name in trained_state(trained) if not name.startswith("llm.")}
    assert all(name.startswith(("input_projection.", "output_projections.", "new_")) for name in names)


def test_peft_itself_loads_the_adapter(tiny, trained, saved):
    bare = AutoModelForCausalLM.from_pretrained(resolve(tiny.llm.name))
    adapted = PeftModel.from_pretrained(bare, saved / "adapter").eval()
    ids_BT = torch.arange(5, 45)[None]
    with torch.inference_mode():
        assert torch.equal(adapted(ids_BT).logits, base_logits(trained, ids_BT))


def test_the_adapters_modules_are_written_in_one_order(saved):
    """PEFT keeps them in a set, whose order changes from process to process."""
    targets = json.loads((saved / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)


def test_a_checkpoint_names_no_path_of_this_machine(saved):
    root = resolve("builtin:tiny/llm").rsplit("/", 2)[0]
    for path in saved.rglob("*"):
        if path.suffix in (".json", ".md"):
            assert root not in path.read_text(encoding="utf-8"), path.name


def test_the_same_model_is_written_with_the_same_bytes(trained, tokenizer, tmp_path):
    for name in "ab":
        save_pretrained(trained, tmp_path / name, tokenizer)
    files = [sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*")) for name in "ab"]
    assert files[0] == files[1]
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes()
        for f in files[0]
        if (tmp_path / "a" / f).is_file()
    )


def test_the_dtype_is_that_of_the_training_unless_told_otherwise(tiny, tokenizer, tmp_path):
    model = NextGPT.from_config(tiny, dtype=torch.bfloat16)
    save_pretrained(model, tmp_path, tokenizer)
    assert {p.dtype for p in from_pretrained(tmp_path)[0].parameters()} == {torch.bfloat16}
    assert {p.dtype for p in from_pretrained(tmp_path, dtype=torch.float32)[0].parameters()} == {torch.float32}


def test_tensors_gathered_elsewhere_can_be_written(trained, tokenizer, tmp_path):
    state = {name: tensor + 1 for name, tensor in trained_state(trained).items()}
    save_pretrained(trained, tmp_path, tokenizer, state=state)
    loaded = trained_state(from_pretrained(tmp_path)[0])
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("order", [(1, 2, 3), (1, 3, 2), (3, 2, 1), (2, 1, 3)])
def test_stages_in_any_order_keep_what_was_trained_before(tiny, tokenizer, tmp_path, order):
    previous, history = None, []
    for number, stage in enumerate(order):
        model = NextGPT.from_config(tiny, adapter=stage == 3, seed=number)
        if previous is not None:
            assert load_weights(model, previous) == history
            before = trained_state(from_pretrained(previous)[0])
            now = trained_state(model)
            assert all(torch.equal(now[name], before[name]) for name in before)
        manifest = set(model.set_stage(stage))
        untouched = snapshot(model)
        for _ in range(2):
            train(model, tokenizer, stage)
        assert moved(model, untouched) == manifest
        history = [*history, {"stage": stage}]
        previous = tmp_path / f"after-{number}"
        save_pretrained(model, previous, tokenizer, stages=history)
    assert from_pretrained(previous)[0].has_adapter
    assert [entry["stage"] for entry in read_config(previous)["stages"]] == list(order)


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("new_input_rows.weight"), "new_input_rows.weight is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is unexpected"),
        (lambda t: t.update({"new_input_rows.weight": torch.zeros(3, 64)}), r"is \(3, 64\), not \(38, 64\)"),
        (lambda t: (t.pop("new_input_rows.weight"), t.update(extra=torch.zeros(1))), "and 1 more"),
    ],
)
def test_missing_surplus_and_misshapen_tensors_are_refused(saved, change, message):
    edit(saved / "model.safetensors", change)
    with pytest.raises(ValueError, match=message) as caught:
        from_pretrained(saved)
    assert "\n" not in str(caught.value)


def test_an_adapter_that_lost_a_tensor_is_refused(saved):
    edit(saved / "adapter" / "adapter_model.safetensors", lambda t: t.pop(sorted(t)[0]))
    with pytest.raises(ValueError, match=r"lora_A\.default\.weight is missing"):
        from_pretrained(saved)


def test_a_damaged_or_unfinished_checkpoint_is_refused(saved):
    (saved / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged weights"):
        from_pretrained(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="incomplete"):
        from_pretrained(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        from_pretrained(saved)
    (saved / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        from_pretrained(saved)


def altered(tiny, **changes):
    values = tiny.model_dump(mode="json")
    for path, value in changes.items():
        *folders, name = path.split("__")
        place = values
        for folder in folders:
            place = place[folder]
        place[name] = value
    return type(tiny).model_validate(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs__image__dim": 48}, "outputs of the checkpoint"),
        ({"encoder__dim": 1024}, "encoder of the checkpoint"),
        ({"lora__r": 4}, "lora of the checkpoint"),
        ({"llm__template": "auto"}, "as vicuna_v0 writes them, the model takes auto; set llm.template: vicuna_v0"),
    ],
)
def test_a_checkpoint_of_another_model_is_no_start(tiny, saved, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(NextGPT.from_config(altered(tiny, **changes)), saved)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_from_before_there_was_a_choice_of_template_has_vicunas(tiny, saved):
    description = read_json(saved / "config.json")
    assert description["model"]["llm"].pop("template") == "vicuna_v0"
    write_json(saved / "config.json", description)
    assert from_pretrained(saved)[0].config == tiny


def test_a_checkpoint_of_another_base_llm_is_refused(tiny, saved, tokenizer, tmp_path):
    llm = AutoModelForCausalLM.from_pretrained(resolve(tiny.llm.name))
    with torch.no_grad():
        llm.lm_head.weight[0] += 1
    llm.save_pretrained(tmp_path / "llm")
    with pytest.raises(ValueError, match="trained on another base LLM"):
        from_pretrained(saved, config=altered(tiny, llm__name=str(tmp_path / "llm")))
    with pytest.raises(ValueError, match="trained on another base LLM"):
        load_weights(NextGPT.from_config(altered(tiny, llm__name=str(tmp_path / "llm"))), saved)


def test_a_base_llm_that_moved_is_found_where_it_is_said_to_be(tiny, saved, tmp_path):
    AutoModelForCausalLM.from_pretrained(resolve(tiny.llm.name)).save_pretrained(tmp_path / "llm")
    moved = altered(tiny, llm__name=str(tmp_path / "llm"))
    assert from_pretrained(saved, config=moved)[0].config.llm.name == str(tmp_path / "llm")


def test_a_run_stands_for_its_last_finished_checkpoint(trained, tokenizer, tmp_path):
    for name in ("checkpoint-2", "checkpoint-10"):
        save_pretrained(trained, tmp_path / name, tokenizer)
    (tmp_path / "checkpoint-20").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert latest_checkpoint(tmp_path / "checkpoint-2") == tmp_path / "checkpoint-2"
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        latest_checkpoint(tmp_path / "checkpoint-20")


def test_the_card_says_what_was_trained_on_what(trained, tokenizer, tmp_path):
    card = {"data": {"cc3m_enc": "abc123"}, "metrics": {"token_loss": 0.25}, "untrained": ["LLM", "decoders"]}
    save_pretrained(trained, tmp_path, tokenizer, stages=[{"stage": 1}, {"stage": 3}], card=card)
    text = (tmp_path / "README.md").read_text()
    for expected in ("preset tiny", "abc123", "| token_loss | 0.25 |", "random weights", "* decoders", "| 3 |"):
        assert expected in text


def test_the_description_is_json_with_the_versions(saved):
    description = json.loads((saved / "config.json").read_text())
    assert description["versions"]["torch"] == version("torch")
    assert description["stages"] == [{"stage": 3, "steps": 2}]


def test_a_model_saved_again_keeps_its_stages_and_its_card(trained, tokenizer, tmp_path):
    stages, card = [{"stage": 1}, {"stage": 3, "metrics": {"loss": 0.5}}], {"untrained": ["LLM"]}
    save_pretrained(trained, tmp_path / "first", tokenizer, stages=stages, card=card)
    loaded, tokens = from_pretrained(tmp_path / "first")
    assert not loaded.training
    save_pretrained(loaded, tmp_path / "second", tokens)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*"))
    assert files == sorted(path.relative_to(tmp_path / "second") for path in (tmp_path / "second").rglob("*.*"))
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


def test_a_checkpoint_counts_once_it_is_finished(trained, tokenizer, tmp_path):
    state = {name: tensor.clone() for name, tensor in trained_state(trained).items()}
    description = write_files(trained, tmp_path / "checkpoint-1", tokenizer, state=state)
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        latest_checkpoint(tmp_path)
    finish(tmp_path / "checkpoint-1", description)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert from_pretrained(tmp_path)[0].has_adapter
    write_files(trained, tmp_path / "checkpoint-1", tokenizer)  # writing over it takes that back
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        latest_checkpoint(tmp_path)


def test_tensors_that_lie_spread_over_ranks_are_written_from_what_was_gathered(trained, tokenizer, tmp_path):
    state = {name: tensor.clone() for name, tensor in trained_state(trained).items()}
    for parameter in trained.parameters():
        parameter.data = torch.empty(0)  # as ZeRO-3 leaves them
    save_pretrained(trained, tmp_path, tokenizer, state=state)
    loaded = trained_state(from_pretrained(tmp_path)[0])
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_checkpoint_loads_from_a_url(tiny, trained, saved, tmp_path):
    run = UPath("memory://runs/stage-3")
    for name in ("checkpoint-2", "checkpoint-10"):
        run.fs.put(f"{saved}/", f"{run.path}/{name}/", recursive=True)
        (run / name / "engine").mkdir()
        (run / name / "engine" / "rank-0.pt").write_bytes(b"not to be copied")
    (run / "checkpoint-10" / "config.json").unlink()
    assert latest_checkpoint("memory://runs/stage-3").name == "checkpoint-2"
    finish(str(run / "checkpoint-10"), read_config(saved))
    assert latest_checkpoint(run).name == "checkpoint-10"
    check_compatible(tiny, str(run))
    loaded, _ = from_pretrained(str(run))
    start = NextGPT.from_config(tiny)
    load_weights(start, run)
    for model in (loaded, start):
        assert all(torch.equal(trained_state(model)[name], tensor) for name, tensor in trained_state(trained).items())
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        from_pretrained("memory://runs/absent")
