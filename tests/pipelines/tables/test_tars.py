"""Tars as img2dataset and video2dataset write them: every row they tried is a sample or a reject."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.sample import Item, Modality, Reject, Sample
from pipelines.sources.catalog import load_catalog
from pipelines.sources.entry import Entry
from pipelines.sources.readers import READERS
from pipelines.storage.files import to_path
from pipelines.tables.containers import read_member, split
from pipelines.tables.formats import holds_media
from pipelines.tables.tars import tar_rows
from pipelines.views import CAPTION_PROMPT, apply_view

ReadPath = Callable[..., list[Any]]
WriteTar = Callable[..., Path]

JPEG = b"\xff\xd8\xff\xe0"
NO_IMAGE = "missing member: no image (.jpg, .jpeg, .png, .webp, .gif, .bmp, ...)"


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


def samples_of(results: list[Any]) -> dict[str, tuple[list[str], str]]:
    """By key the names of the media, and the caption."""
    return {sample.key: ([item.name for item in sample.items()], sample.turns[1].parts[0]) for sample in results}


def test_what_macos_and_hidden_files_add_to_a_tar_is_no_row(
    tmp_path: Path, read_path: ReadPath, write_tar: WriteTar
) -> None:
    junk = b"\0\5\26\7" + bytes(100)
    folder = tarfile.TarInfo()
    folder.type = tarfile.DIRTYPE
    path = write_tar(
        tmp_path / "x.tar",
        {
            ".": folder,
            "./._0.jpg": junk,
            "./0.jpg": JPEG,
            "./._0.txt": junk,
            "./0.txt": b"a cat",
            "__MACOSX/0.jpg": junk,
            "__MACOSX/._0.txt": junk,
            ".DS_Store": junk,
            ".git/1.jpg": junk,
            "./1.jpg": JPEG,
            "./1.txt": b"a dog",
        },
    )
    assert samples_of(read_path("pairs", path, modality="image")) == {
        "0": (["x.tar/0.jpg"], "a cat"),
        "1": (["x.tar/1.jpg"], "a dog"),
    }


def test_of_several_pictures_of_a_sample_all_are_kept_in_the_order_of_their_names(
    tmp_path: Path, read_path: ReadPath, write_tar: WriteTar
) -> None:
    members = {"0.right.jpg": JPEG, "0.json": b'{"caption": "a pair"}', "0.left.jpg": JPEG}
    members |= {f"1.{number}.jpg": JPEG for number in (10, 9, 1)} | {"1.txt": b"three"}
    results = read_path("pairs", write_tar(tmp_path / "x.tar", members), modality="image")
    assert samples_of(results) == {
        "0": (["x.tar/0.left.jpg", "x.tar/0.right.jpg"], "a pair"),
        "1": (["x.tar/1.1.jpg", "x.tar/1.9.jpg", "x.tar/1.10.jpg"], "three"),
    }
    seen = apply_view("caption", results[0])
    assert [getattr(part, "name", part) for part in seen.turns[0].parts] == [
        "x.tar/0.left.jpg",
        "x.tar/0.right.jpg",
        CAPTION_PROMPT,
    ]
    made = apply_view("generate", results[0])
    assert made.turns[0].parts == ("a pair",)
    assert [getattr(part, "name", part) for part in made.turns[1].parts] == [
        "a pair",
        "x.tar/0.left.jpg",
        "x.tar/0.right.jpg",
    ]


def test_several_texts_of_a_sample_are_not_one_of_them(tmp_path: Path, write_tar: WriteTar) -> None:
    members = {"0.jpg": JPEG, "0.b.txt": b"two", "0.a.txt": b"one", "1.a.jpg": JPEG, "1.a.txt": b"a"}
    path = write_tar(tmp_path / "x.tar", members | {"1.b.jpg": JPEG, "1.b.txt": b"b"})
    both, unclear = tar_rows(path, "x.tar")
    assert both.value["caption"] == ["one", "two"]
    assert unclear.error == "bad row: x.tar/1 has several texts and several media of one kind"


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (["0.jpg"], "missing member: no caption (.txt, or a .json with one); the sample has 0.jpg"),
        (["0.txt", "0.json"], f"{NO_IMAGE}; the sample has 0.json, 0.txt"),
        (["0.mp4", "0.txt"], f"{NO_IMAGE}; the sample has 0.mp4, 0.txt"),
    ],
)
def test_a_sample_without_a_medium_or_a_caption_says_what_it_lacks_and_has(
    tmp_path: Path, read_path: ReadPath, write_tar: WriteTar, members: list[str], reason: str
) -> None:
    content = {"jpg": JPEG, "txt": b"a cat", "json": b'{"width": 4}', "mp4": b"x"}
    path = write_tar(tmp_path / "x.tar", {name: content[name.partition(".")[2]] for name in members} | download("1"))
    reject, sample = read_path("pairs", path, modality="image")
    assert (reject.key, reject.reason) == ("0", reason)
    assert sample.key == "1"


def test_a_name_that_stands_twice_in_a_tar_is_told_and_the_first_is_taken(tmp_path: Path, read_path: ReadPath) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in [("0.jpg", JPEG), ("0.txt", b"a cat"), ("0.jpg", JPEG * 2), ("0.txt", b"a dog")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    sample, reject = read_path("pairs", path, modality="image")
    assert sample.turns[1].parts == ("a cat",)
    assert read_member(path, "0.jpg", 100)[0] == JPEG
    assert reject.reason == "duplicate member: x.tar/0.jpg stands in the tar before, and that is taken"


CAPTIONS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffd\ufeff"), min_size=1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(CAPTIONS.filter(lambda text: bool(text.strip())), min_size=1, max_size=5),
    st.sampled_from(["", "./", "a/b/"]),
    st.sampled_from(["", ".tar.gz", ".tar.zst"]),
    st.randoms(use_true_random=False),
)
def test_any_order_of_members_gives_the_same_samples(
    tmp_path: Path,
    read_path: ReadPath,
    write_tar: WriteTar,
    captions: list[str],
    folder: str,
    packed: str,
    shuffle: Random,
) -> None:
    members: dict[str, bytes] = {}
    for number, caption in enumerate(captions):
        base = f"{folder}{number}"
        members |= {f"{base}.left.jpg": JPEG, f"{base}.right.png": b"\x89PNG\r\n\x1a\n", f"{base}._x": b""}
        members[f"{base}.json" if number % 2 else f"{base}.txt"] = (
            json.dumps({"caption": caption}).encode() if number % 2 else caption.encode()
        )
    names = list(members)
    shuffle.shuffle(names)
    path = write_tar(tmp_path / "x.tar", {name: members[name] for name in names})
    if packed:
        path.write_bytes(pack(path.read_bytes(), packed))
    base = str(PurePosixPath(folder))
    inner = "x.tar" if base == "." else f"x.tar/{base}"
    found = [
        ([item.name for item in sample.items()], sample.turns[1].parts[0])
        for sample in sorted(read_path("pairs", path, modality="image"), key=lambda sample: next(sample.items()).name)
    ]
    assert found == [
        ([f"{inner}/{number}.left.jpg", f"{inner}/{number}.right.png"], " ".join(caption.split()))
        for number, caption in enumerate(captions)
    ]


def pack(data: bytes, suffix: str) -> bytes:
    if suffix != ".tar.zst":
        return gzip.compress(data)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar.zst", ".tar"])
@pytest.mark.parametrize("by_type", [False, True])
def test_packed_tars_are_read_whatever_they_are_called(
    tmp_path: Path, write_tar: WriteTar, suffix: str, by_type: bool
) -> None:
    members: dict[str, bytes] = {}
    for number in range(30):
        members |= {f"{number:02}.jpg": JPEG + bytes([number]) * 3000, f"{number:02}.txt": f"cat {number}".encode()}
    if by_type:
        members = dict(sorted(members.items(), key=lambda pair: pair[0][::-1]))
    plain = write_tar(tmp_path / "plain", members).read_bytes()
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / f"x{suffix}").write_bytes(pack(plain, suffix))
    write_list(
        folder / "x.parquet", **{f"{number:02}": "HTTP Error 404" if number == 30 else None for number in range(31)}
    )
    entry = Entry(name="rows", reader="pairs", paths=["packed"], modality=Modality.IMAGE)
    assert holds_media(folder)
    *samples, failed = READERS["pairs"](entry, folder)
    assert failed.source == "x.parquet#30"  # type: ignore[union-attr]
    found = samples_of(samples)
    names = {f"{number:02}": ([f"x{suffix}/{number:02}.jpg"], f"cat {number}") for number in range(30)}
    assert found == names
    for number in (0, 7, 29, 3):
        data, known = read_member(*split(folder, f"x{suffix}/{number:02}.jpg"), 5000)
        assert (data, known) == (members[f"{number:02}.jpg"], "jpg")
    with pytest.raises(ValueError, match=r"^too large: x\..*/03\.jpg has 3004 bytes, the limit is 3000$"):
        read_member(folder / f"x{suffix}", "03.jpg", 3000)


def test_the_catalogs_tars_may_be_packed_and_one_that_was_unpacked_beside_is_read_once(
    tmp_path: Path, write_tar: WriteTar
) -> None:
    folder = tmp_path / "T-X_pair_data" / "cc3m"
    plain = write_tar(folder / "00000.tar", download("0", "a cat"))
    (folder / "00000.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (folder / "00001.tar.gz").write_bytes(gzip.compress(write_tar(tmp_path / "1", download("1", "a dog")).read_bytes()))
    catalog = load_catalog()
    for expected in (["00000.tar/0.jpg", "00001.tar.gz/1.jpg"], ["00000.tar.gz/0.jpg", "00001.tar.gz/1.jpg"]):
        entry, path = catalog.datasets["cc3m"], catalog.find(tmp_path)["cc3m"]
        found = samples_of(list(READERS[entry.reader](entry, path)))
        assert found == {"0": (expected[:1], "a cat"), "1": (expected[1:], "a dog")}
        plain.unlink(missing_ok=True)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.zst"])
def test_of_a_packed_tar_cut_off_the_whole_rows_are_kept(
    tmp_path: Path, read_path: ReadPath, write_tar: WriteTar, suffix: str
) -> None:
    members: dict[str, bytes] = {}
    noise = Random(1)
    for number in range(20):
        members |= {f"{number:02}.jpg": JPEG + noise.randbytes(200_000), f"{number:02}.txt": b"a cat"}
    data = pack(write_tar(tmp_path / "plain", members).read_bytes(), suffix)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data[: len(data) // 2])
    *samples, reject = read_path("pairs", path, modality="image")
    assert 7 <= len(samples) <= 10
    assert all(isinstance(sample, Sample) for sample in samples)
    assert reject.reason.startswith("unreadable: the tar breaks off")


def test_a_tar_packed_otherwise_is_refused_with_that_reason(tmp_path: Path, read_path: ReadPath) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:xz"):
        pass
    with pytest.raises(
        ValueError, match=r"^unreadable: x\.tar is packed with xz; unpack it, or use gzip or zstandard$"
    ):
        read_path("pairs", tmp_path / "x.tar", modality="image")
