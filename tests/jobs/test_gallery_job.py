"""The command that makes the gallery."""

from pathlib import Path

import pytest

from jobs import gallery
from tests.pipelines.gallery_runs import write_runs


def test_it_writes_the_page_and_the_picture_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_runs(tmp_path / "runs", each=1)
    page, picture = tmp_path / "new" / "page.html", tmp_path / "picture.png"
    gallery.main(["--runs", *map(str, runs), "--out", str(page), "--picture", str(picture)])
    assert capsys.readouterr().out.splitlines() == [f"gallery: {page}", f"picture: {picture}"]
    assert page.read_text().lstrip().startswith("<!doctype html>")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        gallery.main(["--runs", str(tmp_path / "nowhere"), "--out", str(tmp_path / "page.html")])
