"""Planned views: every sample is read with the embeddings of its own items, or one line says what to run."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_cases import (
    DIALOGUE_VIEWS,
    drawing,
    embedding_of,
    length_of,
    pair,
    talk,
    task,
    write_dataset,
    write_sidecar,
)

from pipelines.handover.mixture import Candidates, Mixture
from pipelines.handover.stage_samples import (
    PlannedView,
    ReadSteps,
    SampleReader,
    plan_view,
    sample_embeddings,
    sidecar_of,
)
from pipelines.media.codecs import decode
from pipelines.sample import Modality, Sample, turns_from_json
from pipelines.storage.files import read_rows, write_rows
from pipelines.storage.shards import index_path
from pipelines.storage.sidecars import ENCODER, SIDECAR_SCHEMA, from_npy, sidecar_folder
from pipelines.views import CAPTION_PROMPT, Kind, apply_view

PAIRS = [pair(f"k{number}", f"caption number {number}", shade=number) for number in range(5)]
TALKS = [talk("a", ["red"]), talk("b", []), talk("c", ["a blue one", "red"])]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five caption pairs in shards of two, with both sidecars."""
    directory = tmp_path / "shards" / "pictures"
    write_dataset(directory, PAIRS, 2)
    write_sidecar(directory, task("image", encoder_id="image-0"))
    write_sidecar(directory, task(ENCODER, encoder_id="encoder-0"))
    return directory


def view(
    directory: Path, kind: Kind, wanted: dict[str, str] | None = None, denoised: Collection[Modality] = ()
) -> PlannedView:
    return plan_view(f"{directory.name}_{kind}", kind, directory, 1.0, wanted or {}, denoised)


def rows_of(planned: PlannedView) -> list[dict[str, Any]]:
    reader = SampleReader(views=[planned])
    return [reader.read(0, number) for number in range(planned.manifest.samples)]


def test_a_view_reads_the_sidecars_of_its_kind_alone(pictures: Path) -> None:
    assert view(pictures, "caption").sidecars == {ENCODER: sidecar_folder(pictures, "encoder-0")}
    assert view(pictures, "generate").sidecars == {"image": sidecar_folder(pictures, "image-0")}
    assert sidecar_of(view(pictures, "generate"), "image").encoder_id == "image-0"


def test_a_view_without_items_needs_no_sidecar(tmp_path: Path) -> None:
    write_dataset(tmp_path / "talks", [talk("a", [])], 2, DIALOGUE_VIEWS)
    assert view(tmp_path / "talks", "dialogue").sidecars == {}


def fails(planned: Any) -> str:
    """The one line in which planning fails."""
    with pytest.raises(ValueError, match=r"^/.+") as caught:
        planned()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_sidecar_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    directory = tmp_path / "shards" / "pictures"
    write_dataset(directory, PAIRS, 2)
    for kind, sidecar in (("caption", ENCODER), ("generate", "image")):
        message = fails(lambda kind=kind: view(directory, kind))
        assert message.startswith(f"{directory}: ")
        assert f"run jobs/embed.py --shards {tmp_path / 'shards'} --modality {sidecar}" in message


def test_of_two_encoders_one_must_be_named(pictures: Path) -> None:
    write_sidecar(pictures, task("image", encoder_id="image-1"))
    message = fails(lambda: view(pictures, "generate"))
    assert "image-0, image-1" in message
    assert "sidecars.image=ID" in message
    assert view(pictures, "generate", {"image": "image-1"}).sidecars["image"].name == "image-1"


def test_an_encoder_that_is_not_there_is_named(pictures: Path) -> None:
    message = fails(lambda: view(pictures, "generate", {"image": "image-9"}))
    assert re.search(r"no image embeddings by image-9; run jobs/embed\.py", message)


def test_a_sidecar_of_older_shards_is_refused(pictures: Path) -> None:
    write_dataset(pictures, [*PAIRS[:4], pair("new")], 2)
    message = fails(lambda: view(pictures, "caption"))
    assert "encoder-0 are of other shards than these; run jobs/embed.py" in message


def test_a_row_holds_the_turns_of_its_view_and_the_caption_embeddings_it_aims_at(pictures: Path) -> None:
    rows = rows_of(view(pictures, "generate"))
    assert [row["key"] for row in rows] == [f"pictures_generate/k{number}" for number in range(5)]
    for row, sample in zip(rows, PAIRS, strict=True):
        (item,) = sample.items()
        assert turns_from_json(row["turns"]) == apply_view("generate", sample).turns
        np.testing.assert_array_equal(from_npy(row["image"]), embedding_of(item.caption)[None])
        assert row["image_lengths"] == [length_of(item.caption)]
        assert (row[ENCODER], row["encoder_lengths"], row["audio"], row["audio_lengths"]) == (b"", [], b"", [])


