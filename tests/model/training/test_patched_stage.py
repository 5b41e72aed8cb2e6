"""From shards to answers with an encoder a modality, in patches: embedded, planned, trained and asked without Ray."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dataset_cases import picture, write_dataset, write_sidecar
from encoder_folders import write_clap, write_siglip

from jobs.common.cli import UsageError
from jobs.common.encoders import feature_kinds
from jobs.common.settings import deepspeed_settings, load_settings
from jobs.embed import EmbedOptions, _task
from jobs.training.stage import StagePlan, plan_stage
from model.encoders.media_encoders import MediaEncoders
from model.inference.query import Query, Sampling
from model.inference.responder import Responder
from model.parts.config import ModelConfig, load_preset
from model.runs.run_log import RunLog
from model.training.engine import Rank
from model.training.feed import Row
from model.training.trainer import Job, Trainer
from pipelines.embed.embedding import Pool
from pipelines.embed.identities import learn
from pipelines.handover.stage_samples import SampleReader
from pipelines.media.codecs import decode, encode
from pipelines.sample import Audio, Item, Modality, Sample, Turn
from pipelines.storage.files import read_json_lines
from pipelines.storage.sidecars import ROW_KINDS, SidecarManifest, find_sidecars, from_npy

IMAGE, VIDEO, AUDIO = Modality
HERE = Pool(actors=1, num_cpus=1, num_gpus=0)
VIEW, STEPS, BATCH = "mixed", 8, 4


def write_preset(folder: Path, **image: Any) -> str:
    """The tiny model with a SigLIP for pictures, a CLAP for sounds, and no encoder of videos."""
    encoder = {
        "image": {"name": str(folder / "siglip"), "dim": 32, "patches": 9} | image,
        "audio": {"name": str(folder / "clap"), "dim": 64, "patches": 16},
    }
    projection = {"kind": "resampler", "num_input_tokens": 4, "hidden": 32}
    path = folder / "modern.yaml"
    path.write_text(yaml.safe_dump({"base": "tiny", "encoder": encoder, "input_projection": projection}))
    return str(path)


def sample_of(number: int) -> Sample:
    """A picture of a shade, and in every other sample a tone after it, then what they are."""
    shade, hertz = 20 + 25 * number, 200 * (1 + number % 3)
    wave = np.sin(np.arange(4_000) * 2 * np.pi * hertz / 16_000, dtype=np.float32)[None]
    media = {"0.png": picture(shade)} | (
        {"1.flac": encode(Audio(waveform=wave, sample_rate=16_000))} if number % 2 else {}
    )
    items = [Item(modality=one.modality, name=name) for name, one in media.items()]
    turns = (
        Turn(role="user", parts=(*items, "what?")),
        Turn(role="assistant", parts=("dark" if shade < 99 else "light",)),
    )
    return Sample(key=f"k{number}", source=f"r#{number}", turns=turns, media=media)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Encoders, a preset and a dataset of eight dialogues, which hold eight pictures and four sounds."""
    write_siglip(tmp_path / "siglip")
    write_clap(tmp_path / "clap")
    write_preset(tmp_path)
    samples = [sample_of(number) for number in range(BATCH * 2)]
    manifest = write_dataset(tmp_path / "shards" / VIEW, samples, 5, {VIEW: "dialogue"})
    assert manifest.input_items == 12
    return tmp_path


def embedded(world: Path, *overrides: str, dtype: str = "float16") -> dict[str, SidecarManifest]:
    options = EmbedOptions(shards=str(world / "shards"), dtype=dtype)
    config = model_of(world, *overrides)
    tasks = [_task(options, config, kind, HERE) for kind in feature_kinds(config)]
    return {task.kind: write_sidecar(world / "shards" / VIEW, task).manifest for task in tasks}


def model_of(world: Path, *overrides: str) -> ModelConfig:
    return load_settings(1, str(world / "modern.yaml"), overrides).model


def plan(world: Path, *overrides: str) -> StagePlan:
    sizes = [
        f"batch_size={BATCH}",
        f"micro_batch_size={BATCH // 2}",
        "validation.generate=false",
        "optimizer.learning_rate=0.01",
    ]
    chosen = [f"datasets={{{VIEW}: 1}}", *sizes, *overrides]
    settings = load_settings(1, str(world / "modern.yaml"), chosen, [VIEW])
    return plan_stage(settings, world / "shards", world / "run", None)


