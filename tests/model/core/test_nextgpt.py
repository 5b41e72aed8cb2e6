from dataclasses import replace

import pytest
import torch
from dialogue_cases import CAPTION, MIXED, REQUEST, base_logits, loss_of, make_example, moved, snapshot, step

from model.core.batch import collate
from model.core.nextgpt import NextGPT, signal_states
from model.parts.config import load_preset
from pipelines.sample import Modality

NEW_ROWS = {"new_input_rows.weight", "new_output_rows.weight"}


def batch_of(model, tokenizer, *dialogues):
    return collate([make_example(turns, tokenizer, model, seed=n) for n, turns in enumerate(dialogues)])


def test_the_manifests_are_the_three_stages(tiny):
    model = NextGPT.from_config(tiny, adapter=True)
    one, two, three = (set(model.trainable_manifest(stage)) for stage in (1, 2, 3))
    lora = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(lora) == 2 * 4 * tiny.llm.num_layers
    assert one == NEW_ROWS | {"input_projection.linear.weight", "input_projection.linear.bias"}
    assert two - NEW_ROWS == {name for name, _ in model.named_parameters() if name.startswith("output_projections.")}
    assert three == one | two | lora


def with_outputs(tiny, **settings):
    """The tiny model with other settings of its outputs."""
    values = tiny.model_dump(mode="json")
    for output in values["outputs"].values():
        output |= settings
    return type(tiny).model_validate(values)


@pytest.mark.parametrize("tokens", [4, 77])
def test_connectors_come_from_the_seed_and_train_in_stage_2(tiny, tokenizer, tokens):
    config = with_outputs(tiny, kind="connector", num_signal_tokens=tokens, layers=1)
    one, two, other = (NextGPT.from_config(config, seed=seed) for seed in (3, 3, 4))
    names = {name for name, _ in one.named_parameters() if name.startswith("output_projections.")}
    ours, same, theirs = (dict(model.named_parameters()) for model in (one, two, other))
    assert all(torch.equal(ours[name], same[name]) for name in names)
    assert not torch.equal(ours["output_projections.image.fc.weight"], theirs["output_projections.image.fc.weight"])
    one.measure_scales({Modality.IMAGE: 0.5, Modality.AUDIO: 2.0})
    one.set_stage(2)
    before = snapshot(one)
    step(one, batch_of(one, tokenizer, MIXED, REQUEST))
    assert moved(one, before) == NEW_ROWS | names, "of scales, none moves"
    assert {m: part.gain.item() for m, part in one.output_projections.items()} == {"image": 0.5, "video": 0, "audio": 2}


def test_a_batch_without_items_still_runs_every_connector_and_null_condition(tiny, tokenizer):
    model = NextGPT.from_config(with_outputs(tiny, kind="connector", null="learned"))
    model.set_stage(2)
    predictions = model(batch_of(model, tokenizer, CAPTION))
    assert {m: tuple(c.shape) for m, c in predictions.conditions.items()} == {
        m: (0, output.num_queries, output.dim) for m, output in model.config.outputs.items()
    }
    loss_of(model, batch_of(model, tokenizer, CAPTION)).backward()
    parts = [p for name, p in model.named_parameters() if name.startswith("output_projections.")]
    assert all(p.grad is not None and not p.grad.any() for p in parts)


@pytest.mark.parametrize("kind", ["projection", "connector"])
def test_a_learned_null_condition_is_what_zeros_are_mapped_to_whatever_is_asked(tiny, tokenizer, kind):
    model = NextGPT.from_config(with_outputs(tiny, kind=kind, null="learned"))
    nulls = model.null_conditions()
    for dialogues in ((CAPTION,), (REQUEST, MIXED)):
        found = model(batch_of(model, tokenizer, *dialogues))
        for modality, output in model.config.outputs.items():
            zeros_MGH = torch.zeros(1, output.num_signal_tokens, 64)
            expected = model.output_projections[modality.value](zeros_MGH)[0]
            torch.testing.assert_close(found.nulls[modality], expected, atol=1e-5, rtol=1e-4)
            assert torch.equal(nulls[modality], expected)
    assert len(found.conditions[Modality.IMAGE]) == 2
    plain = NextGPT.from_config(tiny)
    assert plain.null_conditions() == plain(batch_of(plain, tokenizer, REQUEST)).nulls == {}


def test_stage_3_needs_an_adapter_and_there_is_no_stage_4(model):
    with pytest.raises(ValueError, match="adapter"):
        model.set_stage(3)
    with pytest.raises(ValueError, match="use 1, 2 or 3"):
        model.set_stage(4)


def test_a_kept_adapter_has_no_dropout_and_a_trained_one_has(tiny):
    model = NextGPT.from_config(tiny, adapter=True).train()

    def dropping():
        return {m.training for name, m in model.llm.named_modules() if name.endswith("lora_dropout.default")}

    model.set_stage(3)
    assert dropping() == {True}
    model.set_stage(2)
    assert dropping() == {False}
    model.train()
    assert dropping() == {False}


def test_an_untrained_adapter_changes_nothing(tiny):
    ids_BT = torch.arange(5, 45)[None]
    plain, adapted = NextGPT.from_config(tiny), NextGPT.from_config(tiny, adapter=True)
    assert torch.equal(base_logits(plain.eval(), ids_BT), base_logits(adapted.eval(), ids_BT))


