"""Decoders of every family, each against its own pipeline."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from decoder_cases import array_of
from decoder_families import MODALITIES, write_pipeline
from dialogue_cases import dialogue, item, make_example
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.core.batch import collate
from model.core.losses import Criterion, total
from model.core.nextgpt import NextGPT
from model.decoders import decoder as decoder_module
from model.decoders.conditions import Condition, from_rows, to_rows
from model.decoders.decoder import Decoder
from model.decoders.denoising import Denoiser
from model.decoders.latents import LatentEncoder
from model.decoders.text_encoders import CaptionEncoder
from model.parts import families
from model.parts.config import DecoderSettings, ModelConfig
from model.parts.families import condition_shape, latent_grid, latent_shape
from model.parts.family_table import ConditionShape
from pipelines.sample import Audio, Image, Modality, Video
from pipelines.storage.sidecars import from_npy, to_npy, with_zeros, without_zeros

CAPTIONS = ["a red circle", "a dog barks &amp; a cat  sleeps", "", "a red square " * 200]
each_kind = pytest.mark.parametrize("kind", MODALITIES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    root, made = tmp_path_factory.mktemp("families"), dict[str, str]()

    def find(kind: str) -> str:
        if kind not in made:
            made[kind] = str(write_pipeline(kind, root / kind))
        return made[kind]

    return find


@pytest.fixture(scope="module")
def pipe(folder: Callable[[str], str]) -> Callable[[str], Any]:
    made = dict[str, Any]()

    def find(kind: str) -> Any:
        if kind not in made:
            made[kind] = getattr(diffusers, kind).from_pretrained(folder(kind))
            made[kind].set_progress_bar_config(disable=True)
        return made[kind]

    return find


@pytest.fixture(scope="module")
def embedded(folder: Callable[[str], str]) -> Callable[[str], tuple[CaptionEncoder, Any]]:
    made = dict[str, tuple[CaptionEncoder, Any]]()

    def find(kind: str) -> tuple[CaptionEncoder, Any]:
        if kind not in made:
            encoder = CaptionEncoder(MODALITIES[kind], folder(kind))
            made[kind] = encoder, encoder(CAPTIONS)
        return made[kind]

    return find


@pytest.fixture(scope="module")
def decoders(folder: Callable[[str], str]) -> Callable[[str], Decoder]:
    made = dict[str, Decoder]()

    def find(kind: str) -> Decoder:
        if kind not in made:
            made[kind] = Decoder(MODALITIES[kind], folder(kind))
        return made[kind]

    return find


def own(pipe: Any, captions: list[str]) -> Condition:
    """What the pipeline's own call makes of captions."""
    instruction = diffusers.SanaPipeline.__call__.__wrapped__.__defaults__[-1]  # type: ignore[attr-defined]
    mask, pooled = None, torch.zeros(len(captions), 0)
    with torch.no_grad():
        match type(pipe).__name__:
            case "StableDiffusionXLPipeline":
                sequence, _, pooled, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False)
            case "StableDiffusion3Pipeline":
                sequence, _, pooled, _ = pipe.encode_prompt(captions, None, None, do_classifier_free_guidance=False)
            case "FluxPipeline":
                sequence, pooled, _ = pipe.encode_prompt(captions)
            case "SanaPipeline":
                sequence, mask, *_ = pipe.encode_prompt(captions, False, complex_human_instruction=instruction)
            case "WanPipeline":
                sequence, _ = pipe.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=512)
            case "LTXPipeline":
                sequence, mask, *_ = pipe.encode_prompt(captions, do_classifier_free_guidance=False)
            case _:
                sequence = pipe.encode_prompt(captions, "cpu", False)
    return Condition(sequence, None if mask is None else mask.bool(), pooled)