def test_a_row_holds_the_features_of_the_media_it_shows(pictures: Path) -> None:
    for row, sample in zip(rows_of(view(pictures, "caption")), PAIRS, strict=True):
        assert json.loads(row["turns"])[0]["parts"][1] == CAPTION_PROMPT
        np.testing.assert_array_equal(from_npy(row[ENCODER]), embedding_of(decode(sample.media["png"]))[None])
        assert (row["encoder_lengths"], row["image"]) == ([1], b"")


def test_a_dialogue_has_an_embedding_for_each_of_its_items(tmp_path: Path) -> None:
    write_dataset(tmp_path / "talks", TALKS, 2, DIALOGUE_VIEWS)
    write_sidecar(tmp_path / "talks", task("image", encoder_id="image-0"))
    rows = rows_of(view(tmp_path / "talks", "dialogue"))
    assert [turns_from_json(row["turns"]) for row in rows] == [sample.turns for sample in TALKS]
    assert [len(from_npy(row["image"])) for row in rows] == [1, 0, 2]
    np.testing.assert_array_equal(from_npy(rows[2]["image"])[0], embedding_of("a blue one"))


def test_samples_are_read_in_any_order_and_from_many_views(pictures: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "talks", TALKS, 2, DIALOGUE_VIEWS)
    write_sidecar(tmp_path / "talks", task("image", encoder_id="image-0"))
    views = [view(pictures, "generate"), view(tmp_path / "talks", "dialogue"), view(pictures, "caption")]
    reader, alone = SampleReader(views=views), [rows_of(planned) for planned in views]
    for index, number in [(2, 4), (0, 3), (1, 2), (0, 0), (1, 0), (2, 4), (0, 3)]:
        assert reader.read(index, number) == alone[index][number]


def test_samples_read_together_are_those_read_alone(pictures: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "talks", TALKS, 2, DIALOGUE_VIEWS)
    write_sidecar(tmp_path / "talks", task("image", encoder_id="image-0"))
    reader = SampleReader(views=[view(pictures, "generate"), view(tmp_path / "talks", "dialogue")])
    pairs = [(0, 4), (1, 2), (0, 4), (1, 0), (0, 1)]
    assert reader.read_all(pairs) == [reader.read(*pair) for pair in pairs]
    assert reader.read_all([]) == []


def test_a_rank_reads_its_micro_batches_a_table_a_step(pictures: Path) -> None:
    planned = view(pictures, "caption")
    candidates = Candidates(samples=np.array([0, 2, 4]), lengths=np.array([3, 2, 1], np.int32))
    plan = Mixture([candidates], batch_size=3, micro_batch_size=1, window=1, seed=0, epochs=2)
    tables = [[*ReadSteps(plan, [planned], rank, 2)({"id": range(2)})] for rank in (0, 1)]
    assert [table.select(["step", "micro", "key"]).to_pylist() for table in tables[0]] == [
        [
            {"step": step, "micro": 0, "key": "pictures_caption/k4"},
            {"step": step, "micro": 2, "key": "pictures_caption/k0"},
        ]
        for step in range(2)
    ]
    assert [table["micro"].to_pylist() for table in tables[1]] == [[1], [1]]


def test_a_sidecar_whose_keys_are_others_is_refused(pictures: Path) -> None:
    planned = view(pictures, "generate")
    index = index_path(planned.sidecars["image"] / "00001.tar")
    rows = read_rows(index)
    write_rows(index, rows[::-1], SIDECAR_SCHEMA)
    message = fails(lambda: SampleReader(views=[planned]).read(0, 2))
    assert "sample 0 is k3, expected k2; delete it and run jobs/embed.py" in message


def test_the_embeddings_sampled_are_of_all_views_and_no_more_than_asked_for(pictures: Path, tmp_path: Path) -> None:
    samples: list[Sample] = [talk(f"t{number}", ["x", "y"]) for number in range(8)]
    write_dataset(tmp_path / "talks", samples, 4, DIALOGUE_VIEWS)
    write_sidecar(tmp_path / "talks", task("image", encoder_id="image-0"))
    views = [view(pictures, "generate"), view(tmp_path / "talks", "dialogue"), view(pictures, "caption")]
    everything = list(sample_embeddings(views, "image", 1000))
    assert [len(lengths) for _, lengths in everything] == [1] * 5 + [2] * 8
    some = list(sample_embeddings(views, "image", 6))
    assert {len(lengths) for _, lengths in some} == {1, 2}
    assert 4 <= len(some) < len(everything)


