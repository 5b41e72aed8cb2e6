"""`jobs/embed.py`: what it refuses, and latents from pictures to rows."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from jobs import embed, prepare
from jobs.common.cli import UsageError
from model.decoders.latents import LatentEncoder
from pipelines.handover.stage_samples import SampleReader, plan_view, sidecar_of
from pipelines.sample import Image, Modality, turns_from_json
from pipelines.storage.sidecars import from_npy


def mistakes(*arguments: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        embed.main(arguments)
    return str(caught.value).splitlines()


def test_all_mistakes_are_told_at_once() -> None:
    found = mistakes(
        "--latents", "--modality", "image", "encoder", "--captions", "a.json", "--out", "b", "--gpus", "-1"
    )
    assert found == [
        "--model, --captions and --import are for one encoder; give exactly one --modality",
        "--modality encoder: --captions and --import are for image, video or audio",
        "--modality encoder: --latents is for image, video or audio",
        "--latents encodes the media of --shards; leave out --captions and --import",
        "--gpus -1: must be 0 or more",
    ]


def test_what_is_embedded_comes_from_shards_or_from_one_file() -> None:
    assert mistakes() == ["give --shards SHARDS, or --captions JSON with --out DIR"]


@pytest.mark.ray
def test_the_latents_of_pictures_come_with_the_rows_that_are_to_generate_them(local_ray: None, tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "T-X_pair_data" / "cc3m"
    (folder / "images").mkdir(parents=True)
    # Of one colour each: prepare keeps such a PNG as it is.
    colours = {"red.png": (255, 0, 0), "green.png": (0, 255, 0), "blue.png": (0, 0, 255)}
    pictures = {name: np.full((32, 32, 3), colour, np.uint8) for name, colour in colours.items()}
    for name, pixels in pictures.items():
        PIL.Image.fromarray(pixels).save(folder / "images" / name)
    rows = [{"image_name": name, "caption": f"picture {name}"} for name in pictures]
    (folder / "cc3m.json").write_text(json.dumps(rows))
    shards = tmp_path / "shards"
    prepare.main(["--data", str(tmp_path / "raw"), "--out", str(shards), "--datasets", "cc3m"])
    for options in ([], ["--latents"]):
        embed.main(["--shards", str(shards), "--modality", "image", "--preset", "tiny", *options])
    view = plan_view("cc3m_dec", "generate", shards / "cc3m", 1.0, {}, denoised=[Modality.IMAGE])
    manifest = sidecar_of(view, "image_latents")
    assert (manifest.items, manifest.shape, manifest.dtype) == (3, [4, 8, 8], "float16")
    encoder = LatentEncoder(Modality.IMAGE, "builtin:tiny/image_decoder")
    assert manifest.encoder_id == f"image_latents-{encoder.id}"
    assert manifest.untrained
    reader = SampleReader(views=[view])
    for row in (reader.read(0, number) for number in range(3)):
        (caption,) = turns_from_json(row["turns"])[0].parts
        [expected] = encoder([Image(pixels=pictures[str(caption).removeprefix("picture ")])])
        [latents] = from_npy(row["image_latents"])
        np.testing.assert_allclose(latents, expected, atol=1e-3)
