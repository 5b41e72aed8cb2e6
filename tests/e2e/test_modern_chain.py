"""The whole chain with parts of today at tiny width: `nextgpt_modern` on real classes, from raw files to the chat."""

import base64
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from chat_families import tokenizer_of
from decoder_families import write_pipeline
from encoder_folders import write_clap, write_siglip
from fastapi import FastAPI
from llm_families import build_llm
from safetensors.torch import load_file
from starlette.testclient import TestClient

from jobs import embed, generate, prepare, train_stage
from jobs.common.settings import checkpoint_model
from jobs.replies.respond import asks
from jobs.serving.api import add_handlers, router
from jobs.serving.deployments import Together, about
from jobs.serving.handles import Handles
from jobs.serving.service import Service, answer
from model.checkpoints.checkpoint import from_pretrained
from model.checkpoints.description import latest_checkpoint
from model.parts.families import caption_shape
from model.runs.run_log import TIMES
from pipelines.media.codecs import decode
from pipelines.sample import Audio, Image, Media, Modality, Video
from pipelines.storage.files import read_json_lines
from pipelines.storage.shards import Manifest
from pipelines.storage.sidecars import SidecarManifest, find_sidecars
from pipelines.world.dataset import write_world
from tests.conftest import Here

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

DECODERS = {Modality.IMAGE: "SanaPipeline", Modality.VIDEO: "WanPipeline", Modality.AUDIO: "StableAudioPipeline"}
PAIRS = ("cc3m", "webvid", "audiocap")
TALKS = "mosit_instruction"
COUNT = 3
STEPS = {1: 4, 2: 6, 3: 4}
DENOISED_FROM = 3  # half of the steps, as the preset says
KINDS = {".png": Image, ".mp4": Video, ".wav": Audio}


@dataclass(frozen=True)
class Chain:
    """What the commands left behind."""

    root: Path

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    def run(self, stage: int) -> Path:
        return self.root / f"stage-{stage}"

    def command(self, stage: int, out: Path) -> list[str]:
        """The arguments of `jobs/train_stage.py`: the preset's own recipe, but for the device and the sizes."""
        data = ["--stage", str(stage), "--shards", str(self.shards), "--preset", str(self.root / "modern.yaml")]
        init = ["--init", str(self.run(stage - 1))] if stage > 1 else []
        sizes = ["batch_size=4", "micro_batch_size=2", f"max_steps={STEPS[stage]}", "validation.fraction=0"]
        here = ["workers=2", "use_gpu=false", "precision=fp32", "checkpoint_every=2", "keep_last=3", "log_samples=true"]
        return [*data, *init, "--out", str(out), *sizes, *here]


