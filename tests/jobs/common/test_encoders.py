"""An encoder's id is known again without loading it, and only while nothing has changed that it depends on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.common.encoders import EncoderFactory, encoder_factory
from model.parts.builtin import FOUNDATIONS
from model.parts.config import ModelConfig, load_preset
from pipelines.embed.encoding import EmbedTask
from pipelines.embed.identities import learn, recall
from pipelines.storage.sidecars import ROW_KINDS


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
