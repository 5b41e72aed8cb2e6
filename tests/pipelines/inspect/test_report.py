"""Reports: one file that loads nothing, runs nothing, shows what is there, and is no larger for a larger dataset."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from browsing import chromium, visit
from whole_cases import write_embeddings, write_whole

from pipelines.inspect.report import RunFigures, write_report
from pipelines.media.codecs import encode
from pipelines.sample import Audio, Image, Item, Media, Modality, Reject, Sample, Turn, Video
from pipelines.storage.shards import MANIFEST

HOSTILE = "<script>document.title='owned'</script><img src=https://example.invalid/x onerror=alert(1)> \"'&amp;"
RUN = RunFigures(rows=40, seconds=2.5, bytes=3_000_000)


def image(number: int, size: tuple[int, int] = (48, 64)) -> Media:
    height, width = size
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None] * np.ones((height, 1, 3), np.uint8)
    ramp[..., number % 3] = 40 * (number % 6)
    return encode(Image(pixels=ramp))


def clip(number: int) -> Media:
    frames = np.zeros((10, 48, 64, 3), np.uint8)
    for time in range(10):
        frames[time, 10:30, 4 + 4 * time : 20 + 4 * time, number % 3] = 250
    return encode(Video(frames=frames, fps=5))


def sound(number: int) -> Media:
    time = np.arange(24_000) / 16_000
    return encode(Audio(waveform=np.sin(2000 * time * (1 + number))[None].astype(np.float32), sample_rate=16_000))


FACTS: dict[Modality, dict[str, Any]] = {
    Modality.IMAGE: {"width": 64, "height": 48},
    Modality.VIDEO: {"width": 64, "height": 48, "seconds": 2.0, "fps": 5.0},
    Modality.AUDIO: {"seconds": 1.5, "sample_rate": 16000},
}
MAKE = {Modality.IMAGE: image, Modality.VIDEO: clip, Modality.AUDIO: sound}


def pair(number: int, modality: Modality, caption: str = "") -> Sample:
    medium = MAKE[modality](number)
    item = Item(modality=modality, name=medium.format, caption=caption or f"the {modality} number {number}")
    turns = (Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(item.caption,)))
    meta = {"media": {medium.format: {"file": f"{number}.{medium.format}", **FACTS[modality]}}}
    return Sample(key=f"k{number}", source=f"rows.json#{number}", turns=turns, media={medium.format: medium}, meta=meta)


def talk(number: int) -> Sample:
    media = {f"{place}.{medium.format}": medium for place, medium in enumerate((image(number), sound(number)))}
    names = list(media)
    turns = (
        Turn(role="user", parts=(Item(modality=Modality.IMAGE, name=names[0]), f"What is this? {HOSTILE}")),
        Turn(role="assistant", parts=("A ramp.", Item(modality=Modality.VIDEO, caption=f"a moving square {HOSTILE}"))),
        Turn(role="user", parts=("And this?", Item(modality=Modality.AUDIO, name=names[1]))),
        Turn(role="assistant", parts=("A tone.",)),
    )
    facts = {names[0]: FACTS[Modality.IMAGE], names[1]: FACTS[Modality.AUDIO]}
    return Sample(key=f"t{number}", source=f"talks.json#{number}", turns=turns, media=media, meta={"media": facts})


REJECTED = [
    Reject(source=f"rows.json#{30 + number}", key=f"x{number}", stage="media", reason=f"missing file: {HOSTILE}")
    for number in range(7)
] + [Reject(source="rows.json#90", key="", stage="read", reason="bad row: a number")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets of pairs, of which one is hostile, and one of dialogues; with the report of each."""
    root = tmp_path_factory.mktemp("shards")
    for modality in Modality:
        samples = [pair(number, modality, HOSTILE * 3 if number == 2 else "") for number in range(9)]
        about = {"licence": f"free {HOSTILE}", "source": "javascript:alert(1)"}
        manifest = write_whole(root / f"{modality}_pairs_of_a_long_name", samples, REJECTED, **about)
        keys = [[sample.key for sample in samples[start : start + 4]] for start in (0, 4, 8)]
        write_embeddings(root / manifest.dataset, manifest, "numbers-1", keys)
    write_whole(root / "talks", [talk(number) for number in range(5)], views={"talks": "dialogue"})
    for dataset in datasets(root):
        write_report(dataset, root / "reports" / f"{dataset.name}.html", RUN)
    return root


def datasets(root: Path) -> list[Path]:
    return [path.parent for path in sorted(root.glob(f"*/{MANIFEST}"))]


def test_a_page_names_nothing_outside_itself_and_holds_no_script(folder: Path) -> None:
    for page in sorted((folder / "reports").glob("*.html")):
        text = page.read_text()
        assert "<script" not in text
        assert set(re.findall(r'(?:src|href)="([^"]{1,8})', text)) <= {"data:ima", "data:aud", "data:,"} | {
            f"#{name}"[:8] for name in re.findall(r'<section id="(\w+)"', text)
        }
        assert not re.findall(r"url\(|@import|\son\w+=\"", text)


