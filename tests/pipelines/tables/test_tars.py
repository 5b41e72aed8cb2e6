"""Tars as img2dataset and video2dataset write them: every row they tried is a sample or a reject."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.sample import Item, Modality, Reject, Sample
from pipelines.sources.catalog import load_catalog
from pipelines.sources.readers import READERS
from pipelines.storage.files import to_path
from pipelines.tables.containers import read_member, split

ReadPath = Callable[..., list[Any]]
WriteTar = Callable[..., Path]

JPEG = b"\xff\xd8\xff\xe0"


def download(key: str, caption: str = "a cat", suffix: str = "jpg") -> dict[str, bytes]:
    fields = {"caption": caption, "url": "http://a/b.jpg", "key": key, "status": "success", "width": 4}
    return {f"{key}.{suffix}": JPEG, f"{key}.json": json.dumps(fields).encode(), f"{key}.txt": caption.encode()}


def write_list(path: Path, **status: str | None) -> None:
    """The list of downloads: by key what went wrong, None where nothing did."""
    rows = [
        {
            "url": "http://a/b.jpg",
            "caption": "a cat",
            "key": key,
            "status": "failed_to_resize" if error == "small" else "failed_to_download" if error else "success",
            "error_message": error,
        }
        for key, error in status.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def folder(tmp_path: Path, write_tar: WriteTar) -> Path:
    """Two tars with lists of 7 rows, one of them a tar that is not there."""
    root = tmp_path / "T-X_pair_data" / "cc3m"
    write_tar(root / "00000.tar", download("000000002") | download("000000000", "a dog\r\n"))
    write_list(
        root / "00000.parquet",
        **{"000000000": None, "000000001": "HTTP Error 404: Not Found", "000000002": None, "000000003": "small"},
    )
    write_tar(root / "00001.tar", download("000010000"))
    write_list(root / "00001.parquet", **{"000010000": None, "000010001": None})
    write_list(root / "00002.parquet", **{"000020000": "<urlopen error timed out>"})
    (root / "00000_stats.json").write_text('{"count": 4}')
    return root


def test_every_row_of_img2dataset_comes_out_or_is_rejected(tmp_path: Path, folder: Path) -> None:
    catalog = load_catalog()
    entry, path = catalog.datasets["cc3m"], catalog.find(tmp_path)["cc3m"]
    assert path == folder
    results = list(READERS[entry.reader](entry, path))
    assert [(row.key, row.source, row.reason if isinstance(row, Reject) else "") for row in results] == [
        ("000000002", "00000.tar#0", ""),
        ("000000000", "00000.tar#1", ""),
        ("000000001", "00000.parquet#1", "missing file: download failed (HTTP Error 404: Not Found)"),
        ("000000003", "00000.parquet#3", "missing file: resize failed (small)"),
        ("000010000", "00001.tar#0", ""),
        ("000010001", "00001.parquet#1", "missing file: 00001.tar holds no 000010001"),
        ("000020000", "00002.parquet#0", "missing file: download failed (<urlopen error timed out>)"),
    ]
    sample = results[1]
    assert isinstance(sample, Sample)
    assert list(sample.items()) == [Item(modality=Modality.IMAGE, name="00000.tar/000000000.jpg", caption="a dog")]


def test_the_media_of_tars_lie_in_them_whatever_else_is_there(tmp_path: Path, folder: Path) -> None:
    (folder / "images").mkdir()
    catalog = load_catalog()
    entry = catalog.datasets["cc3m"]
    media = catalog.media_folder(entry, tmp_path, folder)
    assert media == folder
    (item,) = next(row for row in READERS["pairs"](entry, folder) if isinstance(row, Sample)).items()
    assert read_member(*split(media, item.name), 100) == (JPEG, "jpg")
    assert catalog.media_folder(entry, tmp_path) == folder / "images"


def test_tars_of_videos_and_sounds_are_read(tmp_path: Path, write_tar: WriteTar) -> None:
    catalog = load_catalog()
    for name, suffix in (("webvid", "mp4"), ("audiocap", "flac")):
        write_tar(tmp_path / "T_X_pair_data" / name / "00000.tar", download("0", suffix=suffix))
        entry, path = catalog.datasets[name], catalog.find(tmp_path)[name]
        (sample,) = READERS[entry.reader](entry, path)
        assert isinstance(sample, Sample)
        assert next(sample.items()) == Item(modality=entry.modality, name=f"00000.tar/0.{suffix}", caption="a cat")  # type: ignore[arg-type]


def test_a_tar_alone_needs_no_list_and_no_json(tmp_path: Path, read_path: ReadPath, write_tar: WriteTar) -> None:
    path = write_tar(tmp_path / "x.tar", {"./a/1.jpg": JPEG, "./a/1.txt": b"one", "a/2.JPG": JPEG, "a/2.txt": b"two"})
    one, two = read_path("pairs", path, modality="image")
    assert [next(sample.items()).name for sample in (one, two)] == ["x.tar/a/1.jpg", "x.tar/a/2.JPG"]
    assert one.key != two.key


@pytest.mark.parametrize("name", ["0.jpg", "0.txt"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_cost_their_row(
    tmp_path: Path, read_path: ReadPath, write_tar: WriteTar, name: str, kind: bytes
) -> None:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, "/etc/passwd"
    path = write_tar(tmp_path / "x.tar", download("0") | {name: info} | download("1"))
    reject, sample = read_path("pairs", path, modality="image")
    assert (reject.key, reject.reason) == ("0", f"unreadable: x.tar/{name} is a link or no regular file")
    assert sample.key == "1"


@pytest.mark.parametrize("base", ["../0", "/etc/0", "a/../../0", "..\\0"])
def test_names_that_leave_the_tar_cost_their_row(
    tmp_path: Path, read_path: ReadPath, write_tar: WriteTar, base: str
) -> None:
    path = write_tar(tmp_path / "x.tar", download(base) | download("1"))
    reject, sample = read_path("pairs", path, modality="image")
    assert reject.reason.startswith("path outside the root: x.tar/")
    assert sample.key == "1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"0.txt": b"x" * 40_960}, "too long caption: 40960 bytes, the limit is 8192"),
        ({"0.txt": b"x" * (2 << 20)}, "too long caption: x.tar/0.txt has 2097152 bytes, the limit is 1048576"),
        ({"0.txt": b"caf\xe9"}, "damaged text: caption is not valid UTF-8"),
        ({"0.txt": b" "}, "empty caption"),
        ({"0.json": b"{"}, "bad JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ({"0.json": b"[]"}, "bad row: x.tar/0.json holds no object"),
    ],
)
def test_a_bad_member_costs_its_row(
    tmp_path: Path, read_path: ReadPath, write_tar: WriteTar, change: dict[str, bytes], reason: str
) -> None:
    path = write_tar(tmp_path / "x.tar", download("0") | change | download("1"))
    reject, sample = read_path("pairs", path, modality="image")
    assert (reject.key, reject.reason) == ("0", reason)
    assert sample.key == "1"


def test_ids_of_any_kind_become_keys(tmp_path: Path, read_path: ReadPath, write_tar: WriteTar) -> None:
    members: dict[str, bytes] = {}
    for base in ("x" * 300, "日本", "A", "a"):
        members |= {f"{base}.jpg": JPEG, f"{base}.txt": b"a cat"}
    results = read_path("pairs", write_tar(tmp_path / "x.tar", members), modality="image")
    assert len({sample.key for sample in results}) == 4
    assert all(isinstance(sample, Sample) and len(sample.key) <= 64 for sample in results)


@pytest.mark.parametrize("keep", [0.4, 0.6, 0.9])
def test_of_a_tar_cut_off_the_whole_rows_are_kept(
    tmp_path: Path, read_path: ReadPath, write_tar: WriteTar, keep: float
) -> None:
    members: dict[str, bytes] = {}
    for index in range(20):
        members |= download(f"{index:04d}")
    path = write_tar(tmp_path / "x.tar", members)
    used = 20 * 6 * 512
    path.write_bytes(path.read_bytes()[: int(used * keep) // 512 * 512])
    *samples, reject = read_path("pairs", path, modality="image")
    assert len(samples) >= 20 * keep - 2
    assert all(isinstance(sample, Sample) for sample in samples[:-1])
    assert reject.reason.startswith("unreadable: the tar breaks off")


def test_tars_are_read_from_an_object_store(tmp_path: Path, folder: Path) -> None:
    remote = to_path("memory://tars")
    for file in folder.iterdir():
        (remote / "T-X_pair_data" / "cc3m" / file.name).write_bytes(file.read_bytes())
    catalog = load_catalog()
    entry, path = catalog.datasets["cc3m"], catalog.find(remote)["cc3m"]
    results = list(READERS["pairs"](entry, path))
    assert results == list(READERS["pairs"](entry, folder))
    media = catalog.media_folder(entry, remote, path)
    assert media is not None
    assert read_member(*split(media, "00000.tar/000000002.jpg"), 100) == (JPEG, "jpg")
