"""The media of rows: what can be read is loaded, stored and named, what cannot is refused with its reason."""

import base64
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from dataset_cases import picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.media.folder import NO_LINKS, Links, load_rows
from pipelines.media.policy import MediaPolicy
from pipelines.sample import Item, Modality, Part, Reject, Sample, Turn
from pipelines.storage.files import to_path

POLICY = MediaPolicy()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(picture(1).data)
    (folder / "deep" / "b.JPG").write_bytes(picture(2).data)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "empty.png").touch()
    (tmp_path / "secret.png").write_bytes(picture(3).data)
    return folder


def exchange(user: tuple[Part, ...], assistant: tuple[Part, ...] = ("yes",), key: str = "k") -> Sample:
    turns = (Turn(role="user", parts=user), Turn(role="assistant", parts=assistant))
    return Sample(key=key, source=f"rows.json#{key}", turns=turns)


def item(name: str, caption: str = "") -> Item:
    return Item(modality=Modality.IMAGE, name=name, caption=caption)


def load(row: Sample, root: Path | None, captions_stand_in: bool = False, links: Links = NO_LINKS) -> Sample:
    [loaded] = load_rows([row], root, POLICY, captions_stand_in, links)
    assert isinstance(loaded, Sample)
    return loaded


def refused(row: Sample, root: Path | None, captions_stand_in: bool = False, links: Links = NO_LINKS) -> str:
    [reject] = load_rows([row], root, POLICY, captions_stand_in, links)
    assert isinstance(reject, Reject)
    assert (reject.key, reject.source, reject.stage) == (row.key, row.source, "media")
    return reject.reason


def test_a_single_medium_is_named_by_its_format_alone_whatever_its_file_was_called(images: Path) -> None:
    loaded = load(exchange((item("deep/b.JPG"), "what?")), images)
    assert list(loaded.media) == ["png"]
    assert loaded.turns[0].parts == (item("png"), "what?")
    assert loaded.media["png"].data == (images / "deep" / "b.JPG").read_bytes()


def test_several_media_are_numbered_in_the_order_they_stand(images: Path) -> None:
    loaded = load(exchange((item("deep/b.JPG"),), (item("a.png", "a square"),)), images)
    assert [medium.name for medium in loaded.items()] == list(loaded.media) == ["0.png", "1.png"]


def test_meta_says_of_each_medium_what_it_was_called_and_what_it_is(images: Path) -> None:
    loaded = load(exchange((item("deep/b.JPG"),), (item("a.png", "a square"),)), images)
    assert loaded.meta["media"] == {
        "0.png": {"file": "deep/b.JPG", "width": 8, "height": 8},
        "1.png": {"file": "a.png", "width": 8, "height": 8},
    }


def test_a_medium_named_twice_is_stored_once(images: Path) -> None:
    loaded = load(exchange((item("a.png"), "and", item("a.png")), (item("deep/b.JPG", "a square"),)), images)
    assert [medium.name for medium in loaded.items()] == ["0.png", "0.png", "1.png"]
    assert list(loaded.media) == ["0.png", "1.png"]
    alone = load(exchange((item("a.png"), item("a.png"))), images)
    assert ([medium.name for medium in alone.items()], list(alone.media)) == (["png", "png"], ["png"])


def test_a_medium_named_twice_is_checked_as_each_of_its_modalities(images: Path) -> None:
    sound = Item(modality=Modality.AUDIO, name="a.png")
    assert refused(exchange((item("a.png"), sound)), images).startswith(("unreadable: ", "no audio stream: "))


