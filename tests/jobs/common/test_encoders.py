"""An encoder's id is known again without loading it, and only while nothing has changed that it depends on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoder_families import write_pipeline

from jobs.common.encoders import EncoderFactory, clips, encoder_factory, preprocess_factory
from model.decoders.text_encoders import CaptionEncoder
from model.encoders.imagebind_encoder import VIDEO_CROPS
from model.encoders.imagebind_inputs import VIDEO_CLIPS, MediaInputs
from model.encoders.mel import AUDIO_CLIPS
from model.parts.builtin import FOUNDATIONS
from model.parts.config import ModelConfig, load_preset
from pipelines.embed.encoding import VIDEO_FPS, EmbedTask, join_inputs, prepare_media, split_inputs
from pipelines.embed.identities import learn, recall
from pipelines.media.codecs import decode, encode
from pipelines.sample import Audio, Image, Modality, Video
from pipelines.storage.sidecars import ENCODER, ROW_KINDS


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelConfig:
    """The preset `world` with a memory of its own and an image decoder that a test may change."""
    monkeypatch.setenv("NEXTGPT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(FOUNDATIONS / "image_decoder", tmp_path / "decoder")
    world = load_preset("world")
    outputs = {
        m: output.model_copy(update={"decoder": str(tmp_path / "decoder")}) for m, output in world.outputs.items()
    }
    return world.model_copy(update={"outputs": outputs})


def task(factory: EncoderFactory) -> EmbedTask:
    return EmbedTask(kind="image", factory=factory, dtype="float32", memory=factory.memory)


@pytest.mark.parametrize("kind", ["image", "encoder", "image_latents"])
def test_an_encoder_is_known_again_as_what_it_was_loaded_as(config: ModelConfig, kind: str) -> None:
    factory = encoder_factory(config, kind)
    assert recall(task(factory)) is None
    learned = learn(task(factory))
    assert learned == recall(task(encoder_factory(config, kind)))
    assert learned.id == factory().id


def test_each_kind_and_precision_has_a_memory_of_its_own(config: ModelConfig) -> None:
    factories = [encoder_factory(config, kind) for kind in ROW_KINDS] + [encoder_factory(config, "image", "bfloat16")]
    assert len({factory.memory() for factory in factories}) == len(factories)


PICTURE = Image(pixels=np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
FILM = Video(frames=np.random.default_rng(1).integers(0, 255, (40, 48, 64, 3), np.uint8), fps=8.0)
SOUND = Audio(waveform=np.random.default_rng(2).uniform(-0.5, 0.5, (1, 48_000)).astype(np.float32), sample_rate=16_000)


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("image", ["a red circle", "", "a small blue square above a green one"]),
        ("audio", ["a low tone", "a bell"]),
        (ENCODER, [PICTURE, SOUND, FILM]),
        ("image_latents", [PICTURE]),
        ("video_latents", [FILM]),
        ("audio_latents", [SOUND]),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_any_cpu_prepares_is_what_the_encoder_embeds(kind: str, inputs: list[Any], precision: Any) -> None:
    config = load_preset("tiny")
    factory, prepare = encoder_factory(config, kind, precision), preprocess_factory(config, kind)()
    encoder, header_and_data = factory(), join_inputs(prepare(inputs))
    found, lengths = encoder(encoder.send(split_inputs(*header_and_data)))
    whole = encoder._encoder(inputs)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found, getattr(whole, "embeddings", whole))
    assert (len(lengths), found.dtype) == (len(inputs), np.float32)
    assert encoder.precision == precision
    assert encoder.id.endswith("-bfloat16") == (precision == "bfloat16") == (factory.exact is not None)


def test_captions_for_several_text_encoders_go_to_them_as_they_are(tmp_path: Path) -> None:
    tiny, path = load_preset("tiny"), str(write_pipeline("WanPipeline", tmp_path / "wan"))
    output = tiny.outputs[Modality.VIDEO].model_copy(update={"decoder": path})
    config = tiny.model_copy(update={"outputs": {Modality.VIDEO: output}})
    captions, prepare = ["a red circle", "", "a café"], preprocess_factory(config, "video")()
    assert prepare(captions) == captions
    encoder = encoder_factory(config, "video")()
    found, lengths = encoder(encoder.send(split_inputs(*join_inputs(prepare(captions)))))
    assert (found.shape, lengths.tolist()) == ((3, 512, 32), [4, 1, 3])
    np.testing.assert_array_equal(found, CaptionEncoder(Modality.VIDEO, path)(captions).embeddings)


def test_of_a_film_the_ten_frames_are_prepared_that_all_of_it_would_give(tmp_path: Path) -> None:
    film, prepare = encode(FILM), MediaInputs(28)
    [found] = prepare_media([film], prepare)
    [whole] = prepare([decode(film, fps=VIDEO_FPS)])
    assert found.shape == (10, 48, 64, 3)
    np.testing.assert_array_equal(found, whole)


def test_batches_are_counted_by_the_clips_that_imagebind_makes() -> None:
    assert clips(ENCODER) == {Modality.VIDEO: VIDEO_CLIPS * VIDEO_CROPS, Modality.AUDIO: AUDIO_CLIPS}
    assert clips("image") == {}


def test_pictures_are_prepared_without_torch(config: ModelConfig) -> None:
    program = f"""
import sys
import numpy as np
from jobs.common.encoders import preprocess_factory
from model.parts.config import ModelConfig
from pipelines.sample import Image
config = ModelConfig.model_validate_json({config.model_dump_json()!r})
prepare = preprocess_factory(config, "encoder")()
assert prepare([Image(pixels=np.zeros((40, 60, 3), np.uint8))])[0].dtype == np.uint8
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def replaced(decoder: Path) -> None:
    """Other weights of the same size, with the old time."""
    path = decoder / "text_encoder" / "model.safetensors"
    data, status = bytearray(path.read_bytes()), path.stat()
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def touched(decoder: Path) -> None:
    (decoder / "text_encoder" / "model.safetensors").touch()


def added(decoder: Path) -> None:
    (decoder / "tokenizer" / "added_tokens.json").write_text("{}")


@pytest.mark.parametrize(("change", "other"), [(replaced, True), (touched, False), (added, False)])
def test_an_encoder_whose_files_changed_is_looked_up_again(
    config: ModelConfig, tmp_path: Path, change: Callable[[Path], None], other: bool
) -> None:
    work = task(encoder_factory(config, "image"))
    before = learn(work)
    change(tmp_path / "decoder")
    assert recall(work) is None
    assert (learn(work) != before) == other


def test_to_know_an_encoder_again_imports_no_torch(config: ModelConfig) -> None:
    for kind in ("image", "encoder"):
        learn(task(encoder_factory(config, kind)))
    program = f"""
import sys
from jobs.common.encoders import encoder_factory
from model.parts.config import ModelConfig
from pipelines.embed.identities import recall
from pipelines.embed.encoding import EmbedTask
config = ModelConfig.model_validate_json({config.model_dump_json()!r})
for kind in ("image", "encoder"):
    factory = encoder_factory(config, kind)
    assert recall(EmbedTask(kind=kind, factory=factory, dtype="float32", memory=factory.memory))
assert not {{"torch", "transformers", "diffusers"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_an_encoder_that_is_nowhere_is_not_remembered(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    factory = EncoderFactory(make=encoder_factory(config, "image").make, name="nobody/nothing", settings=("image",))
    assert factory.memory() is None
