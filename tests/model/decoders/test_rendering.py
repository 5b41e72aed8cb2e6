import numpy as np
import pytest
import torch
from decoder_cases import array_of, name_of

from model.decoders import rendering
from model.decoders.decoder import Decoder
from model.decoders.rendering import render
from model.decoders.text_encoders import CaptionEncoder
from model.decoders.wish import Wish
from pipelines.sample import Modality

IMAGE, VIDEO, AUDIO = Modality
STEPS = 2


@pytest.fixture(scope="module")
def decoders() -> dict[Modality, Decoder]:
    return {modality: Decoder(modality, name_of(modality)) for modality in Modality}


def _wishes(*modalities: Modality) -> list[Wish]:
    conditions = {modality: CaptionEncoder(modality, name_of(modality))(["a red circle"]) for modality in Modality}
    return [
        Wish(modality, conditions[modality].embeddings[0], seed, {"steps": STEPS})
        for seed, modality in enumerate(modalities)
    ]


@pytest.mark.parametrize("threads", [1, 4])
def test_side_by_side_or_not_each_wish_gets_its_own_medium(
    threads: int, decoders: dict[Modality, Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "_MOST_AT_ONCE", 2)
    before = torch.get_num_threads()
    wishes = _wishes(IMAGE, AUDIO, IMAGE, IMAGE, VIDEO, AUDIO, IMAGE, IMAGE, IMAGE)
    done: list[int] = []
    try:
        torch.set_num_threads(threads)
        media = render(decoders, wishes, on_done=lambda places, media: done.append(len(media)))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert sorted(done) == [1, 2, 2, 2, 2]
    for wish, medium in zip(wishes, media, strict=True):
        alone = array_of(decoders[wish.modality].generate(wish.condition, wish.seed, steps=STEPS))
        tolerance = 1 if alone.dtype == np.uint8 else 1e-3
        np.testing.assert_allclose(array_of(medium).astype(float), alone.astype(float), atol=tolerance)


def test_no_wishes_make_no_media(decoders: dict[Modality, Decoder]) -> None:
    assert render(decoders, []) == []


def test_a_wish_with_a_null_condition_of_its_own_is_guided_by_that(decoders: dict[Modality, Decoder]) -> None:
    for wish in _wishes(IMAGE, VIDEO, AUDIO):
        empty_LD = decoders[wish.modality].embed([""])[0]
        alike, apart = wish._replace(negative=empty_LD), wish._replace(negative=-3 * empty_LD)
        plain, same, other = map(array_of, render(decoders, [wish, alike, apart]))
        tolerance = 1 if plain.dtype == np.uint8 else 1e-3
        np.testing.assert_allclose(same.astype(float), plain.astype(float), atol=tolerance)
        assert np.abs(other.astype(float) - plain).max() > 5 * tolerance
        assert len({wish.kind, alike.kind, apart.kind}) == 3
