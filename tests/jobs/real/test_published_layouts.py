"""Layouts of published parts: as large as published, named as published, and loaded by our own loaders."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CLIPTokenizer, RobertaTokenizer

from model.architectures.imagebind import load_imagebind
from model.architectures.imagebind_text import ImageBindTextEncoder
from model.checkpoints.released import legacy_delta_shapes
from model.core.tokenizer import encode_text, load_tokenizer
from model.decoders.decoder import Decoder
from model.parts.config import load_preset
from model.parts.sources import find_parts
from pipelines.sample import Modality
from tests.benchmarks.real import hub as hub_module
from tests.benchmarks.real.decoders import FOLDERS, decoder
from tests.benchmarks.real.hub import Hub
from tests.benchmarks.real.imagebind import FILE, imagebind
from tests.benchmarks.real.llm import DELTA_FILE, delta, vicuna
from tests.benchmarks.real.weights import Weights, write_weights

# What the model cards and papers of the parts say, or the sizes of their files.
UNET, VAE, CLIP_L, CLIP_H, LLAMA = 859_520_964, 83_653_863, 123_060_480, 340_387_840, 6_738_415_616


def facts(path: Path) -> dict[str, tuple[int, ...]]:
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return {name: tuple(map(int, filter(None, shape.split("x")))) for name, shape in rows}


def shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def parameters(weights: Weights) -> int:
    """Values that were learned: those that are drawn."""
    return sum(tensor.numel() for tensor in weights.values() if tensor.is_meta)


def dtypes(weights: Weights) -> set[torch.dtype]:
    return {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}


def read(path: Path) -> Mapping[str, torch.Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def test_vicuna_is_llama_in_two_shards_of_float16() -> None:
    layout = vicuna()

    assert sum(map(parameters, layout.weights.values())) == LLAMA
    assert layout.num_bytes == 2 * (LLAMA + 32 * 64), "with the rotary frequencies of each layer"
    assert list(layout.weights) == [f"pytorch_model-0000{shard}-of-00002.bin" for shard in (1, 2)]
    index = layout.documents["pytorch_model.bin.index.json"]
    assert index["metadata"]["total_size"] == 13_476_835_328
    assert {name: file for file, names in layout.weights.items() for name in names} == index["weight_map"]
    assert all(dtypes(weights) == {torch.float16} for weights in layout.weights.values())


def test_imagebind_has_the_tensors_of_the_released_file(shared: Path) -> None:
    weights = imagebind().weights[FILE]
    ours = {name: shape for name, shape in shapes(weights).items() if ".vision." in name or ".audio." in name}

    assert ours == facts(shared / "facts" / "imagebind_huge_vision_audio.tsv")
    assert dtypes(weights) == {torch.float32}
    assert {name.split(".")[1] for name in weights} == {"vision", "audio", "text", "depth", "thermal", "imu"}


def test_the_delta_has_the_tensors_of_the_released_file(shared: Path) -> None:
    weights = delta(load_preset("nextgpt_7b")).weights[DELTA_FILE]

    assert shapes(weights) == facts(shared / "facts" / "delta_7b_tiva_v0.tsv")
    assert dtypes(weights) == {torch.float16}


def test_decoders_are_as_large_as_published_in_their_precision() -> None:
    image, video, audio = (decoder(modality).weights for modality in Modality)

    assert parameters(image["unet/diffusion_pytorch_model.safetensors"]) == UNET
    assert parameters(image["vae/diffusion_pytorch_model.safetensors"]) == VAE
    assert parameters(image["text_encoder/model.safetensors"]) == CLIP_L
    assert "safety_checker/model.safetensors" in image
    assert parameters(video["vae/diffusion_pytorch_model.bin"]) == VAE
    assert parameters(video["text_encoder/pytorch_model.bin"]) == CLIP_H
    assert {"unet", "vae", "text_encoder", "vocoder"} == {file.split("/")[0] for file in audio}
    assert {dtype for weights in video.values() for dtype in dtypes(weights)} == {torch.float16}
    for float32 in (image, audio):
        assert {dtype for weights in float32.values() for dtype in dtypes(weights)} == {torch.float32}


def test_decoders_keep_the_names_of_their_time() -> None:
    for modality in Modality:
        for file, weights in decoder(modality, small=True).weights.items():
            if file.startswith("vae/"):
                kept = {name.split(".")[-2] for name in weights if "attentions" in name}
                assert kept == {"group_norm", "query", "key", "value", "proj_attn"}
            if file.startswith("text_encoder/"):
                assert "text_model.embeddings.position_ids" in weights


@pytest.mark.parametrize("name", ["a.bin", "a.safetensors"])
def test_weights_are_written_as_they_are_described(tmp_path: Path, name: str) -> None:
    with torch.device("meta"):
        drawn = {"a.weight": torch.empty(70, 130), "norm.weight": torch.empty(7), "norm.bias": torch.empty(7)}
        drawn["half"] = torch.empty(3, 5, dtype=torch.float16)
    given = {"scale": torch.tensor(2.5), "ids": torch.arange(3)[None]}
    for folder in "xy":
        write_weights({**given, **drawn}, tmp_path / folder / name)

    found = read(tmp_path / "x" / name)

    assert {key: (value.shape, value.dtype) for key, value in found.items()} == {
        key: (value.shape, value.dtype) for key, value in {**given, **drawn}.items()
    }
    assert all(torch.equal(found[key], value) for key, value in given.items())
    assert (found["norm.weight"].unique().item(), found["norm.bias"].unique().item()) == (1, 0)
    assert 0.015 < found["a.weight"].std() < 0.025
    assert len(np.unique(found["a.weight"].numpy(), axis=0)) == 70
    assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_vicuna_tokenizes_without_a_tokenizer_json(
    small_hub: Hub, parts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_hub.root)  # a preset's paths are relative to where a command starts
    config, missing = find_parts(small_hub.config())
    tokenizer = load_tokenizer(config)

    assert missing == []
    assert not (parts["vicuna"] / "tokenizer.json").exists()
    assert tokenizer.convert_tokens_to_ids(["<Img>", "[IMG0]", "[AUD7]"]) == [32_000, 32_002, 32_037]
    for text in ("Show me a dog.", "eine Straße, naïve, 日本 🐕", "two  spaces\n\tand a tab"):
        assert tokenizer.decode(encode_text(tokenizer, text)) == text


def test_vicuna_loads_whole(parts: dict[str, Path]) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(parts["vicuna"], dtype=torch.float16, output_loading_info=True)
    index = json.loads((parts["vicuna"] / "pytorch_model.bin.index.json").read_text())["weight_map"]

    assert not info["missing_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, read(parts["vicuna"] / index[name])[name]), name


def test_imagebind_loads_with_as_many_blocks_as_its_file_has(parts: dict[str, Path]) -> None:
    path = parts["imagebind"] / FILE
    model = load_imagebind(path)
    texts = ImageBindTextEncoder(path, CLIPTokenizer.from_pretrained(parts["image"] / "tokenizer"))

    assert (model.config.vision_layers, model.config.audio_layers) == (1, 1)
    assert model.forward_vision(torch.zeros(1, 3, 224, 224)).shape == (1, 1024)
    assert texts(["a dog", "a cat"]).shape == (2, 1024)


@pytest.mark.parametrize("modality", Modality)
def test_decoders_render_what_their_files_hold(parts: dict[str, Path], modality: Modality) -> None:
    loaded = Decoder(modality, str(parts[modality.value]))
    [file] = (path for path in (parts[modality.value] / "vae").iterdir() if path.suffix != ".json")
    vae = read(file)

    loaded.generate(loaded.embed(["a dog barks"])[0], steps=1)

    assert loaded.condition_shape == {"image": (77, 768), "video": (77, 1024), "audio": (1, 512)}[modality.value]
    query = "encoder.mid_block.attentions.0."
    found = loaded.pipe.vae.state_dict()[query + "to_q.weight"].float()
    assert torch.equal(found, vae[query + "query.weight"].float())


def test_tokenizers_are_the_real_ones(parts: dict[str, Path]) -> None:
    clip = CLIPTokenizer.from_pretrained(parts["video"] / "tokenizer")
    roberta = RobertaTokenizer.from_pretrained(parts["audio"] / "tokenizer")

    assert clip("a photo of a cat").input_ids == [49_406, 320, 1125, 539, 320, 2368, 49_407]
    assert (len(clip), len(roberta)) == (49_408, 50_265)
    assert roberta.decode(roberta("A dog barks, far away.").input_ids) == "<s>A dog barks, far away.</s>"


def test_the_delta_of_the_small_cut_fits_its_preset(small_hub: Hub, parts: dict[str, Path]) -> None:
    assert shapes(read(parts["delta"] / DELTA_FILE)) == legacy_delta_shapes(small_hub.config())


def test_parts_that_are_there_are_not_written_again(
    small_hub: Hub, parts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "fetch_vocabularies", lambda: pytest.fail("nothing is missing"))

    small_hub.write()

    assert {path.name for path in small_hub.root.iterdir()} >= {*FOLDERS.values(), "imagebind"}
