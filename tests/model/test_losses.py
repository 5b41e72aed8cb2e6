from dataclasses import replace

import pytest
import torch
from dialogue_cases import CAPTION, MIXED, REQUEST, make_example

from model.batch import collate
from model.losses import Counts, Criterion, Losses, LossWeights, mean_predictor_error, position_weights, total
from model.nextgpt import NextGPT, Predictions
from pipelines.sample import Modality

CRITERION = Criterion(alignment_variance={Modality.IMAGE: 2.0, Modality.VIDEO: 0.5, Modality.AUDIO: 0.01})


@pytest.fixture
def examples(model, tokenizer):
    return [make_example(turns, tokenizer, model, seed=n) for n, turns in enumerate((CAPTION, REQUEST, MIXED, REQUEST))]


def test_positions_are_weighed_by_whose_they_are():
    weights_ML = position_weights(torch.tensor([3, 1, 9]), 4, 0.1)
    expected_ML = torch.tensor([[0.1, 1, 1, 0.1], [0.1, 0.1, 0.1, 0.1], [0.1, 1, 1, 1]])
    torch.testing.assert_close(weights_ML, expected_ML)
    assert position_weights(torch.tensor([5]), 1, 0.1).tolist() == [[1.0]]


def test_a_batch_counts_before_its_forward_pass_what_it_sums_afterwards(model, examples):
    batch = collate(examples)
    losses = CRITERION(model(batch), batch)
    assert losses.counts == CRITERION.count(batch)
    assert losses.counts.tokens == (batch.labels_BT != -100).sum()
    assert losses.counts.alignment[Modality.AUDIO] == 2


@pytest.mark.parametrize("parts", [[4], [1, 3], [2, 0, 2], [1, 1, 1, 1]])
def test_a_global_batch_gives_the_same_gradient_however_it_is_split(tiny, examples, parts):
    def gradients(sizes):
        model = NextGPT.from_config(tiny)
        model.set_stage(2)
        model.input_projection.requires_grad_(True)
        rest = iter(examples)
        batches = [collate([next(rest) for _ in range(size)]) for size in sizes]
        counts = sum((CRITERION.count(batch) for batch in batches), Counts())
        value = sum(total(CRITERION(model(batch), batch), counts) for batch in batches)
        value.backward()
        return value.item(), [p.grad for p in model.parameters() if p.requires_grad]

    whole, split = gradients([len(examples)]), gradients(parts)
    assert split[0] == pytest.approx(whole[0], rel=1e-5)
    for one, two in zip(whole[1], split[1], strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-3)


def with_conditions(model, batch, change):
    predictions = model(batch)
    conditions = {m: change(t.embeddings_MLD) for m, t in batch.targets.items()}
    return Predictions(predictions.logits_PV, predictions.labels_P, {**predictions.conditions, **conditions})


def test_the_targets_themselves_have_no_distance(model, examples):
    batch = collate(examples)
    means = CRITERION(with_conditions(model, batch, torch.clone), batch).means()
    assert [means[f"{modality.value}_alignment"] for modality in batch.targets] == [0, 0, 0]


def test_the_mean_predictor_scores_one_in_every_modality(model, tokenizer):
    batch = collate([make_example(turns, tokenizer, model, seed=n) for n, turns in enumerate([REQUEST, MIXED] * 4)])
    variance = {m: mean_predictor_error([(t.embeddings_MLD, t.lengths_M)]) for m, t in batch.targets.items()}
    best = {}
    for modality, targets in batch.targets.items():
        weights_ML = position_weights(targets.lengths_M, targets.embeddings_MLD.shape[1], 0.1)[..., None]
        mean_LD = (weights_ML * targets.embeddings_MLD).sum(0) / weights_ML.sum(0)
        best[modality] = mean_LD.expand_as(targets.embeddings_MLD)
    predictions = with_conditions(model, batch, torch.clone)._replace(conditions=best)
    means = Criterion(alignment_variance=variance)(predictions, batch).means()
    for modality in Modality:
        assert means[f"{modality.value}_alignment"] == pytest.approx(1.0, rel=1e-4)