def rows_of(planned: StagePlan) -> list[Row]:
    """Rows as the hand-over gives them, with embeddings as arrays."""
    reader, rows = SampleReader(planned.views), []
    for step in range(STEPS):
        for place in range(BATCH):
            row = reader.read(0, (step * BATCH + place) % (BATCH * 2))
            arrays = {kind: from_npy(row[kind]) if row[kind] else None for kind in ROW_KINDS}
            rows.append({"step": step, "micro": place // 2} | row | arrays)
    return rows


def test_sidecars_hold_patches_of_each_modality_at_what_they_cost(world: Path) -> None:
    found = embedded(world)
    assert {kind: (one.shape, one.items, one.dtype) for kind, one in found.items()} == {
        "image_features": ([9, 32], 8, "float16"),
        "audio_features": ([16, 64], 4, "float16"),
    }
    assert all(one.min_cosine > 0.9999 for one in found.values())
    assert {one.encoder_id.rsplit("-", 1)[-1] for one in found.values()} == {"9patches", "16patches"}
    assert embedded(world, dtype="int8")["image_features"].dtype == "int8"


@pytest.mark.usefixtures("process_group")
def test_a_stage_learns_from_them_and_an_answer_reads_media_alike(world: Path) -> None:
    embedded(world, dtype="float32")
    planned = plan(world)
    rows = rows_of(planned)
    config = planned.settings.model
    for number in (0, 1):
        media = [decode(one) for one in sample_of(number).media.values()]
        [asked] = MediaEncoders(config.encoder)([media])
        for modality, values in asked.items():
            np.testing.assert_allclose(rows[number][f"{modality}_features"], values, atol=1e-5)
    job = Job(
        settings=planned.settings,
        deepspeed=deepspeed_settings(planned.settings),
        num_steps=STEPS,
        held_out_steps=0,
        alignment_variance=dict.fromkeys(Modality, 1.0),
        run=world / "run",
        init=None,
        history={"configuration": "test"},
        card={},
    )
    trainer = Trainer(job, Rank(rank=0, world_size=1, device="cpu"))
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    with RunLog(world / "log", first_step=0, tracker=None, name="test", settings={}) as log:
        trainer.run(rows, log=log)
    losses = [row["loss"] for row in read_json_lines(world / "log" / "log.jsonl")]
    assert losses[-1] < losses[0] - 0.05
    moved = {name for name, value in trainer.model.named_parameters() if not value.equal(before[name])}
    assert moved == set(trainer.manifest)
    assert {name.split(".")[1] for name in moved if name.startswith("input_projection.")} == {"image", "audio"}
    responder = Responder.from_pretrained(world / "run" / f"checkpoint-{STEPS:06d}")
    answer = responder.respond(query(sample_of(1)))
    other = responder.respond(query(sample_of(1)))
    assert answer == other
    with pytest.raises(ValueError, match=r"^video: this model has no encoder for it; it takes image, audio$"):
        responder.respond(query(film()))


def query(sample: Sample) -> Query:
    media = {name: decode(one, fps=4.0) for name, one in sample.media.items()}
    return Query(turns=sample.turns[:1], media=media, sampling=Sampling(max_new_tokens=4, max_items=0))


def film() -> Sample:
    from pipelines.sample import Video

    shown = encode(Video(frames=np.full((8, 32, 32, 3), 99, np.uint8), fps=4.0))
    turns = (
        Turn(role="user", parts=(Item(modality=VIDEO, name="mp4"), "what?")),
        Turn(role="assistant", parts=("grey",)),
    )
    return Sample(key="film", source="r#9", turns=turns, media={"mp4": shown})


def refusal(world: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        plan(world, *overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.encoder.image.patches=4", "are 9x32, preset modern takes 4x32"),
        ("model.encoder.image.dim=48", "are 9x32, preset modern takes 9x48"),
        ("model.encoder.image.patches=null", "are 9x32, preset modern takes 32"),
    ],
)
def test_patches_of_another_number_or_width_are_refused_before_workers_start(world: Path, setting, told: str) -> None:
    embedded(world)
    line = refusal(world, setting)
    assert line.startswith(f"{VIEW}: image_features embeddings by {world / 'siglip'} {told}; run jobs/embed.py ")
    assert "--modality encoder" in line


def test_patches_of_another_encoder_are_refused_once_this_machine_knows_it(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plan_of = load_preset(str(world / "modern.yaml"))
    [made] = [one for kind, one in embedded(world).items() if kind == "image_features"]
    write_siglip(world / "other", seed=1)
    setting = f"model.encoder.image.name={world / 'other'}"
    assert plan(world, setting).views, "nothing is known of the other yet"
    other = plan_of.model_copy(update={"encoder": plan_of.encoder.renamed({IMAGE: str(world / "other")})})
    identity = learn(_task(EmbedOptions(), other, "image_features", HERE))
    line = refusal(world, setting)
    assert line.startswith(
        f"{VIEW}: image_features embeddings are by {made.encoder_id}, the preset's encoder is {identity.id};"
    )


def test_a_modality_without_an_encoder_is_refused_before_workers_start(world: Path) -> None:
    samples = [*(sample_of(number) for number in range(3)), film()]
    write_dataset(world / "shards" / VIEW, samples, 5, {VIEW: "dialogue"})
    embedded(world)
    line = refusal(world)
    assert line == (
        f"{VIEW}: 1 of its 5 input items are of a modality for which preset modern has no encoder; name one under "
        "model.encoder, or leave the dataset out"
    )


def test_sidecars_that_are_missing_are_asked_for(world: Path) -> None:
    line = refusal(world)
    assert "has no image_features embeddings at all; run jobs/embed.py --shards" in line
    assert "--modality encoder" in line
    assert find_sidecars(world / "shards" / VIEW, "image_features") == {}
