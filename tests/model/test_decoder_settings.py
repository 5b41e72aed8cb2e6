"""How decoders are run: precision, safety checker, and how many of them are on the device."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from decoder_cases import array_of, each_modality, name_of
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file

from model.decoders import decoder as decoders
from model.decoders import rendering, text_encoders
from model.decoders.decoder import WITHHELD, Decoder, NotFinite
from model.decoders.rendering import DecoderPool
from model.decoders.text_encoders import CaptionEncoder
from model.decoders.wish import Wish
from model.inference.painter import Painter
from model.parts import families
from model.parts.builtin import resolve
from model.parts.config import DecoderSettings, load_preset
from pipelines.sample import Decoded, Image, Modality

HALVES = ("float16", "bfloat16")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEXTGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def load(modality: Modality, **settings: Any) -> Decoder:
    return Decoder(modality, name_of(modality), settings=DecoderSettings(**settings))


def condition(modality: Modality) -> np.ndarray:
    return CaptionEncoder(modality, name_of(modality))(["a red circle"]).embeddings


def dtypes(decoder: Decoder) -> set[torch.dtype]:
    modules = [part for part in decoder.pipe.components.values() if isinstance(part, torch.nn.Module)]
    return {weight.dtype for module in modules for weight in module.parameters()}


@each_modality
def test_on_the_cpu_everything_is_float32_unless_it_is_said(modality: Modality) -> None:
    assert dtypes(load(modality)) == {torch.float32}
    for precision in HALVES:
        assert dtypes(load(modality, precision=precision)) == {getattr(torch, precision)}


def test_on_a_gpu_only_decoders_of_the_released_sizes_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = (Modality.IMAGE, name_of(Modality.IMAGE), torch.device("cuda"), DecoderSettings())
    assert decoders._dtype(*chosen) == torch.float32, "what our own small ones score was measured so"
    monkeypatch.setattr(families, "FULL_SIZE_CHANNELS", 1)
    assert decoders._dtype(*chosen) == torch.float16
    assert decoders._dtype(*chosen[:2], torch.device("cpu"), DecoderSettings()) == torch.float32


@each_modality
def test_default_media_are_those_of_the_pipelines_own_noise(modality: Modality) -> None:
    decoder, conditions_NLD = load(modality), condition(modality)
    [ours] = decoder.generate_batch(conditions_NLD, [7], steps=2)
    settings = {**decoder.defaults, "num_inference_steps": 2}
    output = decoder.pipe(
        **decoder._told(torch.from_numpy(conditions_NLD), None),
        generator=[torch.Generator("cpu").manual_seed(7)],
        output_type="np",
        **settings,
    )
    [theirs] = decoders._DECODED[modality](decoder.pipe, output)
    assert array_of(ours).tobytes() == array_of(theirs).tobytes()


@each_modality
def test_half_precision_renders_nearly_what_float32_renders(modality: Modality) -> None:
    """The noise of a seed, the empty caption and the identity are the same in every precision."""
    exact, half = load(modality), load(modality, precision="bfloat16")
    np.testing.assert_array_equal(half._negative_NLD, exact._negative_NLD)
    assert half.id == exact.id == CaptionEncoder(modality, name_of(modality)).id
    expected, found = (
        array_of(decoder.generate(condition(modality)[0], seed=3, steps=2)).astype(float) for decoder in (exact, half)
    )
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.97


def test_rendering_needs_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoders, "weights_hash", lambda tensors: pytest.fail("hashed"))
    assert isinstance(load(Modality.IMAGE).generate(np.zeros((77, 64), np.float32), steps=1), Image)


@each_modality
def test_a_condition_that_is_not_a_number_is_refused(modality: Modality) -> None:
    decoder = load(modality)
    wrong = np.full(decoder.condition_shape, np.nan, np.float32)
    with pytest.raises(ValueError, match=f"the {modality} condition contains NaN or inf"):
        decoder.generate(wrong, steps=1)


@each_modality
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_medium_that_is_not_a_number_is_an_error_and_never_black_or_silent(
    modality: Modality, precision: str
) -> None:
    decoder = load(modality, precision=precision)
    with torch.no_grad():
        decoder.pipe.vae.decoder.conv_out.bias.fill_(torch.nan)
    advice = "its weights are damaged" if precision == "float32" else "set decoders.precision=float32"
    with pytest.raises(NotFinite, match=f"{modality} came out as NaN or infinity in {precision}; {advice}"):
        decoder.generate(np.zeros(decoder.condition_shape, np.float32), steps=1)


def watched(folder: Path, threshold: float) -> Path:
    """The tiny Stable Diffusion with a safety checker, which withholds what is above a threshold of likeness."""
    folder = Path(shutil.copytree(resolve(name_of(Modality.IMAGE)), folder))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        vision_config={**sizes, "image_size": 32, "patch_size": 16}, text_config=sizes, projection_dim=8
    )
    checker = StableDiffusionSafetyChecker(config)
    with torch.no_grad():
        for thresholds in (checker.concept_embeds_weights, checker.special_care_embeds_weights):
            thresholds.fill_(threshold)
    checker.save_pretrained(folder / "safety_checker")
    extractor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    extractor.save_pretrained(folder / "feature_extractor")
    index = folder / "model_index.json"
    parts = json.loads(index.read_text()) | {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", type(extractor).__name__],
        "requires_safety_checker": True,
    }
    index.write_text(json.dumps(parts))
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_picture_that_the_checker_withholds_is_black_and_says_so(tmp_path: Path, precision: Any) -> None:
    settings = DecoderSettings(safety_checker=True, precision=precision)
    for threshold, note in ((-2.0, WITHHELD), (2.0, "")):
        decoder = Decoder(Modality.IMAGE, str(watched(tmp_path / str(threshold), threshold)), settings=settings)
        picture = decoder.generate(np.zeros((77, 64), np.float32), steps=1)
        assert isinstance(picture, Image)
        assert picture.note == note
        assert bool(picture.pixels.any()) == (not note)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """What libraries have warned of; their loggers pass nothing on to the root's."""
    loggers = [logging.getLogger(library) for library in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    for logger in loggers:
        logger.removeHandler(caplog.handler)


def test_without_the_setting_there_is_no_checker_and_no_warning(
    tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    decoder = Decoder(Modality.IMAGE, str(watched(tmp_path / "sd", -2.0)))
    assert decoder.pipe.safety_checker is None
    picture = decoder.generate(np.zeros((77, 64), np.float32), steps=1)
    assert isinstance(picture, Image)
    assert picture.pixels.any()
    assert not picture.note
    assert warnings() == []


@each_modality
def test_weights_as_published_load_without_idle_lines(
    modality: Modality, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    """ZeroScope and AudioLDM are published as .bin, with no safetensors."""
    folder = Path(shutil.copytree(resolve(name_of(modality)), tmp_path / "decoder"))
    for file in folder.rglob("*.safetensors"):
        name = "diffusion_pytorch_model.bin" if file.stem.startswith("diffusion") else "pytorch_model.bin"
        torch.save(load_file(file), file.with_name(name))
        file.unlink()
    decoder = Decoder(modality, str(folder))
    expected = array_of(load(modality).generate(condition(modality)[0], steps=1))
    assert array_of(decoder.generate(condition(modality)[0], steps=1)).tobytes() == expected.tobytes()
    assert warnings() == []


def test_a_checker_that_is_wanted_and_absent_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"has no safety checker; set decoders\.safety_checker=false"):
        load(Modality.IMAGE, safety_checker=True)
    load(Modality.AUDIO, safety_checker=True)  # it is for pictures


class Moves:
    """Records which decoder is moved where."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[Modality, str]] = []
        monkeypatch.setattr(Decoder, "to", lambda decoder, device: self.seen.append((decoder.modality, str(device))))


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Moves:
    return Moves(monkeypatch)


def wishes() -> list[Wish]:
    """Of the three modalities, mixed, some of them twice."""
    order = [Modality.AUDIO, Modality.IMAGE, Modality.VIDEO, Modality.IMAGE]
    return [Wish(modality, "a red circle", seed, {"steps": 1}) for seed, modality in enumerate(order)]


def pool(on_device: str) -> DecoderPool:
    config = load_preset("tiny")
    settings = config.decoders.model_copy(update={"on_device": on_device})
    return DecoderPool(config.model_copy(update={"decoders": settings}), lambda _: "cpu:0")


def test_one_decoder_at_a_time_is_on_the_device(moves: Moves) -> None:
    pool("one").render(wishes())
    where: dict[Modality, str] = {}
    for modality, device in moves.seen:
        where[modality] = device
        assert sum(device == "cpu:0" for device in where.values()) <= 1
    assert sorted(where.values()) == ["cpu", "cpu", "cpu:0"]


def test_else_all_stay_where_they_are(moves: Moves) -> None:
    pool("all").render(wishes())
    assert {device for _, device in moves.seen} == {"cpu:0"}


def test_decoders_that_take_turns_render_the_same_in_the_same_order() -> None:
    def render(on_device: str) -> tuple[list[Decoded], set[int]]:
        told = dict[int, Decoded]()
        media = pool(on_device).render(
            wishes(), on_done=lambda places, made: told.update(zip(places, made, strict=True))
        )
        assert all(told[place] is medium for place, medium in enumerate(media))
        return media, set(told)

    (side_by_side, all_told), (in_turn, turns_told) = render("all"), render("one")
    assert all_told == turns_told == {0, 1, 2, 3}
    for one, other in zip(side_by_side, in_turn, strict=True):
        assert array_of(one).tobytes() == array_of(other).tobytes()


def test_a_pool_loads_with_the_settings_of_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    real = rendering.Decoder
    monkeypatch.setattr(rendering, "Decoder", lambda *arguments: given.append(arguments) or real(*arguments))
    pool("one").render(wishes())
    assert {settings.on_device for *_, settings in given} == {"one"}


def test_a_painter_that_rests_takes_its_decoder_off_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = load(Modality.IMAGE)
    moves = Moves(monkeypatch)
    painter = Painter(decoder, rests_on="meta")
    told: list[Any] = []
    painter.ask(wishes()[1], told.append)
    painter.close()
    assert isinstance(told[-1], Image)
    assert [device for _, device in moves.seen] == ["meta", "cpu", "meta"]


def test_checkpoints_from_before_the_setting_have_its_defaults() -> None:
    config = load_preset("tiny")
    values = config.model_dump(mode="json")
    del values["decoders"]
    assert type(config).model_validate(values) == config


@pytest.mark.gpu
@each_modality
def test_moving_decoders_gives_the_gpus_memory_back(modality: Modality) -> None:
    decoder = Decoder(modality, name_of(modality), "cuda")
    first = array_of(decoder.generate(np.zeros(decoder.condition_shape, np.float32), steps=1))
    decoder.to("cpu")
    left = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()  # what CUDA's libraries keep once they were used
    decoder.to("cuda")
    again = array_of(decoder.generate(np.zeros(decoder.condition_shape, np.float32), steps=1))
    assert torch.cuda.memory_allocated() > left[0]
    decoder.to("cpu")
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == left
    assert again.tobytes() == first.tobytes()


@pytest.mark.gpu
@each_modality
@pytest.mark.parametrize("precision", HALVES)
def test_on_a_gpu_half_precision_is_finite_and_near_float32(modality: Modality, precision: Any) -> None:
    embedded = condition(modality)[0]
    expected, found = (
        array_of(
            Decoder(modality, name_of(modality), "cuda", DecoderSettings(precision=chosen)).generate(embedded, seed=3)
        ).astype(float)
        for chosen in ("float32", precision)
    )
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.95


def test_no_caption_is_embedded_once_a_machine_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEXTGPT_CACHE", str(tmp_path))
    folder = Path(shutil.copytree(resolve(name_of(Modality.IMAGE)), tmp_path / "decoder"))
    loaded = []
    real = text_encoders.TextEncoder
    monkeypatch.setattr(text_encoders, "TextEncoder", lambda *given: loaded.append(given) or real(*given))
    first = text_encoders.negative_condition(Modality.IMAGE, str(folder))
    np.testing.assert_array_equal(text_encoders.negative_condition(Modality.IMAGE, str(folder)), first)
    np.testing.assert_array_equal(first, real(Modality.IMAGE, str(folder))([""]).embeddings)
    assert len(loaded) == 1
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor + 0.1 for name, tensor in tensors.items()}, file, {"format": "pt"})
    assert not np.array_equal(text_encoders.negative_condition(Modality.IMAGE, str(folder)), first)
    [kept, *_] = sorted(tmp_path.glob("negatives/*.npy"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    kept.write_bytes(b"cut")
    assert not np.array_equal(text_encoders.negative_condition(Modality.IMAGE, str(folder)), first)
    assert len(loaded) == 3
