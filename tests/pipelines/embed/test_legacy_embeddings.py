"""Embeddings made by NExT-GPT's own tools: taken over whole and exactly, or refused with the reasons."""

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from dataset_cases import DIALOGUE_VIEWS, pair, talk, times, write_dataset
from upath import UPath

from pipelines.embed.embedding import Embedded, sidecar_work
from pipelines.embed.legacy_embeddings import (
    MAX_FILE_BYTES,
    file_name,
    find_file,
    import_embeddings,
    import_shard,
    read_array,
)
from pipelines.handover.stage_samples import SampleReader, plan_view
from pipelines.sample import Item, Modality, Sample, Turn
from pipelines.storage.files import read_rows
from pipelines.storage.shards import index_path
from pipelines.storage.sidecars import from_npy, sidecar_folder


def named(key: str, name: str, modality: Modality = Modality.IMAGE) -> Sample:
    """A caption pair whose medium was once called `name`."""
    sample = pair(key, f"caption of {name}", media={"png": {"file": name}})
    item = Item(modality=modality, name="png", caption=f"caption of {name}")
    media = {"png": replace(sample.media["png"], modality=modality)}
    turns = (Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(item.caption,)))
    return replace(sample, turns=turns, media=media)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def embeddings_of(directory: Path, result: Embedded) -> list[np.ndarray]:
    """What training reads of the first view that generates."""
    reader = SampleReader(views=[plan_view("pictures_dec", "generate", directory, 1.0, {})])
    kind = result.manifest.kind
    return [from_npy(reader.read(0, number)[kind]) for number in range(result.manifest.items)]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("dataset", "modality", "shape"),
    [("cc3m", "image", [77, 1024]), ("webvid", "video", [77, 1024]), ("audiocap", "audio", [1, 512])],
)
def test_the_published_embeddings_become_a_sidecar_bit_by_bit(
    local_ray: None, sample_root: Path, tmp_path: Path, dataset: str, modality: str, shape: list[int]
) -> None:
    rows = json.loads((sample_root / "T-X_pair_data" / dataset / f"{dataset}.json").read_text())
    names = [row[f"{modality}_name"] for row in rows]
    directory, source = tmp_path / dataset, sample_root / "embed"
    write_dataset(directory, [named(f"k{n}", name, Modality(modality)) for n, name in enumerate(names)], 6)
    (result,) = import_embeddings([directory], source, modality, "float16", "its-encoder")
    manifest = result.manifest
    assert (manifest.items, manifest.shape, manifest.encoder_name) == (len(names), shape, "its-encoder")
    assert (manifest.max_error, manifest.min_cosine) == (0.0, 1.0)
    for name, array in zip(names, embeddings_of(directory, result), strict=True):
        np.testing.assert_array_equal(array[0], np.load(source / f"{name}.npy").reshape(shape))
    before = times(directory)
    (again,) = import_embeddings([directory], source, modality, "float16", "its-encoder")
    assert (again.made, again.manifest) == (0, manifest)
    assert times(directory) == before


@pytest.mark.ray
def test_one_bad_file_and_nothing_is_imported(local_ray: None, tmp_path: Path) -> None:
    directory, source = tmp_path / "pictures", tmp_path / "embed"
    write_dataset(directory, [named(f"k{number}", f"{number}.jpg") for number in range(6)], 2)
    source.mkdir()
    for number in (0, 1):
        (source / f"{number}.jpg.npy").write_bytes(npy(np.ones((3, 2), np.float32)))
    (source / "2.jpg.npy").write_bytes(npy(np.full((3, 2), np.nan, np.float32)))
    before = times(directory)
    message = refused(lambda: import_embeddings([directory], source, "image", "float16", "imported"))
    assert message.startswith(f"{source}: nothing imported, for 4 of 6 items have no embedding there")
    assert (
        "(3 missing file, 1 not finite): not finite: 2.jpg.npy (for rows.json#k2); missing file: 3.jpg.npy" in message
    )
    for number in range(2, 6):
        (source / f"{number}.jpg.npy").write_bytes(npy(np.ones((3 + (number == 5), 2), np.float32)))
    message = refused(lambda: import_embeddings([directory], source, "image", "float16", "imported"))
    assert message.endswith("nothing imported, for the embeddings are not of one shape: 5 of 3x2, 1 of 4x2")
    assert times(directory) == before