@pytest.mark.parametrize("front", ["data:image/png;base64,", "data:;base64,", "DATA:image/jpeg;BASE64,", ""])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_medium_in_base64_is_a_medium(
    tmp_path: Path, read_path: Callable[..., list[Sample]], front: str, encode: Callable[[bytes], bytes], suffix: str
) -> None:
    path, data = tmp_path / f"rows.{suffix}", picture(1).data
    frame = pd.DataFrame({"image": [front + encode(data).decode()], "caption": ["a cat"]})
    {"csv": frame.to_csv, "jsonl": partial(frame.to_json, orient="records", lines=True), "parquet": frame.to_parquet}[
        suffix
    ](path)
    (row,) = read_path("pairs", path, modality="image")
    loaded = load(row, None)
    assert row.key == "0000000"
    assert loaded.media["png"].data == data
    assert loaded.turns[0].parts == (item("png", "a cat"),)
    assert loaded.meta["media"]["png"]["file"].startswith(f"{front or 'data:;base64,'}".rstrip(","))
    assert len(loaded.meta["media"]["png"]["file"]) < 80


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "data:image/png;base64,iVBORw0K=GgoAAAA",
            "unreadable: data:image/png;base64 of 38 characters is damaged base64",
        ),
        ("data:image/svg+xml,%3Csvg/%3E", "unreadable: data:image/svg+xml of 29 characters is not in base64"),
        ("data:image/png;base64,AAAA", "unreadable: data:image/png;base64 of 26 characters is of no known format"),
    ],
)
def test_a_data_uri_that_is_no_medium_is_refused_with_its_reason(name: str, reason: str) -> None:
    assert refused(exchange((item(name), "what?")), None) == reason


def test_a_data_uri_over_the_limit_is_refused_before_it_is_decoded() -> None:
    policy = MediaPolicy.model_validate({"limits": {"max_bytes": 1000}})
    name = "data:image/png;base64," + base64.b64encode(picture(1).data + bytes(3000)).decode()
    [reject] = load_rows([exchange((item(name), "what?"))], None, policy)
    assert isinstance(reject, Reject)
    assert reject.reason.startswith("too large: data:image/png;base64 of ")


def test_a_row_without_media_needs_no_media_folder() -> None:
    text = exchange(("draw it",), (item("", "a square"),))
    assert load(text, None) == text


@pytest.mark.parametrize("name", ["absent.png", "broken.png", "../secret.png"])
def test_an_output_item_needs_its_caption_alone(images: Path, name: str) -> None:
    loaded = load(exchange(("draw it",), (item(name, "a square"),)), images)
    assert loaded.turns[1].parts == (item("", "a square"),)
    assert loaded.media == {}
    assert loaded.meta == {"missing_media": [name]}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.png", "missing file: absent.png"),
        ("deep", "unreadable: not a regular file (deep)"),
        ("broken.png", "unreadable: cannot identify image file (broken.png)"),
        ("empty.png", "empty file: empty.png"),
        ("../secret.png", "path outside the root: ../secret.png"),
        ("deep/../../secret.png", "path outside the root"),
        ("/etc/passwd", "path outside the root: /etc/passwd"),
        ("link.png", "path outside the root: link.png is a link"),
        ("folder/secret.png", "path outside the root: folder/secret.png is a link"),
        ("a\0.png", "path outside the root"),
        ("x" * 300 + ".png", "missing file"),
        ("x/" * 3000 + "a.png", "unreadable"),
        ("circle/a.png", "unreadable"),
        ("\ud83d.png", "missing file: ?.png"),
    ],
)
def test_an_input_medium_that_cannot_be_read_is_refused_with_its_reason(images: Path, name: str, reason: str) -> None:
    (images / "link.png").symlink_to(images.parent / "secret.png")
    (images / "folder").symlink_to(images.parent)
    (images / "circle").symlink_to(images / "circle")
    said = refused(exchange((item(name),)), images)
    assert said.startswith(reason)
    said.encode()


def test_a_link_that_stays_in_the_folder_is_followed(images: Path) -> None:
    (images / "link.png").symlink_to(images / "a.png")
    assert load(exchange((item("link.png"),)), images).media["png"].data == picture(1).data


def test_a_link_that_leaves_the_folder_is_refused_with_where_it_leads_unless_it_may_be_followed(images: Path) -> None:
    secret = images.parent / "secret.png"
    (images / "link.png").symlink_to("../secret.png")
    (images / "outside").symlink_to(images.parent)
    for name in ("link.png", "outside/secret.png"):
        row = exchange((item(name),))
        assert refused(row, images) == (
            f"path outside the root: {name} is a link to {secret}; --follow-links follows it"
        )
        for links in (Links(follow=True), Links(roots=(images.parent,))):
            assert load(row, images, links=links).media["png"].data == picture(3).data
    elsewhere = Links(roots=(images / "deep",))
    assert refused(exchange((item("link.png"),)), images, links=elsewhere).startswith("path outside the root: link.png")
    assert refused(exchange((item("../secret.png"),)), images, links=Links(follow=True)).startswith("path outside")
    assert refused(exchange((item(str(secret)),)), images, links=Links(follow=True)).startswith("path outside")


