"""The main job on real input, as a user runs it: every command submitted to a real cluster's job server, then more."""

import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import av
import PIL.Image
import pyarrow.parquet as pq
import pytest
import soundfile
import webdataset
from safetensors import safe_open

from jobs import embed, generate, prepare, train_stage
from model.checkpoints.checkpoint import from_pretrained
from model.checkpoints.description import latest_checkpoint
from model.parts.builtin import resolve
from pipelines.storage.files import read_json_lines
from pipelines.storage.locks import locked
from pipelines.storage.shards import Manifest, hash_file
from tests.conftest import ROOT, Cluster, Here
from tests.e2e.conftest import EPOCHS, Way, stage_command, steps_of

pytestmark = [pytest.mark.ray, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1500)]

PAIRS = {"cc3m": 14, "webvid": 11, "audiocap": 14}
# What the job server's client says around each command, and how far a command is where it takes seconds.
SUBMISSION = (
    r"\d{4}-\d\d-\d\d [\d:,]+\t(INFO|SUCC|WARNING) "
    r"(cli|job_manager|working_dir|packaging|dashboard_sdk|sdk)\.py:\d+ -- |Running entrypoint for job "
    r"|(\w+: )?[\w ]+: \d+ of \d+ \w+"
    r"|\[mutex\.cc : \d+\] RAW: |\s*@ +0x"  # gRPC's locks within Ray, where a machine is busy
)
STAGE = (
    r"stage \d(, configuration \w+$| step \d+/\d+: )|held out, after step |\d+ samples an epoch of "
    r"|note: (not prepared, |untrained )|[\w.{},]+ +[\dx]+  x\d+ +[\d,]+$|[\d,]+ of [\d,]+ weights train "
    r"|trained \d+ steps; |  [\w ]+: |checkpoint: |best by "
)
# Every line that a command prints when all is well.
EXPECTED = {
    "prepare": r"\w+: \d+ in = \d+ out \+ 0 rejected|reports: ",
    # Ray's core, in the driver itself, on an actor of Ray Data's: nothing there lets us leave it out.
    "embed": r"\w+: \d+ \w+ embeddings of |all: \d+ in = \d+ encoded \+ 0 failed$|note: untrained "
    r"|\[.* core_worker\.cc:",
    **dict.fromkeys(("stage-1", "stage-2", "stage-3"), STAGE),
    "generate": r"reply: |  \S+/\d-\w+\.\w+$|note: untrained ",
}
KINDS = ("image", "video", "audio", "encoder")


def test_all_39_pairs_and_their_dialogues_go_through_prepare(way: Way) -> None:
    assert "all: 117 in = 117 out + 0 rejected" in way.logs["prepare"]
    for name, count in PAIRS.items():
        manifest = Manifest.read(way.shards / name)
        assert (manifest.rows, manifest.samples, manifest.rejected) == (count, count, {})
        assert [shard.samples for shard in manifest.shards] == [5, 5, count - 10]


def test_the_shards_are_webdataset_tars_with_the_media_in_them(way: Way) -> None:
    tars = sorted(str(path) for path in (way.shards / "cc3m").glob("*.tar"))
    rows = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(rows) == PAIRS["cc3m"]
    for row in rows:
        assert PIL.Image.open(io.BytesIO(row["jpg"])).size[0] > 0
        assert row["txt"].decode() in json.loads(row["json"])["turns"][1]["parts"]


def test_every_pair_has_its_embeddings_beside_it_under_the_same_key(way: Way) -> None:
    for dataset, kind in (("cc3m", "image"), ("webvid", "video"), ("audiocap", "audio")):
        for sidecar in (kind, "encoder"):
            (folder,) = (way.shards / dataset / "embeddings").glob(f"{sidecar}-*")
            for tar in sorted((way.shards / dataset).glob("*.tar")):
                keys = pq.read_table(tar.with_suffix(".parquet"))["key"].to_pylist()
                with tarfile.open(folder / tar.name) as archive:
                    assert archive.getnames() == [f"{key}.npy" for key in keys]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_loss_of_each_stage_falls(way: Way, stage: int) -> None:
    losses = [row["loss"] for row in way.steps(stage)]
    epoch = len(losses) // EPOCHS[stage]
    assert sum(losses[-epoch:]) < sum(losses[:epoch])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_run_keeps_its_settings_with_their_hash_and_what_it_trained(way: Way, stage: int) -> None:
    settings = json.loads((way.run(stage) / "settings.json").read_text())
    assert settings["hash"] in way.logs[f"stage-{stage}"]
    assert settings["settings"]["epochs"] == EPOCHS[stage]
    names = {row["name"].split(".")[0] for row in json.loads((way.run(stage) / "trainable.json").read_text())}
    expected = {1: {"input_projection"}, 2: {"output_projections"}}
    both = {"input_projection", "output_projections", "llm"}
    assert names == {"new_input_rows", "new_output_rows"} | expected.get(stage, both)


