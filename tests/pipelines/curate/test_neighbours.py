"""Near duplicates by stored features: found whatever the order, and at a cosine that is close to the features' own."""

from pathlib import Path

import numpy as np
import pytest
from dataset_cases import pair, talk, task, write_dataset, write_sidecar

from pipelines.curate.columns import ColumnsWork, begin, finish
from pipelines.curate.duplicates import Prints, others, write_found
from pipelines.curate.groups import first_of_group, near_vectors
from pipelines.curate.neighbours import COLUMNS, VECTOR, shard_vectors, to_records, write_neighbours
from pipelines.storage.sidecars import ENCODER, sidecar_folder


def features(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 1024)).astype(np.float32)


def turned(vectors: np.ndarray, cosine: float, seed: int) -> np.ndarray:
    """Others at exactly this cosine."""
    noise = features(len(vectors), seed)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    noise -= (noise * units).sum(axis=1, keepdims=True) * units
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return (cosine * units + np.sqrt(1 - cosine**2) * noise).astype(np.float32)


def pairs_of(vectors: np.ndarray, least: float) -> set[tuple[int, int]]:
    left, right = near_vectors(to_records(vectors), np.arange(len(vectors)), least)
    return {(min(pair), max(pair)) for pair in zip(left.tolist(), right.tolist(), strict=True)}


def test_near_features_are_found_and_others_are_not() -> None:
    one = features(500)
    near, far = turned(one[:200], 0.99, 1), turned(one[200:400], 0.9, 2)
    found = pairs_of(np.concatenate([one, near, far]), 0.97)
    wanted = {(number, 500 + number) for number in range(200)}
    assert len(found & wanted) >= 198
    assert not found - wanted


def test_the_length_of_a_vector_does_not_matter() -> None:
    one = features(20)
    assert pairs_of(np.concatenate([one, 1000 * one]), 0.97) == {(number, 20 + number) for number in range(20)}


def test_groups_do_not_depend_on_the_order() -> None:
    one = features(50)
    vectors = np.concatenate([one, turned(one, 0.995, 1), turned(one, 0.995, 2)])
    order = np.random.default_rng(3).permutation(150)
    first = first_of_group(150, [near_vectors(to_records(vectors), np.arange(150), 0.97)])
    shuffled = near_vectors(to_records(vectors[order]), order, 0.97)
    assert first.tolist() == first_of_group(150, [shuffled]).tolist() == list(range(50)) * 3


def test_columns_name_the_first_of_each_group_and_samples_without_features_have_none(tmp_path: Path) -> None:
    # The encoder of these tests tells the mean shade of a picture, and a one.
    write_dataset(tmp_path / "pictures", [pair(f"k{n}", shade=shade) for n, shade in enumerate([200, 1, 198, 0])], 3)
    write_sidecar(tmp_path / "pictures", task(ENCODER, encoder_id="e"))
    manifest = write_dataset(tmp_path / "talks", [talk("t", ["x"])], 1, {"talks": "dialogue"})
    folder = sidecar_folder(tmp_path / "pictures", "e")
    names = ["00000.tar", "00001.tar"]
    tables = [shard_vectors(tmp_path / "pictures" / name, folder) for name in names]
    tables.append(shard_vectors(tmp_path / "talks" / "00000.tar", None))
    assert tables[2]["vector"].null_count == 1
    prints, places = Prints.of(["pictures", "pictures", "talks"], tables)
    first = first_of_group(5, [near_vectors(*prints.fixed("vector", VECTOR), 0.97)])
    assert others(prints, first).to_pylist() == [None, None, "pictures/k0", None, None]
    work = ColumnsWork(
        directory=tmp_path / "talks", shards=tuple(manifest.shards), scorer="n", version="1", columns=COLUMNS
    )
    write_found([work], [begin(work)], places[4:], {"neighbour_of": others(prints, first)})
    assert finish(work).values == {"neighbour_of": 0}


@pytest.mark.ray
def test_neighbours_are_found_across_datasets_and_a_rerun_does_nothing(local_ray: None, tmp_path: Path) -> None:
    for name, shades in {"b": [200, 3], "a": [50, 90, 201]}.items():
        write_dataset(tmp_path / name, [pair(f"{name}{n}", shade=shade) for n, shade in enumerate(shades)], 2)
        write_sidecar(tmp_path / name, task(ENCODER, encoder_id="e"))
    first = write_neighbours([tmp_path / "b", tmp_path / "a"], 0.999)
    assert [(one.dataset, one.made, one.manifest.values) for one in first] == [
        ("a", 2, {"neighbour_of": 2}),
        ("b", 1, {"neighbour_of": 1}),
    ]
    assert [one.made for one in write_neighbours([tmp_path / "a", tmp_path / "b"], 0.999)] == [0, 0]


def test_without_features_the_command_that_makes_them_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "pictures", [pair("k0")], 3)
    told = rf"no features of its media; jobs/embed\.py --shards {tmp_path} --modality encoder makes them"
    with pytest.raises(ValueError, match=told):
        write_neighbours([tmp_path / "pictures"], 0.97)
