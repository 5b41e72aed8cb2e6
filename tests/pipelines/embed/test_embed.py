"""Sidecars: an embedding for every item that needs one, made once, whatever the number of actors."""

import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import dataset_cases
import hypothesis
import numpy as np
import pytest
import ray.cloudpickle
from dataset_cases import (
    DIALOGUE_VIEWS,
    NotingEncoder,
    begin_sidecar,
    embedding_of,
    length_of,
    pair,
    talk,
    task,
    times,
    tree,
    write_dataset,
    write_sidecar,
    write_sidecars,
)
from hypothesis import settings
from hypothesis import strategies as st
from upath import UPath

from pipelines.embed.embedding import Embedded, Pool, embed, plan_pool
from pipelines.embed.encoding import EmbedTask, UnitEncoder, join_inputs, split_inputs
from pipelines.embed.sidecar_shards import WORK, recall, remember
from pipelines.embed.units import Found, cosine_to_float32, cut
from pipelines.handover.stage_samples import SampleReader, plan_view
from pipelines.media.codecs import decode
from pipelines.sample import Audio, Image, Item, Modality, Video
from pipelines.storage.files import read_rows, stamp
from pipelines.storage.precision import record_type
from pipelines.storage.random_access import Range
from pipelines.storage.shards import MANIFEST, STATE, Manifest, TarShardWriter, index_path, iterate_samples
from pipelines.storage.sidecars import ENCODER, SidecarManifest, from_npy, gigabytes, sidecar_folder, to_npy

# Workers do not have the folder of the tests on their path.
ray.cloudpickle.register_pickle_by_value(dataset_cases)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

ONE, TWO = Pool(actors=1, num_cpus=1, num_gpus=0), Pool(actors=2, num_cpus=1, num_gpus=0)
PAIRS = [pair(f"k{number}", f"caption number {number % 3}", shade=number % 4) for number in range(7)]
TALKS = [talk("a", ["red"]), talk("b", []), talk("c", ["a blue one", "red"]), talk("d", [])]


def run(directory: Path, *tasks: EmbedTask, pool: Pool = ONE) -> list[Embedded]:
    return embed([directory], tasks, pool)


def arrays(directory: Path, encoder_id: str) -> list[tuple[str, np.ndarray, list[int]]]:
    """Key, embeddings and lengths of every sample of a sidecar, found by its index."""
    rows = []
    for tar in sorted(sidecar_folder(directory, encoder_id).glob("*.tar")):
        data = tar.read_bytes()
        for row in read_rows(index_path(tar)):
            array = from_npy(data[row["offset"] : row["offset"] + row["length"]])
            rows.append((row["key"], array, row["lengths"]))
    return rows


def keys_of(directory: Path) -> list[str]:
    return [sample.key for tar in sorted(directory.glob("*.tar")) for sample in iterate_samples(tar)]


def changed(directory: Path, written: dict[str, int]) -> set[str]:
    """The names of the files that were written since."""
    now = times(directory)
    return {Path(name).name for name in now if now[name] != written.get(name)}


def flip(path: Path, place: int) -> None:
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def stamps_of(tar: Path) -> tuple[str, str]:
    return stamp(tar), stamp(index_path(tar))


def given(log: Path) -> list[str]:
    """What encoders were given, in the order of the log."""
    if not log.exists():
        return []
    return [value for line in log.read_text().splitlines() for value in json.loads(line)]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven caption pairs in shards of three."""
    write_dataset(tmp_path / "pictures", PAIRS, 3)
    return tmp_path / "pictures"


@pytest.fixture(scope="module")
def embedded(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pairs with a sidecar of their captions and one of their pictures by two actors; tests only read them."""
    directory = tmp_path_factory.mktemp("embedded") / "pictures"
    write_dataset(directory, PAIRS, 3)
    results = run(directory, task("image", encoder_id="image-0"), task(ENCODER, encoder_id="encoder-0"), pool=TWO)
    assert [(result.dataset, result.made) for result in results] == [("pictures", 3), ("pictures", 3)]
    return directory


