"""A captions file alone: one `.npy` a row, named as NExT-GPT's own code looks for it."""

import json
import sys
from pathlib import Path

import dataset_cases
import numpy as np
import pytest
import ray.cloudpickle
from dataset_cases import embedding_of, task

from pipelines.embed.caption_files import CaptionWriter, embed_captions
from pipelines.embed.embedding import Pool
from pipelines.embed.encoding import EmbedTask
from pipelines.sample import Reject

ray.cloudpickle.register_pickle_by_value(dataset_cases)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

POOL = Pool(actors=2, num_cpus=1, num_gpus=0)


class SingleVectorEncoder(dataset_cases.NotingEncoder):
    """As CLAP: a caption has one vector, (N, 1, D)."""

    def __call__(self, inputs):  # type: ignore[no-untyped-def]
        embeddings, lengths = super().__call__(inputs)
        return embeddings[:, :1], np.minimum(lengths, 1)


@pytest.fixture(scope="module")
def written(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, list[Reject]]:
    """A file of five good rows and six bad ones, embedded."""
    folder = tmp_path_factory.mktemp("captions")
    rows = [{"caption": f"caption {number}", "image_name": f"{number:09d}.jpg"} for number in range(5)]
    rows[2:2] = [
        {"caption": "in a folder", "image_name": "deep/1.jpg"},
        {"caption": "outside", "image_name": "../1.jpg"},
        {"caption": "absolute", "image_name": "/tmp/1.jpg"},
        {"caption": "again", "image_name": "000000001.jpg"},
        {"caption": "", "image_name": "silent.jpg"},
        {"caption": "nameless"},
    ]
    (folder / "cc3m.json").write_text(json.dumps(rows))
    out = folder / "embeddings" / "cc3m"
    count, rejects = embed_captions(folder / "cc3m.json", out, task(dtype="float16", batch_size=2), POOL)
    return out, count, rejects


@pytest.mark.ray
def test_every_good_row_has_its_array_in_a_file_named_after_its_medium(
    written: tuple[Path, int, list[Reject]],
) -> None:
    out, count, _ = written
    assert sorted(path.name for path in out.iterdir()) == [f"{number:09d}.jpg.npy" for number in range(5)]
    assert count == 5
    for number in range(5):
        array = np.load(out / f"{number:09d}.jpg.npy", allow_pickle=False)
        np.testing.assert_array_equal(array, embedding_of(f"caption {number}").astype(np.float16))


@pytest.mark.ray
def test_names_with_folders_and_repeated_names_are_rejected(written: tuple[Path, int, list[Reject]]) -> None:
    _, count, rejects = written
    assert [(reject.source, reject.reason) for reject in rejects] == [
        ("cc3m.json#2", "bad name: deep/1.jpg"),
        ("cc3m.json#3", "bad name: ../1.jpg"),
        ("cc3m.json#4", "bad name: /tmp/1.jpg"),
        ("cc3m.json#5", "duplicate name: 000000001.jpg"),
        ("cc3m.json#6", "empty caption"),
        ("cc3m.json#7", "missing field: image_name"),
    ]
    assert count + len(rejects) == 11


def test_a_caption_with_a_single_vector_has_a_plain_one_under_every_name(tmp_path: Path) -> None:
    write = CaptionWriter(EmbedTask(kind="audio", factory=SingleVectorEncoder, dtype="float32"), tmp_path)
    write({"names": [json.dumps(["1.wav", "2.wav"])], "caption": ["a bell"]})
    for name in ("1.wav.npy", "2.wav.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / name), embedding_of("a bell")[0])


def test_a_file_without_good_rows_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "cc3m.json").write_text('[{"caption": "nameless"}]')
    count, rejects = embed_captions(tmp_path / "cc3m.json", tmp_path / "out", task(), POOL)
    assert (count, len(rejects)) == (0, 1)
    assert not (tmp_path / "out").exists()


def test_a_medium_of_several_captions_has_no_one_array(tmp_path: Path) -> None:
    (tmp_path / "cc3m.json").write_text('[{"caption": ["one", "two"], "image_name": "1.jpg"}]')
    count, (reject,) = embed_captions(tmp_path / "cc3m.json", tmp_path / "out", task(), POOL)
    assert (count, reject.reason) == (0, "several captions, and a file holds one's embedding: 1.jpg")
