"""Input items of several encoders: each modality's patches are projected by its own, and land at their own places."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dialogue_cases import CAPTION, MIXED, REQUEST, dialogue, item, loss_of, make_example, step

from jobs.common.settings import load_settings
from model.core.batch import collate
from model.core.nextgpt import NextGPT
from model.footprint.meta_step import step_bytes
from model.parts.config import ModelConfig, load_preset, parse_config
from model.parts.features import after, by_encoder, check_features, first
from pipelines.sample import Modality

IMAGE, VIDEO, AUDIO = Modality
ALL = dialogue((item("audio"), "then", item("image"), item("video"), "what?"), ("A red square.",))


@pytest.fixture(scope="module")
def patched() -> ModelConfig:
    """Pictures and videos by one encoder, sounds by another, of other numbers and widths."""
    values = load_preset("tiny").model_dump(mode="json")
    seen = {"name": "siglip", "dim": 24, "patches": 9}
    values["encoder"] = {"image": seen, "video": seen, "audio": {"name": "clap", "dim": 16, "patches": 4}}
    values["input_projection"] = {"kind": "resampler", "num_input_tokens": 3, "hidden": 32, "layers": 1}
    values["preset"] = "patched"
    return parse_config(values, "patched")


@pytest.fixture
def model(patched: ModelConfig) -> NextGPT:
    return NextGPT.from_config(patched)


def test_each_modality_is_put_at_its_places_by_its_projection(model: NextGPT, tokenizer) -> None:
    batch = collate([make_example(turns, tokenizer, model, seed=n) for n, turns in enumerate((MIXED, ALL, REQUEST))])
    assert {key: tuple(items.values_N.shape) for key, items in batch.features.items()} == {
        IMAGE: (2, 9, 24),
        VIDEO: (2, 9, 24),
        AUDIO: (1, 4, 16),
    }
    embeds_BTH = model.embed_batch(batch)
    seen, heard = model.input_projections
    assert list(dict(model.input_projection.named_children())) == ["image", "audio"]
    for key, projection in ((IMAGE, seen), (VIDEO, seen), (AUDIO, heard)):
        items = batch.features[key]
        for row, start, tokens_KH in zip(
            items.rows_N.tolist(), items.positions_N.tolist(), projection(items.values_N), strict=True
        ):
            torch.testing.assert_close(embeds_BTH[row, start : start + 3], tokens_KH, atol=1e-5, rtol=1e-5)


def test_a_rank_without_items_of_a_modality_has_gradients_of_all_the_same(model: NextGPT, tokenizer) -> None:
    model.set_stage(1)
    loss_of(model, collate([make_example(CAPTION, tokenizer, model)])).backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)
    assert all(not parameter.grad.any() for parameter in model.input_projections[1].parameters())


def test_a_few_steps_lower_the_loss(model: NextGPT, tokenizer) -> None:
    model.set_stage(1)
    batch = collate([make_example(turns, tokenizer, model, seed=n) for n, turns in enumerate((ALL, CAPTION))])
    before = loss_of(model, batch).item()
    for _ in range(10):
        step(model, batch)
    assert loss_of(model, batch).item() < before - 0.1


@pytest.mark.parametrize(
    ("key", "shape", "told"),
    [
        (IMAGE, (9, 32), r"features are 9x32 wide, but preset patched takes 9x24; embed the data with encoder siglip"),
        (AUDIO, (8, 16), r"features are 8x16 wide, but preset patched takes 4x16; embed the data with encoder clap"),
        (IMAGE, (24,), r"features are 24 wide, but preset patched takes 9x24"),
    ],
)
def test_patches_of_another_number_or_width_are_refused(model: NextGPT, tokenizer, key, shape, told: str) -> None:
    batch = collate([make_example(ALL, tokenizer, model)])
    items = replace(batch.features[key], values_N=torch.zeros(1, *shape))
    with pytest.raises(ValueError, match=told):
        model(replace(batch, features={**batch.features, key: items}))


def test_features_of_one_encoder_for_all_are_refused_where_each_has_its_own(model: NextGPT, tokenizer) -> None:
    batch = collate([make_example(CAPTION, tokenizer, model)])
    with pytest.raises(ValueError, match="features of all modalities by one encoder, for which preset patched has no"):
        model(replace(batch, features={None: batch.features[IMAGE]}))


def test_features_are_counted_by_modality() -> None:
    items = [item("image"), item("audio"), item("image")]
    features = {IMAGE: np.arange(2.0)[:, None], AUDIO: np.full((1, 1), 7.0)}
    check_features(features, items)
    assert {key: values.tolist() for key, values in first(features, items[:2]).items()} == {IMAGE: [[0]], AUDIO: [[7]]}
    assert {key: values.tolist() for key, values in after(features, items[:2]).items()} == {IMAGE: [[1]], AUDIO: []}
    assert by_encoder(np.ones((3, 2)))[None].shape == (3, 2)
    with pytest.raises(ValueError, match="features for 2 items of image, but the turns contain 1"):
        check_features(features, [item("image"), item("audio"), item("audio")])


def test_a_step_on_patches_is_counted_like_any(patched: ModelConfig) -> None:
    settings = load_settings(1, "tiny", ["micro_batch_size=2"])
    of_tiny, of_patched = (
        step_bytes(settings.model_copy(update={"model": config}), gpu=False, accumulates=False)
        for config in (settings.model, patched)
    )
    assert 0.9 * of_tiny < of_patched < 2 * of_tiny
