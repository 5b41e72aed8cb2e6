"""What is refused before a stage starts, all of it at once."""

import json
import shutil
from pathlib import Path

import pytest
from chat_families import tokenizer_of
from decoder_families import write_pipeline
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, CohereConfig, PreTrainedConfig, Qwen3Config

from jobs.common.cli import UsageError
from jobs.common.encoders import encoder_factory
from jobs.common.settings import load_settings
from jobs.training.preflight import mistakes, notes
from model.parts.builtin import resolve
from pipelines.embed.encoding import EmbedTask
from pipelines.embed.identities import learn
from pipelines.handover.stage_samples import PlannedView
from pipelines.storage.shards import Manifest
from pipelines.storage.sidecars import SidecarManifest
from pipelines.views import CaptionChoice

MANIFEST = Manifest(
    dataset="talks",
    rows=1,
    samples=1,
    samples_per_shard=1,
    rejected={},
    shards=[],
    views={"talks": "dialogue"},
    output_items={},
    input_items=0,
    licence="",
)


def found(tmp_path: Path, *overrides: str, preset: str = "tiny", init: Path | None = None) -> list[str]:
    return list(mistakes(load_settings(2, preset, overrides), [], tmp_path / "run", init))


def test_the_default_settings_have_no_mistake(tmp_path: Path) -> None:
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("workers=3", "workers: 3, but batch_size=8 in micro-batches of 4 gives work to 2; use workers=2 or"),
        ("workers=[1, 16]", "workers: 16, but batch_size=8"),
        ("workers=[2, 1]", "workers: [2, 1] must be the fewest, then the most"),
        ("model.outputs.image.dim=48", "model.outputs.image: 77x48, but builtin:tiny/image_decoder takes 77x64"),
        ("keep_last=1000000000", "GB free, but its checkpoints may take"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(tmp_path: Path, setting: str, told: str) -> None:
    (line,) = found(tmp_path, setting)
    assert told in line
    assert "\n" not in line


def test_a_decoder_of_another_shape_or_family_or_without_a_loss_is_refused(tmp_path: Path) -> None:
    path = write_pipeline("StableDiffusionXLPipeline", tmp_path / "xl")
    decoder, rows = f"model.outputs.image.decoder={path}", ["model.outputs.image.num_queries=42"]
    (line,) = found(tmp_path, decoder)
    assert "model.outputs.image: 77x64, but" in line
    assert "takes 42x40; set num_queries and dim to these" in line
    fitting = [decoder, *rows, "model.outputs.image.dim=40", "loss.denoising_weights={image: 1.0}"]
    assert found(tmp_path, *fitting) == []
    scheduler = path / "scheduler" / "scheduler_config.json"
    scheduler.write_text('{"_class_name": "AmusedScheduler"}')
    (line,) = found(tmp_path, *fitting)
    assert "no denoising loss is known for its scheduler, a AmusedScheduler; train by alignment alone" in line
    assert found(tmp_path, *fitting[:-1]) == []
    (path / "model_index.json").write_text('{"_class_name": "PixArtSigmaPipeline"}')
    (line,) = found(tmp_path, *fitting)
    assert "is a PixArtSigmaPipeline, but image needs a StableDiffusionPipeline, StableDiffusionXLPipeline" in line


def test_a_scheduler_without_a_loss_and_denoising_without_latents_are_refused(tmp_path: Path) -> None:
    decoder = Path(shutil.copytree(resolve("builtin:tiny/image_decoder"), tmp_path / "decoder"))
    file = decoder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "flow"}))
    denoised = "loss.denoising_weights={image: 1.0}"
    (line,) = found(tmp_path, denoised, f"model.outputs.image.decoder={decoder}")
    assert line == (
        f"loss.denoising_weights: image: {decoder}: its scheduler has prediction_type flow, and a loss needs epsilon, "
        "v_prediction, sample"
    )
    view = PlannedView(name="talks", kind="dialogue", directory=tmp_path, manifest=MANIFEST, sidecars={})
    (line,) = mistakes(load_settings(2, "tiny", [denoised]), [view], tmp_path / "run", None)
    assert line == "loss.denoising_weights: image, but no dataset has image media in its answers; leave it out"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["loss.denoise_from=0.5"], "loss: denoise_from is set, but denoising_weights names no modality"),
        (["model.outputs.image.kind=connector", "model.outputs.image.width=66"], "image: width is 66, which 4 heads"),
        (["model.outputs.image.kind=connector", "model.outputs.image.heads=5"], "width (that of the LLM) is 64, which"),
        (["model.outputs.image.width=64"], "width is 64, but kind projection has none; set hidden, or kind"),
        (["model.outputs.image.heads=5"], "hidden is 64, which 5 heads cannot share"),
        (["model.outputs.image.null=learned"], "image.null: learned, but loss.denoising_weights.image is not set"),
        (["loss.denoising_weights={image: 1.0}", "loss.denoise_from=1.0"], "loss.denoise_from: Input should be less"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(settings: list[str], told: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_settings(2, "tiny", settings)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def of_sana(folder: Path) -> list[str]:
    """Settings with which pictures are made by the Sana of a folder, and denoised."""
    shape = {"decoder": folder, "num_queries": 300, "dim": 32}
    set_ = [f"model.outputs.image.{name}={value}" for name, value in shape.items()]
    return [*set_, "loss.denoising_weights={image: 1.0}"]


def id_of(folder: Path, kind: str) -> str:
    """The id of what embeds a kind by the Sana of a folder, which this machine then remembers."""
    factory = encoder_factory(load_settings(2, "tiny", of_sana(folder)).model, kind)
    return learn(EmbedTask(kind=kind, factory=factory, dtype="float32", memory=factory.memory)).id


def embedded_by(folder: Path, kind: str, encoder_id: str, captions: CaptionChoice = "original") -> PlannedView:
    """A dataset of one picture that was embedded by an encoder of this id, which for other captions ends in these."""
    shape = {"image": [300, 32], "image_latents": [4, 16, 16]}[kind]
    SidecarManifest(
        kind=kind,
        encoder_id=encoder_id,
        encoder_name="sana",
        untrained=False,
        shape=shape,
        dtype="float16",
        items=1,
        shards=[],
        of_shards=[],
        captions=captions,
    ).write(folder)
    return PlannedView(name="talks", kind="generate", directory=folder, manifest=MANIFEST, sidecars={kind: folder})


@pytest.mark.parametrize(
    ("kind", "part", "flag"),
    [("image", "text_encoder", "--modality image"), ("image_latents", "vae", "--latents --modality image")],
)
def test_captions_and_latents_by_another_decoder_are_refused_and_a_moved_one_is_not(
    tmp_path: Path, kind: str, part: str, flag: str
) -> None:
    own = write_pipeline("SanaPipeline", tmp_path / "sana")
    moved = Path(shutil.copytree(own, tmp_path / "moved"))
    other = Path(shutil.copytree(own, tmp_path / "other"))
    (file,) = (other / part).glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file, {"format": "pt"})
    settings = load_settings(2, "tiny", of_sana(own))

    def told(encoder_id: str, captions: CaptionChoice = "original") -> list[str]:
        view = embedded_by(tmp_path / encoder_id, kind, encoder_id, captions)
        without = "loss.denoising_weights: image, but no dataset has image media in its answers; leave it out"
        return [line for line in mistakes(settings, [view], tmp_path / "run", None) if line != without]

    strange = id_of(other, kind)
    assert told(strange) == [], "nothing is known of the preset's decoder yet"
    known = id_of(own, kind)
    assert told(known) == told(id_of(moved, kind)) == told(f"{known}-bfloat16") == told(f"{kind}-imported-0") == []
    assert told(strange) == [
        f"talks: {kind} embeddings are by {strange}, the preset's decoder has {known}; run jobs/embed.py --preset tiny "
        f"{flag}, or train a preset of the former"
    ]
    # As a training on new captions was once refused: its sidecar's id says which captions these are.
    assert told(f"{known}-new", "new") == told(f"{known}-bfloat16-both", "both") == []
    assert told(f"{strange}-new", "new") == [
        f"talks: {kind} embeddings are by {strange}, the preset's decoder has {known}; run jobs/embed.py --preset tiny "
        f"{flag} --which-captions new, or train a preset of the former"
    ]


def test_published_decoders_are_checked_without_their_files(tmp_path: Path) -> None:
    sana, wan = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    wrong = ["image.dim=48", "video.num_queries=226", f"audio.decoder={wan}"]
    lines = found(tmp_path, *(f"model.outputs.{setting}" for setting in wrong), preset="nextgpt_modern")
    assert lines[:2] == [
        f"model.outputs.image: 300x48, but {sana} takes 300x2304; set num_queries and dim to these",
        f"model.outputs.video: 226x4096, but {wan} takes 512x4096; set num_queries and dim to these",
    ]
    assert lines[2].startswith(f"model.outputs.audio.decoder: {wan}: is a WanPipeline, but audio needs a AudioLDM")
    assert len(lines) == 3


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    lines = found(tmp_path, "workers=9", "keep_last=1000000000", init=tmp_path / "absent")
    assert len(lines) == 3
    assert any(str(tmp_path / "absent") in line for line in lines)


def test_going_on_with_another_torch_is_noted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": 2, "versions": {"torch": "1.0", "peft": "0.1"}}')
    assert [line.partition(", here")[0] for line in notes(tmp_path)] == ["the run was begun with torch 1.0"]


SHAPE = {
    "vocab_size": 720,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def with_llm(folder: Path, llm: PreTrainedConfig, template: str | None) -> list[str]:
    """The mistakes of a stage on an LLM of which there are a configuration and a tokenizer."""
    llm.save_pretrained(folder / "llm")
    tokenizer = tokenizer_of("qwen3")
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(folder / "llm")
    if template == "":
        (folder / "llm" / "chat_template.jinja").unlink()
    sizes = [f"model.llm.{name}=null" for name in ("hidden_size", "vocab_size", "num_layers")]
    return found(folder, f"model.llm.name={folder / 'llm'}", "model.llm.template=auto", *sizes)


def test_an_llm_in_its_own_format_has_no_mistake(tmp_path: Path) -> None:
    assert with_llm(tmp_path, Qwen3Config(**SHAPE), None) == []


def test_an_llm_without_a_chat_template_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (line,) = with_llm(tmp_path, Qwen3Config(**SHAPE), "")
    assert line.startswith(f"{tmp_path / 'llm'}: its tokenizer has no chat template; set llm.template: vicuna_v0")


@pytest.mark.parametrize(
    ("llm", "told"),
    [
        (CohereConfig(**SHAPE), "scales its logits by logit_scale"),
        (AutoConfig.for_model("t5"), "t5 is an encoder and a decoder"),
        (AutoConfig.for_model("qwen2_vl"), "qwen2_vl is no causal language model in transformers"),
    ],
)
def test_an_llm_that_cannot_work_is_refused_before_anything_starts(
    tmp_path: Path, llm: PreTrainedConfig, told: str
) -> None:
    (line,) = with_llm(tmp_path, llm, None)
    assert told in line
    assert "\n" not in line