def test_the_mean_predictors_error_does_not_depend_on_how_the_embeddings_come():
    embeddings_MLD, lengths_M = torch.randn(10, 7, 4) + 3, torch.randint(2, 7, (10,))
    pieces = list(zip(embeddings_MLD.split(3), lengths_M.split(3), strict=True))
    assert mean_predictor_error(pieces) == pytest.approx(mean_predictor_error([(embeddings_MLD, lengths_M)]))


def test_captions_that_are_all_alike_are_refused():
    with pytest.raises(ValueError, match="equal"):
        mean_predictor_error([(torch.ones(3, 2, 4), torch.tensor([2, 2, 2]))])
    with pytest.raises(ValueError, match="no caption embeddings"):
        mean_predictor_error([])


def test_modalities_of_different_scale_count_alike(model, examples):
    batch = collate(examples)
    targets = dict(batch.targets)
    audio = targets[Modality.AUDIO]
    targets[Modality.AUDIO] = replace(audio, embeddings_MLD=audio.embeddings_MLD * 1000)
    variance = {Modality.IMAGE: 1.0, Modality.VIDEO: 1.0, Modality.AUDIO: 1e6}
    scaled = replace(batch, targets=targets)
    one = Criterion(alignment_variance=dict.fromkeys(Modality, 1.0))(
        with_conditions(model, batch, torch.zeros_like), batch
    )
    two = Criterion(alignment_variance=variance)(with_conditions(model, scaled, torch.zeros_like), scaled)
    assert two.means() == pytest.approx(one.means(), rel=1e-5)


def test_the_legacy_distance_is_the_norm_at_each_position(model, examples):
    batch = collate(examples)
    losses = Criterion(legacy=True)(with_conditions(model, batch, lambda t: t + 2), batch)
    dim = batch.targets[Modality.IMAGE].embeddings_MLD.shape[2]
    assert losses.means()["image_alignment"] == pytest.approx(2 * dim**0.5, rel=1e-4)


def test_sums_survive_the_way_over_the_ranks(model, examples):
    batch = collate(examples)
    losses = CRITERION(model(batch), batch)
    assert Losses.from_list(losses.to_list()).means() == pytest.approx(losses.means())
    assert Losses.from_list([2 * value for value in losses.to_list()]).means() == pytest.approx(losses.means())


def test_weights_choose_what_counts(model, examples):
    batch = collate(examples)
    losses = CRITERION(model(batch), batch)
    only_text = total(losses, losses.counts, LossWeights(alignment=dict.fromkeys(Modality, 0.0)))
    assert only_text.item() == pytest.approx(losses.means()["token_loss"], rel=1e-5)


def test_accuracy_is_the_share_of_learned_tokens_that_are_likeliest(model, examples):
    batch = collate(examples)
    predictions = model(batch)
    logits_PV = torch.nn.functional.one_hot(predictions.labels_P, predictions.logits_PV.shape[1]).float()
    logits_PV[0] = -logits_PV[0]
    losses = CRITERION(predictions._replace(logits_PV=logits_PV), batch)
    assert losses.num_correct == len(logits_PV) - 1


def test_embeddings_of_another_decoder_are_refused(model, examples):
    batch = collate(examples)
    image = batch.targets[Modality.IMAGE]
    wide = replace(image, embeddings_MLD=torch.zeros(len(image.rows_M), 77, 1024))
    other = replace(batch, targets={Modality.IMAGE: wide})
    with pytest.raises(ValueError, match=r"image caption embeddings are \(77, 1024\).*\(77, 64\)"):
        CRITERION(model(other), other)


def test_a_modality_without_a_variance_is_refused(model, examples):
    batch = collate(examples)
    with pytest.raises(ValueError, match="alignment_variance has no image"):
        Criterion()(model(batch), batch)
