"""The parts that are shipped: what they weigh, where they come from, and that they load as the real ones do."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPTokenizer

from model.config import load_preset
from model.decoders import Decoder
from model.families import caption_shape
from model.imagebind import load_imagebind
from model.imagebind_inputs import ImageBindEncoder
from model.imagebind_text import TextEncoder
from model.parts import FOUNDATIONS, PARTS, SHIPPED, is_untrained, resolve
from pipelines.sample import Audio, Image, Modality, Video

MANIFEST = json.loads((FOUNDATIONS / "manifest.json").read_text(encoding="utf-8"))
TARGETS = {
    "image_decoder": {"colour": 0.95, "shape": 0.95, "place": 0.95},
    "video_decoder": {"colour": 0.9, "shape": 0.9, "direction": 0.9},
    "audio_decoder": {"pitch": 0.95, "timbre": 0.95},
}


def test_the_manifest_names_every_file_by_its_content() -> None:
    for part in PARTS:
        files = {str(p.relative_to(FOUNDATIONS / part)) for p in (FOUNDATIONS / part).rglob("*") if p.is_file()}
        entry = MANIFEST["parts"][part]
        assert files == set(entry["files"])
        for name, file in entry["files"].items():
            assert hashlib.sha256((FOUNDATIONS / part / name).read_bytes()).hexdigest() == file["sha256"]
        assert entry["command"].startswith("python jobs/bootstrap.py")


def test_all_of_it_is_at_most_sixteen_megabytes_of_safetensors() -> None:
    weights = [path for path in FOUNDATIONS.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt", ".pth")]
    assert {path.suffix for path in weights} == {".safetensors"}
    assert sum(path.stat().st_size for path in weights) <= 16_000_000


@pytest.mark.parametrize("part", TARGETS)
def test_the_decoders_scores_are_what_was_asked(part: str) -> None:
    scores = MANIFEST["parts"][part]["scores"]
    assert all(scores[name] >= target for name, target in TARGETS[part].items()), scores


def test_shipped_parts_are_trained_and_lie_in_the_package() -> None:
    assert all(Path(resolve(SHIPPED + part)) == FOUNDATIONS / part for part in PARTS)
    assert not any(is_untrained(SHIPPED + part) for part in PARTS)


def test_the_preset_fits_the_parts() -> None:
    config = load_preset("world")
    for modality, output in config.outputs.items():
        assert caption_shape(modality, output.decoder) == (output.num_queries, output.dim)
    assert load_imagebind(resolve(config.encoder.name)).config.embed_dim == config.encoder.dim
    llm = AutoModelForCausalLM.from_pretrained(resolve(config.llm.name))
    assert (llm.config.hidden_size, llm.config.vocab_size) == (config.llm.hidden_size, config.llm.vocab_size)
    assert len(AutoTokenizer.from_pretrained(resolve(config.llm.name))) == config.llm.vocab_size


@pytest.mark.parametrize(
    ("modality", "kind"), [(Modality.IMAGE, Image), (Modality.VIDEO, Video), (Modality.AUDIO, Audio)]
)
def test_decoders_render_at_their_size(modality: Modality, kind: type) -> None:
    decoder = Decoder(modality, f"{SHIPPED}{modality}_decoder")
    made = decoder.generate(np.zeros(decoder.condition_shape, np.float32), steps=2)
    assert isinstance(made, kind)
    match made:
        case Image():
            assert made.pixels.shape == (32, 32, 3)
        case Video():
            assert made.frames.shape == (8, 32, 32, 3)
        case Audio():
            assert (made.waveform.shape, made.sample_rate) == ((1, 20480), 16000)


def test_media_and_the_texts_that_describe_them_lie_close() -> None:
    folder = FOUNDATIONS / "imagebind"
    red, blue = np.full((32, 32, 3), 240, np.uint8), np.full((32, 32, 3), 240, np.uint8)
    red[10:22, 10:22], blue[10:22, 10:22] = (215, 30, 35), (35, 60, 215)
    media = torch.from_numpy(ImageBindEncoder(str(folder))([Image(pixels=red), Image(pixels=blue)]))
    encode = TextEncoder(folder, CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    texts = encode(["a big red square in the centre", "a big blue square in the centre"])
    similarity = media @ texts.T
    assert (similarity.argmax(dim=1) == torch.arange(2)).all()
