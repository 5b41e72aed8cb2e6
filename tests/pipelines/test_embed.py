"""Sidecars: an embedding for every item that needs one, made once, whatever the number of actors."""

import json
import sys
from pathlib import Path

import dataset_cases
import numpy as np
import pytest
import ray.cloudpickle
from dataset_cases import (
    DIALOGUE_VIEWS,
    embedding_of,
    length_of,
    pair,
    talk,
    task,
    times,
    tree,
    write_dataset,
    write_sidecar,
)

from pipelines.embed import Embedded, EmbedTask, Pool, embed, plan_pool
from pipelines.files import read_rows
from pipelines.media import decode
from pipelines.shards import MANIFEST, Manifest, index_path, iterate_samples
from pipelines.sidecars import ENCODER, SidecarManifest, from_npy, sidecar_folder

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


def given(log: Path) -> list[str]:
    """What encoders were given, in the order of the log."""
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


def test_equal_captions_and_equal_media_of_a_shard_are_encoded_once(tmp_path: Path) -> None:
    same = [pair(f"k{number}", "one and the same", shade=5) for number in range(4)] + [pair("other", "another", 9)]
    write_dataset(tmp_path / "pictures", same, 8)
    for kind, expected in (("image", ["another", "one and the same"]), (ENCODER, ["media", "media"])):
        log = tmp_path / f"{kind}.log"
        write_sidecar(tmp_path / "pictures", task(kind, encoder_id=kind, log=log))
        assert given(log) == expected
        assert len(arrays(tmp_path / "pictures", kind)) == 5


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
    before, written = tree(pictures), times(pictures)
    tar = sidecar_folder(pictures, "image-0") / "00001.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    assert write_sidecar(pictures, task(encoder_id="image-0", log=tmp_path / "log")).made == 1
    assert len(given(tmp_path / "log")) == 3
    assert tree(pictures) == before
    assert changed(pictures, written) == {"00001.tar", "00001.parquet", MANIFEST}


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


@pytest.mark.ray
def test_what_was_embedded_before_a_failure_is_not_embedded_again(
    local_ray: None, pictures: Path, tmp_path: Path
) -> None:
    write_dataset(pictures, [*PAIRS[:6], pair("k6", "poison")], 3)
    with pytest.raises(Exception, match="noting: gave embeddings that are not finite"):
        run(pictures, task(encoder_id="image-0", poison="poison"))
    write_sidecar(pictures, task(encoder_id="image-0", log=tmp_path / "log"))
    assert given(tmp_path / "log") == ["poison"]


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
