"""Where frozen parts are looked for, and what is said of those that are missing."""

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, serving
from huggingface_hub import constants

from model.parts import sources
from model.parts.builtin import resolve
from model.parts.config import ModelConfig, load_preset
from model.parts.sources import ENCODER, LLM, decoder_key, find_parts, looks_like_a_path, parts_of, with_names
from pipelines.sample import Modality

IMAGE = decoder_key(Modality.IMAGE)
VIDEO = decoder_key(Modality.VIDEO)


def named(**names: str) -> ModelConfig:
    """The tiny model with other names of parts, by the end of their keys."""
    keys = {"llm": LLM, "encoder": ENCODER, "image": IMAGE, "video": VIDEO}
    return with_names(load_preset("tiny"), {keys[key]: name for key, name in names.items()})


def names_of(config: ModelConfig) -> dict[str, str]:
    return {part.key: part.name for part in parts_of(config)}


def missing(config: ModelConfig, *needed: str) -> list[str]:
    return find_parts(config, needed or None)[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and a cache of the hub that is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    hub = Hub()
    with serving(hub) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


def write(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def llm(folder: Path) -> Path:
    return write(folder, config_DOT_json="{}", tokenizer_DOT_model="", model_DOT_safetensors="")


def test_built_in_parts_are_there() -> None:
    assert find_parts(load_preset("tiny")) == (load_preset("tiny"), [])
    assert find_parts(load_preset("world")) == (load_preset("world"), [])


def test_relative_paths_become_absolute_whether_they_are_needed_or_not(here: Path) -> None:
    llm(here / "models" / "vicuna")
    (here / "imagebind.pth").touch()
    (here / "other").mkdir()
    named_here = named(llm="models/vicuna", encoder="other/../imagebind.pth", image="./sd")
    config, mistakes = find_parts(named_here, [LLM])
    assert mistakes == []
    found = names_of(config)
    assert found[LLM] == str(here / "models" / "vicuna")
    assert found[ENCODER] == str(here / "imagebind.pth")
    assert found[IMAGE] == str(here / "sd")
    assert found[VIDEO] == "builtin:tiny/video_decoder"


def test_a_folder_comes_before_a_repository_of_that_name(here: Path) -> None:
    llm(here / "lmsys" / "vicuna")
    assert names_of(find_parts(named(llm="lmsys/vicuna"), [LLM])[0])[LLM] == str(here / "lmsys" / "vicuna")


@pytest.mark.parametrize("name", ["/x", "./x", "../x", "~/x", "a/b/c", "imagebind_huge.pth", "a/b.safetensors"])
def test_what_cannot_be_a_repository_is_a_path(name: str) -> None:
    assert looks_like_a_path(name)
    assert not looks_like_a_path("lmsys/vicuna-7b-v1.5")
    assert not looks_like_a_path("gpt2")


def test_all_that_is_missing_is_told_at_once_each_in_a_line_that_says_where_it_was_looked_for(here: Path) -> None:
    lines = missing(named(llm="./vicuna", encoder="imagebind_huge.pth", image="/no/sd", video="a/b"))
    assert lines == [
        f"model.llm.name: ./vicuna: no such folder; looked for {here}/vicuna; set model.llm.name to where it is",
        f"model.encoder.name: imagebind_huge.pth: no such file or folder; looked for {here}/imagebind_huge.pth; set "
        "model.encoder.name to where it is",
        "model.outputs.image.decoder: /no/sd: no such folder; looked for /no/sd; set model.outputs.image.decoder to "
        "where it is",
        f"model.outputs.video.decoder: a/b: no such folder, and not in the hub's cache ({here}/cache); HF_HUB_OFFLINE "
        "is set, so the hub is not asked; set model.outputs.video.decoder to a folder",
    ]


@pytest.mark.parametrize(
    ("absent", "told"),
    [
        ("config.json", "no config.json in"),
        ("tokenizer.model", "no tokenizer (tokenizer.json, tokenizer.model,"),
        ("model.safetensors", "no weights (*.safetensors, *.bin, *.gguf) in"),
    ],
)
def test_a_file_that_an_llm_lacks_is_named(here: Path, absent: str, told: str) -> None:
    (llm(here / "vicuna") / absent).unlink()
    [line] = missing(named(llm="./vicuna"), LLM)
    assert line.startswith(f"model.llm.name: ./vicuna: {told}")


def test_a_piece_of_an_llm_that_its_index_names_is_missed(here: Path) -> None:
    folder = llm(here / "vicuna")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model-00001-of-00002.bin").touch()
    [line] = missing(named(llm="./vicuna"), LLM)
    assert "no pytorch_model-00002-of-00002.bin, which pytorch_model.bin.index.json names (1 of 2 are missing)" in line
    (folder / "pytorch_model-00002-of-00002.bin").touch()
    assert missing(named(llm="./vicuna"), LLM) == []


def test_a_decoder_is_of_its_modality_and_has_all_its_models(here: Path) -> None:
    whole = Path(resolve("builtin:tiny/image_decoder"))
    assert missing(named(image=str(whole)), IMAGE) == []
    [line] = missing(named(video=str(whole)), VIDEO)
    assert (
        "a StableDiffusionPipeline, not the TextToVideoSDPipeline, WanPipeline or LTXPipeline that video needs, in"
        in line
    )
    index = (whole / "model_index.json").read_text()
    broken = write(here / "sd", model_index_DOT_json=index, unet__config_DOT_json="{}", text_encoder__x_DOT_bin="")
    assert [line.split(": ")[2].split(" in ")[0] for line in missing(named(image=str(broken)), IMAGE)] == [
        "no scheduler",
        "no tokenizer",
        "no weights (unet/*.safetensors, unet/*.bin, unet/*.gguf)",
        "no vae",
    ]
    assert "no diffusers pipeline" in missing(named(image=str(here)), IMAGE)[0]


def test_all_text_encoders_of_a_decoder_are_wanted_but_those_that_its_index_leaves_out(here: Path) -> None:
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "text_encoder_3": [None, None],
        "transformer": ["diffusers", "SD3Transformer2DModel"],
    }
    folder = write(here / "sd3", model_index_DOT_json=json.dumps(index), text_encoder__x_DOT_safetensors="")
    assert [line.split(": ")[2].split(" in ")[0] for line in missing(named(image=str(folder)), IMAGE)] == [
        "no text_encoder_2",
        "no tokenizer_2",
        "no transformer",
    ]


def test_a_package_that_a_decoders_scheduler_needs_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    index = {"_class_name": "WanPipeline", "scheduler": ["diffusers", "CosineDPMSolverMultistepScheduler"]}
    folder = write(here / "wan", model_index_DOT_json=json.dumps(index), scheduler__x_DOT_json="{}")
    [line] = missing(named(video=str(folder)), VIDEO)
    assert "no package torchsde (pip install torchsde) for the CosineDPMSolverMultistepScheduler" in line


def test_a_repository_that_the_hub_has_is_taken_and_one_that_it_has_not_is_not(hub: Hub) -> None:
    hub.commits["lmsys/vicuna"] = [{"config.json": b"{}"}]
    hub.commits["lmsys/secret"], hub.private = [{}], {"lmsys/secret"}
    assert missing(named(llm="lmsys/vicuna"), LLM) == []
    for name in ("lmsys/vicunna", "lmsys/secret"):
        [line] = missing(named(llm=name), LLM)
        assert "and the hub has no such repository, or you have no access to it" in line
    [line] = missing(named(llm="not a name"), LLM)
    assert "and not a valid repository name" in line


def test_no_connection_is_another_message_and_the_hub_is_asked_once(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    with socket.socket() as refusing:  # bound, but it does not listen
        refusing.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{refusing.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        real = socket.create_connection
        monkeypatch.setattr(socket, "create_connection", lambda *a, **k: asked.append(a) or real(*a, **k))
        lines = missing(named(llm="lmsys/vicuna", image="runwayml/sd"))
    assert [line.partition("; ")[2].partition("; ")[0].partition(" (")[0] for line in lines] == [
        "and no connection to the hub",
        "and no connection to the hub",
    ]
    assert len(asked) <= 1


def test_without_a_connection_the_cache_has_to_hold_all_of_a_repository(here: Path) -> None:
    repository = here / "cache" / "models--lmsys--vicuna"
    write(repository, refs__main="0" * 40)
    snapshot = llm(repository / "snapshots" / ("0" * 40))
    assert missing(named(llm="lmsys/vicuna"), LLM) == []
    (snapshot / "model.safetensors").unlink()
    [line] = missing(named(llm="lmsys/vicuna"), LLM)
    assert f"no weights (*.safetensors, *.bin, *.gguf) in the hub's cache, {snapshot}" in line
