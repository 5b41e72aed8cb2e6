"""Media inside containers are found by name, read in any order, and lead nowhere else."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from pipelines.storage.files import to_path
from pipelines.tables.containers import read_member, split

JPEG, PNG = b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"
ROWS = 100


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def table() -> pa.Table:
    images = [{"bytes": JPEG + bytes([row]), "path": None if row % 2 else f"x/{row}.PNG"} for row in range(ROWS)]
    nested = [[{"role": "user", "content": [{"image": {"bytes": PNG, "path": None}}, {"image": None}]}]] * ROWS
    blobs = [b"RIFF    WAVE" + b"x" * row for row in range(ROWS)]
    return pa.table({"image": images, "messages": nested, "a/b %": blobs, "images": [[image] * 2 for image in images]})


@pytest.fixture(params=["rows.parquet", "stream.arrow", "file.arrow"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A table as Parquet in row groups of 30, or as Arrow in batches of 7."""
    path = tmp_path / str(request.param)
    if path.suffix == ".parquet":
        pq.write_table(table(), path, row_group_size=30)
        return path
    new = pa.ipc.new_stream if path.name == "stream.arrow" else pa.ipc.new_file
    with new(str(path), table().schema) as writer:
        writer.write_table(table(), max_chunksize=7)
    return path


@pytest.mark.parametrize(
    ("name", "outer", "inner"),
    [
        ("a/b.jpg", "a/b.jpg", ""),
        ("00000.tar/12.jpg", "00000.tar", "12.jpg"),
        ("d/00000.TAR/e/12.jpg", "d/00000.TAR", "e/12.jpg"),
        ("train.parquet/image/17", "train.parquet", "image/17"),
        ("t/data-00000-of-00001.arrow/m/1/0", "t/data-00000-of-00001.arrow", "m/1/0"),
        ("00000.tar", "00000.tar", ""),
        ("folder.tar/a.jpg", "folder.tar/a.jpg", ""),
    ],
)
def test_a_name_is_split_where_a_container_stands(tmp_path: Path, name: str, outer: str, inner: str) -> None:
    (tmp_path / "folder.tar").mkdir()
    assert split(tmp_path, name) == (tmp_path / outer, inner)


def test_members_of_a_tar_are_read_by_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", member("./a.jpg", JPEG), member("d/b.c.png", PNG), member("e", b"fLaC"))
    assert read_member(path, "a.jpg", 100) == (JPEG, "jpg")
    assert read_member(path, "d/b.c.png", 100) == (PNG, "png")
    assert read_member(path, "e", 100) == (b"fLaC", "flac")


