"""Members of a tar are those the tarfile and webdataset libraries write, byte for byte."""

import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from pipelines.storage.shards import TarShardWriter
from pipelines.storage.tar_members import write_member

SIZES = (0, 1, 511, 512, 513, 20_000)


@pytest.mark.parametrize("length", [1, 40, 95, 96, 97, 100, 150, 300])
@pytest.mark.parametrize("size", SIZES)
def test_a_member_is_what_tarfile_writes(length: int, size: int) -> None:
    name, data = "k" * (length - 4) + ".jpg" if length > 4 else "k", bytes(size)
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w") as tar:
        tar.addfile(info, io.BytesIO(data))
        written = tar.offset

    file = io.BytesIO()

    assert write_member(file, name, data) == written
    assert file.getvalue() == expected.getvalue()[:written]


def test_a_shard_is_what_the_webdataset_library_writes(tmp_path: Path) -> None:
    samples = {f"{index:09d}": {"jpg": b"x" * size, "json": b"{}", "0.png": b"y"} for index, size in enumerate(SIZES)}
    with (tmp_path / "theirs.tar").open("wb") as file:
        theirs = webdataset.TarWriter(file, user="", group="", mtime=0, mode=0o644, encoder=False)
        for key, values in samples.items():
            theirs.write({"__key__": key, **values})
        theirs.close()

    with TarShardWriter(tmp_path / "ours.tar") as ours:
        ranges = [ours.write(key, values) for key, values in samples.items()]

    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()
    assert ranges[1] == (ranges[0][1], 5 * 512 + 512)
