"""ImageBind's patches: averages of what its towers give before pooling."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.architectures.imagebind import ImageBind, ImageBindConfig
from model.encoders.imagebind_encoder import ImageBindEncoder, image_inputs, video_inputs
from model.encoders.mel import audio_inputs
from pipelines.sample import Audio, Image, Modality, Video

SMALL = ImageBindConfig(
    vision_width=16,
    vision_layers=1,
    vision_heads=2,
    audio_width=24,
    audio_layers=1,
    audio_heads=2,
    embed_dim=8,
    image_size=28,
    patch_size=7,
)
DRAW = np.random.default_rng(0)
PICTURE = Image(pixels=DRAW.integers(0, 255, (40, 60, 3), np.uint8))
FILM = Video(frames=DRAW.integers(0, 255, (40, 48, 64, 3), np.uint8), fps=8.0)
SOUND = Audio(waveform=DRAW.uniform(-0.5, 0.5, (1, 80_000)).astype(np.float32), sample_rate=16_000)


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parts") / "small-bind"
    ImageBind(SMALL).save_pretrained(folder)
    return folder


def means(grid: torch.Tensor, bins: tuple[int, ...]) -> np.ndarray:
    """Averages of (T, R, C, D) over bins that divide it, in row-major order."""
    frames, rows, columns, width = grid.shape
    cut = grid.numpy().reshape(bins[0], frames // bins[0], bins[1], rows // bins[1], bins[2], columns // bins[2], width)
    return cut.mean(axis=(1, 3, 5)).reshape(-1, width)


def test_a_picture_and_the_middle_crops_of_a_video_are_averaged_over_frames_and_space(part: Path) -> None:
    encoder = ImageBindEncoder(str(part), patches=4)
    assert encoder.shapes == {Modality.IMAGE: (4, 16), Modality.VIDEO: (4, 16), Modality.AUDIO: (4, 24)}
    with torch.inference_mode():
        [seen] = encoder.model.vision_patches(image_inputs(PICTURE, 28)[None]).patches_NSPD
        clips = video_inputs(FILM, 28)[1::3]  # of the three crops of each clip
        [shown] = encoder.model.vision_patches(clips[None]).patches_NSPD
    both = encoder([FILM, PICTURE])
    np.testing.assert_allclose(both[1], means(seen.reshape(1, 4, 4, 16), (1, 2, 2)), atol=1e-5)
    np.testing.assert_allclose(both[0], means(shown.reshape(5, 4, 4, 16), (1, 2, 2)), atol=1e-5)


def test_the_clips_of_a_sound_follow_each_other_in_time(part: Path) -> None:
    encoder = ImageBindEncoder(str(part), patches=3 * 19)
    with torch.inference_mode():
        [heard] = encoder.model.audio_patches(audio_inputs(SOUND)[None]).patches_NSPD
    in_time = heard.reshape(3, 12, 19, 24).permute(1, 0, 2, 3).reshape(1, 12, 57, 24)
    np.testing.assert_allclose(encoder([SOUND])[0], means(in_time, (1, 3, 19)), atol=1e-5)


def test_patches_have_an_id_of_their_own_beside_that_of_pooled_vectors(part: Path) -> None:
    pooled, whole = ImageBindEncoder(str(part)), ImageBindEncoder(str(part), patches=16)
    assert whole.id == f"{pooled.id}-16patches"
    assert ImageBindEncoder(str(part), patches=16, precision="bfloat16").id == f"{whole.id}-bfloat16"
    assert pooled([PICTURE]).shape == (1, 8)


def test_modalities_of_other_widths_are_not_embedded_together(part: Path) -> None:
    with pytest.raises(ValueError, match="embed each modality by itself"):
        ImageBindEncoder(str(part), patches=4)([PICTURE, SOUND])
