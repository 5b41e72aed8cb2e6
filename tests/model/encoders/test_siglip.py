"""Pictures and videos by SigLIP and SigLIP2: as the library prepares and embeds them."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from encoder_folders import write_siglip, write_siglip2
from transformers import Siglip2ImageProcessorPil, SiglipImageProcessorPil

from model.encoders.media_encoders import load_encoder
from model.encoders.media_inputs import media_inputs
from model.encoders.siglip_encoder import flat_patches, normalised
from model.encoders.siglip_inputs import frame_places, pixel_settings
from pipelines.embed.encoding import VIDEO_FPS, prepare_media
from pipelines.media.codecs import decode, encode
from pipelines.sample import Audio, Image, Media, Modality, Video

FILM = Video(frames=np.random.default_rng(1).integers(0, 255, (40, 30, 64, 3), np.uint8), fps=8.0)


@pytest.fixture(scope="module")
def pictures(sample_root: Path) -> list[Image]:
    """Photographs of several proportions, decoded by Pillow."""
    paths = sorted((sample_root / "T-X_pair_data" / "cc3m" / "images").iterdir())[:4]
    return [Image(pixels=np.array(PIL.Image.open(path).convert("RGB"))) for path in paths]


@pytest.mark.parametrize("resample", [2, 3])
def test_pixels_are_those_of_the_librarys_own_processor(tmp_path: Path, pictures: list[Image], resample: int) -> None:
    write_siglip(tmp_path)
    processor = SiglipImageProcessorPil(
        size={"height": 384, "width": 384}, resample=resample, image_mean=[0.5, 0.4, 0.6], image_std=[0.5, 0.3, 0.5]
    )
    processor.save_pretrained(tmp_path)
    settings = pixel_settings(str(tmp_path))
    prepared = media_inputs(str(tmp_path))(pictures)
    assert {(one.shape, one.dtype.name) for one in prepared} == {((384, 384, 3), "uint8")}
    for picture, ours in zip(pictures, prepared, strict=True):
        theirs = processor(images=[picture.pixels], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(normalised(torch.from_numpy(ours), settings), theirs.float(), atol=1e-6, rtol=0)


def test_pixels_that_keep_their_proportions_are_the_librarys_too(tmp_path: Path, pictures: list[Image]) -> None:
    write_siglip2(tmp_path)
    processor, settings = Siglip2ImageProcessorPil(patch_size=16, max_num_patches=256), None
    processor.save_pretrained(tmp_path)
    settings = pixel_settings(str(tmp_path))
    odd = Image(pixels=np.random.default_rng(0).integers(0, 255, (37, 911, 3), np.uint8))
    for picture in [*pictures, odd]:
        [pixels] = media_inputs(str(tmp_path))([picture])
        theirs = processor(images=[picture.pixels], return_tensors="pt")
        rows, columns = theirs["spatial_shapes"][0].tolist()
        assert pixels.shape == (rows * 16, columns * 16, 3)
        ours = flat_patches(normalised(torch.from_numpy(pixels), settings), 16)[0]
        torch.testing.assert_close(ours, theirs["pixel_values"][0, : rows * columns].float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("write", "processor"), [(write_siglip, SiglipImageProcessorPil), (write_siglip2, None)])
def test_embeddings_are_the_librarys_pooled_and_in_patches(tmp_path: Path, pictures, write, processor) -> None:
    model = write(tmp_path)
    processor = (processor or Siglip2ImageProcessorPil).from_pretrained(tmp_path)
    pooled, whole = load_encoder(str(tmp_path)), load_encoder(str(tmp_path), patches=4)
    assert pooled.shapes == {Modality.IMAGE: (32,), Modality.VIDEO: (32,)}
    assert whole.shapes == {Modality.IMAGE: (4, 32), Modality.VIDEO: (4, 32)}
    vectors, patches = pooled(pictures), whole(pictures)
    for number, picture in enumerate(pictures):
        inputs = processor(images=[picture.pixels], return_tensors="pt")
        with torch.no_grad():
            found = model.vision_model(**inputs)
        np.testing.assert_allclose(vectors[number], found.pooler_output[0].numpy(), atol=1e-5)
        rows, columns = inputs["spatial_shapes"][0].tolist() if "spatial_shapes" in inputs else (6, 6)
        grid = found.last_hidden_state[:, : rows * columns].reshape(1, rows, columns, 32).permute(0, 3, 1, 2)
        expected = torch.nn.functional.adaptive_avg_pool2d(grid, 2)[0].flatten(1).T
        np.testing.assert_allclose(patches[number], expected.numpy(), atol=1e-5)


def test_of_a_video_eight_frames_are_embedded_each_as_a_picture(tmp_path: Path) -> None:
    write_siglip(tmp_path)
    places = frame_places(len(FILM.frames))
    assert places == [2, 7, 12, 17, 22, 27, 32, 37]
    frames = [Image(pixels=FILM.frames[place]) for place in places]
    pooled = load_encoder(str(tmp_path))
    assert list(pooled.prepare.frame_places(40, 8.0)) == places  # type: ignore[attr-defined]
    np.testing.assert_allclose(pooled([FILM])[0], pooled(frames).mean(axis=0), atol=1e-5)
    assert frame_places(1) == [0] * 8
    # Two bins of time, two of rows and of columns: each is a mean over four frames of what a picture gives.
    found = load_encoder(str(tmp_path), patches=8)([FILM])[0].reshape(2, 4, 32)
    alone = load_encoder(str(tmp_path), patches=4)(frames).reshape(2, 4, 4, 32).mean(axis=1)
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_a_row_depends_on_no_other_and_an_id_on_all_that_matters(tmp_path: Path, pictures: list[Image]) -> None:
    write_siglip(tmp_path / "a")
    encoder = load_encoder(str(tmp_path / "a"))
    mixed = encoder([pictures[0], FILM, pictures[1]])
    np.testing.assert_allclose(
        mixed, np.concatenate([encoder([one]) for one in (pictures[0], FILM, pictures[1])]), atol=1e-6
    )
    write_siglip(tmp_path / "b" / "a", seed=1)
    others = [
        load_encoder(str(tmp_path / "b" / "a")).id,
        load_encoder(str(tmp_path / "a"), patches=4).id,
        load_encoder(str(tmp_path / "a"), patches=9).id,
        load_encoder(str(tmp_path / "a"), precision="bfloat16").id,
    ]
    assert len({encoder.id, *others}) == 5
    assert load_encoder(str(tmp_path / "a")).id == encoder.id
    fast = load_encoder(str(tmp_path / "a"), precision="bfloat16")(pictures)
    assert 0 < np.abs(fast - encoder(pictures)).max() < 0.1


def test_a_sound_is_refused(tmp_path: Path) -> None:
    write_siglip(tmp_path)
    with pytest.raises(ValueError, match="name an encoder of audio"):
        load_encoder(str(tmp_path))([Audio(waveform=np.zeros((1, 9), np.float32), sample_rate=8000)])


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_siglip(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["vision_model.post_layernorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"post_layernorm\.weight is missing"):
        load_encoder(str(tmp_path))


def test_real_videos_are_embedded(tmp_path: Path, sample_root: Path) -> None:
    write_siglip(tmp_path)
    path = min((sample_root / "T-X_pair_data" / "webvid" / "videos").iterdir(), key=lambda path: path.stat().st_size)
    film = decode(Media(modality=Modality.VIDEO, data=path.read_bytes(), format="mp4"), fps=4.0)
    made = load_encoder(str(tmp_path), patches=16)([film])
    assert made.shape == (1, 16, 32)
    assert np.isfinite(made).all()


@pytest.mark.parametrize("write", [write_siglip, write_siglip2])
def test_of_a_film_the_frames_are_prepared_that_all_of_it_would_give(tmp_path: Path, write) -> None:
    write(tmp_path)
    film, prepare = encode(FILM), media_inputs(str(tmp_path))
    [found] = prepare_media([film], prepare)
    [whole] = prepare([decode(film, fps=VIDEO_FPS)])
    np.testing.assert_array_equal(found, whole)
    [made] = load_encoder(str(tmp_path), patches=4).embed(load_encoder(str(tmp_path)).send([found]))
    assert made.shape == (4, 32)
