import json
import zlib
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.architectures.imagebind import ImageBind, ImageBindConfig, load_imagebind, tensor_shapes
from model.parts.weights import weights_hash

SMALL = ImageBindConfig(
    vision_width=64,
    vision_layers=2,
    vision_heads=4,
    audio_width=48,
    audio_layers=2,
    audio_heads=4,
    embed_dim=32,
)
TINY = ImageBindConfig(
    vision_width=16,
    vision_layers=1,
    vision_heads=2,
    audio_width=16,
    audio_layers=1,
    audio_heads=2,
    embed_dim=8,
    image_size=28,
    audio_stride=16,
)
A_NORM = "modality_trunks.audio.blocks.0.norm_1.weight"


def is_norm(name: str) -> bool:
    layer, kind = name.rsplit(".", 1)
    norms = ("norm_1", "norm_2", "norm_layer", "pre_transformer_layer.0", "vision.0", "audio.0")
    return kind == "weight" and layer.endswith(norms)


def formula_weights(shapes: dict[str, tuple[int, ...]], scale: float = 0.2) -> dict[str, Tensor]:
    weights = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
        weights[name] = torch.from_numpy(draw * np.float32(scale) + np.float32(is_norm(name)))
    return weights


def rnd(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict:
    return json.loads((shared / "facts" / "imagebind_golden.json").read_text())


@pytest.fixture(scope="module")
def small() -> ImageBind:
    model = ImageBind(SMALL)
    model.load_state_dict(formula_weights(tensor_shapes(SMALL)))
    return model.eval().requires_grad_(False)


@pytest.fixture
def tiny() -> ImageBind:
    torch.manual_seed(0)
    return ImageBind(TINY).eval().requires_grad_(False)


def test_images_meet_the_golden_embeddings(small: ImageBind, golden: dict) -> None:
    torch.testing.assert_close(
        small.forward_vision(rnd(11, 2, 3, 224, 224)), torch.tensor(golden["image_embeddings"]), atol=1e-4, rtol=0
    )


def test_videos_meet_the_golden_embeddings(small: ImageBind, golden: dict) -> None:
    torch.testing.assert_close(
        small.forward_vision(rnd(12, 1, 6, 3, 2, 224, 224)),
        torch.tensor(golden["video_embeddings"]),
        atol=1e-4,
        rtol=0,
    )


def test_sounds_meet_the_golden_embeddings(small: ImageBind, golden: dict) -> None:
    torch.testing.assert_close(
        small.forward_audio(rnd(13, 2, 3, 1, 128, 204)), torch.tensor(golden["audio_embeddings"]), atol=1e-4, rtol=0
    )


def test_the_huge_model_has_the_released_tensors_and_leaves_the_logit_scale(shared: Path) -> None:
    lines = (shared / "facts" / "imagebind_huge_vision_audio.tsv").read_text().splitlines()[1:]
    released = {}
    for name, shape in (line.split("\t") for line in lines):
        released[name] = tuple(int(size) for size in shape.split("x")) if shape else ()
    assert tensor_shapes(ImageBindConfig.huge()) | {"modality_postprocessors.audio.1.log_logit_scale": ()} == released


def test_an_image_is_a_clip_of_two_equal_frames(tiny: ImageBind) -> None:
    images = rnd(1, 2, 3, 28, 28)
    clips = torch.stack([images, images], dim=2)[:, None]
    torch.testing.assert_close(tiny.forward_vision(images), tiny.forward_vision(clips))


def test_an_item_is_the_mean_of_its_normalised_clips(tiny: ImageBind) -> None:
    mel = rnd(2, 1, 3, 1, 128, 204)
    clips = torch.cat([tiny.forward_audio(mel[:, i : i + 1]) for i in range(3)])
    torch.testing.assert_close(clips.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(tiny.forward_audio(mel)[0], clips.mean(dim=0))


@pytest.mark.parametrize(
    ("forward", "shape"),
    [
        (ImageBind.forward_vision, (2, 3, 224, 224)),
        (ImageBind.forward_vision, (1, 6, 3, 2, 224, 224)),
        (ImageBind.forward_audio, (2, 3, 1, 128, 204)),
    ],
    ids=["image", "video", "sound"],
)
def test_bfloat16_weights_give_float32_embeddings_of_the_same_direction(
    small: ImageBind, forward: Callable[[ImageBind, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    inputs = rnd(3, *shape)
    half = forward(deepcopy(small).to(torch.bfloat16), inputs)
    assert half.dtype == torch.float32
    assert torch.cosine_similarity(half, forward(small, inputs)).min() > 0.999


def test_patch_tokens_come_beside_the_same_embedding(tiny: ImageBind) -> None:
    images, clips, mel = rnd(7, 2, 3, 28, 28), rnd(8, 2, 5, 3, 2, 28, 28), rnd(9, 2, 3, 1, 128, 204)
    for forward, with_patches, inputs, num_clips, num_patches in (
        (tiny.forward_vision, tiny.vision_patches, images, 1, TINY.num_vision_patches),
        (tiny.forward_vision, tiny.vision_patches, clips, 5, TINY.num_vision_patches),
        (tiny.forward_audio, tiny.audio_patches, mel, 3, TINY.num_audio_patches),
    ):
        pooled_NE, patches_NSPD = with_patches(inputs)
        assert torch.equal(pooled_NE, forward(inputs))
        assert patches_NSPD.shape == (2, num_clips, num_patches, 16)
        torch.testing.assert_close(patches_NSPD.mean(-1), torch.zeros(patches_NSPD.shape[:-1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tower", ["vision", "audio"])
def test_the_head_reads_the_token_before_the_patches(tiny: ImageBind, tower: str) -> None:
    clip = rnd(10, 1, 3, 28, 28) if tower == "vision" else rnd(10, 1, 1, 1, 128, 204)
    seen: dict[str, Tensor] = {}
    norm, _, project = tiny.modality_heads[tower].children()
    norm.register_forward_hook(lambda module, inputs, output: seen.update(normed_NLD=output))
    project.register_forward_hook(lambda module, inputs, output: seen.update(class_ND=inputs[0]))
    patches_NSPD = (tiny.vision_patches if tower == "vision" else tiny.audio_patches)(clip).patches_NSPD
    assert torch.equal(torch.cat([seen["class_ND"][:, None], patches_NSPD[:, 0]], dim=1), seen["normed_NLD"])


def test_every_tensor_learns(tiny: ImageBind) -> None:
    tiny.requires_grad_(True).train()
    embeddings = torch.cat([tiny.forward_vision(rnd(4, 2, 3, 28, 28)), tiny.forward_audio(rnd(5, 2, 3, 1, 128, 204))])
    names, weights = zip(*tiny.named_parameters(), strict=True)
    grads = torch.autograd.grad((embeddings * rnd(6, 4, 8)).sum(), weights)
    assert [name for name, grad in zip(names, grads, strict=True) if not grad.any()] == []


def test_what_was_saved_loads_equal(tiny: ImageBind, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path / "imagebind")
    loaded = load_imagebind(tmp_path / "imagebind")
    assert loaded.config == TINY
    assert weights_hash(loaded.state_dict()) == weights_hash(tiny.state_dict())
    assert not loaded.training
    assert not any(weight.requires_grad or weight.is_meta for weight in loaded.parameters())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_released_file_loads_without_its_other_modalities(tiny: ImageBind, tmp_path: Path, zipped: bool) -> None:
    others = {
        "modality_preprocessors.text.mask": torch.zeros(2, 2),
        "modality_trunks.depth.blocks.0.norm_1.weight": torch.zeros(2),
        "modality_heads.thermal.0.weight": torch.zeros(2),
        "modality_preprocessors.imu.cls_token": torch.zeros(2),
        "modality_postprocessors.audio.1.log_logit_scale": torch.tensor(3.0),
    }
    path = tmp_path / "imagebind.pth"
    torch.save(tiny.state_dict() | others, path, _use_new_zipfile_serialization=zipped)
    loaded = load_imagebind(path, TINY, torch.bfloat16)
    expected = {name: tensor.bfloat16() for name, tensor in tiny.state_dict().items()}
    assert weights_hash(loaded.state_dict()) == weights_hash(expected)


def test_a_missing_tensor_is_named(tiny: ImageBind, tmp_path: Path) -> None:
    state = tiny.state_dict()
    del state[A_NORM]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a\.pth: tensor {A_NORM} is missing"):
        load_imagebind(tmp_path / "a.pth", TINY)


def test_an_unexpected_tensor_is_named(tiny: ImageBind, tmp_path: Path) -> None:
    torch.save(tiny.state_dict() | {"modality_trunks.smell.x": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"modality_trunks\.smell\.x is unexpected"):
        load_imagebind(tmp_path / "a.pth", TINY)


def test_a_tensor_of_another_shape_is_named(tiny: ImageBind, tmp_path: Path) -> None:
    torch.save(tiny.state_dict() | {A_NORM: torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"{A_NORM} has shape \(3,\), not \(16,\)"):
        load_imagebind(tmp_path / "a.pth", TINY)


def test_a_pickled_object_is_refused(tmp_path: Path) -> None:
    torch.save({"x": Path("/")}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: cannot be read as tensors"):
        load_imagebind(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "model.safetensors"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not tensors at all")
    with pytest.raises(ValueError, match=name) as error:
        load_imagebind(tmp_path / name)
    assert "\n" not in str(error.value)


def test_something_other_than_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "a.pth")
    with pytest.raises(ValueError, match="not a mapping of names to tensors"):
        load_imagebind(tmp_path / "a.pth")


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"imagebind_huge\.pth"):
        load_imagebind(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_imagebind(tmp_path)


def test_a_mistake_in_the_config_is_named(tiny: ImageBind, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("vision_heads", "vision_hats"))
    with pytest.raises(ValueError, match="vision_hats"):
        load_imagebind(tmp_path)
    with pytest.raises(ValueError, match="audio_width must be a multiple of audio_heads"):
        ImageBindConfig(audio_heads=7)
    with pytest.raises(ValueError, match="vision_layers is 0"):
        ImageBindConfig(vision_layers=0)


def test_the_weights_hash_sees_names_dtypes_shapes_and_bytes_but_not_order() -> None:
    one, two = torch.zeros(2, 3), torch.tensor(1.0, dtype=torch.bfloat16)
    base = weights_hash({"a": one, "b": two})
    assert base == weights_hash({"b": two, "a": one})
    assert base == weights_hash({"a": torch.zeros(3, 2).T, "b": two})
    changed = [
        {"a": one, "c": two},
        {"a": one.int(), "b": two},
        {"a": one.reshape(3, 2), "b": two},
        {"a": one, "b": two + 1},
    ]
    assert len({base, *(weights_hash(tensors) for tensors in changed)}) == 5