@pytest.mark.ray
def test_a_sidecar_holds_one_array_a_sample_with_the_keys_and_order_of_the_shards(embedded: Path) -> None:
    for encoder_id in ("image-0", "encoder-0"):
        rows = arrays(embedded, encoder_id)
        assert [key for key, _, _ in rows] == keys_of(embedded)
        manifest = SidecarManifest.read(sidecar_folder(embedded, encoder_id))
        assert [shard.samples for shard in manifest.shards] == [3, 3, 1]
        assert manifest.of_shards == [shard.sha256 for shard in Manifest.read(embedded).shards]
        assert manifest.items == sum(len(array) for _, array, _ in rows) == len(PAIRS)


@pytest.mark.ray
def test_captions_and_media_get_their_own_embeddings(embedded: Path) -> None:
    for sample, (_, array, lengths) in zip(PAIRS, arrays(embedded, "image-0"), strict=True):
        (item,) = sample.items()
        np.testing.assert_array_equal(array, embedding_of(item.caption)[None])
        assert lengths == [length_of(item.caption)]
    for sample, (_, array, _) in zip(PAIRS, arrays(embedded, "encoder-0"), strict=True):
        np.testing.assert_array_equal(array, embedding_of(decode(sample.media["png"]))[None])


@pytest.mark.ray
def test_two_actors_write_the_bytes_that_one_does(embedded: Path, pictures: Path) -> None:
    write_sidecar(pictures, task("image", encoder_id="image-0"))
    write_sidecar(pictures, task(ENCODER, encoder_id="encoder-0"))
    assert tree(pictures) == tree(embedded)


@pytest.mark.parametrize("samples_per_shard", [8, 2, 1])
def test_equal_captions_and_equal_media_of_a_dataset_are_encoded_once(tmp_path: Path, samples_per_shard: int) -> None:
    same = [pair(f"k{number}", "one and the same", shade=5) for number in range(4)] + [pair("other", "another", 9)]
    write_dataset(tmp_path / "pictures", same, samples_per_shard)
    for kind, expected in (("image", ["another", "one and the same"]), (ENCODER, ["media", "media"])):
        log = tmp_path / f"{kind}.log"
        write_sidecar(tmp_path / "pictures", task(kind, encoder_id=kind, log=log))
        assert sorted(given(log)) == expected
        assert len(arrays(tmp_path / "pictures", kind)) == 5


def test_datasets_share_what_they_both_hold_and_a_later_one_takes_it_from_finished_shards(tmp_path: Path) -> None:
    first = [pair(f"a{n}", f"caption {n}", shade=n) for n in range(4)]
    second = [pair(f"b{n}", f"caption {n + 2}", shade=n + 2) for n in range(4)]
    places = [tmp_path / "first", tmp_path / "second"]
    for place, samples in zip(places, (first, second), strict=True):
        write_dataset(place, samples, 3)
    for kind in ("image", ENCODER):
        together, apart = tmp_path / f"{kind}-together", tmp_path / f"{kind}-apart"
        write_sidecars(places, task(kind, dtype="float16", encoder_id="x", log=together))
        before = tree(tmp_path / "second" / "embeddings")
        assert len(given(together)) == 6
        shutil.rmtree(tmp_path / "second" / "embeddings")
        write_sidecars(places, task(kind, dtype="float16", encoder_id="x", log=apart))
        assert len(given(apart)) == 2, "the other four lie in shards of the first"
        assert tree(tmp_path / "second" / "embeddings") == before
        shutil.rmtree(tmp_path / "first" / "embeddings")
        shutil.rmtree(tmp_path / "second" / "embeddings")


