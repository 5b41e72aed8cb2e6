from dataclasses import replace

import pytest
import torch
from dialogue_cases import CAPTION, MIXED, REQUEST, make_example
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.core.batch import collate
from model.core.losses import (
    FIGURES,
    TERMS,
    Criterion,
    Losses,
    LossWeights,
    caption_scale,
    mean_predictor_error,
    position_weights,
    total,
)
from model.core.nextgpt import NextGPT, Predictions
from model.core.vocabulary import SignalVocabulary
from model.parts.config import load_preset
from pipelines.sample import Modality

VARIANCE = {Modality.IMAGE: 2.0, Modality.VIDEO: 0.5, Modality.AUDIO: 0.01}
CRITERION = Criterion(vocabulary=SignalVocabulary(512, load_preset("tiny").signal_groups), alignment_variance=VARIANCE)


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
    assert torch.equal(losses.counts_F[: len(TERMS)], CRITERION.count(batch))
    counts = dict(zip(FIGURES, losses.counts_F.tolist(), strict=True))
    assert counts["token_loss"] == (batch.labels_BT != -100).sum()
    assert counts["audio_alignment"] == 2


@pytest.mark.parametrize("parts", [[4], [1, 3], [2, 0, 2], [1, 1, 1, 1]])
def test_a_global_batch_gives_the_same_gradient_however_it_is_split(tiny, examples, parts):
    def gradients(sizes):
        # In single precision the order of sums alone, which processors choose, moves the last digits.
        model = NextGPT.from_config(tiny, dtype=torch.float64)
        model.set_stage(2)
        model.input_projection.requires_grad_(True)
        rest = iter(examples)
        batches = [collate([next(rest) for _ in range(size)]) for size in sizes]
        counts = torch.stack([CRITERION.count(batch) for batch in batches]).sum(0)
        value = sum(total(CRITERION(model(batch), batch), counts) for batch in batches)
        value.backward()
        return value.item(), [p.grad for p in model.parameters() if p.requires_grad]

    whole, split = gradients([len(examples)]), gradients(parts)
    assert split[0] == pytest.approx(whole[0], rel=1e-6)
    for one, two in zip(whole[1], split[1], strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


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
    means = replace(CRITERION, alignment_variance=variance)(predictions, batch).means()
    for modality in Modality:
        assert means[f"{modality.value}_mean_ratio"] == pytest.approx(1.0, rel=1e-4)


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
    one = replace(CRITERION, alignment_variance=dict.fromkeys(Modality, 1.0))(
        with_conditions(model, batch, torch.zeros_like), batch
    )
    two = replace(CRITERION, alignment_variance=variance)(with_conditions(model, scaled, torch.zeros_like), scaled)
    assert two.means() == pytest.approx(one.means(), rel=1e-5)


def test_the_legacy_distance_is_the_norm_at_each_position(model, examples):
    batch = collate(examples)
    predictions = with_conditions(model, batch, lambda t: t + 2)
    legacy, ours = replace(CRITERION, legacy=True)(predictions, batch).means(), CRITERION(predictions, batch).means()
    dim = batch.targets[Modality.IMAGE].embeddings_MLD.shape[2]
    assert legacy["image_alignment"] == pytest.approx(2 * dim**0.5, rel=1e-4)
    assert legacy["image_mean_ratio"] == ours["image_mean_ratio"] == ours["image_alignment"] == pytest.approx(4 / 2.0)


def test_sums_survive_the_way_over_the_ranks(model, examples):
    batch = collate(examples)
    losses = CRITERION(model(batch), batch)
    assert Losses.from_list(losses.to_list()).means() == pytest.approx(losses.means())
    assert Losses.from_list([2 * value for value in losses.to_list()]).means() == pytest.approx(losses.means())


def test_weights_choose_what_counts(model, examples):
    batch = collate(examples)
    losses = CRITERION(model(batch), batch)
    only_text = total(losses, losses.counts_F, LossWeights(alignment=dict.fromkeys(Modality, 0.0)))
    assert only_text.item() == pytest.approx(losses.means()["token_loss"], rel=1e-5)


def with_tokens(predictions, wrong=()):
    """Predictions whose likeliest tokens are the labels, but for those at the places `wrong`."""
    logits_PV = torch.nn.functional.one_hot(predictions.labels_P, predictions.logits_PV.shape[1]).float()
    logits_PV[list(wrong)] *= -1
    return predictions._replace(logits_PV=logits_PV)


def test_accuracy_is_the_share_of_learned_tokens_that_are_likeliest(model, examples):
    batch = collate(examples)
    predictions = model(batch)
    means = CRITERION(with_tokens(predictions, [0]), batch).means()
    assert means["token_accuracy"] == pytest.approx(1 - 1 / len(predictions.labels_P))
    assert {means[f"{m}_token_accuracy"] for m in Modality} == {1.0}, "the first learned token is one of a text"


def test_a_group_is_well_formed_when_every_token_of_it_is_likeliest(model, examples):
    """Three images in the answers; of one, the last token is wrong, which is no other modality's fault."""
    batch = collate(examples)
    predictions = model(batch)
    ids = model.vocabulary.group(Modality.IMAGE)
    ends = (predictions.labels_P == ids[-1]).nonzero()[:, 0]
    assert len(ends) == 3
    means = CRITERION(with_tokens(predictions, ends[:1].tolist()), batch).means()
    assert means["image_well_formed"] == pytest.approx(2 / 3)
    assert means["image_token_accuracy"] == pytest.approx(1 - 1 / (3 * len(ids)))
    assert means["video_well_formed"] == means["audio_well_formed"] == means["audio_token_accuracy"] == 1


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wrong=st.sets(st.integers(0, 400)))
def test_signal_figures_are_those_counted_one_by_one(model, examples, wrong):
    batch = collate(examples)
    predictions = model(batch)
    wrong = {place for place in wrong if place < len(predictions.labels_P)}
    means = CRITERION(with_tokens(predictions, wrong), batch).means()
    labels = predictions.labels_P.tolist()
    for modality in Modality:
        ids = model.vocabulary.group(modality)
        groups = [range(p, p + len(ids)) for p, label in enumerate(labels) if label == ids[0]]
        right = [[place not in wrong for place in group] for group in groups]
        assert means[f"{modality}_well_formed"] == pytest.approx(sum(map(all, right)) / len(groups))
        assert means[f"{modality}_token_accuracy"] == pytest.approx(sum(map(sum, right)) / len(groups) / len(ids))