def test_what_a_tar_holds_is_looked_up_again_once_it_has_changed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", member("a.jpg", JPEG))
    assert read_member(path, "a.jpg", 100)[0] == JPEG
    write_tar(path, member("b.jpg", PNG * 2000), member("a.jpg", PNG))
    assert read_member(path, "a.jpg", 100)[0] == PNG


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.jpg", "missing file: 0.tar holds no none.jpg"),
        ("empty.jpg", "empty file: 0.tar/empty.jpg"),
        ("big.jpg", "too large: 0.tar/big.jpg has 101 bytes, the limit is 100"),
        ("link.jpg", "unreadable: 0.tar/link.jpg is a link or no regular file"),
        ("hard.jpg", "unreadable: 0.tar/hard.jpg is a link or no regular file"),
        ("pipe.jpg", "unreadable: 0.tar/pipe.jpg is a link or no regular file"),
        ("../out.jpg", "path outside the root: 0.tar/../out.jpg"),
        ("/etc/passwd", "path outside the root: 0.tar//etc/passwd"),
        ("..\\out.jpg", "path outside the root: 0.tar/..\\out.jpg"),
        ("nothing", "unreadable: 0.tar/nothing is of no known format"),
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    path = write_tar(
        tmp_path / "0.tar",
        member("a.jpg", JPEG),
        member("empty.jpg"),
        member("big.jpg", b"x" * 101),
        member("link.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("hard.jpg", kind=tarfile.LNKTYPE, link="a.jpg"),
        member("pipe.jpg", kind=tarfile.FIFOTYPE),
        member("../out.jpg", JPEG),
        member("/etc/passwd", JPEG),
        member("nothing", b"nothing"),
    )
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared whole below
        read_member(path, name, 100)
    assert str(caught.value) == reason


def test_of_a_tar_cut_off_what_is_whole_can_be_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", member("a.jpg", JPEG), member("b.jpg", JPEG * 1000))
    path.write_bytes(path.read_bytes()[:2000])
    assert read_member(path, "a.jpg", 10_000)[0] == JPEG
    with pytest.raises(ValueError, match=r"^(unreadable|missing file): "):
        read_member(path, "b.jpg", 10_000)


def test_embedded_media_are_read_in_any_order(stored: Path) -> None:
    for row in [*range(ROWS), 0, 99, 31, 30, 29, 5, 98]:
        data, suffix = read_member(stored, f"image/{row}", 100)
        assert (data, suffix) == (JPEG + bytes([row]), "jpg")  # Whatever its name says.
    assert read_member(stored, "messages/3/0/content/0/image", 100) == (PNG, "png")
    assert read_member(stored, "images/50/1", 100)[0] == JPEG + bytes([50])
    assert read_member(stored, "a%2Fb %25/3", 100) == (b"RIFF    WAVExxx", "wav")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("image/100", "missing file: "),
        ("image/9" + "9" * 30, "missing file: "),
        ("image/x", "missing file: "),
        ("image", "missing file: "),
        ("image/-1", "missing file: "),
        ("none/0", "missing file: "),
        ("image/1/9", "missing file: "),
        ("messages/1/0/role", "missing file: "),
        ("messages/1/0/content/1/image", "missing file: "),
        ("messages/1/1/content", "missing file: "),
        ("a%2Fb %25/99", "too large: .* has 111 bytes, the limit is 50"),
        ("image/../../x", "path outside the root: "),
    ],
)
def test_places_that_hold_no_medium_are_refused_and_the_next_is_read(stored: Path, name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        read_member(stored, name, 50)
    assert read_member(stored, "image/7", 50)[0] == JPEG + bytes([7])


def test_damaged_tables_are_unreadable(stored: Path) -> None:
    data = stored.read_bytes()
    stored.write_bytes(data[: len(data) // 3])
    with pytest.raises(ValueError, match=r"^unreadable: "):
        read_member(stored, "image/99", 100)
    stored.unlink()
    with pytest.raises(ValueError, match=r"^missing file: "):
        read_member(stored, "image/99", 100)


def test_a_column_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"image": [bytes(50_000_000)]}), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 100_000
    before = pa.total_allocated_bytes()
    with pytest.raises(ValueError, match=r"^too large: bomb\.parquet/image unpacks to"):
        read_member(path, "image/0", 1_000_000)
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_offsets_that_lead_out_of_an_arrow_file_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "bad.arrow"
    rows = pa.table({"image": [b"x" * 1000, JPEG]})
    with pa.ipc.new_stream(str(path), rows.schema) as writer:
        writer.write_table(rows)
    offsets = [number.to_bytes(4, "little") for number in (0, 1000, 1004)]
    data = path.read_bytes()
    assert b"".join(offsets) in data
    path.write_bytes(data.replace(b"".join(offsets), offsets[0] + (1 << 30).to_bytes(4, "little") + offsets[2]))
    with pytest.raises(ValueError, match=r"^unreadable: bad\.arrow/image/0"):
        read_member(path, "image/0", 2 << 30)


def test_containers_are_read_from_an_object_store(tmp_path: Path) -> None:
    folder = UPath("memory://containers")
    folder.mkdir(parents=True, exist_ok=True)
    write_tar(tmp_path / "0.tar", member("a.jpg", JPEG))
    pq.write_table(table(), tmp_path / "t.parquet")
    for name in ("0.tar", "t.parquet"):
        (folder / name).write_bytes((tmp_path / name).read_bytes())
    root = to_path("memory://containers")
    assert read_member(*split(root, "0.tar/a.jpg"), 100) == (JPEG, "jpg")
    assert read_member(*split(root, "t.parquet/image/3"), 100) == (JPEG + b"\3", "jpg")