class MaskedEncoder(NotingEncoder):
    """Positions that are not the caption's own are zeros."""

    def __call__(self, inputs: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        embeddings, lengths = super().__call__(inputs)
        return embeddings * (np.arange(3) < lengths[:, None])[..., None].astype(np.float32), lengths


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_positions_that_are_zeros_are_not_stored_and_come_back_in_training(tmp_path: Path, dtype: str) -> None:
    captions = ["one", "one two", "one two three", "one two three four", "two"]
    directory, reference = tmp_path / "pictures", tmp_path / "reference"
    for place in (directory, reference):
        write_dataset(place, [pair(f"k{n}", text, more=["one"] * (n == 4)) for n, text in enumerate(captions)], 2)
    masked = EmbedTask(kind="image", factory=partial(MaskedEncoder, encoder_id="x"), dtype=dtype)
    assert write_sidecar(directory, masked).manifest.shape == [3, 2]
    stored = [array for _, array, _ in arrays(directory, "x")]
    assert [array.shape for array in stored] == [(1, 1, 2), (1, 2, 2), (1, 3, 2), (1, 3, 2), (2, 1, 2)]
    reader = SampleReader([plan_view("pictures_dec", "generate", directory, 1.0, {})])
    for number, text in enumerate(captions):
        found = from_npy(reader.read(0, 2 * number)["image"])
        exact = embedding_of(text) * (np.arange(3) < length_of(text))[:, None]
        assert found.shape == (1, 3, 2)
        np.testing.assert_allclose(found[0], exact, atol=0.02)
        np.testing.assert_array_equal(found[0][length_of(text) :], 0)
    before = tree(directory)
    (sidecar_folder(directory, "x") / "00002.tar").unlink()
    assert write_sidecar(directory, masked).made == 1
    assert tree(directory) == before


@pytest.mark.parametrize(("dtype", "shape"), [("float16", (77, 768)), ("int8", (77, 768)), ("float32", (512,))])
def test_what_captions_will_take_is_what_they_take(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "00000.tar"
    with TarShardWriter(path) as writer:
        for number in range(20):
            writer.write(f"k{number}", {"npy": to_npy(np.zeros(1, record_type(dtype, shape)))})
    assert path.stat().st_size == pytest.approx(gigabytes(20, shape, dtype) * 1e9, rel=0.02, abs=10241)


@pytest.mark.parametrize(("what", "rows"), [("captions of | positions", 3), ("patches of | patches", 4)])
def test_the_readme_says_what_a_million_embeddings_take(what: str, rows: int) -> None:
    lines = (Path(__file__).parents[3] / "pipelines" / "README.md").read_text().splitlines()
    start = lines.index(f"| {what} x width | float32 | float16 | int8 |") + 2
    for line in lines[start : start + rows]:
        _, shape, *told = line.strip("| ").split(" | ")
        positions, width = map(int, shape.split(" x "))
        found = [gigabytes(10**6, (positions, width), dtype) for dtype in ("float32", "float16", "int8")]
        assert told == [f"{size:.1f}" for size in found]


def test_what_precision_costs_is_measured_on_a_sample_and_kept_on_a_rerun(pictures: Path) -> None:
    work = replace(task(), exact=partial(NotingEncoder, turned=0.0), factory=partial(NotingEncoder, turned=0.1))
    sidecar = begin_sidecar(pictures, work)[0]
    assert cosine_to_float32(sidecar.work, work) == pytest.approx(np.cos(0.1), abs=1e-6)


@pytest.mark.parametrize(
    "inputs",
    [
        ["one caption", "", "zwei Wörter"],
        [np.arange(6, dtype=np.int32).reshape(2, 3), np.zeros((0, 3), np.uint8), np.ones((1, 1, 5), np.float32)],
    ],
)
def test_inputs_cross_a_row_as_they_are(inputs: list[Any]) -> None:
    header, data = join_inputs(inputs)
    assert data.dtype == np.uint8
    for found, one in zip(split_inputs(header, data), inputs, strict=True):
        assert type(found) is type(one)
        np.testing.assert_array_equal(found, one)
        assert isinstance(one, str) or found.dtype == one.dtype


def test_decoded_media_cross_a_row_as_they_are() -> None:
    noise = np.random.default_rng(0)
    image = Image(pixels=noise.integers(0, 255, (3, 5, 3), np.uint8))
    video = Video(frames=noise.integers(0, 255, (2, 3, 5, 3), np.uint8), fps=29.97)
    audio = Audio(waveform=noise.standard_normal((2, 7), np.float32), sample_rate=16000)
    found = split_inputs(*join_inputs([image, audio, video]))
    np.testing.assert_array_equal(found[0].pixels, image.pixels)
    np.testing.assert_array_equal(found[1].waveform, audio.waveform)
    np.testing.assert_array_equal(found[2].frames, video.frames)
    assert (found[1].sample_rate, found[2].fps) == (16000, 29.97)


def test_captions_are_batched_by_length(tmp_path: Path) -> None:
    captions = ["seven letters and more", "b", "ccc", "aa"]
    write_dataset(tmp_path / "talks", [talk("k", captions)], 8, DIALOGUE_VIEWS)
    write_sidecar(tmp_path / "talks", task(batch_size=2, log=tmp_path / "log"))
    batches = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert batches == [["b", "aa"], ["ccc", "seven letters and more"]]


def test_a_sample_without_items_has_an_empty_array_and_keeps_its_place(tmp_path: Path) -> None:
    write_dataset(tmp_path / "talks", TALKS, 3, DIALOGUE_VIEWS)
    manifest = write_sidecar(tmp_path / "talks", task(encoder_id="image-0")).manifest
    rows = arrays(tmp_path / "talks", "image-0")
    assert [(key, len(array), len(lengths)) for key, array, lengths in rows] == [
        ("a", 1, 1),
        ("b", 0, 0),
        ("c", 2, 2),
        ("d", 0, 0),
    ]
    np.testing.assert_array_equal(rows[2][1][1], rows[0][1][0])
    assert (manifest.items, manifest.shape) == (3, [3, 2])


def test_what_is_stored_has_the_type_asked_for(pictures: Path) -> None:
    assert write_sidecar(pictures, task(dtype="float16", encoder_id="image-0")).manifest.dtype == "float16"
    assert {array.dtype.name for _, array, _ in arrays(pictures, "image-0")} == {"float16"}


def test_a_rerun_embeds_nothing_and_writes_no_shard(pictures: Path, tmp_path: Path) -> None:
    assert write_sidecar(pictures, task(encoder_id="image-0")).made == 3
    before, written = tree(pictures), times(pictures)
    assert write_sidecar(pictures, task(encoder_id="image-0", log=tmp_path / "log")).made == 0
    assert not (tmp_path / "log").exists(), "nothing was encoded"
    assert tree(pictures) == before
    assert changed(pictures, written) <= {MANIFEST}


def test_a_damaged_shard_of_a_sidecar_alone_is_made_again(pictures: Path, tmp_path: Path) -> None:
    write_sidecar(pictures, task(encoder_id="image-0"))
    before = tree(pictures)
    # Each of the captions is in another shard too.
    for name, encoded in (("00001.tar", 0), ("00000.tar", 0), ("00000.parquet", 0)):
        written, log = times(pictures), tmp_path / f"{name}.log"
        flip(sidecar_folder(pictures, "image-0") / name, 600)
        assert write_sidecar(pictures, task(encoder_id="image-0", log=log)).made == 1
        assert len(given(log)) == encoded
        assert tree(pictures) == before
        assert changed(pictures, written) == {f"{name[:5]}.tar", f"{name[:5]}.parquet", MANIFEST}


def test_damage_is_found_without_what_the_machine_remembers(pictures: Path) -> None:
    write_sidecar(pictures, task(encoder_id="image-0"))
    before, folder = tree(pictures), sidecar_folder(pictures, "image-0")
    for name in ("00001.tar", "00002.parquet"):
        (folder / STATE).unlink()
        flip(folder / name, 40)
        assert write_sidecar(pictures, task(encoder_id="image-0")).made == 1
        assert tree(pictures) == before


def test_a_rerun_hashes_only_what_has_another_size_or_time_than_is_remembered(pictures: Path) -> None:
    write_sidecar(pictures, task(encoder_id="image-0"))
    folder = sidecar_folder(pictures, "image-0")
    tar = folder / "00001.tar"
    tar.touch()
    assert write_sidecar(pictures, task(encoder_id="image-0")).made == 0, "its content is what it was"
    flip(tar, 600)
    states = [replace(state, stamps=stamps_of(folder / name)) for name, state in recall(folder).items()]
    remember(folder, states)
    assert write_sidecar(pictures, task(encoder_id="image-0")).made == 0, "what is remembered is not opened"
    tar.touch()
    assert write_sidecar(pictures, task(encoder_id="image-0")).made == 1


def test_only_the_shards_that_changed_are_embedded_again(pictures: Path) -> None:
    write_sidecar(pictures, task(encoder_id="image-0"))
    write_dataset(pictures, [*PAIRS[:6], pair("k6", "a new caption")], 3)
    again = write_sidecar(pictures, task(encoder_id="image-0"))
    assert again.made == 1
    np.testing.assert_array_equal(arrays(pictures, "image-0")[-1][1][0], embedding_of("a new caption"))
    assert again.manifest.of_shards == [shard.sha256 for shard in Manifest.read(pictures).shards]


def test_a_dataset_that_shrank_leaves_no_old_shards(pictures: Path) -> None:
    write_sidecar(pictures, task(encoder_id="image-0"))
    write_dataset(pictures, PAIRS[:3], 3)
    write_sidecar(pictures, task(encoder_id="image-0"))
    assert sorted(tree(sidecar_folder(pictures, "image-0"))) == ["00000.parquet", "00000.tar", MANIFEST]


def test_a_sidecar_of_another_encoder_lies_beside(pictures: Path) -> None:
    write_sidecar(pictures, task(encoder_id="image-0"))
    before = tree(pictures)
    assert write_sidecar(pictures, task(encoder_id="image-1")).made == 3
    assert before.items() <= tree(pictures).items()


def test_embeddings_of_another_type_are_made_anew(pictures: Path) -> None:
    write_sidecar(pictures, task(dtype="float32", encoder_id="image-0"))
    manifest = write_sidecar(pictures, task(dtype="float16", encoder_id="image-0")).manifest
    assert {array.dtype.name for _, array, _ in arrays(pictures, "image-0")} == {manifest.dtype} == {"float16"}


@settings(max_examples=25, deadline=None)
@hypothesis.given(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12),
    st.integers(1, 6),
    st.integers(0, 12),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_an_interrupted_run_goes_on_where_it_was_and_ends_in_the_same_bytes(
    captions: list[str], samples_per_shard: int, steps_done: int, order: int, other_order: int
) -> None:
    with TemporaryDirectory() as folder:
        whole, broken, log = Path(folder) / "whole" / "d", Path(folder) / "broken" / "d", Path(folder) / "log"
        for directory in (whole, broken):
            write_dataset(directory, [pair(f"k{n}", text) for n, text in enumerate(captions)], samples_per_shard)
        write_sidecar(whole, task(batch_size=2))
        _, steps = begin_sidecar(broken, task(batch_size=2, log=log), order)
        for _ in itertools.islice(steps, steps_done):
            pass
        write_sidecar(broken, task(batch_size=2, log=log), other_order)
        assert tree(broken) == tree(whole)
        assert sorted(given(log)) == sorted(set(captions)), "each caption was encoded once in both runs together"


def test_what_was_encoded_of_a_shard_is_kept_when_the_run_ends_in_it(pictures: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    _, steps = begin_sidecar(pictures, task(batch_size=1, log=log))
    next(steps)
    assert given(log) == ["caption number 0"], "a third of what the first shard encodes"
    write_sidecar(pictures, task(batch_size=1, log=log))
    assert sorted(given(log)) == [f"caption number {n}" for n in range(3)]


def test_a_pack_that_is_cut_off_or_of_other_batches_is_not_taken_up(pictures: Path, tmp_path: Path) -> None:
    whole = write_sidecar(pictures, task(encoder_id="whole")).manifest
    _, steps = begin_sidecar(pictures, task(encoder_id="cut"))
    next(steps)
    (pack,) = (sidecar_folder(pictures, "cut") / WORK).rglob("*.npy")
    pack.write_bytes(pack.read_bytes()[:-1])
    _, steps = begin_sidecar(pictures, task(encoder_id="cut", batch_size=1))
    next(steps)
    log = tmp_path / "log"
    cut = write_sidecar(pictures, task(encoder_id="cut", log=log)).manifest
    assert len(given(log)) == 3
    assert [shard.sha256 for shard in cut.shards] == [shard.sha256 for shard in whole.shards]


def test_media_are_batched_by_clips_and_by_modality() -> None:
    letters = {"i": Modality.IMAGE, "v": Modality.VIDEO, "a": Modality.AUDIO}
    found = [
        Found(place=place, sample=Range(Path("00000.tar"), 0, 0), item=Item(modality=letters[letter], name=letter))
        for place, letter in enumerate("iviavvivaiiii")
    ]
    work = replace(task(ENCODER, batch_size=6), clips={Modality.VIDEO: 3, Modality.AUDIO: 4})
    units = [[one.place for one in unit] for unit in cut(found, work)]
    assert units == [[0, 2, 6, 9, 10, 11], [12], [1, 4], [5, 7], [3], [8]]
    alone = replace(work, batch_size=2)
    assert [[one.place for one in unit] for unit in cut(found, alone)][-6:] == [[1], [4], [5], [7], [3], [8]]


def test_an_encoder_that_is_not_the_one_the_run_began_with_is_refused() -> None:
    encode = UnitEncoder([task(encoder_id="after")])
    with pytest.raises(ValueError, match="noting: its id was before when this run began and is after here"):
        encode("image", "before", Modality.IMAGE, ["a caption"])


class PatientEncoder(NotingEncoder):
    """Waits, in its first call, until an encoder of another process has been called too."""

    def __call__(self, inputs: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        assert self._log is not None
        (self._log.parent / f"{os.getpid()}.pid").touch()
        deadline = time.monotonic() + 120
        while len(list(self._log.parent.glob("*.pid"))) < 2:
            assert time.monotonic() < deadline, "one actor alone has work"
            time.sleep(0.01)
        return super().__call__(inputs)


@pytest.mark.ray
def test_one_shard_is_encoded_by_several_actors_and_progress_counts_its_items(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        write_dataset(tmp_path / name / "d", [pair(f"k{n}", shade=n) for n in range(6)], 8)
    write_sidecar(tmp_path / "one" / "d", task(ENCODER, batch_size=1))
    advances: dict[str, list[int]] = {}

    @contextmanager
    def noted(title: str, total: int | None, unit: str, announce: bool = False) -> Iterator[Any]:
        steps = advances.setdefault(title, [])
        yield SimpleNamespace(advance=lambda amount=1: steps.append(amount))
        assert sum(steps) == total

    monkeypatch.setattr("pipelines.embed.embedding.track", noted)
    patient = EmbedTask(
        kind=ENCODER, factory=partial(PatientEncoder, log=tmp_path / "log"), dtype="float32", batch_size=1
    )
    run(tmp_path / "two" / "d", patient, pool=TWO)
    assert advances["embed"] == [1] * 6
    assert tree(tmp_path / "two") == tree(tmp_path / "one")


def counted(log: Path) -> NotingEncoder:
    """An encoder, noting that it was loaded."""
    with log.open("a") as file:
        file.write("loaded\n")
    return NotingEncoder()


@pytest.mark.ray
def test_a_rerun_with_nothing_to_do_loads_no_encoder(local_ray: None, pictures: Path, tmp_path: Path) -> None:
    log, place = tmp_path / "loads", tmp_path / "memory" / "noting.json"
    work = EmbedTask(kind="image", factory=partial(counted, log), dtype="float32", memory=lambda: place)
    assert [result.made for result in run(pictures, work)] == [3]
    log.unlink()
    assert [result.made for result in run(pictures, work)] == [0]
    assert not log.exists()
    place.unlink()
    assert [result.made for result in run(pictures, work)] == [0]
    assert log.read_text() == "loaded\n", "what is not remembered is looked up"


class MortalEncoder(NotingEncoder):
    """Its process is killed once, as it is given a certain caption."""

    def __init__(self, grave: Path, **rest: Any) -> None:
        super().__init__(**rest)
        self._grave = grave

    def __call__(self, inputs: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        result = super().__call__(inputs)
        if "fatal" in inputs and not self._grave.exists():
            self._grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result


@pytest.mark.ray
def test_an_actor_that_is_killed_loses_nothing_and_only_what_was_in_flight_is_repeated(
    local_ray: None, tmp_path: Path
) -> None:
    captions = ["one", "two", "three", "one", "fatal", "two", "four", "fatal", "five", "six"]
    for name in ("whole", "killed"):
        write_dataset(tmp_path / name / "d", [pair(f"k{n}", text) for n, text in enumerate(captions)], 2)
    write_sidecar(tmp_path / "whole" / "d", task())
    grave, log = tmp_path / "grave", tmp_path / "log"
    mortal = EmbedTask(kind="image", factory=partial(MortalEncoder, grave, log=log), dtype="float32")
    run(tmp_path / "killed" / "d", mortal, pool=TWO)
    assert grave.exists()
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    again = Counter(given(log)) - Counter(set(captions))
    assert again["fatal"] == 1
    assert set(given(log)) == set(captions)
    # The unit before it may have been on its way out.
    assert set(again.values()) == {1}
    assert len(again) <= 3


def test_a_dataset_in_an_object_store_gets_the_same_sidecar(pictures: Path) -> None:
    remote = cast(Path, UPath("memory://embed/pictures"))
    for path in pictures.iterdir():
        (remote / path.name).write_bytes(path.read_bytes())
    for directory in (pictures, remote):
        assert write_sidecar(directory, task(encoder_id="image-0")).made == 3
        assert write_sidecar(directory, task(encoder_id="image-0")).made == 0
    local, there = sidecar_folder(pictures, "image-0"), sidecar_folder(remote, "image-0")
    names = [path.name for path in local.iterdir() if path.name != STATE]
    assert {name: (local / name).read_bytes() for name in names} == {
        name: (there / name).read_bytes() for name in names
    }
    assert not (there / WORK).exists()


@pytest.mark.parametrize(
    ("dtype", "most", "least"),
    [("float32", 0.0, 1.0), ("float16", 2e-3, 0.99999), ("int8", 0.02, 0.999)],
)
def test_what_storing_costs_is_known_on_a_rerun_too(pictures: Path, dtype: str, most: float, least: float) -> None:
    exact = {caption: embedding_of(caption) for caption in {item.caption for one in PAIRS for item in one.items()}}
    for _ in range(2):
        manifest = write_sidecar(pictures, task(dtype=dtype, encoder_id="image-0")).manifest
        assert (manifest.dtype, manifest.shape) == (dtype, [3, 2])
        stored = [array[0] for _, array, _ in arrays(pictures, "image-0")]
        wanted = [exact[next(iter(one.items())).caption] for one in PAIRS]
        errors = [np.abs(a.astype(np.float32) - b).max() for a, b in zip(stored, wanted, strict=True)]
        assert manifest.max_error == pytest.approx(max(errors), abs=1e-6)
        assert manifest.max_error <= most
        assert least <= manifest.min_cosine <= 1.0


@pytest.mark.ray
def test_what_was_embedded_before_a_failure_is_not_embedded_again(
    local_ray: None, pictures: Path, tmp_path: Path
) -> None:
    write_dataset(pictures, [*PAIRS[:6], pair("k6", "poison")], 3)
    with pytest.raises(Exception, match="noting: gave embeddings that are not finite"):
        run(pictures, task(encoder_id="image-0", poison="poison"))
    # Nothing says in which order an actor takes its shards; the first has all captions but one.
    first = any((sidecar_folder(pictures, "image-0") / WORK).glob("*.npy"))
    write_sidecar(pictures, task(encoder_id="image-0", log=tmp_path / "log"))
    assert set(given(tmp_path / "log")) == {"poison", *(() if first else (f"caption number {n}" for n in range(3)))}


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [
        (np.nan, "float32"),
        (np.inf, "float16"),
        (1e6, "float16"),
    ],
)
def test_embeddings_that_are_not_finite_are_refused_by_the_encoders_name(
    pictures: Path, scale: float, dtype: str
) -> None:
    with pytest.raises(ValueError, match=r"^noting: gave embeddings that are not finite[^\n]*$"):
        write_sidecar(pictures, task(dtype=dtype, scale=scale))


@pytest.mark.ray
def test_a_dataset_without_items_of_a_kind_gets_no_sidecar(local_ray: None, tmp_path: Path) -> None:
    write_dataset(tmp_path / "talks", TALKS, 2, DIALOGUE_VIEWS)
    before = times(tmp_path)
    assert run(tmp_path / "talks", task("video"), task(ENCODER)) == []
    assert times(tmp_path) == before


@pytest.mark.ray
def test_the_pool_is_one_actor_a_core_unless_gpus_are_there_or_asked_for(local_ray: None) -> None:
    assert plan_pool() == Pool(actors=2, num_cpus=1, num_gpus=0)
    assert plan_pool(gpus=3) == Pool(actors=3, num_cpus=1, num_gpus=1)
