"""Encoders are told by their configuration files: what they take, and the shapes that they make."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_folders import write_clap, write_siglip
from transformers import ClapAudioConfig, ClapAudioModelWithProjection, SiglipVisionConfig, SiglipVisionModel

from model.architectures.imagebind import ImageBind, ImageBindConfig
from model.parts.config import EncoderConfig, ModelConfig, load_preset, parse_config
from model.parts.encoder_kinds import CLAP, IMAGEBIND, SIGLIP, encoder_mistakes, encoder_shape, read_encoder
from model.parts.sources import find_parts, parts_of, with_names
from pipelines.sample import Modality

# As published at google/siglip2-so400m-patch14-384 and google/siglip2-base-patch16-256: sizes known from the papers'
# tables and the names, not read from the hub here.
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
SO400M |= {"image_size": 384, "patch_size": 14}
BASE = {"hidden_size": 768, "image_size": 256, "patch_size": 16}


def folder_of(tmp_path: Path, config: dict[str, Any]) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


@pytest.mark.parametrize(("vision", "side", "width"), [(SO400M, 27, 1152), (BASE, 16, 768)])
def test_the_published_siglips_have_these_shapes(tmp_path: Path, vision: dict[str, int], side: int, width: int) -> None:
    name = folder_of(tmp_path, {"model_type": "siglip", "vision_config": vision})
    assert SIGLIP.patches(read_encoder(name)[1], Modality.IMAGE) == (width, (1, side, side))
    assert encoder_shape(name, Modality.VIDEO, 8 * 9) == (72, width)
    assert encoder_shape(name, Modality.IMAGE, None) == (width,)
    with torch.device("meta"):
        model = SiglipVisionModel(SiglipVisionConfig(**vision))
        found = model(pixel_values=torch.zeros(1, 3, vision["image_size"], vision["image_size"]))
    assert found.last_hidden_state.shape == (1, side * side, width)
    assert found.pooler_output.shape == (1, width)


def test_the_published_clap_has_these_shapes(tmp_path: Path) -> None:
    name = folder_of(tmp_path, {"model_type": "clap", "audio_config": {}})
    assert CLAP.patches(read_encoder(name)[1], Modality.AUDIO) == (768, (1, 2, 32))
    assert encoder_shape(name, Modality.AUDIO, None) == (512,)
    assert encoder_shape(name, Modality.AUDIO, 32) == (32, 768)
    # Its configuration is that of the library's defaults, but for fusion, which has no part in the shapes.
    with torch.device("meta"):
        model = ClapAudioModelWithProjection(ClapAudioConfig()).eval()
        found = model(input_features=torch.zeros(1, 1, 1001, 64))
    assert found.last_hidden_state.shape == (1, 768, 2, 32)
    assert found.audio_embeds.shape == (1, 512)


def test_the_released_imagebind_has_these_shapes(tmp_path: Path) -> None:
    (tmp_path / "imagebind_huge.pth").touch()
    name = str(tmp_path / "imagebind_huge.pth")
    assert read_encoder(name) == (IMAGEBIND, {})
    assert IMAGEBIND.patches({}, Modality.IMAGE) == (1280, (1, 16, 16))
    assert IMAGEBIND.patches({}, Modality.AUDIO) == (768, (1, 12, 19))
    assert [encoder_shape(name, m, 64) for m in (Modality.IMAGE, Modality.VIDEO)] == [(64, 1280)] * 2
    assert encoder_shape(name, Modality.AUDIO, 228) == (228, 768)
    with torch.device("meta"):
        model = ImageBind(ImageBindConfig.huge())
        seen = model.vision_patches(torch.zeros(1, 3, 224, 224)).patches_NSPD
        heard = model.audio_patches(torch.zeros(1, 3, 1, 128, 204)).patches_NSPD
    assert (seen.shape, heard.shape) == ((1, 1, 256, 1280), (1, 3, 228, 768))


def modern(folder: Path, **encoder: Any) -> dict[str, Any]:
    """Settings of the tiny model with encoders of its own for pictures and sounds."""
    write_siglip(folder / "siglip")
    write_clap(folder / "clap")
    values = load_preset("tiny").model_dump(mode="json")
    values["encoder"] = {
        "image": {"name": str(folder / "siglip"), "dim": 32, "patches": 9},
        "audio": {"name": str(folder / "clap"), "dim": 64, "patches": 16},
    } | encoder
    values["input_projection"] = {"kind": "resampler", "num_input_tokens": 4, "hidden": 32}
    return values


def test_an_encoder_a_modality_is_located_and_checked_like_any_part(tmp_path: Path) -> None:
    config = parse_config(modern(tmp_path), "x")
    assert [part.key for part in parts_of(config)[1:3]] == ["model.encoder.image.name", "model.encoder.audio.name"]
    keys = [part.key for part in parts_of(config) if part.is_encoder]
    assert find_parts(config, keys)[1] == []
    moved = with_names(config, {"model.encoder.audio.name": "/elsewhere"})
    assert (moved.encoder.by_modality[Modality.AUDIO].name, moved.encoder.image) == ("/elsewhere", config.encoder.image)
    assert parse_config(config.model_dump(mode="json"), "x") == config
    assert config.encoder.inputs.keys() == {Modality.IMAGE, Modality.AUDIO}


@pytest.mark.parametrize(
    ("encoder", "told"),
    [
        ({"dim": 16}, "a patch of image is 32 wide, not 16; set dim to 32"),
        ({"patches": 7}, "7 patches cannot be made of 1x6x6; use 6"),
        ({"dim": 16, "patches": None}, "the pooled vector of image is 32 wide, not 16; set dim to 32"),
        ({"name": "clap"}, "CLAP embeds audio, not image; name an encoder of image"),
        ({"name": "strange"}, "is a clip, not one of the encoders known here; use ImageBind, SigLIP, SigLIP2, CLAP"),
        ({"name": "nowhere"}, "no such file or folder"),
    ],
)
def test_what_an_encoder_cannot_make_is_told_in_one_line(tmp_path: Path, encoder: dict[str, Any], told: str) -> None:
    values = modern(tmp_path)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "strange" / "model.safetensors").touch()
    changed = encoder | ({"name": str(tmp_path / encoder["name"])} if "name" in encoder else {})
    values["encoder"]["image"] |= changed
    [mistake] = find_parts(ModelConfig.model_validate(values), ["model.encoder.image.name"])[1]
    assert mistake.startswith("model.encoder.image.name: ")
    assert told in mistake
    assert "\n" not in mistake


def test_one_imagebind_for_all_in_patches_must_be_as_wide_everywhere() -> None:
    shipped = EncoderConfig(name="builtin:world/imagebind", dim=96, patches=4)
    assert encoder_mistakes(shipped, None) == [
        "builtin:world/imagebind: a patch of audio is 64 wide, not 96; set dim to 64"
    ]
    assert encoder_mistakes(load_preset("world").encoder, None) == []


@pytest.mark.parametrize(
    ("encoder", "told"),
    [
        ({}, "name and dim must be set, or those of image, video or audio"),
        ({"name": "x"}, "name and dim must be set"),
        ({"name": "x", "dim": 3, "image": {"name": "y", "dim": 2}}, "are of one encoder for all, but image is named"),
        ({"image": {"name": "y"}}, "encoder.image.dim: Field required"),
        ({"picture": {"name": "y", "dim": 2}}, "encoder.picture: Extra inputs"),
        ({"name": "x", "dim": 3, "patches": 4}, "x gives 4 patches; set it to that, or kind to resampler"),
    ],
)
def test_encoders_are_one_for_all_or_one_a_modality(encoder: dict[str, Any], told: str) -> None:
    values = load_preset("tiny").model_dump(mode="json") | {"encoder": encoder}
    with pytest.raises(ValueError, match=told) as caught:
        parse_config(values, "mine.yaml")
    assert "\n" not in str(caught.value)


def test_one_pooled_encoder_is_written_as_ever() -> None:
    assert load_preset("world").model_dump(mode="json")["encoder"] == {"name": "builtin:world/imagebind", "dim": 64}


def test_modalities_that_are_embedded_alike_share_a_projection() -> None:
    huge = {"name": "imagebind_huge.pth", "patches": 64}
    encoder = EncoderConfig.model_validate(
        {"image": huge | {"dim": 1280}, "video": huge | {"dim": 1280}, "audio": huge | {"dim": 768}}
    )
    assert list(encoder.shared.values()) == [[Modality.IMAGE, Modality.VIDEO], [Modality.AUDIO]]
    assert encoder.names == ["imagebind_huge.pth"]
    assert {one.patches for one in encoder.pooled.inputs.values()} == {None}
