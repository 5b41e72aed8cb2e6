"""The survey: what was measured is what the samples are, is measured once, and holds the same media out everywhere."""

import sys
from dataclasses import replace
from pathlib import Path

import dataset_cases
import numpy as np
import numpy.typing as npt
import pytest
import ray.cloudpickle
from dataset_cases import DIALOGUE_VIEWS, pair, talk, task, write_dataset, write_sidecar
from hypothesis import given
from hypothesis import strategies as st

from pipelines.handover.stage_samples import LENGTHS, PlannedView, plan_view
from pipelines.handover.survey import Measure, Survey, hash_key, held_out, survey_views
from pipelines.inspect.verify import verify
from pipelines.sample import Sample, Turn
from pipelines.storage.files import write_rows
from pipelines.storage.shards import REJECT_SCHEMA, REJECTS, hash_file
from pipelines.storage.sidecars import ENCODER

ray.cloudpickle.register_pickle_by_value(dataset_cases)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

LIMIT = 5


def words(sample: Sample) -> tuple[int, int]:
    """A measure: words and items, five at the most; who speaks of errors is one."""
    parts = [part for turn in sample.turns for part in turn.parts]
    length = sum(len(part.split()) if isinstance(part, str) else 1 for part in parts)
    if "error" in parts:
        raise ValueError("speaks of errors")
    return min(length, LIMIT), length


def make_words() -> Measure:
    return words


PAIRS = [pair(f"k{number}", "a" + " word" * number) for number in range(5)]
ERROR = (Turn(role="user", parts=("error",)), Turn(role="assistant", parts=("no",)))
TALKS = [talk("a", ["x"]), Sample(key="b", source="talks.json#b", turns=ERROR), talk("c", ["x"] * 9)]


def views_below(root: Path) -> list[PlannedView]:
    """Five pairs as both views see them, and three dialogues of which one cannot be encoded; shards of two."""
    write_dataset(root / "pictures", PAIRS, 2)
    write_dataset(root / "talks", TALKS, 2, DIALOGUE_VIEWS)
    for name, kind in (("pictures", "image"), ("pictures", ENCODER), ("talks", "image")):
        write_sidecar(root / name, task(kind, encoder_id=f"{kind}-0"))
    return [
        plan_view("pictures_enc", "caption", root / "pictures", 1.0, {}),
        plan_view("pictures_dec", "generate", root / "pictures", 1.0, {}),
        plan_view("talks", "dialogue", root / "talks", 2.0, {}),
    ]


@pytest.fixture
def views(tmp_path: Path) -> list[PlannedView]:
    return views_below(tmp_path)


def check(surveys: list[Survey]) -> None:
    enc, dec, talks = surveys
    # An item, three words that ask, one to five of caption; and the caption twice with an item.
    assert (enc.lengths.tolist(), enc.truncated, enc.left_out) == ([5, 5, 5, 5, 5], 4, [])
    assert (dec.lengths.tolist(), dec.truncated, dec.left_out) == ([3, 5, 5, 5, 5], 3, [])
    assert (talks.lengths.tolist(), talks.truncated) == ([3, 0, 5], 1)
    assert talks.left_out == [("b", "speaks of errors")]
    assert enc.key_hashes.tolist() == dec.key_hashes.tolist() == [hash_key(sample.key) for sample in PAIRS]


@pytest.mark.ray
def test_ray_measures_every_sample_in_its_place(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.handover.survey.SAMPLES_AT_ONCE", 0)
    views = views_below(tmp_path)
    check(survey_views(views, make_words, "words"))
    check(survey_views(views, never, "words"))


def never() -> Measure:
    raise AssertionError("there is nothing to measure")


def test_what_was_measured_is_read_back(views: list[PlannedView]) -> None:
    check(survey_views(views, make_words, "words"))
    check(survey_views(views, never, "words"))


def test_what_changes_the_lengths_is_measured_again(views: list[PlannedView]) -> None:
    survey_views(views, make_words, "words")
    with pytest.raises(AssertionError):
        survey_views(views[:1], never, "other words")
    directory = views[0].directory
    write_dataset(directory, [*PAIRS[:4], pair("new", "a b c")], 2)
    write_sidecar(directory, task(ENCODER, encoder_id="encoder-0"))
    changed = plan_view("pictures_enc", "caption", directory, 1.0, {})
    (found,) = survey_views([changed], make_words, "words")
    assert found.key_hashes[4] == hash_key("new")


@pytest.mark.parametrize("data", [b"", b"no parquet", None])
def test_a_file_that_is_damaged_is_made_anew(views: list[PlannedView], data: bytes | None) -> None:
    survey_views(views, make_words, "words")
    files = sorted(path for view in views for path in (view.directory / LENGTHS).iterdir())
    assert [path.name.rpartition("-")[0] for path in sorted(set(files))] == ["pictures_dec", "pictures_enc", "talks"]
    hashes = {path: hash_file(path) for path in files}
    for path in hashes:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if data is None else data)
    check(survey_views(views, make_words, "words"))
    assert {path: hash_file(path) for path in files} == hashes


