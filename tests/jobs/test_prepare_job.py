"""The command that prepares: what it says of rows it rejects, and of sources and disks that fail."""

import csv
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from jobs import prepare
from jobs.common import cli

CATALOG = """
{name}:
  reader: pairs
  paths: [{name}/rows.csv]
  media: {name}
  modality: image
  views: {{{name}_v: {{stage: 1, kind: caption}}}}
"""


def write_pairs(root: Path, name: str, media: list[str]) -> None:
    """A folder of pictures with the table that names them."""
    (root / name).mkdir(parents=True)
    with (root / name / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "caption", "image_name"])
        writer.writeheader()
        writer.writerows({"id": i, "caption": f"number {i}", "image_name": name} for i, name in enumerate(media))
    for medium in media:
        if medium.startswith("good"):
            Image.new("RGB", (16, 16), (255, 0, 0)).save(root / name / medium)


def write_catalog(root: Path, *names: str) -> Path:
    path = root / "mine.yaml"
    path.write_text("".join(CATALOG.format(name=name) for name in names))
    return path


def prepared(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[str | int | None, list[str], list[str]]:
    """Runs the command in this process: its exit code, and the lines it prints and complains with."""
    code: str | int | None = 0
    try:
        cli.run(lambda _: prepare.main(list(map(str, arguments))))
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return code, said.out.splitlines(), [line for line in said.err.splitlines() if line.startswith("error: ")]


@pytest.mark.ray
def test_a_source_that_cannot_be_read_is_one_failure_and_the_others_are_prepared(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second", "third"):
        write_pairs(tmp_path, name, ["good.png"])
    (tmp_path / "second" / "rows.csv").write_bytes(b"")
    catalog = write_catalog(tmp_path, "first", "second", "third")
    arguments = ("--data", tmp_path, "--catalog", catalog, "--out", tmp_path / "out")
    code, said, errors = prepared(capsys, *arguments)
    assert code == 1
    assert said[:2] == [f"{name}: 1 in = 1 out + 0 rejected  (1 shards written)" for name in ("first", "third")]
    assert said[2] == f"all: 2 in = 2 out + 0 rejected; shards in {tmp_path / 'out'}; not finished: second"
    assert len(errors) == 1
    assert errors[0].startswith(f"error: second: {tmp_path}/second/rows.csv: ")
    (tmp_path / "third" / "rows.csv").write_bytes(b"")
    code, said, errors = prepared(capsys, *arguments)
    assert (code, said[0]) == (1, "first: 1 in = 1 out + 0 rejected  (was up to date)")
    assert [line.partition(" /")[0] for line in errors] == ["error: second:", "error: third:", errors[2]]
    assert errors[2] == "error: not finished: second, third"


@pytest.mark.ray
def test_each_reason_has_an_example_and_what_can_be_done(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(tmp_path / "data", "birds", ["good.png", "link.png", "../x.png", "gone.png", "lost.png"])
    Image.new("RGB", (16, 16), (0, 0, 255)).save(tmp_path / "other.png")
    (tmp_path / "data" / "birds" / "link.png").symlink_to(tmp_path / "other.png")
    catalog = write_catalog(tmp_path, "birds")
    arguments = ("--data", tmp_path / "data", "--catalog", catalog, "--out", tmp_path / "out", "--max-rejected", "1")
    code, said, _ = prepared(capsys, *arguments)
    expected = [
        "birds: 5 in = 1 out + 4 rejected  (1 shards written)",
        "  rejected 2: missing file",
        "    such as rows.csv#3: missing file: gone.png",
        "    what can be done: the catalog entry's `media:` names their folder, `media_name:` their names; then"
        " --retry-rejected tries them again",
        "  rejected 2: path outside the root",
        f"    such as rows.csv#1: path outside the root: link.png is a link to {tmp_path}/other.png;"
        " --follow-links follows it",
        "    what can be done: give --follow-links, or the folder they lead to as a further --data",
    ]
    assert (code, said[:7]) == (0, expected)
    page = (tmp_path / "out" / "reports" / "birds.html").read_text()
    assert "rows.csv#1" in page
    assert "What can be done: give --follow-links, or the folder they lead to as a further --data." in page
    again = prepared(capsys, *arguments)[1]
    assert again[:7] == ["birds: 5 in = 1 out + 4 rejected  (was up to date)", *expected[1:]]
    followed = prepared(capsys, *arguments, "--follow-links")[1]
    assert followed[0] == "birds: 5 in = 2 out + 3 rejected  (1 shards written)"
    with tarfile.open(tmp_path / "out" / "birds" / "00000.tar") as tar:
        blue = [Image.open(file) for name in tar.getnames() if name.startswith("1.") and name.endswith("g")
                if (file := tar.extractfile(name))]  # fmt: skip
        assert [picture.getpixel((8, 8)) for picture in blue] == [(0, 0, 255)]
    code, said, errors = prepared(capsys, *arguments[:-1], "0.1")
    assert (code, said[:2]) == (1, ["birds: not finished", "  rejected 2: missing file"])
    assert errors[0].startswith("error: birds: 4 of 5 rows rejected")


@pytest.mark.ray
def test_a_folder_that_cannot_be_written_is_one_line_that_names_it_and_nothing_more_is_tried(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        write_pairs(tmp_path, name, ["good.png"])
    parts = tmp_path / "out" / "first" / ".work" / "parts"
    parts.parent.mkdir(parents=True)
    parts.touch()
    catalog = write_catalog(tmp_path, "first", "second")
    code, said, errors = prepared(capsys, "--data", tmp_path, "--catalog", catalog, "--out", tmp_path / "out")
    assert (code, said[0].partition("; not finished: ")[2]) == (1, "first, second")
    assert errors == [
        f"error: first: {os.strerror(17)}: '{parts / '00000.tar'}'",
        "error: not finished: first, second",
    ]
