"""Published parts by their descriptions: shapes, numbers of weights, and runs on them that are planned with no hub."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableAudioProjectionModel
from transformers import AutoConfig, AutoModelForCausalLM

from jobs.common.settings import deepspeed_settings, load_settings
from jobs.training.dry_run import DryRun, machine_for
from model.parts.config import ModelConfig, load_preset
from model.parts.encoder_kinds import encoder_mistakes
from model.parts.families import caption_shape, decoder_weights, latent_shape, noise_kind
from model.parts.published import PUBLISHED, described
from model.training.train_settings import Stage
from pipelines.sample import Modality

IMAGE, VIDEO, AUDIO = Modality
SANA, WAN = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
SD_3_5, STABLE_AUDIO = "stabilityai/stable-diffusion-3.5-medium", "stabilityai/stable-audio-open-1.0"
MODERN = ["nextgpt_modern", "nextgpt_modern_24gb"]
# Of the GB that a preset is made for, and the stages that a test has time for: the others by `-m slow`.
CARDS = {"nextgpt_7b": 80, "nextgpt_7b_query": 80, "nextgpt_7b_24gb": 24, "nextgpt_modern": 80} | {
    "nextgpt_modern_24gb": 24
}
QUICK = {("nextgpt_7b", 2), ("nextgpt_modern", 2), ("nextgpt_modern_24gb", 3)}


@pytest.fixture(autouse=True)
def _without_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, and nothing of it on this machine."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "billions"), [("Qwen/Qwen3-8B", 8_190_735_360), ("lmsys/vicuna-7b-v1.5", 6_738_415_616)]
)
def test_an_llm_has_as_many_weights_as_its_card_says(name: str, billions: int) -> None:
    with torch.device("meta"):
        assert weights(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(described(name)))) == billions


@pytest.mark.parametrize(
    ("name", "denoiser", "vae"),
    [
        (SANA, 1.60e9, 0.312e9),  # files of 3.21 GB in 16 bits, and 1.25 GB in 32
        (SD_3_5, 2.24e9, 0.084e9),
        (WAN, 1.42e9, 0.127e9),
        (STABLE_AUDIO, 1.057e9, 0.156e9),  # as its paper says
    ],
)
def test_a_decoder_has_as_many_weights_as_are_published(name: str, denoiser: float, vae: float) -> None:
    counts = []
    for part in ("transformer", "vae"):
        config = json.loads((PUBLISHED / name / part / "config.json").read_text())
        with torch.device("meta"):
            counts.append(weights(getattr(diffusers, config["_class_name"]).from_config(config)))
    assert counts == [pytest.approx(denoiser, rel=0.003), pytest.approx(vae, rel=0.003)]
    if (path := PUBLISHED / name / "projection_model" / "config.json").is_file():  # of seconds
        with torch.device("meta"):
            counts.append(weights(StableAudioProjectionModel.from_config(json.loads(path.read_text()))))
    assert decoder_weights(name) == sum(counts)


@pytest.mark.parametrize("preset", MODERN)
def test_a_presets_shapes_are_those_of_the_family_table_and_of_its_encoders(preset: str) -> None:
    config = load_preset(preset)
    assert {modality: (output.num_queries, output.dim) for modality, output in config.outputs.items()} == {
        modality: caption_shape(modality, described(output.decoder)) for modality, output in config.outputs.items()
    }
    assert all(described(encoder) != encoder for encoder in config.encoder.names)  # they are compared with something
    assert [mistake for key in config.encoder.inputs for mistake in encoder_mistakes(config.encoder, key)] == []
    assert config.llm.template == "auto"
    assert config.lora.targets == "auto"


def test_an_encoder_of_another_width_is_told_by_its_published_name() -> None:
    values = load_preset("nextgpt_modern").model_dump(mode="json")
    values["encoder"]["image"]["dim"] = 768
    [mistake] = encoder_mistakes(ModelConfig.model_validate(values).encoder, IMAGE)
    assert mistake == ("google/siglip2-so400m-patch14-384: a patch of image is 1152 wide, not 768; set dim to 1152")


@pytest.mark.parametrize(
    ("name", "modality", "rows", "latents", "noise"),
    [
        (SANA, IMAGE, (300, 2304), (32, 32, 32), "flow"),
        (SD_3_5, IMAGE, (334, 4096), (16, 128, 128), "flow"),
        (WAN, VIDEO, (512, 4096), (16, 21, 60, 104), "flow"),
        (STABLE_AUDIO, AUDIO, (128, 768), (64, 1024), "sigma"),
    ],
)
def test_a_decoder_is_described_as_it_is_published(
    name: str, modality: Modality, rows: tuple[int, int], latents: tuple[int, ...], noise: str
) -> None:
    folder = described(name)
    assert (caption_shape(modality, folder), latent_shape(modality, folder)) == (rows, latents)
    assert noise_kind(modality, folder) == noise


def test_what_is_on_this_machine_or_is_not_described_is_read_itself(tmp_path: Path, monkeypatch: Any) -> None:
    assert described("Qwen/Qwen3-8B") == str(PUBLISHED / "Qwen" / "Qwen3-8B")
    for name in ("builtin:tiny/llm", "someone/Qwen3-8B", "../published", "/Qwen/Qwen3-8B", "imagebind_huge.pth"):
        assert described(name) == name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen" / "Qwen3-8B").mkdir(parents=True)
    assert described("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("preset", "stage"),
    [
        pytest.param(preset, stage, marks=() if (preset, stage) in QUICK else pytest.mark.slow)
        for preset in CARDS
        for stage in (1, 2, 3)
    ],
)
def test_every_preset_fits_the_card_that_it_is_made_for(preset: str, stage: Stage) -> None:
    settings = load_settings(stage, preset)
    plan = DryRun(settings, deepspeed_settings(settings), machine_for(settings, CARDS[preset], None))
    assert plan.unknown == []
    assert plan.fits, plan.verdict()
    assert plan.verdict().startswith("fits: ")
    llm = 0.5625 * 6.9e9 if settings.model.llm.load_in_4bit else 2 * 6.6e9
    assert plan.found.frozen > llm