def test_no_flipped_byte_is_taken_for_a_length(views: list[PlannedView]) -> None:
    survey_views(views, make_words, "words")
    (path,) = (views[2].directory / LENGTHS).iterdir()
    content = path.read_bytes()
    for place in range(0, len(content), 17):  # all of them take a quarter of a minute
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        check(survey_views(views, make_words, "words"))


def test_a_folder_one_may_only_read_is_measured_all_the_same(views: list[PlannedView]) -> None:
    for view in views:
        (view.directory / LENGTHS).write_text("in the way of a folder")
    check(survey_views(views, make_words, "words"))


def test_verification_takes_no_offence(views: list[PlannedView]) -> None:
    survey_views(views, make_words, "words")
    for view in views[1:]:
        write_rows(view.directory / REJECTS, [], REJECT_SCHEMA)
        replace(view.manifest, rejects_sha256=hash_file(view.directory / REJECTS)).write(view.directory)
        assert list(verify(view.directory)) == []


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_split_holds_every_sample_that_can_be_encoded_once(views: list[PlannedView], fraction: float) -> None:
    surveys = survey_views(views, make_words, "words")
    for found in surveys:
        train, apart = found.split(2.0, fraction)
        numbers = np.sort(np.concatenate([train.samples, apart.samples]))
        np.testing.assert_array_equal(numbers, np.flatnonzero(found.lengths))
        for part in (train, apart):
            np.testing.assert_array_equal(part.lengths, found.lengths[part.samples])
            assert part.weight == 2.0
    enc, dec, _ = (found.split(1.0, fraction)[1].samples.tolist() for found in surveys)
    assert enc == dec, "the same media are held out in both views"


def hashes_of(keys: list[str]) -> npt.NDArray[np.uint64]:
    return np.array([hash_key(key) for key in keys], np.uint64)


def test_about_as_many_are_held_out_as_asked_for() -> None:
    hashes = hashes_of([f"{number:09d}" for number in range(20_000)])
    for fraction in (0.0, 0.02, 0.25, 1.0):
        assert held_out(hashes, fraction).mean() == pytest.approx(fraction, abs=0.01)


@given(st.lists(st.text(min_size=1)), st.lists(st.text(min_size=1)), st.floats(0, 0.5), st.floats(0, 0.5))
def test_what_is_held_out_stays_so_when_data_or_the_share_grow(
    keys: list[str], new: list[str], fraction: float, more: float
) -> None:
    before, after = held_out(hashes_of(keys), fraction), held_out(hashes_of(new + keys), fraction)
    np.testing.assert_array_equal(after[len(new) :], before)
    assert held_out(hashes_of(keys), fraction + more)[before].all()


def test_each_caption_is_measured_and_all_of_a_medium_are_held_out_together(tmp_path: Path) -> None:
    samples = [pair(f"k{number}", "a", more=["a b", "a b c"][: number % 3]) for number in range(40)]
    write_dataset(tmp_path / "worded", samples, 7, {"all": "caption", "one": "caption"}, one_caption=["one"])
    write_sidecar(tmp_path / "worded", task(ENCODER, encoder_id="encoder-0"))
    views = [plan_view(name, "caption", tmp_path / "worded", 1.0, {}) for name in ("all", "one")]
    numbers = [3 * number + caption for number in range(40) for caption in range(1 + number % 3)]
    for attempt in (make_words, never):  # the second time from what was kept
        every, one = survey_views(views, attempt, "words")
        assert every.numbers.tolist() == one.numbers.tolist() == numbers
        # A medium and three words that ask, and the caption, five in all.
        assert every.lengths.tolist() == [5 for _ in numbers]
        assert every.truncated == sum(number % 3 > 0 for number in numbers)
    train, apart = every.split(1.0, 0.3)
    assert train.key_hashes is None
    assert {number // 3 for number in train.samples.tolist()} & {
        number // 3 for number in apart.samples.tolist()
    } == set()
    assert sorted([*train.samples.tolist(), *apart.samples.tolist()]) == numbers
    train, apart = one.split(1.0, 0.3)
    assert (train.taken + apart.taken, len(train.samples) + len(apart.samples)) == (40, len(numbers))