def test_counts_reasons_and_origins_stand_in_the_page(folder: Path) -> None:
    text = " ".join((folder / "reports" / "image_pairs_of_a_long_name.html").read_text().split())
    for said in (
        "<b>17</b>",
        "<i>=</i>9</b>",
        "<i>+</i>8</b>",
        "rows.json#30",
        "bad row: a number",
        "16 rows/s",
        "1.2 MB/s",
    ):
        assert said in text
    assert "the image number 4" in text
    assert "numbers-1" in text
    assert "&lt;script&gt;" in text


def test_the_same_dataset_gives_the_same_page(folder: Path, tmp_path: Path) -> None:
    write_report(folder / "talks", tmp_path / "again.html", RUN)
    assert (tmp_path / "again.html").read_bytes() == (folder / "reports" / "talks.html").read_bytes()


def test_a_dataset_behind_a_url_has_the_same_page(folder: Path) -> None:
    from upath import UPath

    remote = UPath("memory://report")
    for path in (path for path in (folder / "talks").iterdir() if path.is_file()):
        (remote / "talks").mkdir(parents=True, exist_ok=True)
        (remote / "talks" / path.name).write_bytes(path.read_bytes())
    write_report(remote / "talks", remote / "reports" / "talks.html", RUN)
    assert (remote / "reports" / "talks.html").read_bytes() == (folder / "reports" / "talks.html").read_bytes()


def test_a_page_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3)).astype(np.uint8)
    medium = encode(Image(pixels=noise))
    sizes = []
    for count in (60, 240):
        samples = []
        for number in range(count):
            sample = pair(number, Modality.IMAGE, f"noise {number}")
            samples.append(Sample(**{**_fields(sample), "media": {"png": medium}}))
        write_whole(tmp_path / f"{count}", samples, samples_per_shard=20)
        write_report(tmp_path / f"{count}", tmp_path / f"{count}.html")
        sizes.append((tmp_path / f"{count}.html").stat().st_size)
    assert max(sizes) < 6e6
    assert sizes[1] < 1.1 * sizes[0]


def _fields(sample: Sample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in ("key", "source", "turns", "meta")}


def test_a_dataset_of_no_samples_has_a_page_too(tmp_path: Path) -> None:
    write_whole(tmp_path / "none", [], REJECTED[:1])
    write_report(tmp_path / "none", tmp_path / "none.html")
    assert "no row became a sample" in (tmp_path / "none.html").read_text()


def test_a_medium_that_is_damaged_is_left_out(tmp_path: Path) -> None:
    broken = pair(0, Modality.IMAGE)
    media = {"png": Media(modality=Modality.IMAGE, data=b"no picture", format="png")}
    write_whole(tmp_path / "one", [Sample(**{**_fields(broken), "media": media}), pair(1, Modality.IMAGE)])
    write_report(tmp_path / "one", tmp_path / "one.html")
    assert (tmp_path / "one.html").read_text().count('src="data:image/jpeg') == 1


# --- In a browser


MEASURE = """() => ({
  width: document.documentElement.scrollWidth,
  title: document.title,
  empty: [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length,
  unnamed: [...document.images].filter(i => !i.alt).length,
  images: document.images.length,
  sounds: [...document.querySelectorAll('audio')].map(a => a.duration),
  frames: document.querySelectorAll('.strip img').length,
  bars: document.querySelectorAll('.chart rect:not(.hover)').length,
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize(
    ("name", "images", "sounds", "frames"),
    [
        ("image_pairs_of_a_long_name", 9, 0, 0),
        ("video_pairs_of_a_long_name", 40, 0, 40),
        ("audio_pairs_of_a_long_name", 0, 8, 0),
        ("talks", 10, 10, 0),
    ],
)
def test_a_page_renders_without_a_network_or_an_error(
    browser: Any,
    folder: Path,
    tmp_path: Path,
    name: str,
    images: int,
    sounds: int,
    frames: int,
    width: int,
    scheme: str,
) -> None:
    path = folder / "reports" / f"{name}.html"
    opened = visit(browser, path, width, scheme)
    seen = opened.page.evaluate(MEASURE)
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [path.as_uri()]
    assert seen["width"] == width, "nothing overflows sideways"
    assert seen["title"].startswith(f"{name}: ")
    assert (seen["images"], seen["empty"], seen["unnamed"], seen["frames"]) == (images, 0, 0, frames)
    assert len(seen["sounds"]) == sounds
    assert all(seconds == pytest.approx(1.5, abs=0.05) for seconds in seen["sounds"])
    opened.page.screenshot(path=tmp_path / "page.png", full_page=True)
    with PIL.Image.open(tmp_path / "page.png") as picture:
        pixels = np.asarray(picture.convert("L"), np.int16)
    assert pixels.shape[1] == width
    assert (pixels.mean() > 128) == (scheme == "light")
    bands = [band.std() for band in np.array_split(pixels, 12)]
    assert min(bands) > 2, "no stretch of the page is blank"
    opened.page.context.close()
