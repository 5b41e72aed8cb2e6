import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from decoder_cases import array_of, each_modality, name_of
from safetensors.torch import load_file, save_file

from model.decoders.decoder import Decoder
from model.decoders.text_encoders import CaptionEncoder
from model.parts import families
from model.parts.builtin import resolve
from model.parts.config import DecoderSettings
from model.parts.families import caption_shape, default_settings
from pipelines.sample import Audio, Modality, Video

CAPTIONS = ["A red circle", "a dog barks twice in the café 🐕", "", "a long way " * 300]
SHAPES = {Modality.IMAGE: (77, 64), Modality.VIDEO: (77, 48), Modality.AUDIO: (1, 32)}
each_clip = pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.VIDEO])


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEXTGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def encoders(_cache: None) -> dict[Modality, CaptionEncoder]:
    return {modality: CaptionEncoder(modality, name_of(modality)) for modality in Modality}


@pytest.fixture(scope="module")
def decoders(_cache: None) -> dict[Modality, Decoder]:
    return {modality: Decoder(modality, name_of(modality)) for modality in Modality}


@pytest.fixture
def copied(modality: Modality, tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve(name_of(modality)), tmp_path / "decoder"))


@each_modality
def test_embeddings_are_the_pipelines_own(modality: Modality, encoders: dict[Modality, CaptionEncoder]) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(resolve(name_of(modality)))
    embeddings = encoders[modality](CAPTIONS).embeddings
    if modality is Modality.AUDIO:  # pads to 512 tokens, where ours pads to the longest caption
        expected = pipe._encode_prompt(CAPTIONS, "cpu", 1, False)[:, None]
    else:
        expected = pipe.encode_prompt(CAPTIONS, "cpu", 1, False)[0]
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (4, *SHAPES[modality])
    np.testing.assert_allclose(embeddings, expected.detach().numpy(), atol=1e-5)


@each_modality
def test_shapes_agree_and_need_no_weights(
    modality: Modality, encoders: dict[Modality, CaptionEncoder], decoders: dict[Modality, Decoder], copied: Path
) -> None:
    for file in copied.rglob("*.safetensors"):
        file.unlink()
    assert caption_shape(modality, str(copied)) == SHAPES[modality]
    assert encoders[modality].shape == decoders[modality].condition_shape == SHAPES[modality]


@each_clip
def test_lengths_count_the_captions_own_positions(modality: Modality, encoders: dict[Modality, CaptionEncoder]) -> None:
    encoder = encoders[modality]
    lengths = encoder(CAPTIONS).lengths
    own = [min(len(encoder.tokenizer(caption).input_ids), 77) for caption in CAPTIONS]
    assert lengths.dtype == np.int32
    assert lengths.tolist() == own
    assert own[2:] == [2, 77], "begin and end token; cut at the maximum"


def test_an_audio_caption_is_one_vector_of_length_one(encoders: dict[Modality, CaptionEncoder]) -> None:
    result = encoders[Modality.AUDIO](CAPTIONS)
    assert result.lengths.tolist() == [1, 1, 1, 1]
    np.testing.assert_allclose(np.linalg.norm(result.embeddings, axis=-1), 1, atol=1e-5)


@each_modality
def test_a_caption_is_embedded_alike_alone_and_in_a_batch(
    modality: Modality, encoders: dict[Modality, CaptionEncoder]
) -> None:
    batch = encoders[modality](CAPTIONS).embeddings
    alone = np.concatenate([encoders[modality]([caption]).embeddings for caption in CAPTIONS])
    np.testing.assert_allclose(batch, alone, atol=1e-5)


def test_captions_of_many_lengths_keep_their_order(encoders: dict[Modality, CaptionEncoder]) -> None:
    """A pooled encoder takes them by length, some at once; a result belongs to its caption all the same."""
    captions = ["very " * (number * 7 % 40) + f"loud {number}" for number in range(40)]
    encoder = encoders[Modality.AUDIO]
    alone = np.concatenate([encoder([caption]).embeddings for caption in captions])
    np.testing.assert_allclose(encoder(captions).embeddings, alone, atol=1e-5)


@each_modality
def test_bfloat16_keeps_every_position_close_and_has_an_id_of_its_own(
    modality: Modality, encoders: dict[Modality, CaptionEncoder]
) -> None:
    exact, fast = encoders[modality], CaptionEncoder(modality, name_of(modality), precision="bfloat16")
    expected, found = exact(CAPTIONS).embeddings, fast(CAPTIONS).embeddings
    assert found.dtype == np.float32
    assert not np.array_equal(found, expected)
    norms = np.linalg.norm(expected, axis=-1) * np.linalg.norm(found, axis=-1)
    # The one vector of a pooled encoder gathers what all its layers lost.
    assert ((expected * found).sum(axis=-1) / norms).min() > (0.98 if modality is Modality.AUDIO else 0.9999)
    assert fast.id == f"{exact.id}-bfloat16"