def test_logits_are_those_of_the_whole_sequence_where_the_next_token_is_learned(model, tokenizer):
    batch = batch_of(model, tokenizer, CAPTION, REQUEST)
    hidden_BTH = model.run_llm(model.embed_batch(batch), batch.attention_mask_BT).last_hidden_state
    logits_BTV = model.logits(hidden_BTH)
    assert logits_BTV.shape[-1] == model.vocabulary.total_size
    learned_BT = batch.labels_BT[:, 1:] != -100
    predictions = model(batch)
    torch.testing.assert_close(predictions.logits_PV, logits_BTV[:, :-1][learned_BT])
    assert predictions.labels_P.tolist() == batch.labels_BT[:, 1:][learned_BT].tolist()


def test_neighbours_in_a_batch_change_nothing(model, tokenizer):
    alone = batch_of(model, tokenizer, REQUEST)
    together = collate([*[make_example(REQUEST, tokenizer, model)], make_example(MIXED, tokenizer, model, seed=5)])
    one, two = model(alone), model(together)
    torch.testing.assert_close(two.logits_PV[: len(one.logits_PV)], one.logits_PV, atol=1e-5, rtol=1e-5)
    for modality in (Modality.IMAGE, Modality.AUDIO):
        torch.testing.assert_close(two.conditions[modality][:1], one.conditions[modality], atol=1e-5, rtol=1e-5)


def test_each_item_reads_its_own_feature(model, tokenizer):
    batch = batch_of(model, tokenizer, MIXED)
    items = batch.features[None]
    changed = items.values_N.clone()
    changed[1] += 1
    difference_BTH = model.embed_batch(
        replace(batch, features={None: replace(items, values_N=changed)})
    ) - model.embed_batch(batch)
    assert difference_BTH.abs().sum(-1).nonzero().tolist() == [[0, items.positions_N[1].item()]]


def test_several_query_tokens_fill_an_items_places_and_learn(tokenizer):
    model = NextGPT.from_config(load_preset("tiny_query"))
    batch = batch_of(model, tokenizer, CAPTION, MIXED)
    items = batch.features[None]
    raised = replace(items, values_N=items.values_N + torch.tensor([[1.0], [0.0], [0.0]]))
    other = replace(batch, features={None: raised})
    difference_BTH = model.embed_batch(other) - model.embed_batch(batch)
    start = items.positions_N[0].item()
    assert difference_BTH.abs().sum(-1).nonzero().tolist() == [[0, start + place] for place in range(4)]
    manifest = set(model.set_stage(1))
    assert len(manifest) > 20
    before, loss = snapshot(model), loss_of(model, batch).item()
    for _ in range(5):
        step(model, batch)
    assert moved(model, before) == manifest
    assert loss_of(model, batch).item() < loss


def test_signal_states_are_read_where_the_signal_token_is_the_input():
    hidden_BTH, embeds_BTH = torch.randn(2, 9, 4), torch.randn(2, 9, 4)
    states_MGH = signal_states(hidden_BTH, embeds_BTH, torch.tensor([1, 0]), torch.tensor([3, 5]), 2)
    assert torch.equal(states_MGH[0], (hidden_BTH + embeds_BTH)[1, 3:5])
    assert torch.equal(states_MGH[1], (hidden_BTH + embeds_BTH)[0, 5:7])


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("dialogues", [(), (CAPTION,), (REQUEST,)])
def test_every_trainable_tensor_has_a_gradient_in_every_batch(tiny, tokenizer, stage, dialogues):
    model = NextGPT.from_config(tiny, adapter=True)
    manifest = model.set_stage(stage)
    batch = batch_of(model, tokenizer, *dialogues)
    loss_of(model, batch).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradients[name] is not None and gradients[name].isfinite().all() for name in manifest)
    if not dialogues:
        assert all(not gradients[name].any() for name in manifest)


def test_the_same_seed_builds_the_same_model_and_leaves_the_callers_random_state(tiny):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one, two, other = (NextGPT.from_config(tiny, adapter=True, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["new_input_rows.weight"], other["new_input_rows.weight"])


def test_new_rows_start_near_the_mean_of_the_base_rows(model):
    base = model.llm.get_input_embeddings().weight
    distance = (model.new_input_rows.weight - base.mean(0)).std() / base.std()
    assert 0 < distance < 0.1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bf16_and_gradient_checkpointing_train(tiny, tokenizer, checkpointing):
    model = NextGPT.from_config(tiny, adapter=True, dtype=torch.bfloat16, gradient_checkpointing=checkpointing)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    manifest = model.train().set_stage(3)
    before = snapshot(model)
    for _ in range(2):
        step(model, batch_of(model, tokenizer, CAPTION, REQUEST, MIXED), 0.1)
    assert moved(model, before) == set(manifest)


def test_features_of_another_encoder_are_refused(model, tokenizer):
    batch = batch_of(model, tokenizer, CAPTION)
    with pytest.raises(ValueError, match="features are 1024 wide"):
        model(replace(batch, features={None: replace(batch.features[None], values_N=torch.zeros(1, 1024))}))


def test_a_merged_adapter_gives_the_same_logits_and_leaves_nothing_beside_the_weights(tiny, tokenizer):
    model = NextGPT.from_config(tiny, adapter=True).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(3, 20)[None]
    apart = model.logits(model.run_llm(model.embed(ids)).last_hidden_state)
    plain = NextGPT.from_config(tiny).eval()
    assert not torch.allclose(apart, plain.logits(plain.run_llm(plain.embed(ids)).last_hidden_state), atol=1e-2)
    model.merge_adapter()
    torch.testing.assert_close(
        model.logits(model.run_llm(model.embed(ids)).last_hidden_state), apart, atol=1e-4, rtol=1e-4
    )
    assert all(layer.merged for name, layer in model.llm.named_modules() if name.endswith("q_proj"))
    plain.merge_adapter()  # it has none