@each_kind
def test_captions_embed_as_the_pipelines_own_encode_prompt_does(
    kind: str, pipe: Callable[[str], Any], embedded: Callable[[str], tuple[CaptionEncoder, Any]]
) -> None:
    encoder, result = embedded(kind)
    expected = own(pipe(kind), CAPTIONS)
    found = from_rows(encoder._texts.shape, torch.from_numpy(result.embeddings))
    torch.testing.assert_close(found.pooled_NP, expected.pooled_NP, atol=1e-5, rtol=1e-5)
    sequence = expected.sequence_NLD
    if expected.mask_NL is None:
        assert found.mask_NL is None
    else:
        assert found.mask_NL is not None
        assert torch.equal(found.mask_NL, expected.mask_NL)
        sequence = sequence * expected.mask_NL[..., None]
    torch.testing.assert_close(found.sequence_NLD, sequence, atol=1e-5, rtol=1e-5)
    assert (found.sequence_NLD[0] - found.sequence_NLD[1]).abs().max() > 0.1


def test_stable_diffusion_3_may_leave_out_its_t5(tmp_path: Path) -> None:
    kind = "StableDiffusion3Pipeline"
    path = str(write_pipeline(kind, tmp_path / kind, text_encoder_3=None, tokenizer_3=None))
    encoder, decoder = CaptionEncoder(Modality.IMAGE, path), Decoder(Modality.IMAGE, path)
    result = encoder(CAPTIONS[:1])
    whole = diffusers.StableDiffusion3Pipeline.from_pretrained(path, text_encoder_3=None, tokenizer_3=None)
    expected = own(whole, CAPTIONS[:1])
    assert torch.equal(from_rows(encoder._texts.shape, torch.from_numpy(result.embeddings))[0], expected[0])
    output = with_text(whole, decoder, CAPTIONS[:1], [7])
    [found] = decoder.generate_batch(result.embeddings, [7], steps=2)
    np.testing.assert_allclose(array_of(found), (output.images[0] * 255).round(), atol=1)


def test_a_pooled_vector_stands_after_the_first_position() -> None:
    shape = ConditionShape(length=3, dim=4, pooled=6)
    sequence, pooled = torch.arange(24.0).view(2, 3, 4), torch.arange(100.0, 112.0).view(2, 6)
    rows = to_rows(shape, Condition(sequence, None, pooled))
    assert (rows.shape[1:], shape.rows) == ((5, 4), (5, 4))
    assert rows[0, :, 0].tolist() == [0, 100, 104, 4, 8]
    assert rows[0, 2].tolist() == [104, 105, 0, 0]
    back = from_rows(shape, rows)
    assert torch.equal(back.sequence_NLD, sequence)
    assert torch.equal(back.pooled_NP, pooled)
    assert back.mask_NL is None