@each_modality
def test_different_captions_have_different_embeddings(
    modality: Modality, encoders: dict[Modality, CaptionEncoder]
) -> None:
    red, blue = encoders[modality](["a red circle", "a blue circle"]).embeddings
    assert np.abs(red - blue).max() > 1e-3


@each_modality
def test_no_captions_give_no_embeddings(modality: Modality, encoders: dict[Modality, CaptionEncoder]) -> None:
    result = encoders[modality]([])
    assert result.embeddings.shape == (0, *SHAPES[modality])
    assert result.lengths.shape == (0,)


def test_ids_name_the_encoder_and_fit_a_directory(encoders: dict[Modality, CaptionEncoder]) -> None:
    again = CaptionEncoder(Modality.IMAGE, name_of(Modality.IMAGE))
    assert again.id == encoders[Modality.IMAGE].id
    assert again.id.startswith("tiny-image_decoder-")
    assert len({encoder.id for encoder in encoders.values()}) == 3
    assert not set("/:\\ ") & set("".join(encoder.id for encoder in encoders.values()))


@each_clip
def test_the_id_follows_the_weights_and_the_tokenizer(
    modality: Modality, encoders: dict[Modality, CaptionEncoder], copied: Path
) -> None:
    def digest() -> str:
        return CaptionEncoder(modality, str(copied)).id.rsplit("-", 1)[1]

    original = encoders[modality].id.rsplit("-", 1)[1]
    assert digest() == original
    file = copied / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "model_max_length": 40}))
    shorter = digest()
    tensors = load_file(copied / "text_encoder" / "model.safetensors")
    first = sorted(tensors)[0]
    save_file({**tensors, first: tensors[first] + 1}, copied / "text_encoder" / "model.safetensors", {"format": "pt"})
    assert len({original, shorter, digest()}) == 3


@each_modality
def test_files_laid_out_as_on_the_hub_load_alike(
    modality: Modality, encoders: dict[Modality, CaptionEncoder], copied: Path
) -> None:
    """Released decoders have a `text_model.` prefix, `position_ids`, vocab.json with merges.txt, no tokenizer.json."""
    file = copied / "text_encoder" / "model.safetensors"
    tensors = {"text_model." + name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
    if modality is Modality.AUDIO:
        tensors = {name: tensor for name, tensor in load_file(file).items() if not name.endswith("token_type_ids")}
    else:
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, file, {"format": "pt"})
    tokenizer = copied / "tokenizer"
    pairs = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (tokenizer / "tokenizer.json").unlink()
    (tokenizer / "vocab.json").write_text(json.dumps(pairs["vocab"]), encoding="utf-8")
    merges = ["#version: 0.2", *(f"{left} {right}" for left, right in pairs["merges"])]
    (tokenizer / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")

    result, expected = CaptionEncoder(modality, str(copied))(CAPTIONS), encoders[modality](CAPTIONS)
    np.testing.assert_array_equal(result.embeddings, expected.embeddings)
    np.testing.assert_array_equal(result.lengths, expected.lengths)


@each_modality
def test_missing_weights_are_refused(modality: Modality, copied: Path) -> None:
    file = copied / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    del tensors[next(name for name in sorted(tensors) if name.endswith("fc1.weight") or "dense.weight" in name)]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match="text_encoder: 1 weights are missing"):
        CaptionEncoder(modality, str(copied))


@each_modality
def test_names_without_a_fitting_pipeline_are_refused_in_one_line(modality: Modality, tmp_path: Path) -> None:
    other = Modality.AUDIO if modality is Modality.VIDEO else Modality.VIDEO
    with pytest.raises(FileNotFoundError, match=r"model_index\.json") as missing:
        CaptionEncoder(modality, str(tmp_path))
    with pytest.raises(ValueError, match=f"{modality} needs a") as wrong:
        Decoder(modality, name_of(other))
    with pytest.raises(ValueError, match=f"{modality} needs a"):
        caption_shape(modality, name_of(other))
    assert "\n" not in str(missing.value) + str(wrong.value)


@each_modality
def test_generated_media_have_the_pipelines_own_size(modality: Modality, decoders: dict[Modality, Decoder]) -> None:
    media = decoders[modality].generate(np.zeros(SHAPES[modality], np.float32), steps=1)
    array = array_of(media)
    shape, dtype = {
        Modality.IMAGE: ((32, 32, 3), np.uint8),
        Modality.VIDEO: ((8, 32, 32, 3), np.uint8),
        Modality.AUDIO: ((1, 20480), np.float32),
    }[modality]
    assert array.shape == shape
    assert array.dtype == dtype
    assert array.std() > 0
    if isinstance(media, Video):
        assert media.fps == 8
    if isinstance(media, Audio):
        assert media.sample_rate == 16000
        assert np.abs(array).max() <= 1