def test_a_checkpoint_is_complete_and_remembers_its_stages(way: Way) -> None:
    checkpoint = latest_checkpoint(way.run(3))
    assert {"config.json", "model.safetensors", "adapter", "README.md", "tokenizer.json"} <= {
        path.name for path in checkpoint.iterdir()
    }
    assert [stage["stage"] for stage in json.loads((checkpoint / "config.json").read_text())["stages"]] == [1, 2, 3]
    model, tokenizer = from_pretrained(way.run(3))
    assert model.has_adapter
    assert tokenizer.convert_tokens_to_ids("[IMG0]") == model.vocabulary.group(next(iter(model.config.outputs)))[0]


def test_the_reply_holds_a_picture_a_video_and_a_sound_that_open(way: Way) -> None:
    out = way.root / "reply"
    reply = json.loads((out / "reply.json").read_text())
    by_suffix = {Path(name).suffix: out / name for name in reply["files"]}
    assert set(by_suffix) == {".png", ".mp4", ".wav"}
    image, video, audio = (by_suffix[suffix] for suffix in (".png", ".mp4", ".wav"))
    assert PIL.Image.open(image).convert("RGB").size == (32, 32)
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8
    waveform, rate = soundfile.read(audio)
    assert rate == 16000
    assert len(waveform) > 16000


def test_untrained_frozen_parts_are_named_where_they_are_used(way: Way) -> None:
    for name, part in (("embed", "imagebind"), ("stage-1", "llm"), ("generate", "image_decoder")):
        assert f"builtin:tiny/{part}" in next(line for line in way.logs[name].splitlines() if "untrained" in line)


def test_a_stage_run_by_itself_gives_the_same_weights_to_the_bit(way: Way, cluster: Cluster) -> None:
    out = way.root / "alone"
    done = cluster.alone("jobs/train_stage.py", *stage_command(way.root, 1, out))
    assert done.returncode == 0, done.stderr
    first, second = (latest_checkpoint(run) / "model.safetensors" for run in (way.run(1), out))
    assert hash_file(first) == hash_file(second)


def test_one_worker_follows_the_losses_of_two(way: Way, here: Here) -> None:
    out = way.root / "single"
    done = here(train_stage.main, *stage_command(way.root, 2, out, "workers=1"))
    assert done.returncode == 0, done.stderr
    single, both = ([row["loss"] for row in steps] for steps in (steps_of(out), way.steps(2)))
    assert single == pytest.approx(both, rel=1e-5)


def test_held_out_samples_are_scored_and_one_reply_a_modality_can_be_looked_at(way: Way) -> None:
    (scores,) = [row for row in read_json_lines(way.run(3) / "log.jsonl") if "validation/loss" in row]
    assert scores["validation/loss"] > 0
    assert "held out, after step" in way.logs["stage-3"]
    assert "held out: validation/loss" in way.logs["stage-3"]  # the summary has it from Ray Train's Result.metrics
    replies = {path.stem.split("-")[-1]: path for path in (way.run(3) / "samples").iterdir() if path.suffix != ".txt"}
    assert replies
    assert all(path.stat().st_size > 0 for path in replies.values())


def test_a_finished_stage_has_nothing_to_do_and_other_settings_are_another_run(way: Way, here: Here) -> None:
    again = here(train_stage.main, *stage_command(way.root, 1, way.run(1)))
    assert "finished already; nothing to do" in again.stdout, again.stderr
    other = here(train_stage.main, *stage_command(way.root, 1, way.run(1), "seed=1"))
    assert other.returncode != 0
    assert "holds a run of other settings (seed: 0 -> 1)" in other.stderr


def test_a_run_that_another_process_trains_is_left_to_it(way: Way, here: Here) -> None:
    run = way.run(1)
    with locked(run):
        done = here(train_stage.main, *stage_command(way.root, 1, run))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {run}: in use by process {os.getpid()} on ")
    assert done.stderr.count("\n") == 1


def test_preparing_and_embedding_again_makes_nothing(way: Way, here: Here, sample_root: Path) -> None:
    before = {path: hash_file(path) for path in tree(way.shards)}
    command = ["--data", str(sample_root), "--out", str(way.shards), "--samples-per-shard", "5"]
    assert here(prepare.main, *command).stdout.count("(was up to date)") == 9
    again = here(embed.main, "--shards", str(way.shards), "--preset", "tiny")
    assert "0 of 3 shards embedded now" in again.stdout
    assert {path: hash_file(path) for path in tree(way.shards)} == before