def test_positions_outside_the_mask_are_zeros_which_a_decoder_does_not_look_at() -> None:
    shape = ConditionShape(length=3, dim=2, masked=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rows = to_rows(shape, Condition(torch.ones(2, 3, 2), mask, torch.zeros(2, 0)))
    assert rows[..., 0].tolist() == [[1, 1, 0], [1, 0, 0]]
    found = from_rows(shape, rows).mask_NL
    assert found is not None
    assert torch.equal(found, mask)


@each_kind
def test_lengths_count_the_rows_of_a_caption(kind: str, embedded: Callable[[str], tuple[CaptionEncoder, Any]]) -> None:
    encoder, result = embedded(kind)
    most, shape = encoder.shape[0], encoder._texts.shape
    short, long, empty, cut = result.lengths.tolist()
    assert cut == most
    if kind == "StableDiffusion3Pipeline":  # two captions, one after the other: the second begins where T5 does
        assert {short, long, empty} == {most}
        return
    assert empty < short < long < cut
    assert empty >= 1 + shape.pooled_rows
    if kind in ("WanPipeline", "SanaPipeline", "LTXPipeline", "StableAudioPipeline"):
        assert not result.embeddings[0, short:].any()
        assert result.embeddings[0, :short].any(axis=-1).all()


def with_text(pipe: Any, decoder: Decoder, captions: list[str], seeds: list[int]) -> Any:
    settings = {decoder._family.names.get(name, name): value for name, value in decoder.defaults.items()}
    fixed = {name: value for name, value in decoder._family.fixed.items() if name != "negative_prompt"}
    return pipe(
        captions,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
        **{**settings, **fixed, "num_inference_steps": 2},
    )


@each_kind
def test_an_embedded_caption_renders_what_the_pipeline_renders_of_its_text(
    kind: str,
    pipe: Callable[[str], Any],
    embedded: Callable[[str], tuple[CaptionEncoder, Any]],
    decoders: Callable[[str], Decoder],
) -> None:
    decoder, seeds = decoders(kind), [7, 8]
    output = with_text(pipe(kind), decoder, CAPTIONS[:2], seeds)
    expected = [array_of(one) for one in decoder_module._DECODED[MODALITIES[kind]](pipe(kind), output)]
    found = [array_of(one) for one in decoder.generate_batch(embedded(kind)[1].embeddings[:2], seeds, steps=2)]
    for one, other in zip(found, expected, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_allclose(one.astype(float), other.astype(float), atol=1 if one.dtype == np.uint8 else 1e-4)
    assert np.std(found[0].astype(float)) > 0
    assert not np.array_equal(found[0], found[1])


@each_kind
def test_an_item_depends_on_its_condition_and_seed_and_not_on_its_batch(
    kind: str, embedded: Callable[[str], tuple[CaptionEncoder, Any]], decoders: Callable[[str], Decoder]
) -> None:
    decoder, rows = decoders(kind), embedded(kind)[1].embeddings
    batch = [array_of(one).astype(float) for one in decoder.generate_batch(rows[[0, 1, 0]], [3, 3, 4], steps=2)]
    for found, condition, seed in zip(batch, rows[[0, 1, 0]], [3, 3, 4], strict=True):
        alone = array_of(decoder.generate(condition, seed, steps=2))
        np.testing.assert_allclose(found, alone.astype(float), atol=1 if alone.dtype == np.uint8 else 1e-3)
    assert not np.array_equal(batch[0], batch[2])
    settled = {"guidance": 1.0} if kind != "FluxPipeline" else {}
    plain = [array_of(one) for one in decoder.generate_batch(rows[:2], [3, 3], steps=2, **settled)]
    assert not np.array_equal(plain[0], plain[1]), "without guidance the condition alone tells them apart"


@each_kind
def test_rendering_loads_no_text_encoder(
    kind: str, decoders: Callable[[str], Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoders(kind)
    assert not any(part.startswith("text_encoder") and module for part, module in decoder.pipe.components.items())
    monkeypatch.setattr(decoder_module, "TextEncoder", lambda *_: pytest.fail("loaded"))
    decoder.generate(np.ones(decoder.condition_shape, np.float32), steps=2)


@each_kind
def test_a_decoder_embeds_a_caption_all_the_same(
    kind: str, embedded: Callable[[str], tuple[CaptionEncoder, Any]], folder: Callable[[str], str]
) -> None:
    decoder = Decoder(MODALITIES[kind], folder(kind))
    np.testing.assert_allclose(decoder.embed(CAPTIONS[:2]), embedded(kind)[1].embeddings[:2], atol=1e-5)
    assert decoder.id == embedded(kind)[0].id


@each_kind
def test_in_bfloat16_captions_are_close_and_media_finite(
    kind: str, embedded: Callable[[str], tuple[CaptionEncoder, Any]], folder: Callable[[str], str]
) -> None:
    encoder = CaptionEncoder(MODALITIES[kind], folder(kind), precision="bfloat16")
    expected, found = embedded(kind)[1].embeddings[:2], encoder(CAPTIONS[:2]).embeddings
    assert encoder.id == f"{embedded(kind)[0].id}-bfloat16"
    cosine = (expected * found).sum() / (np.linalg.norm(expected) * np.linalg.norm(found))
    assert 0.98 < cosine < 1
    decoder = Decoder(MODALITIES[kind], folder(kind), settings=DecoderSettings(precision="bfloat16"))
    assert np.isfinite(array_of(decoder.generate(found[0], steps=2))).all()


# --- The denoising loss ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def denoisers(folder: Callable[[str], str]) -> Callable[[str], Denoiser]:
    made = dict[str, Denoiser]()

    def find(kind: str) -> Denoiser:
        if kind not in made:
            made[kind] = Denoiser(MODALITIES[kind], folder(kind))
        return made[kind]

    return find


def expected_noise(kind: str, latents: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """By hand: what the denoiser is to see, and what it is to predict."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(1000, (len(latents),), generator=generator).view(-1, *[1] * (latents.ndim - 1))
    noise = torch.randn(latents.shape, generator=generator)
    if kind == "StableDiffusionXLPipeline":
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        share = (1 - betas).cumprod(0)[steps]
        return share.sqrt() * latents + (1 - share).sqrt() * noise, noise
    if kind == "StableAudioPipeline":  # a velocity, at deviations of which the logarithms are evenly spaced
        sigma = torch.linspace(np.log(80), np.log(0.002), 1000).exp()[steps]
        signal, spread = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
        return signal * latents + spread * noise, signal * noise - spread * latents
    shift = 3.0
    if kind in ("FluxPipeline", "LTXPipeline"):  # by the number of tokens
        tokens = {"FluxPipeline": 2 * 2, "LTXPipeline": 2 * 4 * 4}[kind]
        least, most = (0.5, 1.15) if kind == "FluxPipeline" else (0.95, 2.05)
        shift = np.exp(least + (most - least) * (tokens - 256) / (4096 - 256))
    even = (steps + 1) / 1000
    level = shift * even / (1 + (shift - 1) * even)
    return (1 - level) * latents + level * noise, noise - latents


def unpacked(kind: str, values: Tensor, latents: Tensor) -> Tensor:
    """Tokens as latents again."""
    count, channels, *places = latents.shape
    if kind == "LTXPipeline":
        return values.view(count, *places, channels).movedim(-1, 1)
    if kind == "FluxPipeline":
        rows, columns = (place // 2 for place in places)
        return values.view(count, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(latents.shape)
    return values


@each_kind
def test_the_loss_is_that_of_the_pipelines_own_scheduler(kind: str, denoisers: Callable[[str], Denoiser]) -> None:
    denoiser = denoisers(kind)
    conditions = torch.randn(3, *denoiser.condition_shape, requires_grad=True)
    latents = torch.randn(3, *denoiser.latent_shape)
    noisy, target = expected_noise(kind, latents, 7)
    seen = []
    hook = denoiser.unet.register_forward_hook(
        lambda _, given, named, output: seen.append((given[0] if given else named["hidden_states"], output.sample)),
        with_kwargs=True,
    )
    loss = denoiser(conditions, latents, torch.Generator().manual_seed(7))
    hook.remove()
    [(given, predicted)] = seen
    torch.testing.assert_close(unpacked(kind, given, latents), noisy, atol=1e-4, rtol=1e-4)
    errors = (unpacked(kind, predicted, latents) - target).pow(2).flatten(1).mean(1)
    torch.testing.assert_close(loss, errors.sum(), rtol=1e-3, atol=1e-4)
    loss.backward()
    assert conditions.grad is not None
    # What a pooled vector does not fill of its rows is nowhere.
    assert conditions.grad.flatten(1).abs().amax(1).gt(0).all()
    assert all(not p.requires_grad and p.grad is None for p in denoiser.unet.parameters())


TOLD = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "pooled_projections",
    "global_hidden_states",
    "guidance",
    "txt_ids",
    "img_ids",
    "num_frames",
    "height",
    "width",
    "rope_interpolation_scale",
    "rotary_embedding",
    "added_cond_kwargs",
)


def calls_of(module: Any, run: Callable[[], Any]) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    hook = module.register_forward_pre_hook(lambda _, __, named: seen.append(dict(named)), with_kwargs=True)
    run()
    hook.remove()
    return seen


@each_kind
def test_a_denoiser_is_told_what_the_pipeline_tells_it(
    kind: str,
    pipe: Callable[[str], Any],
    embedded: Callable[[str], tuple[CaptionEncoder, Any]],
    decoders: Callable[[str], Decoder],
    denoisers: Callable[[str], Denoiser],
) -> None:
    """Rendering one caption without guidance, and its loss: all but the latents and their noise is the same."""
    decoder, denoiser, rows = decoders(kind), denoisers(kind), embedded(kind)[1].embeddings[:1]
    latents = torch.zeros(1, *denoiser.latent_shape)
    ours = calls_of(
        denoiser.unet,
        lambda: denoiser(torch.from_numpy(rows), latents, torch.Generator().manual_seed(1)),
    )[0]
    settled = {} if kind == "FluxPipeline" else {"guidance": 1.0}
    part = getattr(decoder.pipe, decoder._family.denoiser_part)
    theirs = calls_of(part, lambda: decoder.generate(rows[0], steps=2, **settled))[0]
    told = [name for name in TOLD if theirs.get(name) is not None]
    assert "encoder_hidden_states" in told
    for name in told:
        torch.testing.assert_close(as_numbers(ours[name]), as_numbers(theirs[name]), msg=name, check_dtype=False)


def as_numbers(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, dict):
        return {name: as_numbers(one) for name, one in value.items()}
    return [as_numbers(one) for one in value] if isinstance(value, tuple | list) else float(value)


@pytest.mark.parametrize("kind", ["StableDiffusionXLPipeline", "SanaPipeline"])
def test_a_model_learns_conditions_from_sidecars_and_its_decoder_renders_them(
    kind: str,
    folder: Callable[[str], str],
    embedded: Callable[[str], tuple[CaptionEncoder, Any]],
    decoders: Callable[[str], Decoder],
    denoisers: Callable[[str], Denoiser],
    tiny: ModelConfig,
    tokenizer: Any,
) -> None:
    result, (rows, dim) = embedded(kind)[1], embedded(kind)[0].shape
    output = tiny.outputs[Modality.IMAGE].model_copy(update={"decoder": folder(kind), "num_queries": rows, "dim": dim})
    model = NextGPT.from_config(tiny.model_copy(update={"outputs": {Modality.IMAGE: output}}))
    model.set_stage(2)
    stored = to_npy(without_zeros(result.embeddings[:1]))
    whole = with_zeros(stored, result.embeddings[:1].nbytes, rows)
    np.testing.assert_array_equal(from_npy(whole), result.embeddings[:1])
    assert len(stored) <= len(whole)
    example = make_example(dialogue(("a dog",), (item("image"),)), tokenizer, model)
    targets = {Modality.IMAGE: (from_npy(whole), result.lengths[:1].tolist())}
    latents = {Modality.IMAGE: np.ones((1, *denoisers(kind).latent_shape), np.float32)}
    batch = collate([replace(example, targets=targets, latents=latents)])
    criterion = Criterion(
        vocabulary=model.vocabulary,
        alignment_variance={Modality.IMAGE: 1.0},
        denoisers={Modality.IMAGE: denoisers(kind)},
    )
    predictions = model(batch)
    losses = criterion(predictions, batch, torch.Generator().manual_seed(1))
    assert {"image_alignment", "image_denoising"} <= losses.means().keys()
    total(losses, criterion.count(batch)).backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is not None for weight in model.output_projections["image"].parameters())
    [condition] = predictions.conditions[Modality.IMAGE].detach()
    assert isinstance(decoders(kind).generate(condition, steps=2), Image)


# --- Latents ---------------------------------------------------------------------------------------------------------


def medium(modality: Modality, seed: int) -> Image | Video | Audio:
    rng = np.random.default_rng(seed)
    if modality is Modality.IMAGE:
        return Image(pixels=rng.integers(0, 256, (40, 40, 3), np.uint8))
    if modality is Modality.VIDEO:
        return Video(frames=rng.integers(0, 256, (12, 128, 128, 3), np.uint8), fps=25.0)
    return Audio(waveform=0.3 * rng.standard_normal((2, 500)).astype(np.float32), sample_rate=400)


@each_kind
def test_latents_are_those_that_the_pipeline_decodes(
    kind: str, folder: Callable[[str], str], pipe: Callable[[str], Any]
) -> None:
    modality, vae = MODALITIES[kind], pipe(kind).vae
    encoder = LatentEncoder(modality, folder(kind))
    media = [medium(modality, seed) for seed in range(2)]
    found = torch.from_numpy(encoder(media))
    assert tuple(found.shape[1:]) == encoder.shape == latent_shape(modality, folder(kind))
    prepared = torch.from_numpy(np.stack(encoder.prepare(media)))
    if modality is Modality.AUDIO:
        values = prepared
        np.testing.assert_allclose(prepared[0], media[0].waveform[:, :128], atol=1e-6)  # type: ignore[union-attr]
    else:
        values = (prepared.float() / 127.5 - 1).movedim(-1, 1)
        values = values[:, :, 0] if modality is Modality.IMAGE else values
    with torch.no_grad():
        encoded = vae.encode(values)
        mean = encoded.latent if kind == "SanaPipeline" else encoded.latent_dist.mean
    match kind:  # the inverse of what the pipeline's call does before it decodes
        case "StableDiffusion3Pipeline" | "FluxPipeline":
            back = found / vae.config.scaling_factor + vae.config.shift_factor
        case "WanPipeline":
            shape = (1, -1, 1, 1, 1)
            back = found * torch.tensor(vae.config.latents_std).view(shape)
            back = back + torch.tensor(vae.config.latents_mean).view(shape)
        case "LTXPipeline":
            back = pipe(kind)._denormalize_latents(found, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        case _:
            back = found / (vae.config.get("scaling_factor") or 1.0)
    torch.testing.assert_close(back, mean, atol=1e-4, rtol=1e-4)
    assert (mean[0] - mean[1]).abs().max() > 1e-3


def test_a_sound_of_one_channel_fills_both_and_is_followed_by_silence(folder: Callable[[str], str]) -> None:
    encoder = LatentEncoder(Modality.AUDIO, folder("StableAudioPipeline"))
    [prepared] = encoder.prepare([Audio(waveform=np.ones((1, 50), np.float32), sample_rate=400)])
    assert prepared.shape == (2, 128)
    np.testing.assert_allclose(prepared[:, :50], 1, atol=1e-6)
    assert not prepared[:, 50:].any()


# --- Shapes and bad input --------------------------------------------------------------------------------------------


@each_kind
def test_shapes_need_no_weights(
    kind: str, tmp_path: Path, embedded: Callable[[str], tuple[CaptionEncoder, Any]]
) -> None:
    path = write_pipeline(kind, tmp_path / kind)
    for file in path.rglob("*.safetensors"):
        file.unlink()
    modality = MODALITIES[kind]
    assert condition_shape(modality, str(path)).rows == embedded(kind)[0].shape
    assert len(latent_grid(modality, str(path))) == 3


@each_kind
def test_the_id_follows_every_text_encoder(
    kind: str, tmp_path: Path, embedded: Callable[[str], tuple[CaptionEncoder, Any]]
) -> None:
    def digest() -> str:
        return CaptionEncoder(MODALITIES[kind], str(path)).id

    path = write_pipeline(kind, tmp_path / kind)
    ids = [digest()]
    assert ids == [embedded(kind)[0].id]
    for file in sorted(path.glob("text_encoder*/model.safetensors")):
        tensors = load_file(file)
        first = next(name for name in sorted(tensors) if "layer_norm" in name or "norm" in name)
        save_file({**tensors, first: tensors[first] + 1}, file, {"format": "pt"})
        ids.append(digest())
    assert len(set(ids)) == len(ids) >= 2


def test_a_pipeline_outside_the_table_is_refused_with_the_families_of_its_modality(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "PixArtSigmaPipeline"}))
    with pytest.raises(ValueError, match="is a PixArtSigmaPipeline, but image needs a StableDiffusion") as error:
        condition_shape(Modality.IMAGE, str(tmp_path))
    assert "SanaPipeline" in str(error.value)
    assert "WanPipeline" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_scheduler_without_a_loss_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write_pipeline("WanPipeline", tmp_path / "wan")
    file = path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"_class_name": "VQDiffusionScheduler"}))
    with pytest.raises(ValueError, match="no denoising loss is known for its scheduler, a VQDiffusionScheduler"):
        Denoiser(Modality.VIDEO, str(path))


def test_released_films_have_their_own_size(folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FULL_SIZE_CHANNELS", 1)
    assert latent_shape(Modality.VIDEO, folder("WanPipeline")) == (4, 21, 60, 104)
    assert latent_shape(Modality.VIDEO, folder("LTXPipeline")) == (8, 21, 16, 22)
