from dataclasses import replace

import numpy as np
import pytest
import torch
from dialogue_cases import CAPTION, MIXED, REQUEST, make_example

from model.core.batch import collate
from model.core.dialogue import IGNORE
from pipelines.sample import Modality


@pytest.fixture
def examples(tokenizer, model):
    return [
        make_example(turns, tokenizer, model, key) for key, turns in zip("abc", (CAPTION, REQUEST, MIXED), strict=True)
    ]


def test_rows_are_padded_at_the_end_and_padding_is_neither_read_nor_learned(examples):
    batch = collate(examples)
    assert batch.keys == ("a", "b", "c")
    for row, example in enumerate(examples):
        size = len(example.dialogue.input_ids)
        assert batch.input_ids_BT[row, :size].tolist() == example.dialogue.input_ids
        assert batch.attention_mask_BT[row].tolist() == [1] * size + [0] * (batch.input_ids_BT.shape[1] - size)
        assert (batch.labels_BT[row, size:] == IGNORE).all()


def test_features_and_targets_know_their_places(examples, model):
    batch = collate(examples)
    assert batch.features[None].rows_N.tolist() == [0, 2, 2]
    before = batch.input_ids_BT[batch.features[None].rows_N, batch.features[None].positions_N - 1]
    assert (before == model.vocabulary.begin_item).all()
    image = batch.targets[Modality.IMAGE]
    assert image.rows_M.tolist() == [1, 2]
    assert (batch.input_ids_BT[image.rows_M, image.positions_M] == model.vocabulary.group(Modality.IMAGE)[0]).all()
    assert image.embeddings_MLD.dtype == torch.float32
    np.testing.assert_array_equal(image.embeddings_MLD[0], examples[1].targets[Modality.IMAGE][0][0].astype(np.float32))


def test_no_examples_make_a_row_without_loss():
    batch = collate([])
    assert batch.input_ids_BT.shape == (1, 1)
    assert (batch.labels_BT == IGNORE).all()
    assert batch.targets == {}
    assert batch.features == {}


def test_features_beyond_what_the_dialogue_has_room_for_are_left_out(examples):
    example = examples[2]
    cut = replace(example.dialogue, input_positions=example.dialogue.input_positions[:1], output_groups=[])
    batch = collate([replace(example, dialogue=cut)])
    np.testing.assert_array_equal(batch.features[None].values_N, example.features[None][:1])
    assert batch.targets == {}


def test_an_item_without_features_or_targets_is_refused_by_its_key(examples):
    with pytest.raises(ValueError, match=r"^a: 1 input items but features for 0"):
        collate([replace(examples[0], features={})])
    short = {Modality.IMAGE: (np.zeros((0, 77, 64)), [])}
    with pytest.raises(ValueError, match=r"^b: 1 image items"):
        collate([replace(examples[1], targets=short)])


def test_embeddings_of_two_decoders_do_not_mix(examples):
    other = {Modality.IMAGE: (np.zeros((1, 77, 1024)), [5])}
    with pytest.raises(ValueError, match=r"^c: image caption embeddings of shape \(77, 1024\), but \(77, 64\) in b"):
        collate([examples[1], replace(examples[2], targets=other)])


def test_a_batch_moves_whole_and_only_features_change_their_type(examples):
    moved = collate(examples).to("meta", torch.bfloat16)
    assert moved.input_ids_BT.device.type == moved.targets[Modality.IMAGE].rows_M.device.type == "meta"
    assert moved.features[None].values_N.dtype == torch.bfloat16
    assert moved.targets[Modality.IMAGE].embeddings_MLD.dtype == torch.float32


def test_shuffled_items_have_another_items_features_and_embedding_and_nothing_else_moves(examples):
    batch = collate(examples)
    shuffled = batch.with_items_shuffled()
    assert torch.equal(shuffled.features[None].values_N, batch.features[None].values_N[[2, 0, 1]])
    image, was = shuffled.targets[Modality.IMAGE], batch.targets[Modality.IMAGE]
    assert torch.equal(image.embeddings_MLD, was.embeddings_MLD[[1, 0]])
    assert torch.equal(image.positions_M, was.positions_M)
    assert torch.equal(shuffled.labels_BT, batch.labels_BT)