def test_what_a_batch_lacks_has_no_figure(model, tokenizer):
    batch = collate([make_example(CAPTION, tokenizer, model)])
    assert set(CRITERION(model(batch), batch).means()) == {"token_loss", "token_accuracy"}
    assert CRITERION(model(collate([])), collate([])).means() == {}


def test_signals_without_embeddings_have_figures_of_their_tokens_alone(model, tokenizer):
    batch = collate([replace(make_example(REQUEST, tokenizer, model), targets={})])
    means = CRITERION(model(batch), batch).means()
    of_images = {name for name in means if name.startswith("image")}
    assert of_images == {"image_well_formed", "image_token_accuracy"}


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
        replace(CRITERION, alignment_variance={})(model(batch), batch)


def test_the_scale_of_captions_is_that_of_their_own_positions():
    """Positions 1 to length - 1: what lies before and after counts as little as what a decoder is not told by."""
    embeddings_MLD = torch.full((2, 5, 3), 100.0)
    embeddings_MLD[0, 1:3], embeddings_MLD[1, 1:2] = 2.0, -5.0
    lengths_M = torch.tensor([3, 2])
    expected = ((2 * 4 + 25) / 3) ** 0.5
    assert caption_scale([(embeddings_MLD, lengths_M)]) == pytest.approx(expected)
    pieces = list(zip(embeddings_MLD.split(1), lengths_M.split(1), strict=True))
    assert caption_scale(pieces) == pytest.approx(expected)
    assert caption_scale([(torch.full((2, 1, 4), 0.5), torch.tensor([1, 1]))]) == 0.5, "a pooled vector"
    with pytest.raises(ValueError, match="no caption embeddings"):
        caption_scale([])


@pytest.mark.parametrize("legacy", [False, True])
def test_the_cosine_is_told_in_every_mode_and_added_by_its_weight(model, examples, legacy):
    batch = collate(examples)
    image = batch.targets[Modality.IMAGE].embeddings_MLD
    turned = with_conditions(model, batch, lambda t: -2 * t)
    plain, weighed = (replace(CRITERION, legacy=legacy, cosine_weight=weight) for weight in (0.0, 0.25))
    before, after = plain(turned, batch).means(), weighed(turned, batch).means()
    assert before["image_cosine"] == after["image_cosine"] == pytest.approx(-1, rel=1e-4)
    assert after["image_mean_ratio"] == before["image_mean_ratio"]
    assert after["image_alignment"] - before["image_alignment"] == pytest.approx(0.25 * 2, rel=1e-3)
    same = weighed(with_conditions(model, batch, lambda t: 3 * t), batch).means()
    assert same["image_cosine"] == pytest.approx(1, rel=1e-4)
    if not legacy:
        weights_ML = position_weights(batch.targets[Modality.IMAGE].lengths_M, image.shape[1], 0.1)
        squares = (weights_ML * (2 * image).pow(2).mean(-1)).sum() / weights_ML.sum() / VARIANCE[Modality.IMAGE]
        assert same["image_alignment"] == pytest.approx(squares.item(), rel=1e-4)
