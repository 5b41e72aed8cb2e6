"""Inputs that people have and that once came out wrong: what `prepare` makes of each, as its README expects."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jobs import prepare
from pipelines.media.codecs import decode
from pipelines.sample import Audio, Decoded, Image, Sample, Video
from pipelines.storage.shards import iterate_samples

pytestmark = pytest.mark.ray


def sizes(media: list[Decoded]) -> set[tuple[int, int]]:
    """Widths and heights."""
    arrays = [medium.pixels if isinstance(medium, Image) else medium.frames[0] for medium in media if is_seen(medium)]
    return {(array.shape[1], array.shape[0]) for array in arrays}


def is_seen(medium: Decoded) -> bool:
    return isinstance(medium, Image | Video)


def seconds(medium: Decoded) -> float:
    if isinstance(medium, Audio):
        return medium.waveform.shape[1] / medium.sample_rate
    assert isinstance(medium, Video)
    return len(medium.frames) / medium.fps


def is_wide(media: list[Decoded]) -> bool:
    (video,) = media
    assert isinstance(video, Video)
    return video.frames.shape[2] / video.frames.shape[1] == pytest.approx(16 / 9, rel=0.02)


def keeps_its_times(media: list[Decoded]) -> bool:
    """A second of a rising ramp, then a frame every two seconds: brightness is the time."""
    (video,) = media
    assert isinstance(video, Video)
    levels = video.frames.mean(axis=(1, 2, 3))
    at = [levels[round(time * video.fps)] for time in (0.0, 0.75, 9.5)]
    return bool((np.diff(levels) > -3).all() and at[1] - at[0] < at[2] - at[1])


def is_srgb(media: list[Decoded]) -> bool:
    """What a picture in Display P3 begins with."""
    corners = [picture.pixels[:4, :4].mean(axis=(0, 1)) for picture in media if isinstance(picture, Image)]
    return len(corners) == 2 and all(np.abs(corner - (218, 0, 6)).max() < 8 for corner in corners)


def last(*lengths: float) -> Callable[[list[Decoded]], bool]:
    return lambda media: sorted(map(seconds, media)) == pytest.approx(sorted(lengths), abs=0.15)


def any_media(media: list[Decoded]) -> bool:
    return bool(media)


# What the command says of each, and what must be true of the media that are stored.
CASES: dict[str, tuple[str, Callable[[list[Decoded]], bool]]] = {
    "anamorphic-video": ("1 in = 1 out + 0 rejected", is_wide),
    "audiocaps2-line-breaks": ("4 in = 2 out + 2 rejected", any_media),
    "avif": ("2 in = 2 out + 0 rejected", any_media),
    "captions-per-picture": ("15 in = 15 out + 0 rejected", lambda media: len(media) == 3),
    "exif-and-alpha": ("6 in = 6 out + 0 rejected", lambda media: sizes(media) == {(64, 96)}),
    "flac-unknown-length": ("1 in = 1 out + 0 rejected", last(2.0)),
    "float-ids": ("3 in = 3 out + 0 rejected", any_media),
    "json-nan": ("6 in = 6 out + 0 rejected", any_media),
    "jsonl-gz": ("3 in = 3 out + 0 rejected", any_media),
    "list-of-captions": ("3 in = 3 out + 0 rejected", lambda media: len(media) == 3),
    "llava-mixed": ("20 in = 15 out + 5 rejected", any_media),
    "llava-video": ("2 in = 2 out + 0 rejected", any_media),
    "mp4-edit-list": ("4 in = 4 out + 0 rejected", last(2.0, 2.0, 2.0, 5.0)),
    "names-without-suffix": ("3 in = 3 out + 0 rejected", lambda media: len(media) == 3),
    "one-sample-sound": ("1 in = 0 out + 1 rejected", lambda media: not media),
    "same-stem-in-folders": ("6 in = 6 out + 0 rejected", lambda media: len(media) == 6),
    "tar-apple-double": ("3 in = 3 out + 0 rejected", lambda media: len(media) == 3),
    "tar-keys-restart": ("6 in = 6 out + 0 rejected", lambda media: len(media) == 6),
    "tar-sorted-by-type": ("3 in = 3 out + 0 rejected", lambda media: len(media) == 3),
    "tar-two-pictures": ("3 in = 3 out + 0 rejected", lambda media: len(media) == 6),
    "tsv-quotes": ("6 in = 6 out + 0 rejected", lambda media: len(media) == 6),
    "vfr-slow-video": ("1 in = 1 out + 0 rejected", keeps_its_times),
    "wav-header-claims-more": ("1 in = 1 out + 0 rejected", last(2.0)),
    "wide-gamut-icc": ("2 in = 2 out + 0 rejected", is_srgb),
}


@pytest.mark.parametrize("name", CASES)
def test_what_people_have_goes_in(
    local_ray: None, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    account, is_right = CASES[name]
    case = shared / "cases" / name
    prepare.main(
        ["--data", str(case), "--catalog", str(case / "mine.yaml"), "--out", str(tmp_path), "--max-rejected", "1"]
    )
    assert f"all: {account}; shards in {tmp_path}" in capsys.readouterr().out.splitlines()
    assert is_right(stored(tmp_path))


def test_json_lines_under_the_name_of_an_array_are_read_beside_others(
    local_ray: None, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = shared / "cases" / "one-bad-source-stops-all"  # Its source is no longer a bad one.
    prepare.main(["--data", str(case), "--out", str(tmp_path), "--max-rejected", "1"])
    taken = {line.partition(":")[0]: line for line in capsys.readouterr().out.splitlines() if " out + " in line}
    assert taken.keys() >= {"cc3m", "audiocap", "llava_instruction"}
    assert all("in = 0 out" not in taken[name] for name in ("cc3m", "audiocap", "llava_instruction"))


def test_links_of_a_snapshot_of_the_hub_are_followed(
    local_ray: None, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = tmp_path / "case"
    shutil.copytree(shared / "cases" / "hub-cache-links", case)
    for path in (case / "hfcache").rglob(
        "*.parquet"
    ):  # Copied to where links are not kept, they are their targets' names.
        target = path.read_bytes()
        if len(target) < 200:
            path.unlink()
            path.symlink_to(target.decode().strip())
    prepare.main(["--data", str(case), "--catalog", str(case / "mine.yaml"), "--out", str(tmp_path / "shards")])
    assert "hfcache: 3 in = 3 out + 0 rejected" in capsys.readouterr().out


def stored(shards: Path) -> list[Decoded]:
    """All stored media, decoded."""
    samples = [sample for folder in sorted(shards.glob("*/manifest.json")) for sample in samples_of(folder.parent)]
    return [decode(medium) for sample in samples for medium in sample.media.values()]


def samples_of(dataset: Path) -> list[Sample]:
    return [sample for tar in sorted(dataset.glob("*.tar")) for sample in iterate_samples(tar)]
