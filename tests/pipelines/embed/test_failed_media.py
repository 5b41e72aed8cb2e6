"""No stored medium fails a job: it is named, counted, left out of training, and all others are what they would be."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_cases import NotingEncoder, begin_sidecar, embedding_of, pair, write_dataset, write_sidecar
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.common import cli
from jobs.embed import main
from pipelines.embed.embedding import Pool
from pipelines.embed.encoding import EmbedTask
from pipelines.handover.stage_samples import SampleReader, plan_view
from pipelines.handover.survey import Measure, survey_views
from pipelines.inspect.verify import verify
from pipelines.media.codecs import decode
from pipelines.sample import Image, Media, Modality, Sample
from pipelines.storage.files import read_rows, write_rows
from pipelines.storage.shards import MANIFEST, REJECT_SCHEMA, REJECTS, Manifest, hash_file, index_path
from pipelines.storage.sidecars import ENCODER, NOT_ENCODED, SidecarManifest, from_npy, sidecar_folder

BROKEN, PICKY = "unreadable: cannot identify image file", "not encoded: RuntimeError: 77 is too grey"


class PickyEncoder(NotingEncoder):
    """Fails at a batch that holds a picture of shade 77, as a model may at a shape it was not made for."""

    def __call__(self, inputs: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        if any(isinstance(one, Image) and one.pixels.max() == 77 for one in inputs):
            raise RuntimeError("77 is too\ngrey")
        return super().__call__(inputs)


class DeadEncoder(NotingEncoder):
    """Fails at everything, as on a GPU that is gone."""

    def __call__(self, inputs: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        raise RuntimeError("the device is lost")


def work(kind: type[NotingEncoder] = PickyEncoder, batch_size: int = 3, dtype: str = "float32") -> EmbedTask:
    return EmbedTask(kind=ENCODER, factory=partial(kind, encoder_id="e"), dtype=dtype, batch_size=batch_size)


def samples_of(shades: Sequence[int]) -> list[Sample]:
    """Pairs with a picture of each shade; one of shade 0 cannot be decoded, one of 77 not be encoded."""
    broken = Media(modality=Modality.IMAGE, data=b"no picture at all", format="png")
    found = [pair(f"k{number}", shade=shade) for number, shade in enumerate(shades)]
    return [replace(one, media={"png": broken}) if not shade else one for one, shade in zip(found, shades, strict=True)]


def reason_of(shade: int) -> str:
    return {0: BROKEN, 77: PICKY}.get(shade, "")


def check(directory: Path, shades: Sequence[int], samples_per_shard: int, dtype: str = "float32") -> None:
    manifest = SidecarManifest.read(sidecar_folder(directory, "e"))
    places = [(number // samples_per_shard, number % samples_per_shard) for number in range(len(shades))]
    expected = [
        (f"{shard:05d}.tar", sample, f"k{number}", sample, reason_of(shades[number]))
        for number, (shard, sample) in enumerate(places)
        if reason_of(shades[number])
    ]
    assert [(f.shard, f.sample, f.key, f.item, f.reason) for f in manifest.failed] == expected
    assert manifest.items == len(shades)
    assert manifest.shape == ([4] if len(expected) < len(shades) else [])
    for number, sample in enumerate(samples_of(shades)):
        tar = sidecar_folder(directory, "e") / f"{places[number][0]:05d}.tar"
        row = read_rows(index_path(tar))[places[number][1]]
        assert row["key"] == sample.key
        if reason_of(shades[number]):
            assert row["lengths"] == [NOT_ENCODED]
        else:
            array = from_npy(tar.read_bytes()[row["offset"] : row["offset"] + row["length"]])
            exact = embedding_of(decode(sample.media["png"]))
            np.testing.assert_allclose(array.reshape(-1), exact, rtol=0.01, atol=0.01)
            assert row["lengths"] == [1]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(
    "shades",
    [[0], [77, 0], [1, 0, 2, 77, 3], [0, 0, 77, 0, 5, 5, 77], [0, 0, 1, 2], [1, 2, 0, 77, 0]],
    ids=str,
)
def test_what_cannot_be_encoded_is_named_and_all_else_is_encoded(
    tmp_path: Path, shades: list[int], batch_size: int, dtype: str
) -> None:
    write_dataset(tmp_path / "d", samples_of(shades), 2)
    write_sidecar(tmp_path / "d", work(batch_size=batch_size, dtype=dtype))
    check(tmp_path / "d", shades, 2, dtype)


@settings(max_examples=15, deadline=None)
@given(
    shades=st.lists(st.sampled_from([0, 1, 2, 77]), min_size=1, max_size=8),
    done=st.integers(0, 8),
    samples_per_shard=st.integers(1, 4),
)
def test_a_run_that_was_interrupted_accounts_for_the_same(
    tmp_path_factory: pytest.TempPathFactory, shades: list[int], done: int, samples_per_shard: int
) -> None:
    directory = tmp_path_factory.mktemp("runs") / "d"
    write_dataset(directory, samples_of(shades), samples_per_shard)
    _, steps = begin_sidecar(directory, work(batch_size=1))
    for _ in islice(steps, done):
        pass
    write_sidecar(directory, work(batch_size=1))
    check(directory, shades, samples_per_shard)
    again = write_sidecar(directory, work(DeadEncoder))
    assert again.made == 0, "what failed is not tried again"
    check(directory, shades, samples_per_shard)


def test_a_finished_shard_lends_its_failures_to_one_that_is_made_again(tmp_path: Path) -> None:
    shades = [0, 77, 1, 77, 0, 1]
    write_dataset(tmp_path / "d", samples_of(shades), 3)
    write_sidecar(tmp_path / "d", work())
    (sidecar_folder(tmp_path / "d", "e") / "00001.tar").unlink()
    assert write_sidecar(tmp_path / "d", work(DeadEncoder)).made == 1
    check(tmp_path / "d", shades, 3)


def test_an_encoder_that_fails_at_everything_fails_the_job(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", samples_of([1, 2]), 2)
    with pytest.raises(RuntimeError, match="the device is lost"):
        write_sidecar(tmp_path / "d", work(DeadEncoder))


def test_embeddings_that_are_not_finite_are_the_mediums_failure_where_others_are(tmp_path: Path) -> None:
    class Overflowing(NotingEncoder):
        def __call__(self, inputs: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
            embeddings, lengths = super().__call__(inputs)
            return np.where(embeddings == 9, np.nan, embeddings).astype(np.float32), lengths

    write_dataset(tmp_path / "d", samples_of([9, 1]), 2)
    failed = write_sidecar(tmp_path / "d", work(Overflowing)).manifest.failed
    assert [failure.key for failure in failed] == ["k0"]
    assert failed[0].reason.startswith("not encoded: noting: gave embeddings that are not finite as float32")


def one_word(sample: Sample) -> tuple[int, int]:
    return 1, 1


def make_measure() -> Measure:
    return one_word


def test_training_leaves_out_the_samples_and_never_reads_them(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", samples_of([1, 0, 2, 77, 3]), 2)
    write_sidecar(tmp_path / "d", work())
    view = plan_view("d_enc", "caption", tmp_path / "d", 1.0, {})
    for _ in range(2):  # measured, and from what was measured before
        [survey] = survey_views([view], make_measure, "words")
        assert survey.lengths.tolist() == [1, 0, 1, 0, 1]
        assert survey.left_out == [("k1", BROKEN), ("k3", PICKY)]
        assert (survey.truncated, survey.split(1.0, 0.0)[0].samples.tolist()) == (0, [0, 2, 4])
    reader = SampleReader([view])
    assert from_npy(reader.read(0, 2)[ENCODER]).tolist() == [[2, 2, 2, 1]]
    with pytest.raises(ValueError, match=r"00000\.tar: k1 has a medium that could not be encoded; leave it out$"):
        reader.read(0, 1)


def test_verify_counts_what_failed(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", samples_of([1, 0, 2]), 2)
    write_rows(tmp_path / "d" / REJECTS, [], REJECT_SCHEMA)
    replace(Manifest.read(tmp_path / "d"), rejects_sha256=hash_file(tmp_path / "d" / REJECTS)).write(tmp_path / "d")
    manifest = write_sidecar(tmp_path / "d", work()).manifest
    assert list(verify(tmp_path / "d")) == []
    replace(manifest, failed=[]).write(sidecar_folder(tmp_path / "d", "e"))
    [problem] = verify(tmp_path / "d")
    assert problem.file == sidecar_folder(tmp_path / "d", "e") / MANIFEST
    assert problem.what == "the counts do not add up: 0 failed, but 1 in its indexes"


def test_the_job_counts_and_names_what_failed_and_fails_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def embed_here(directories: Sequence[Path], *_: Any) -> list[Any]:
        return [write_sidecar(directory, work()) for directory in directories]

    monkeypatch.setattr("jobs.common.cli.start_ray", lambda: None)
    monkeypatch.setattr("pipelines.embed.embedding.plan_pool", lambda _: Pool(actors=1, num_cpus=1, num_gpus=0))
    monkeypatch.setattr("pipelines.embed.embedding.embed", embed_here)
    write_dataset(tmp_path / "a", samples_of([1, 0, 77]), 2)
    write_dataset(tmp_path / "b", samples_of([1, 2]), 2)
    with pytest.raises(cli.Failures) as caught:
        main(["--shards", str(tmp_path), "--modality", "encoder"])
    assert "all: 5 in = 3 encoded + 2 failed" in capsys.readouterr().out.splitlines()
    assert str(caught.value) == (
        f"2 of 3 encoder embeddings could not be made (a/k1: {BROKEN} ...); training leaves their samples out; "
        f"all are listed in {sidecar_folder(tmp_path / 'a', 'e') / MANIFEST}"
    )
    main(["--shards", str(tmp_path), "--modality", "encoder", "--datasets", "b"])
    assert "all: 2 in = 2 encoded + 0 failed" in capsys.readouterr().out.splitlines()
