"""The written folder: the same bytes each time, read by every reader of the catalog, left alone once finished."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from pipelines.media.codecs import decode, load
from pipelines.sample import Item, Modality, Part, Sample, Turn
from pipelines.sources.catalog import load_catalog
from pipelines.sources.readers import READERS
from pipelines.world.captions import CAPTIONS, caption
from pipelines.world.conversations import KINDS
from pipelines.world.dataset import unanswered, write_world
from pipelines.world.instructions import INSTRUCTION_SETS
from pipelines.world.oracles import read
from pipelines.world.scenes import ATTRIBUTES, SPEEDS, Motion, Scene, Sound, Subject, draw, is_held_out
from pipelines.world.small_talk import BEYOND_WORDS

COUNT = 12
PAIRS = ("cc3m", "webvid", "audiocap")
EXPECTED = {f"{pairs}{suffix}" for pairs in PAIRS for suffix in ("", "_comprehension", "_generation")} | {
    *INSTRUCTION_SETS
}
UNCAPTIONED = ("llava_instruction", "videochat_instruction")  # formats without a place for captions of media


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "world"
    write_world(root, count=COUNT)
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def samples(root: Path, name: str) -> list[Sample]:
    catalog = load_catalog()
    entry = catalog.datasets[name]
    rows = list(READERS[entry.reader](entry, catalog.find(root)[name]))
    assert all(isinstance(row, Sample) for row in rows), rows
    return [row for row in rows if isinstance(row, Sample)]


def test_equal_arguments_write_equal_trees_and_others_do_not(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "again", count=COUNT)
    write_world(tmp_path / "other", count=COUNT, seed=1)
    assert tree(tmp_path / "again") == tree(world)
    assert tree(tmp_path / "other") != tree(world)


def test_what_the_world_does_not_know_may_be_answered_by_others(world: Path, tmp_path: Path) -> None:
    answers = [{"instruction": f"Question {n}?\nAnd why?", "input": "", "output": f"Answer {n}."} for n in range(3)]
    write_world(tmp_path / "world", count=COUNT, answers=answers)
    before, after = (talk_of(root) for root in (world, tmp_path / "world"))
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == sum(old[1] in BEYOND_WORDS for old in before) >= 3
    assert all(old[1] in BEYOND_WORDS for old, _ in changed)
    assert {new for _, new in changed} == {(f"Question {n}?\nAnd why?", f"Answer {n}.") for n in range(3)}
    with pytest.raises(ValueError, match="holds other files than the synthetic world"):
        write_world(tmp_path / "world", count=COUNT)


def test_what_the_world_cannot_answer_is_told_of_its_own_talk(world: Path) -> None:
    asked = {question for question, answer in talk_of(world) if answer in BEYOND_WORDS}
    found = list(unanswered(0, INSTRUCTION_SETS["alpaca_instruction"].share * COUNT))
    assert len(found) == len(set(found)) > 1
    assert set(found) <= asked


def talk_of(root: Path) -> list[tuple[str, str]]:
    """What is asked and answered in text alone."""
    exchanges = list[tuple[str, str]]()
    for name in ("alpaca_instruction", "mosit_instruction"):
        for sample in samples(root, name):
            said = [" ".join(part for part in turn.parts if isinstance(part, str)) for turn in sample.turns]
            exchanges += zip(said[::2], said[1::2], strict=True)
    return exchanges


def test_a_larger_world_begins_with_the_smaller_one(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "larger", count=COUNT + 1)
    media = {name: data for name, data in tree(world).items() if not name.endswith(".json")}
    assert media.items() <= tree(tmp_path / "larger").items()


def test_a_finished_world_is_not_written_again(world: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    write_world(world, count=COUNT)
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before


def test_other_files_are_not_touched(world: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        write_world(tmp_path)
    with pytest.raises(ValueError, match="holds other files"):
        write_world(world, count=COUNT + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.world.dataset.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "world", count=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seed", "count"), [(-1, 1), (0, 0)])
def test_impossible_arguments_are_refused(tmp_path: Path, seed: int, count: int) -> None:
    with pytest.raises(ValueError, match="seed must be >= 0 and count >= 1"):
        write_world(tmp_path / "world", seed=seed, count=count)


def test_the_catalog_finds_every_dataset_of_the_world(world: Path) -> None:
    assert set(load_catalog().find(world)) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_readers_take_every_row_and_find_its_medium(world: Path, name: str) -> None:
    catalog = load_catalog()
    folder = catalog.media_folder(catalog.datasets[name], world)
    found = samples(world, name)
    rows = COUNT * INSTRUCTION_SETS[name].share if name in INSTRUCTION_SETS else COUNT
    assert len(found) == len({sample.key for sample in found}) == rows
    for item in (item for sample in found for item in sample.items() if item.name):
        assert folder is not None
        assert (folder / item.name).is_file()


@pytest.mark.parametrize("name", [*PAIRS, "mosit_instruction"])
def test_captions_are_true_of_the_media_they_stand_beside(world: Path, name: str) -> None:
    catalog = load_catalog()
    folder = catalog.media_folder(catalog.datasets[name], world)
    assert folder is not None
    for item in (item for sample in samples(world, name) for item in sample.items("user")):
        seen = read(decode(load(folder / item.name, item.modality)))
        assert seen is not None
        assert item.caption in wordings(seen)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_the_first_subjects_of_the_seed(world: Path, name: str) -> None:
    for index, sample in enumerate(samples(world, name)):
        (item,) = sample.items("user")
        assert item.caption == caption(draw(0, index)[item.modality], index)


@pytest.mark.parametrize("name", sorted(INSTRUCTION_SETS))
def test_conversations_come_back_from_their_files(world: Path, name: str) -> None:
    def known(part: Part, role: str) -> Part:
        if isinstance(part, str):
            return part
        return replace(part, name="", caption="" if name in UNCAPTIONED and role == "user" else part.caption)

    def comparable(turns: tuple[Turn, ...]) -> list[tuple[str, list[Part]]]:
        return [(turn.role, [known(part, turn.role) for part in arranged(turn)]) for turn in turns]

    def arranged(turn: Turn) -> list[Part]:
        # VideoChat has no place for a video behind the question.
        is_first = name == "videochat_instruction"
        return sorted(turn.parts, key=lambda part: is_first and isinstance(part, str))

    for index, sample in enumerate(samples(world, name)):
        assert comparable(sample.turns) == comparable(INSTRUCTION_SETS[name].draw(0, index).turns)


def test_every_kind_of_conversation_is_in_some_instruction_set() -> None:
    drawn = [chosen.draw(0, index) for chosen in INSTRUCTION_SETS.values() for index in range(COUNT)]
    assert {conversation.kind for conversation in drawn} == {*KINDS, "plan", "mend", "words", "reply"}


@pytest.mark.parametrize("name", sorted(INSTRUCTION_SETS))
def test_no_two_rows_are_the_same_conversation_but_chats(name: str) -> None:
    drawn = [INSTRUCTION_SETS[name].draw(0, index) for index in range(COUNT)]
    others = [conversation.turns for conversation in drawn if conversation.kind != "chat"]
    assert len(others) == len(set(others))


@pytest.mark.parametrize("modality", Modality)
def test_requests_for_a_modality_have_items_of_no_other(world: Path, modality: Modality) -> None:
    for sample in samples(world, f"{modality}_instruction"):
        assert {item.modality for item in sample.items()} == {modality}


def test_nothing_that_is_written_speaks_of_a_held_out_combination(world: Path) -> None:
    held_out = {words for subject in plain_subjects() if is_held_out(subject) for words in wordings(subject)}
    assert len(held_out) > 1000
    written = " ".join(text.lower() for name in EXPECTED for sample in samples(world, name) for text in texts(sample))
    assert caption(draw(0, 0)[Modality.IMAGE], 0) in written
    assert not [words for words in held_out if words in written]


def wordings(subject: Subject) -> set[str]:
    """All captions of a subject, those of either pace where it moves, and as the assistant says them."""
    paced = [subject]
    if isinstance(subject, Motion):
        paced = [replace(subject, speed=speed) for speed in SPEEDS]
    return {caption(each, variant) for each in paced for variant in range(3 * len(CAPTIONS[Modality.IMAGE]))}


def plain_subjects() -> Iterator[Subject]:
    for modality, kind in zip(Modality, (Scene, Motion, Sound), strict=True):
        names = tuple(ATTRIBUTES[modality])
        for values in product(*ATTRIBUTES[modality].values()):
            yield kind(**dict(zip(names, values, strict=True)))


def texts(sample: Sample) -> Iterator[str]:
    for turn in sample.turns:
        for part in turn.parts:
            yield part.caption if isinstance(part, Item) else part


@pytest.mark.parametrize("dataset", PAIRS)
@pytest.mark.parametrize("suffix", ["", "_comprehension", "_generation"])
def test_rows_have_the_fields_of_the_original(world: Path, sample_root: Path, dataset: str, suffix: str) -> None:
    path = Path("T-X_pair_data") / dataset / f"{dataset}{suffix}.json"
    ours, original = (json.loads((root / path).read_text())[0] for root in (world, sample_root))
    assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in original.items()}
