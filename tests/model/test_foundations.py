"""The parts that are shipped: what they weigh, where they come from, and that they load as the real ones do."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPTokenizer

from model.architectures.imagebind import load_imagebind
from model.architectures.imagebind_text import ImageBindTextEncoder
from model.decoders.decoder import Decoder
from model.decoders.denoising import Denoiser
from model.decoders.latents import LatentEncoder
from model.decoders.text_encoders import CaptionEncoder
from model.encoders.imagebind_encoder import ImageBindEncoder
from model.parts.builtin import FOUNDATIONS, PARTS, SHIPPED, is_untrained, resolve
from model.parts.config import load_preset
from model.parts.families import caption_shape
from pipelines.sample import Audio, Image, Modality, Video
from pipelines.world.captions import caption
from pipelines.world.oracles import grade, read
from pipelines.world.render import render
from pipelines.world.scenes import Subject, draw

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
    assert sum(path.stat().st_size for path in weights) <= 16 * 2**20


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


@pytest.mark.parametrize("modality", list(Modality))
def test_a_medium_is_denoised_far_better_by_its_own_caption_than_by_anothers(modality: Modality) -> None:
    """Of sounds it was not, while their latents were made of a released model's spectrogram."""
    name = f"{SHIPPED}{modality}_decoder"
    subjects = list(dict.fromkeys(_held_out(modality, number) for number in range(24)))
    latents = torch.from_numpy(LatentEncoder(modality, name)([render(one, n) for n, one in enumerate(subjects)]))
    told = torch.from_numpy(CaptionEncoder(modality, name)([caption(one, 0) for one in subjects]).embeddings)
    denoiser = Denoiser(modality, name)
    own, others = (
        float(denoiser(conditions, latents, torch.Generator().manual_seed(0))) for conditions in (told, told.roll(5, 0))
    )
    assert own < others / 3


@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.VIDEO])
def test_the_end_of_a_caption_tells_all_of_it_whatever_its_words(modality: Modality) -> None:
    """So that projections have one thing to foretell, and not each wording's."""
    encoder = CaptionEncoder(modality, f"{SHIPPED}{modality}_decoder")
    subjects = list(dict.fromkeys(_held_out(modality, number) for number in range(40)))
    ends, others = (
        normalize(torch.from_numpy(encoder([caption(subject, wording) for subject in subjects]).embeddings[:, -1]))
        for wording in (0, 7)
    )
    assert ((ends @ others.T).argmax(dim=1) == torch.arange(len(subjects))).all()
    assert (ends * others).sum(dim=1).min() > 0.9


@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.VIDEO])
def test_decoders_read_what_follows_a_captions_words(modality: Modality) -> None:
    name = f"{SHIPPED}{modality}_decoder"
    subjects = [_held_out(modality, number) for number in range(16)]
    told = CaptionEncoder(modality, name)([caption(subject, 0) for subject in subjects])
    conditions = told.embeddings.copy()
    for values, others, length in zip(conditions, np.roll(told.embeddings, 1, axis=0), told.lengths, strict=True):
        values[1 : length - 1] = others[1 : length - 1]
    made = Decoder(modality, name).generate_batch(conditions, range(16))
    grades = [
        right for subject, one in zip(subjects, made, strict=True) for right in grade(subject, read(one)).values()
    ]
    assert np.mean(grades) > 0.8


def _held_out(modality: Modality, number: int) -> Subject:
    return draw(1, number, held_out=True)[modality]


def test_media_and_the_texts_that_describe_them_lie_close() -> None:
    folder = FOUNDATIONS / "imagebind"
    red, blue = np.full((32, 32, 3), 240, np.uint8), np.full((32, 32, 3), 240, np.uint8)
    red[10:22, 10:22], blue[10:22, 10:22] = (215, 30, 35), (35, 60, 215)
    media = torch.from_numpy(ImageBindEncoder(str(folder))([Image(pixels=red), Image(pixels=blue)]))
    encode = ImageBindTextEncoder(folder, CLIPTokenizer.from_pretrained(folder / "tokenizer"))
    texts = encode(["a big red square in the centre", "a big blue square in the centre"])
    similarity = media @ texts.T
    assert (similarity.argmax(dim=1) == torch.arange(2)).all()
