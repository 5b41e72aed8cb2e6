"""Which encoder a task uses is remembered for as long as nothing has changed that may change it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from dataset_cases import NotingEncoder

from pipelines.embed.encoding import EmbedTask
from pipelines.embed.identities import EncoderIdentity, learn, recall


def task(memory: Callable[[], Path | None] | None, encoder_id: str = "noting-0") -> EmbedTask:
    factory = partial(NotingEncoder, encoder_id=encoder_id)
    return EmbedTask(kind="image", factory=factory, dtype="float32", memory=memory)


def test_what_was_learned_is_recalled_until_it_has_to_be_looked_up_elsewhere(tmp_path: Path) -> None:
    place = tmp_path / "encoders" / "a.json"
    assert recall(task(lambda: place)) is None
    known = EncoderIdentity(id="noting-0", name="noting", untrained=True)
    assert learn(task(lambda: place)) == known == recall(task(lambda: place))
    assert recall(task(lambda: tmp_path / "encoders" / "b.json")) is None


@pytest.mark.parametrize("memory", [None, lambda: None])
def test_an_encoder_that_cannot_be_told_by_its_files_is_loaded_each_time(
    memory: Callable[[], Path | None] | None,
) -> None:
    assert learn(task(memory)).id == "noting-0"
    assert recall(task(memory)) is None


@pytest.mark.parametrize("content", ["", "[]", '{"id": 1}', '{"id": "a", "name": "b", "untrained": true, "more": 1}'])
def test_a_damaged_memory_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert recall(task(lambda: tmp_path / "a.json")) is None
    assert learn(task(lambda: tmp_path / "a.json")) == recall(task(lambda: tmp_path / "a.json"))


def test_files_that_change_while_they_are_read_are_not_remembered(tmp_path: Path) -> None:
    places = iter([tmp_path / "before.json", tmp_path / "after.json"])
    learn(task(lambda: next(places)))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert learn(task(lambda: tmp_path / "file" / "a.json")).id == "noting-0"