def test_links_are_followed_to_regular_files_alone(images: Path) -> None:
    os.mkfifo(images.parent / "pipe")
    for name, target in {"pipe.png": "../pipe", "pipe.tar": "../pipe", "zero.png": "/dev/zero", "up.png": ".."}.items():
        (images / name).symlink_to(target)
        inner = f"{name}/0.png" if name.endswith(".tar") else name
        said = refused(exchange((item(inner),)), images, links=Links(follow=True))
        assert said.startswith(f"unreadable: {inner} is a link to /")
        assert said.endswith(", which is not a regular file")
    (images / "gone.png").symlink_to("../nothing.png")
    assert refused(exchange((item("gone.png"),)), images, links=Links(follow=True)) == "missing file: gone.png"


def test_a_media_folder_may_be_a_link_and_an_absolute_path_may_lead_into_it(images: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(images)
    with tarfile.open(images / "0.tar", "w") as tar:
        tar.add(images / "a.png", "a.png")
    for name in ("a.png", f"{link}/a.png", f"{images}/a.png", f"{images}/0.tar/a.png"):
        assert load(exchange((item(name),)), link).media["png"].data == picture(1).data
    for name in (f"{images}/../secret.png", f"{images}2/a.png", f"{images.parent}/secret.png"):
        assert refused(exchange((item(name),)), link) == f"path outside the root: {name}"


def snapshot(root: Path) -> Path:
    """A folder as `huggingface_hub` keeps it: its files are links to blobs that are called by their hashes."""
    repository = root / "hub" / "datasets--me--birds"
    folder = repository / "snapshots" / "0123abcd" / "data"
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "aaaa").write_bytes(picture(4).data)
    (folder / "a.png").symlink_to("../../../blobs/aaaa")
    return folder


def test_a_snapshot_of_the_hugging_face_cache_leads_to_its_blobs_and_no_further(tmp_path: Path) -> None:
    folder = snapshot(tmp_path)
    blobs = folder.parents[2] / "blobs"
    (tmp_path / "link").symlink_to(folder)
    for root in (folder, tmp_path / "link", folder.parent):
        name = "data/a.png" if root == folder.parent else "a.png"
        assert load(exchange((item(name),)), root).media["png"].data == picture(4).data
    (tmp_path / "secret.png").write_bytes(picture(3).data)
    (blobs / "bbbb").symlink_to(tmp_path / "secret.png")
    (folder / "b.png").symlink_to("../../../blobs/bbbb")
    (folder / "c.png").symlink_to("../../../../../secret.png")
    for name in ("b.png", "c.png"):
        assert f"{name} is a link to {tmp_path}/secret.png;" in refused(exchange((item(name),)), folder)


@pytest.mark.parametrize("what", ["blobs are a link", "no cache"])
def test_what_only_looks_like_a_snapshot_leads_nowhere(tmp_path: Path, what: str) -> None:
    folder = snapshot(tmp_path)
    repository = folder.parents[2]
    if what == "no cache":
        folder = repository.rename(tmp_path / "birds") / "snapshots" / "0123abcd" / "data"
    else:
        (repository / "blobs").rename(tmp_path / "private")
        (repository / "blobs").symlink_to(tmp_path / "private")
    assert refused(exchange((item("a.png"),)), folder).startswith("path outside the root: a.png is a link to ")


def test_an_input_medium_without_a_media_folder_is_refused() -> None:
    assert "the catalog names no media folder" in refused(exchange((item("a.png"),)), None)


def test_a_caption_stands_in_for_a_medium_that_is_missing(images: Path) -> None:
    row = exchange(("see", item("absent.png", "a square"), item("", "a circle"), item("a.png", "a dot")))
    loaded = load(row, images, captions_stand_in=True)
    assert loaded.turns[0].parts == ("see", "a square", "a circle", item("0.png", "a dot"))
    assert loaded.meta["captions_as_text"] == 2
    assert load(exchange(("see",)), images, captions_stand_in=True).meta == {}


