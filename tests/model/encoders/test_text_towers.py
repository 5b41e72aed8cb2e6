"""Captions by the text towers of SigLIP, SigLIP2 and CLAP: as the library embeds them beside media."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_folders import write_clap, write_siglip, write_siglip2, write_tokenizer

from model.encoders.media_encoders import load_encoder
from model.encoders.text_towers import load_text_tower
from model.parts.builtin import resolve
from pipelines.sample import Audio, Image

CAPTIONS = ["a red circle at the top", "A BLUE SQUARE", "a low do", "nothing of this is known to it"]


@pytest.mark.parametrize("write", [write_siglip, write_siglip2])
def test_captions_of_pictures_are_embedded_as_the_library_does(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    model = write(tmp_path)
    tokenizer = write_tokenizer(tmp_path)
    lower = [caption.lower() for caption in CAPTIONS]
    kept = {"padding": "max_length", "padding_side": "right", "max_length": 64, "truncation": True}
    ids = tokenizer(lower, **kept, return_tensors="pt").input_ids
    with torch.inference_mode():
        theirs = model.get_text_features(input_ids=ids)
    theirs = torch.nn.functional.normalize(getattr(theirs, "pooler_output", theirs), dim=-1)
    ours = load_text_tower(str(tmp_path))(CAPTIONS)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    picture = Image(pixels=np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8))
    [feature] = load_encoder(str(tmp_path))([picture])
    assert feature.shape == ours.shape[1:], "one space"


def test_captions_of_sounds_are_embedded_as_the_library_does(tmp_path: Path) -> None:
    model, tokenizer = write_clap(tmp_path), write_tokenizer(tmp_path)
    with torch.inference_mode():
        theirs = model.get_text_features(**tokenizer(CAPTIONS, padding=True, return_tensors="pt"))
    theirs = torch.nn.functional.normalize(getattr(theirs, "pooler_output", theirs), dim=-1)
    ours = load_text_tower(str(tmp_path))(CAPTIONS)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    alone = load_text_tower(str(tmp_path))(CAPTIONS[2:3])
    torch.testing.assert_close(alone[0], ours[2], atol=1e-5, rtol=0)
    [feature] = load_encoder(str(tmp_path))([Audio(waveform=np.zeros((1, 48000), np.float32), sample_rate=48000)])
    assert feature.shape == ours.shape[1:], "one space"


def test_a_caption_that_is_too_long_is_cut(tmp_path: Path) -> None:
    for write in (write_siglip, write_clap):
        folder = tmp_path / write.__name__
        write(folder)
        write_tokenizer(folder)
        assert load_text_tower(str(folder))(["a red circle " * 500]).shape[0] == 1


def test_a_tower_that_sees_alone_and_one_without_a_tokenizer_are_refused_in_one_line(tmp_path: Path) -> None:
    write_siglip(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer for the encoder's text tower"):
        load_text_tower(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    alone = {"model_type": "siglip_vision_model"} | config["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(alone | {"model_type": "siglip_vision_model"}))
    with pytest.raises(ValueError, match="no text tower, which text-media similarities need; name the whole SigLIP"):
        load_text_tower(str(tmp_path))


def test_imagebind_reads_captions_with_the_tokenizer_that_is_named() -> None:
    place = "builtin:world/imagebind"
    ours = load_text_tower(place, tokenizer=resolve(place))(["a small red circle at the top"])
    assert ours.shape == (1, 64)
    assert float(ours.norm()) == pytest.approx(1, abs=1e-5)
