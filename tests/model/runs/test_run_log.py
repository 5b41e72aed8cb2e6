"""What is logged is read back as TensorBoard reads it, and media are decoded again."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.runs.run_log import TIMES, RunLog
from model.training.validation_replies import Sampled
from pipelines.sample import Audio, Decoded, Image, Modality, Video
from pipelines.storage.files import read_json_lines

RAMP = np.linspace(0, 255, 24 * 32 * 3).astype(np.uint8).reshape(24, 32, 3)


def opened(directory: Path, first_step: int = 0) -> RunLog:
    return RunLog(directory, first_step=first_step, tracker=None, name="run", settings={})


def train(directory: Path, first_step: int, last_step: int, seconds: float = 1.0) -> None:
    with opened(directory, first_step) as log:
        for step in range(first_step + 1, last_step + 1):
            log.step(step, {"step": step, "loss": 1 / step, "step_seconds": seconds})
            if step % 3 == 0:
                log.validation(step, {"loss": 2 / step})


def board(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"images": 0, "audio": 0})
    events.Reload()
    return events


def sampled(modality: Modality, medium: Decoded | None) -> Sampled:
    return Sampled(modality=modality, prompt="a <b>cat</b>", expected="Here.", text="* Há!\nIt is.", medium=medium)


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.endswith(TIMES)}


def test_the_log_has_a_line_a_step_and_one_a_validation(tmp_path: Path) -> None:
    train(tmp_path, 0, 3)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 1.0, "step_seconds": 1.0},
        {"step": 2, "loss": 0.5, "step_seconds": 1.0},
        {"step": 3, "loss": 1 / 3, "step_seconds": 1.0},
        {"step": 3, "validation/loss": 2 / 3},
    ]


def test_the_keys_of_a_step_are_in_its_line_and_no_figure(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.step(1, {"loss": 1.0, "samples": ["a", "b"]})
    assert read_json_lines(tmp_path / "log.jsonl") == [{"step": 1, "loss": 1.0, "samples": ["a", "b"]}]
    assert board(tmp_path).Tags()["scalars"] == ["loss"]


def test_a_line_is_on_its_way_before_the_next_step(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.step(1, {"loss": 1.0})
        assert len(read_json_lines(tmp_path / "log.jsonl")) == 1


def test_a_figure_that_is_no_number_leaves_the_line_valid_json(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.step(1, {"loss": float("nan"), "accuracy": 0.5})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    line = (tmp_path / "log.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "loss": None, "accuracy": 0.5}


@pytest.mark.parametrize("saved", [0, 2, 3, 5])
def test_the_log_of_an_interrupted_run_is_that_of_an_uninterrupted_one(saved: int, tmp_path: Path) -> None:
    train(tmp_path / "whole", 0, 7)
    train(tmp_path / "cut", 0, 5, seconds=9.0)
    with (tmp_path / "cut" / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while it wrote
    train(tmp_path / "cut", saved, 7)
    whole, cut = ([*map(without_times, read_json_lines(tmp_path / name / "log.jsonl"))] for name in ("whole", "cut"))
    assert cut == whole
    for tag in ("loss", "validation/loss"):
        whole, cut = ([(e.step, e.value) for e in board(tmp_path / name).Scalars(tag)] for name in ("whole", "cut"))
        assert cut == whole


def test_a_run_that_goes_on_where_its_log_is_lost_begins_a_new_one(tmp_path: Path) -> None:
    train(tmp_path, 4, 6)
    assert [row["step"] for row in read_json_lines(tmp_path / "log.jsonl")] == [5, 6, 6]


@given(cut=st.integers(0, 400))
def test_a_log_cut_anywhere_reads_as_its_whole_lines(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    text = "".join(json.dumps({"step": step, "loss": step / 7}) + "\n" for step in range(1, 10))
    path.write_text(text[:cut])
    assert len(read_json_lines(path)) == text[:cut].count("\n")


@pytest.mark.parametrize("modality", list(Modality))
def test_a_sample_comes_back_out_of_tensorboard_and_lies_beside_as_files(modality: Modality, tmp_path: Path) -> None:
    wave = np.sin(np.arange(1600, dtype=np.float32) / 10)[None] / 2
    media: dict[Modality, Decoded] = {
        Modality.IMAGE: Image(pixels=RAMP),
        Modality.VIDEO: Video(frames=np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]]), fps=8.0),
        Modality.AUDIO: Audio(waveform=wave, sample_rate=16000),
    }
    with opened(tmp_path) as log:
        log.sample(120, sampled(modality, media[modality]))
    events, tag = board(tmp_path), f"samples/{modality}"
    [file] = [path for path in (tmp_path / "samples").iterdir() if path.suffix != ".txt"]
    if modality is Modality.AUDIO:
        [event] = events.Audio(tag)
        data, rate = soundfile.read(io.BytesIO(event.encoded_audio_string), dtype="float32")
        assert (rate, event.sample_rate, event.length_frames) == (16000, 16000, 1600)
        np.testing.assert_allclose(data, wave[0], atol=1e-4)
        assert file.read_bytes() == event.encoded_audio_string
    else:
        [event] = events.Images(tag)
        picture = PIL.Image.open(io.BytesIO(event.encoded_image_string))
        assert (picture.width, picture.height) == (event.width, event.height) == (32, 24)
        frames = []
        for place in range(getattr(picture, "n_frames", 1)):
            picture.seek(place)
            frames.append(np.array(picture.convert("RGB")))
        given = media[modality]
        wanted = given.frames if isinstance(given, Video) else RAMP[None]
        assert (picture.format, len(frames)) == (("GIF", 3) if modality is Modality.VIDEO else ("PNG", 1))
        # A GIF has 256 colors a frame.
        np.testing.assert_allclose(frames, wanted, atol=24 if modality is Modality.VIDEO else 0)
        assert file.read_bytes() == event.encoded_image_string
    assert event.step == 120


def test_a_sample_without_a_medium_is_text_and_text_is_no_markup(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.sample(7, sampled(Modality.AUDIO, None))
    [path] = (tmp_path / "samples").iterdir()
    assert path.name == "000007-audio.txt"
    assert path.read_text() == "prompt: a <b>cat</b>\nexpected: Here.\nreply: * Há!\nIt is.\n"
    [event] = board(tmp_path).Tensors("samples/audio/text_summary")
    assert event.tensor_proto.string_val[0].decode() == (
        "**prompt**\n\n    a <b>cat</b>\n\n**expected**\n\n    Here.\n\n**reply**\n\n    * Há!\n    It is."
    )


def test_closing_twice_does_nothing_more(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.close()
    log.close()