def test_latents_are_read_where_they_are_asked_for_and_the_view_generates(pictures: Path) -> None:
    message = fails(lambda: view(pictures, "generate", denoised=[Modality.IMAGE]))
    assert f"run jobs/embed.py --shards {pictures.parent} --modality image --latents" in message
    write_sidecar(pictures, task("image_latents", encoder_id="image_latents-0"))
    assert view(pictures, "generate").sidecars.keys() == {"image"}
    assert view(pictures, "generate", denoised=[Modality.AUDIO]).sidecars.keys() == {"image"}
    assert view(pictures, "caption", denoised=[Modality.IMAGE]).sidecars.keys() == {ENCODER}
    rows = rows_of(view(pictures, "generate", denoised=[Modality.IMAGE]))
    for row, sample in zip(rows, PAIRS, strict=True):
        np.testing.assert_array_equal(from_npy(row["image_latents"]), embedding_of(decode(sample.media["png"]))[None])
        assert (row["video_latents"], row["image_latents_lengths"]) == (b"", [1])


def test_latents_are_of_the_items_that_have_a_medium(tmp_path: Path) -> None:
    drawings = [drawing("a", [None, 7]), drawing("b", [None]), drawing("c", [1, None, 2])]
    write_dataset(tmp_path / "drawings", drawings, 2, DIALOGUE_VIEWS)
    write_sidecar(tmp_path / "drawings", task("image", encoder_id="image-0"))
    write_sidecar(tmp_path / "drawings", task("image_latents", encoder_id="image_latents-0"))
    rows = rows_of(view(tmp_path / "drawings", "dialogue", denoised=[Modality.IMAGE]))
    assert [len(from_npy(row["image"])) for row in rows] == [2, 1, 3]
    assert [from_npy(row["image_latents"]).tolist() for row in rows] == [
        [[7, 7, 7, 1]],
        [],
        [[1, 1, 1, 1], [2, 2, 2, 1]],
    ]


def test_a_dataset_without_any_media_to_denoise_has_latents_of_no_item(tmp_path: Path) -> None:
    write_dataset(tmp_path / "talks", TALKS, 2, DIALOGUE_VIEWS)
    write_sidecar(tmp_path / "talks", task("image", encoder_id="image-0"))
    embedded = write_sidecar(tmp_path / "talks", task("image_latents", encoder_id="image_latents-0"))
    assert (embedded.manifest.items, embedded.manifest.shape) == (0, [])
    rows = rows_of(view(tmp_path / "talks", "dialogue", denoised=[Modality.IMAGE]))
    assert [len(from_npy(row["image_latents"])) for row in rows] == [0, 0, 0]


WORDED = [
    pair("a", "one of a", shade=1, more=["two of a", "three of a"]),
    pair("b", "one of b", shade=2),
    pair("c", "one of c", shade=3, more=["one of b"]),
]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_each_caption_of_a_medium_is_embedded_and_read_with_it(tmp_path: Path, dtype: str) -> None:
    manifest = write_dataset(tmp_path / "worded", WORDED, 2)
    assert (manifest.samples, manifest.captions, manifest.most_captions) == (3, 6, 3)
    assert write_sidecar(tmp_path / "worded", task("image", dtype, encoder_id="image-0")).manifest.items == 6
    assert write_sidecar(tmp_path / "worded", task(ENCODER, encoder_id="encoder-0")).manifest.items == 3
    shows, draws = view(tmp_path / "worded", "caption"), view(tmp_path / "worded", "generate")
    reader = SampleReader(views=[shows, draws])
    for place, sample in enumerate(WORDED):
        (item,) = sample.items()
        for number, caption in enumerate(item.captions):
            (shown, drawn) = reader.read_all([(index, shows.number(place, number)) for index in (0, 1)])
            assert (shown["key"], drawn["key"]) == (f"worded_caption/{sample.key}", f"worded_generate/{sample.key}")
            assert json.loads(shown["turns"])[1]["parts"] == [caption]
            pixels = embedding_of(decode(sample.media["png"]))
            np.testing.assert_array_equal(from_npy(shown[ENCODER]), pixels[None])
            asked, answered = turns_from_json(drawn["turns"])
            assert asked.parts == (caption,)
            assert answered.parts == (caption, *next(sample.items()).each()[number : number + 1])
            np.testing.assert_allclose(from_npy(drawn["image"]), embedding_of(caption)[None], atol=0.02)
            assert drawn["image_lengths"] == [length_of(caption)]


def test_latents_of_a_medium_are_those_of_each_of_its_captions(tmp_path: Path) -> None:
    write_dataset(tmp_path / "worded", WORDED, 2)
    write_sidecar(tmp_path / "worded", task("image", encoder_id="image-0"))
    write_sidecar(tmp_path / "worded", task("image_latents", encoder_id="image_latents-0"))
    planned = view(tmp_path / "worded", "generate", denoised=[Modality.IMAGE])
    reader = SampleReader(views=[planned])
    found = [from_npy(reader.read(0, planned.number(0, number))["image_latents"]).tolist() for number in range(3)]
    assert found == [[[1, 1, 1, 1]]] * 3
