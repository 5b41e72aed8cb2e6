"""Similarity is the cosine of ImageBind's towers; what jobs/embed.py has stored is not encoded again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_cases import NotingEncoder, drawing, embedding_of, pair, task, write_dataset, write_sidecar

from jobs.common.similarity import Similarity, Tower, captioned, stored_features
from pipelines.curate.columns import REASON
from pipelines.curate.curating import columns_work, contents_of
from pipelines.curate.measures import scorer
from pipelines.curate.scorers import Content
from pipelines.media.codecs import decode
from pipelines.sample import Media, Modality
from pipelines.storage.sidecars import ENCODER

TEXTS = {"dark": [0, 0, 0, 1], "light": [0.5, 0.5, 0.5, 0.5], "odd": [0.6, -0.8, 0, 0]}


def encode_texts(texts: Sequence[str]) -> np.ndarray:
    return np.array([TEXTS[text] for text in texts], np.float32)


def cosine(shade: int, text: str) -> float:
    feature = np.array([shade, shade, shade, 1.0])
    return float(feature @ TEXTS[text] / np.linalg.norm(feature))


def similarity(log: Path | None = None) -> Similarity:
    return Similarity([Tower(NotingEncoder(log=log, encoder_id="e"), None, encode_texts)])


def test_it_is_the_mean_cosine_of_a_medium_and_its_captions() -> None:
    contents = [
        Content(pair("a", "dark")),
        Content(pair("b", "light", shade=9)),
        Content(pair("c", "dark", 9, ["odd"])),
    ]
    found = [row["similarity"] for row in similarity()(contents)]
    expected = [1.0, cosine(9, "light"), (cosine(9, "dark") + cosine(9, "odd")) / 2]
    assert found == [pytest.approx(value, abs=1e-5) for value in expected]


def test_a_medium_without_a_caption_has_none_and_a_broken_one_says_why() -> None:
    broken = Media(modality=Modality.IMAGE, data=b"nothing", format="png")
    sample = pair("b", "dark")
    spoiled = type(sample)(key="b", source="s", turns=sample.turns, media={"png": broken})
    found = similarity()([Content(drawing("a", [None])), Content(spoiled), Content(pair("c", "dark"))])
    assert found[0] == {"similarity": None}
    assert found[1] == {REASON: "unreadable: cannot identify image file"}
    assert found[2]["similarity"] == 1


class Picky(NotingEncoder):
    def __call__(self, inputs: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        if any(one.pixels.max() == 77 for one in inputs):
            raise RuntimeError("too grey")
        return super().__call__(inputs)


def test_a_medium_that_fails_costs_its_own_sample_alone() -> None:
    contents = [Content(pair(key, "dark", shade)) for key, shade in (("a", 0), ("b", 77), ("c", 0))]
    found = Similarity([Tower(Picky(encoder_id="e"), None, encode_texts)])(contents)
    assert [row.get("similarity") for row in found] == [1, None, 1]
    assert found[1][REASON] == "not encoded: RuntimeError: too grey"


def test_stored_features_are_read_and_nothing_is_encoded(tmp_path: Path) -> None:
    directory, log = tmp_path / "pictures", tmp_path / "log"
    write_dataset(directory, [pair(f"k{n}", "light", shade=40 * n) for n in range(5)], 2)
    work = columns_work(directory, scorer())
    contents = [content for shard in range(3) for content in contents_of(work, shard)]
    assert stored_features(contents[0], "other") == {}
    write_sidecar(directory, task(ENCODER, encoder_id="e"))
    assert (
        stored_features(contents[3], "e")["png"].tolist()
        == embedding_of(decode(contents[3].sample.media["png"])).tolist()
    )
    found = [row["similarity"] for row in similarity(log)(contents)]
    assert found == [pytest.approx(cosine(40 * n, "light"), abs=1e-5) for n in range(5)]
    assert not log.exists(), "the encoder was asked for nothing"


def test_features_of_other_shards_are_not_used(tmp_path: Path) -> None:
    directory = tmp_path / "changed"
    write_dataset(directory, [pair("k0", "light", shade=40)], 2)
    write_sidecar(directory, task(ENCODER, encoder_id="e"))
    write_dataset(directory, [pair("k0", "light", shade=80)], 2)
    [content] = contents_of(columns_work(directory, scorer()), 0)
    assert stored_features(content, "e") == {}


def test_each_medium_with_a_caption_counts_once() -> None:
    assert [item.name for item in captioned(Content(drawing("a", [1, None, 2])))] == ["0.png", "2.png"]