@pytest.mark.parametrize(
    ("modality", "sizes", "shape"),
    [
        (Modality.IMAGE, {"height": 16, "width": 48}, (16, 48, 3)),
        (Modality.VIDEO, {"height": 16, "width": 32, "num_frames": 3}, (3, 16, 32, 3)),
        (Modality.AUDIO, {"audio_length_in_s": 0.5}, (1, 8000)),
    ],
)
def test_sizes_can_be_chosen(
    modality: Modality, sizes: dict[str, Any], shape: tuple[int, ...], decoders: dict[Modality, Decoder]
) -> None:
    condition_LD = np.zeros(SHAPES[modality], np.float32)
    assert array_of(decoders[modality].generate(condition_LD, steps=1, **sizes)).shape == shape


def test_full_size_decoders_have_the_released_models_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FULL_SIZE_CHANNELS", 1)
    image, video, audio = (default_settings(modality, name_of(modality)) for modality in Modality)
    assert (image["height"], image["num_inference_steps"]) == (32, 50), "the side comes from the UNet: 512 for v1-5"
    assert (video["height"], video["width"], video["num_frames"]) == (320, 576, 16)
    assert audio["audio_length_in_s"] == 5


@each_modality
def test_half_precision_renders(modality: Modality) -> None:
    decoder = Decoder(modality, name_of(modality), settings=DecoderSettings(precision="bfloat16"))
    assert np.isfinite(array_of(decoder.generate(np.zeros(SHAPES[modality], np.float32), steps=1))).all()


@each_modality
def test_output_follows_seed_and_condition_only(
    modality: Modality, encoders: dict[Modality, CaptionEncoder], decoders: dict[Modality, Decoder]
) -> None:
    red, blue = encoders[modality](["a red circle", "a loud bell"]).embeddings

    def render(condition_LD: Any, seed: int) -> bytes:
        torch.rand(1)  # the global random state plays no part
        return array_of(decoders[modality].generate(condition_LD, seed, steps=2)).tobytes()

    first = render(red, 7)
    assert render(torch.from_numpy(red), 7) == first
    assert render(red, 8) != first
    assert render(blue, 7) != first


@each_modality
def test_a_batch_renders_what_its_conditions_render_alone(
    modality: Modality, encoders: dict[Modality, CaptionEncoder], decoders: dict[Modality, Decoder]
) -> None:
    decoder = decoders[modality]
    conditions_NLD = encoders[modality](["a red circle", "a loud bell", "a red circle"]).embeddings
    seeds = [3, 3, 4]
    batch = [array_of(decoded) for decoded in decoder.generate_batch(conditions_NLD, seeds, steps=3)]
    for found, condition_LD, seed in zip(batch, conditions_NLD, seeds, strict=True):
        alone = array_of(decoder.generate(condition_LD, seed, steps=3))
        assert (found.shape, found.dtype) == (alone.shape, alone.dtype)
        np.testing.assert_allclose(
            found.astype(float), alone.astype(float), atol=1 if alone.dtype == np.uint8 else 1e-3
        )
    assert len({found.tobytes() for found in batch}) == 3
    again = decoder.generate_batch(conditions_NLD, seeds, steps=3)
    assert [array_of(decoded).tobytes() for decoded in again] == [found.tobytes() for found in batch]


@each_modality
def test_no_conditions_render_nothing(modality: Modality, decoders: dict[Modality, Decoder]) -> None:
    assert decoders[modality].generate_batch(np.zeros((0, *SHAPES[modality]), np.float32), []) == []


@each_modality
def test_a_condition_of_another_width_is_refused_in_one_line(
    modality: Modality, decoders: dict[Modality, Decoder]
) -> None:
    length, width = SHAPES[modality]
    for shape in ((length, width + 16), (length + 1, width), (1, length, width)):
        with pytest.raises(ValueError, match=rf"has shape \({shape[0]}, .*takes \({length}, {width}\)") as error:
            decoders[modality].generate(np.zeros(shape, np.float32), steps=1)
        assert "\n" not in str(error.value)


@each_modality
def test_an_unknown_setting_is_refused(modality: Modality, decoders: dict[Modality, Decoder]) -> None:
    with pytest.raises(ValueError, match=f"{modality} has no setting depth; it has .*guidance_scale"):
        decoders[modality].generate(np.zeros(SHAPES[modality], np.float32), depth=3)


def test_a_decoder_carries_its_encoders_id(
    encoders: dict[Modality, CaptionEncoder], decoders: dict[Modality, Decoder]
) -> None:
    assert {m: decoder.id for m, decoder in decoders.items()} == {m: encoder.id for m, encoder in encoders.items()}