def test_a_row_may_name_its_files_itself(tmp_path: Path) -> None:
    directory, source = tmp_path / "talks", cast(Path, UPath("memory://legacy/embed"))
    (source / "two.npy").write_bytes(npy(np.full((3, 2), 2, np.float64)))
    (source / "one.npy").write_bytes(npy(np.asfortranarray(np.arange(6, dtype=np.float32).reshape(3, 2))))
    sample = replace(talk("a", ["red", "blue"]), meta={"embeddings": {"image": ["two.npy", "one.npy"]}})
    dataset = write_dataset(directory, [sample, talk("b", [])], 4, DIALOGUE_VIEWS)
    work = sidecar_work(directory, dataset, "image", "int8", "image-imported-0")
    state = import_shard(work, 0, source)
    assert (state.items, state.shape) == (2, [3, 2])
    tar = sidecar_folder(directory, "image-imported-0") / "00000.tar"
    rows = read_rows(index_path(tar))
    data = tar.read_bytes()
    first = from_npy(data[rows[0]["offset"] : rows[0]["offset"] + rows[0]["length"]])
    np.testing.assert_allclose(first, [np.full((3, 2), 2), np.arange(6).reshape(3, 2)], atol=0.02)
    assert [row["lengths"] for row in rows] == [[3, 3], []]


def test_a_file_is_found_below_the_folder_or_right_in_it_and_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "embed"
    (folder / "deep").mkdir(parents=True)
    for name in ("deep/1.npy", "2.npy"):
        (folder / name).touch()
    (tmp_path / "outside.npy").touch()
    (folder / "link.npy").symlink_to(tmp_path / "outside.npy")
    assert find_file(folder, "deep/1.npy") == folder / "deep" / "1.npy"
    assert find_file(folder, "00000.tar/2.npy") == folder / "2.npy"
    for name in ("../outside.npy", str(tmp_path / "outside.npy"), "link.npy", "a\0b"):
        with pytest.raises(ValueError, match=r"^path outside the root: "):
            find_file(folder, name)
    with pytest.raises(ValueError, match=r"^missing file: 3\.npy$"):
        find_file(folder, "3.npy")


def header(text: str) -> bytes:
    """A `.npy` file of no data whose header claims what is not there."""
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unreadable: .* is no .npy file"),
        (pickle.dumps([1.0]), "unreadable: .* is no .npy file"),
        (npy(np.ones((2, 2)))[:-1], "unreadable: .* is cut off"),
        (npy(np.ones((2, 2))) + b"x", "unreadable: .* longer than its header says"),
        (npy(np.ones((2, 2), int)), "unreadable: .* holds int64 of shape"),
        (npy(np.ones((2, 2, 2))), r"unreadable: .* of shape \(2, 2, 2\), not embeddings"),
        (npy(np.ones((0, 2))), "unreadable: .* not embeddings"),
        (npy(np.array([1.0, np.inf])), "not finite: "),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (9,)}"), "unreadable: .* holds object"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (10**9, 10**9)}"), "unreadable: "),
        (
            header("{'descr': '<f8', 'fortran_order': False, 'shape': (4000000000, 4000000000)}"),
            "unreadable: .* cut off",
        ),
        (header("{'descr': '<f8'}"), "unreadable: "),
        (bytes(MAX_FILE_BYTES + 1), "too large: "),
    ],
)
def test_a_file_that_holds_no_embeddings_is_refused_unread(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "1.npy").write_bytes(data)
    with pytest.raises(ValueError, match=f"^{reason}"):
        read_array(tmp_path / "1.npy")


def refused(action: Callable[[], Any]) -> str:
    """The one line in which an import fails."""
    with pytest.raises(ValueError, match="nothing imported") as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_medium_of_several_captions_has_no_one_file(tmp_path: Path) -> None:
    item = Item(modality=Modality.IMAGE, name="jpg", caption="red", more_captions=("blue",))
    sample = replace(named("a", "a.jpg"), turns=())
    with pytest.raises(ValueError, match=r"^several captions: a file named after a medium holds the embedding of one"):
        file_name(sample, item.each(), 0, "image")
