"""The media of a row: what can be read is loaded and named, what cannot is refused with its reason."""

from pathlib import Path

import pytest
from dataset_cases import picture

from pipelines.media_folder import load_media
from pipelines.sample import Item, Modality, Part, Sample, Turn


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(picture(1).data)
    (folder / "deep" / "b.JPG").write_bytes(picture(2).data)
    (folder / "broken.png").write_bytes(b"no picture")
    (tmp_path / "secret.png").write_bytes(picture(3).data)
    return folder


def exchange(user: tuple[Part, ...], assistant: tuple[Part, ...] = ("yes",)) -> Sample:
    turns = (Turn(role="user", parts=user), Turn(role="assistant", parts=assistant))
    return Sample(key="k", source="rows.json#0", turns=turns)


def item(name: str, caption: str = "") -> Item:
    return Item(modality=Modality.IMAGE, name=name, caption=caption)


def test_a_single_medium_is_named_by_its_format_alone(images: Path) -> None:
    loaded = load_media(exchange((item("deep/b.JPG"), "what?")), images)
    assert list(loaded.media) == ["jpg"]
    assert loaded.turns[0].parts == (item("jpg"), "what?")
    assert loaded.media["jpg"].data == (images / "deep" / "b.JPG").read_bytes()


def test_several_media_are_numbered_in_the_order_they_stand(images: Path) -> None:
    loaded = load_media(exchange((item("deep/b.JPG"),), (item("a.png", "a square"),)), images)
    assert [medium.name for medium in loaded.items()] == list(loaded.media) == ["0.jpg", "1.png"]


def test_a_medium_named_twice_is_stored_once(images: Path) -> None:
    loaded = load_media(exchange((item("a.png"), "and", item("a.png")), (item("deep/b.JPG", "a square"),)), images)
    assert [medium.name for medium in loaded.items()] == ["0.png", "0.png", "1.jpg"]
    assert list(loaded.media) == ["0.png", "1.jpg"]
    alone = load_media(exchange((item("a.png"), item("a.png"))), images)
    assert ([medium.name for medium in alone.items()], list(alone.media)) == (["png", "png"], ["png"])


def test_a_medium_named_twice_is_checked_as_each_of_its_modalities(images: Path) -> None:
    sound = Item(modality=Modality.AUDIO, name="a.png")
    with pytest.raises(ValueError, match=r"^(unreadable|no audio stream)"):
        load_media(exchange((item("a.png"), sound)), images)


def test_a_row_without_media_needs_no_media_folder() -> None:
    text = exchange(("draw it",), (item("", "a square"),))
    assert load_media(text, None) == text


@pytest.mark.parametrize("name", ["absent.png", "broken.png", "../secret.png"])
def test_an_output_item_needs_its_caption_alone(images: Path, name: str) -> None:
    loaded = load_media(exchange(("draw it",), (item(name, "a square"),)), images)
    assert loaded.turns[1].parts == (item("", "a square"),)
    assert loaded.media == {}
    assert loaded.meta == {"missing_media": [name]}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.png", "missing file: absent.png"),
        ("deep", "missing file: deep"),
        ("broken.png", "unreadable"),
        ("../secret.png", r"path outside the root: \.\./secret\.png"),
        ("deep/../../secret.png", "path outside the root"),
        ("/etc/passwd", "path outside the root: /etc/passwd"),
        ("link.png", r"path outside the root: link\.png is a link"),
        ("folder/secret.png", r"path outside the root: folder/secret\.png is a link"),
        ("a\0.png", "path outside the root"),
        ("x" * 300 + ".png", "missing file"),
    ],
)
def test_an_input_medium_that_cannot_be_read_is_refused_with_its_reason(images: Path, name: str, reason: str) -> None:
    (images / "link.png").symlink_to(images.parent / "secret.png")
    (images / "folder").symlink_to(images.parent)
    with pytest.raises(ValueError, match=f"^{reason}"):
        load_media(exchange((item(name),)), images)


def test_a_link_that_stays_in_the_folder_is_followed(images: Path) -> None:
    (images / "link.png").symlink_to(images / "a.png")
    assert load_media(exchange((item("link.png"),)), images).media["png"].data == picture(1).data


def test_an_input_medium_without_a_media_folder_is_refused() -> None:
    with pytest.raises(ValueError, match="the catalog names no media folder"):
        load_media(exchange((item("a.png"),)), None)