def write_preset(root: Path) -> Path:
    """`nextgpt_modern` with small parts of the same families in the place of the published ones."""
    parts = root / "parts"
    tokenizer = tokenizer_of("qwen3")
    rows = -(-len(tokenizer) // 16) * 16  # Qwen's matrices have more rows than its tokenizer has tokens
    shape = {"vocab_size": rows, "num_key_value_heads": 2, "head_dim": 16}
    build_llm(parts / "llm", "Qwen3", tokenizer, **shape)
    write_siglip(parts / "siglip")
    write_clap(parts / "clap")
    seen = {"name": str(parts / "siglip"), "dim": 32, "patches": 9}
    outputs = {}
    for modality, kind in DECODERS.items():
        decoder = str(write_pipeline(kind, parts / kind))
        num_queries, dim = caption_shape(modality, decoder)
        shape = {"decoder": decoder, "num_queries": num_queries, "dim": dim}
        outputs[modality.value] = {**shape, "num_signal_tokens": 5, "width": 32, "layers": 1, "heads": 4}
    values = {
        "base": "nextgpt_modern",
        "llm": {"name": str(parts / "llm"), "hidden_size": 32, "vocab_size": rows, "num_layers": 2},
        "encoder": {
            "image": seen,
            "video": seen,
            "audio": {"name": str(parts / "clap"), "dim": 64, "patches": 16},
        },
        "input_projection": {"num_input_tokens": 4, "hidden": 32, "heads": 4, "layers": 1},
        "outputs": outputs,
        "lora": {"r": 4},
    }
    (root / "modern.yaml").write_text(yaml.safe_dump(values))
    return root / "modern.yaml"


@pytest.fixture(scope="module")
def chain(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Prepared, embedded and trained in three stages, on a Ray of two cores."""
    chain = Chain(tmp_path_factory.mktemp("chain"))
    write_world(chain.root / "raw", count=COUNT)
    preset, shards = write_preset(chain.root), str(chain.shards)
    prepare.main(
        ["--data", str(chain.root / "raw"), "--out", shards, "--samples-per-shard", "2", "--datasets", *PAIRS, TALKS]
    )
    embed.main(["--shards", shards, "--preset", str(preset)])
    embed.main(["--shards", shards, "--preset", str(preset), "--latents", "--modality", "image"])
    for stage in STEPS:
        train_stage.main(chain.command(stage, chain.run(stage)))
    return chain


def sidecar(chain: Chain, dataset: str, kind: str) -> SidecarManifest:
    (manifest,) = find_sidecars(chain.shards / dataset, kind).values()
    return manifest


def steps_of(run: Path) -> list[dict[str, Any]]:
    rows = [row for row in read_json_lines(run / "log.jsonl") if "loss" in row]
    return [{name: value for name, value in row.items() if not name.endswith(TIMES)} for row in rows]


def test_every_item_has_what_the_parts_take_beside_it(chain: Chain) -> None:
    for name in (*PAIRS, TALKS):
        assert Manifest.read(chain.shards / name).rejected == {}
    shapes = {"image": [300, 32], "video": [512, 32], "audio": [16, 24]}
    seen = {"image": [9, 32], "video": [9, 32], "audio": [16, 64]}
    for dataset, modality in zip(PAIRS, shapes, strict=True):
        captions, media = (sidecar(chain, dataset, kind) for kind in (modality, f"{modality}_features"))
        assert (captions.items, captions.shape, captions.failed) == (COUNT, shapes[modality], [])
        assert (media.items, media.shape, media.failed) == (COUNT, seen[modality], [])
    latents = sidecar(chain, "cc3m", "image_latents")
    assert (latents.items, latents.shape, latents.failed) == (COUNT, [4, 16, 16], [])


@pytest.mark.parametrize("stage", STEPS)
def test_each_stage_trains_its_own_parts(chain: Chain, stage: int) -> None:
    assert len(steps_of(chain.run(stage))) == STEPS[stage]
    names = {row["name"].split(".")[0] for row in json.loads((chain.run(stage) / "trainable.json").read_text())}
    own = {1: {"input_projection"}, 2: {"output_projections"}, 3: {"input_projection", "output_projections", "llm"}}
    assert names - {"new_input_rows", "new_output_rows"} == own[stage]
    before = load_file(latest_checkpoint(chain.run(max(1, stage - 1))) / "model.safetensors")
    after = load_file(latest_checkpoint(chain.run(stage)) / "model.safetensors")
    moved = {name.split(".")[0] for name in after if stage > 1 and not after[name].equal(before[name])}
    assert moved - {"new_input_rows", "new_output_rows"} == (own[stage] - {"llm"} if stage > 1 else set())


def test_stage_2_aligns_all_captions_and_denoises_pictures_from_half_of_its_steps_on(chain: Chain) -> None:
    rows = steps_of(chain.run(2))
    assert all(any(f"{modality}_alignment" in row for row in rows) for modality in Modality)
    assert not any("image_denoising" in row for row in rows[:DENOISED_FROM])
    assert any(row.get("image_denoising", 0) > 0 for row in rows[DENOISED_FROM:])


def test_a_stage_goes_on_bit_for_bit_across_the_change_of_its_losses(chain: Chain, here: Here, tmp_path: Path) -> None:
    whole, broken = chain.run(2), tmp_path / "broken"
    shutil.copytree(whole, broken)
    for step in range(3, STEPS[2] + 1):  # as if it had been killed before the next was written
        shutil.rmtree(broken / f"checkpoint-{step:06}", ignore_errors=True)
    done = here(train_stage.main, *chain.command(2, broken))
    assert f"goes on from step 2 of {STEPS[2]}" in done.stdout, done.stderr
    assert steps_of(broken) == steps_of(whole)
    first, second = (load_file(latest_checkpoint(run) / "model.safetensors") for run in (whole, broken))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_it_answers_in_the_words_of_its_llm_with_a_picture_a_video_and_a_sound(
    chain: Chain, here: Here, tmp_path: Path
) -> None:
    picture = next((chain.root / "raw" / "T-X_pair_data" / "cc3m" / "images").iterdir())
    command = ["--checkpoint", str(chain.run(3)), "--out", str(tmp_path), "--prompt", "Show a dog.", "--steps", "2"]
    done = here(generate.main, *command, "--image", str(picture), "--require", "image", "video", "audio")
    assert done.returncode == 0, done.stderr
    reply = json.loads((tmp_path / "reply.json").read_text())
    assert "###" not in reply["text"]
    assert "<|im_end|>" not in reply["text"]
    files = {Path(name).suffix: tmp_path / name for name in reply["files"]}
    made = {suffix: opened(files[suffix].read_bytes(), kind) for suffix, kind in KINDS.items()}
    assert made[".png"].pixels.shape == (32, 32, 3)
    assert made[".mp4"].frames.shape[0] == 5
    assert made[".wav"].waveform.shape[0] == 2


def opened(data: bytes, kind: type) -> Any:
    modality = {Image: Modality.IMAGE, Video: Modality.VIDEO, Audio: Modality.AUDIO}[kind]
    medium = decode(Media(modality=modality, data=data, format="bin"))
    assert isinstance(medium, kind)
    return medium


def test_the_chat_answers_a_request_with_a_picture_in_and_a_picture_and_a_sound_out(chain: Chain) -> None:
    checkpoint = str(latest_checkpoint(chain.run(3)))
    config = checkpoint_model(checkpoint)
    model = Together(checkpoint, config, 1, None)
    part = SimpleNamespace(reply=SimpleNamespace(remote=model.reply), make=SimpleNamespace(remote=model.make))
    handles = Handles(part, dict.fromkeys(config.outputs, part))
    served = about(checkpoint, config)
    service = Service(served, lambda query: answer(handles, asks("joint", query, guides=False)), places=1)
    app = FastAPI()
    app.include_router(router(service))
    add_handlers(app)
    picture = next((chain.root / "raw" / "T-X_pair_data" / "cc3m" / "images").iterdir()).read_bytes()
    shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(picture).decode()}"}}
    content = [shown, {"type": "text", "text": "And a dog?"}]
    body = {
        "messages": [{"role": "user", "content": content}],
        "modalities": ["text", "image", "audio"],
        "max_tokens": 16,
        "decoders": {"image": {"steps": 2}, "audio": {"steps": 2}},
    }
    with TestClient(app, base_url="http://127.0.0.1") as client:
        replied = client.post("/v1/chat/completions", json=body)
    assert replied.status_code == 200, replied.text
    parts = replied.json()["choices"][0]["message"]["parts"]
    found = {part["type"]: part[part["type"]]["url"] for part in parts if part["type"] != "text"}
    assert found.keys() == {"image_url", "audio_url"}
    data = {name: base64.b64decode(url.partition(",")[2]) for name, url in found.items()}
    assert opened(data["image_url"], Image).pixels.shape == (32, 32, 3)
    assert opened(data["audio_url"], Audio).waveform.shape[0] == 2
    assert service.taken == 0


def test_the_checkpoint_remembers_its_parts(chain: Chain) -> None:
    model, tokenizer = from_pretrained(chain.run(3))
    assert model.config.llm.template == "auto"
    assert model.has_adapter
    assert tokenizer.convert_tokens_to_ids("[IMG0]") == model.vocabulary.group(Modality.IMAGE)[0]
    assert {output.kind for output in model.config.outputs.values()} == {"connector"}