def test_a_failed_job_shows_as_failed_with_its_reason_last(way: Way, cluster: Cluster) -> None:
    done = cluster.submit("python", "jobs/train_stage.py", "--stage", "1", "--shards", "/nowhere", "--out", "/tmp/none")
    assert done.returncode != 0
    log = [line for line in done.stdout.splitlines() if line.strip()]
    reason = next(place for place, line in enumerate(log) if line.startswith("error: "))
    assert log[reason] == "error: /nowhere: no such folder"
    assert not [line for line in log[reason + 1 :] if "Traceback" in line]
    assert "failed" in "".join(log[reason + 1 :]) + done.stderr


def test_shards_without_the_sidecars_a_stage_needs_are_refused_before_training(
    way: Way, here: Here, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(way.shards / "cc3m", shards / "cc3m", ignore=shutil.ignore_patterns("embeddings"))
    arguments = ["--stage", "2", "--preset", "tiny", "--shards", str(shards), "--out", str(tmp_path / "run")]
    done = here(train_stage.main, *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "has no image embeddings at all; run jobs/embed.py" in done.stderr.splitlines()[-1]


def test_a_checkpoint_of_another_preset_and_embeddings_of_another_width_are_refused_together(
    way: Way, here: Here, tmp_path: Path
) -> None:
    done = here(train_stage.main, *stage_command(way.root, 2, tmp_path / "run", "--preset", "nextgpt_7b"))
    assert done.returncode == 2
    mistakes = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert any("are 77x64, preset nextgpt_7b takes 77x768" in line for line in mistakes)
    assert any("the checkpoint is of preset tiny, the model of nextgpt_7b: encoder of the" in line for line in mistakes)
    assert any("model.llm.name: lmsys/vicuna-7b-v1.5: no such folder" in line for line in mistakes)


def tree(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def test_the_legacy_embedding_arguments_give_an_npy_a_caption(here: Here, sample_root: Path, tmp_path: Path) -> None:
    captions = sample_root / "T-X_pair_data" / "audiocap" / "audiocap.json"
    arguments = ["--captions", str(captions), "--modality", "audio", "--out", str(tmp_path), "--preset", "tiny"]
    done = here(embed.main, *arguments, "--model", "builtin:tiny/audio_decoder")
    assert "14 in = 14 out + 0 rejected" in done.stdout, done.stderr
    assert len(list(tmp_path.glob("*.wav.npy"))) == 14


def test_a_checkpoint_holds_only_what_was_trained(way: Way) -> None:
    with safe_open(latest_checkpoint(way.run(1)) / "model.safetensors", "pt") as file:
        tops = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118
    assert tops == {"input_projection", "output_projections", "new_input_rows", "new_output_rows"}


def own_llm(folder: Path) -> Path:
    """The tiny LLM as a folder of one's own, and a preset file that names it by a path relative to the checkout."""
    shutil.copytree(resolve("builtin:tiny/llm"), folder / "llm")
    text = f"base: tiny\nllm:\n  name: {os.path.relpath(folder / 'llm', ROOT)}\n"
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


def stage_1_of(preset: Path, way: Way, out: Path) -> list[str]:
    command = stage_command(way.root, 1, out, "max_steps=2", "validation.generate=false")
    return [str(preset) if argument == "tiny" else argument for argument in command]


def test_weights_at_a_relative_path_and_a_preset_file_train_and_reply_from_any_folder(
    way: Way, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    done = here(train_stage.main, *stage_1_of(own_llm(tmp_path), way, tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir("/")
    assert from_pretrained(tmp_path / "run")[0].config.llm.name == str(tmp_path / "llm")
    # Moved since: told in a line before anything is loaded, and found where it is said to be.
    (tmp_path / "llm").rename(tmp_path / "moved")
    command = ["--checkpoint", str(tmp_path / "run"), "--prompt", "Hi", "--out", str(tmp_path / "r")]
    lost = here(generate.main, *command)
    where = f"{tmp_path}/llm: no such folder; looked for {tmp_path}/llm; set model.llm.name to where it is"
    assert (lost.returncode, lost.stderr.splitlines()[-1]) == (2, f"error: model.llm.name: {where}")
    found = here(generate.main, *command, f"model.llm.name={tmp_path}/moved")
    assert found.returncode == 0, found.stderr


def test_what_would_fail_again_is_tried_once(
    way: Way, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    preset = own_llm(tmp_path)
    (tmp_path / "llm" / "model.safetensors").write_bytes(b"not weights")
    done = here(train_stage.main, *stage_1_of(preset, way, tmp_path / "run"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/llm: damaged weights (")
    assert "stopped.json" in {path.name for path in (tmp_path / "run").iterdir()}


def test_no_command_prints_what_nobody_can_act_on(way: Way) -> None:
    for name, log in way.logs.items():
        lines = filter(str.strip, log.splitlines())
        assert [line for line in lines if not re.match(f"{SUBMISSION}|{EXPECTED[name]}", line)] == [], name