def test_a_caption_stands_in_for_nothing_that_is_broken_or_has_no_caption(images: Path) -> None:
    assert refused(exchange((item("broken.png", "a square"),)), images, True).startswith("unreadable")
    assert refused(exchange((item("absent.png"),)), images, True).startswith("missing file")
    assert refused(exchange((item("../secret.png", "a square"),)), images, True).startswith("path outside")


def test_rows_come_out_in_order_one_for_one(images: Path) -> None:
    names = ["a.png", "absent.png", "broken.png", "deep/b.JPG", ""] * 30
    rows = [exchange((item(name),) if name else ("hello",), key=str(number)) for number, name in enumerate(names)]
    results = list(load_rows(iter(rows), images, POLICY))
    assert [result.key for result in results] == [row.key for row in rows]
    assert [isinstance(result, Sample) for result in results] == [name not in names[1:3] for name in names]


def test_rows_are_not_read_far_ahead_of_what_is_taken(images: Path) -> None:
    taken = 0

    def rows() -> Iterator[Sample]:
        nonlocal taken
        for taken in range(5000):
            yield exchange((item("a.png"),) if taken % 500 == 0 else ("hello",))

    next(load_rows(rows(), images, POLICY))
    assert taken < 600


def test_two_loads_at_once_do_not_mix(images: Path) -> None:
    rows = [exchange((item(name),), key=name) for name in ("a.png", "deep/b.JPG", "broken.png") * 5]
    one, other = load_rows(rows, images, POLICY), load_rows(reversed(rows), images, POLICY)
    pairs = list(zip(one, other, strict=True))
    assert [left.key for left, _ in pairs] == [row.key for row in rows]
    assert [right for _, right in pairs] == [left for left, _ in pairs][::-1]


def test_a_load_that_is_given_up_leaves_nothing_behind(images: Path) -> None:
    rows = [exchange((item(name),), key=name) for name in ("a.png", "deep/b.JPG") * 5]
    given_up = load_rows(rows, images, POLICY)
    next(given_up)
    given_up.close()  # type: ignore[attr-defined]
    assert [row.key for row in load_rows(rows, images, POLICY)] == [row.key for row in rows]


def test_media_inside_a_tar_are_read_and_the_links_in_it_are_not(images: Path) -> None:
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "../../secret.png"
    with tarfile.open(images / "0.tar", "w") as tar:
        tar.add(images / "a.png", "x/a.png")
        tar.addfile(link)
    loaded = load(exchange((item("0.tar/x/a.png"),)), images)
    assert loaded.media["png"].data == picture(1).data
    assert loaded.meta["media"]["png"]["file"] == "0.tar/x/a.png"
    assert refused(exchange((item("0.tar/link.png"),)), images).startswith("unreadable: ")
    assert refused(exchange((item("0.tar/absent.png"),)), images).startswith("missing file: ")
    assert refused(exchange((item("0.tar/../a.png"),)), images).startswith("path outside the root: ")


def test_media_behind_a_url_are_loaded_alike(images: Path) -> None:
    store = to_path("memory://media-folder-test")
    (store / "deep").mkdir(parents=True, exist_ok=True)
    (store / "deep" / "b.png").write_bytes(picture(2).data)
    assert load(exchange((item("deep/b.png"),)), store).media["png"].data == picture(2).data
    assert refused(exchange((item("absent.png"),)), store) == "missing file: absent.png"
    assert refused(exchange((item("../secret.png"),)), store).startswith("path outside the root")
    rows = [exchange((item(name),), key=str(number)) for number, name in enumerate(["deep/b.png", "absent.png"] * 20)]
    results = list(load_rows(rows, store, POLICY))
    assert [result.key for result in results] == [row.key for row in rows]
    assert [isinstance(result, Sample) for result in results] == [True, False] * 20


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=40) | st.sampled_from(["a.png", "deep/b.JPG", "broken.png", ".."]), max_size=5))
def test_whatever_rows_name_each_gives_one_result_in_order(images: Path, names: list[str]) -> None:
    rows = [exchange((item(name),), key=str(number)) for number, name in enumerate(names)]
    results = list(load_rows(rows, images, POLICY))
    assert [result.key for result in results] == [row.key for row in rows]
    for result in results:
        if isinstance(result, Reject):
            assert result.reason.partition(":")[0] in {
                "missing file",
                "path outside the root",
                "unreadable",
                "empty file",
                "too large",
            }
