"""A small world that is spoiled on purpose: what each detector finds of it, and what else it takes for spoiled.

Of 36 media of each kind 30 % have the captions of others, and 10 % are blank or silent; 20 % more are nearly copies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from dataset_cases import write_dataset

from jobs.common.encoders import encoder_factory, preprocess_factory
from jobs.common.settings import load_model
from jobs.common.similarity import COLUMNS, MakeSimilarity, MakeTower, towers_of
from model.parts.sources import ENCODER as ENCODER_KEY
from pipelines.curate import measures, prints
from pipelines.curate.columns import begin, finish
from pipelines.curate.curating import columns_work, score_row
from pipelines.curate.duplicates import write_duplicates
from pipelines.curate.scorers import Scorer
from pipelines.curate.selection import select
from pipelines.media.codecs import encode
from pipelines.sample import Item, Media, Modality, Sample, Turn
from pipelines.storage.shards import Manifest
from pipelines.storage.sidecars import ENCODER
from pipelines.world.captions import caption
from pipelines.world.render import render
from pipelines.world.scenes import Subject, attributes, draw
from tests.benchmarks.spoiling import blank, columns_of, copied, is_blank, precision_recall

COUNT = 36  # as many as there are notes of all instruments
SHUFFLED, COPIES, BLANK = range(11), range(12, 19), range(22, 26)
CLEAN = {
    Modality.IMAGE: "similarity > 0.6 and near_duplicate_of is null and contrast > 1",
    Modality.VIDEO: "similarity > 0.6 and near_duplicate_of is null and contrast > 1",
    Modality.AUDIO: "similarity > 0.6 and near_duplicate_of is null and silence < 0.9",
}


def subjects(modality: Modality) -> list[Subject]:
    """The first subjects of a modality that differ in what a person would tell them apart by; not in loudness alone."""
    found: dict[str, Subject] = {}
    for index in range(2000):
        subject = draw(7, index)[modality]
        told = {name: value for name, value in attributes(subject).items() if name != "loudness"}
        found.setdefault(str(told), subject)
    assert len(found) >= COUNT
    return list(found.values())[:COUNT]


def pair(key: str, medium: Media, text: str) -> Sample:
    item = Item(modality=medium.modality, name=medium.format, caption=text)
    turns = (Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(text,)))
    return Sample(key=key, source=f"rows.json#{key}", turns=turns, media={medium.format: medium})


def spoiled(modality: Modality) -> list[Sample]:
    """The samples; `k..` are of the world, `z..` nearly copies of some."""
    found = subjects(modality)
    media = [render(subject, number) for number, subject in enumerate(found)]
    texts = [caption(subject, number) for number, subject in enumerate(found)]
    texts[: len(SHUFFLED)] = np.roll(texts[: len(SHUFFLED)], 4).tolist()
    samples = [
        pair(f"k{number:02}", blank(medium, number - BLANK.start) if number in BLANK else encode(medium), text)
        for number, (medium, text) in enumerate(zip(media, texts, strict=True))
    ]
    return samples + [pair(f"z{number:02}", copied(media[number], number), texts[number]) for number in COPIES]


@dataclass(frozen=True)
class Curation:
    directory: Path
    rows: dict[str, dict[str, object]]

    def found(self, holds: Callable[[dict[str, object]], bool]) -> set[str]:
        return {key for key, row in self.rows.items() if holds(row)}


def keys(numbers: Sequence[int], letter: str = "k") -> set[str]:
    return {f"{letter}{number:02}" for number in numbers}


@pytest.fixture(scope="module")
def similarity() -> Scorer:
    """The scorer by the built-in ImageBind, which is loaded once."""
    config = load_model("world", [], [ENCODER_KEY])
    factory, preprocess = encoder_factory(config, ENCODER), preprocess_factory(config, ENCODER)
    made = MakeSimilarity(towers=(MakeTower(encoder=factory, preprocess=preprocess, towers=towers_of(config)),))()
    return Scorer(name="similarity", columns=COLUMNS, version="1", make=lambda: made)


@pytest.fixture(scope="module", params=list(Modality))
def curation(request: pytest.FixtureRequest, similarity: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Curation:
    directory = tmp_path_factory.mktemp("spoiled") / str(request.param)
    write_dataset(directory, spoiled(request.param), 40)
    for scorer in (measures.scorer(), prints.scorer(), similarity):
        work = columns_work(directory, scorer)
        for shard in begin(work):
            score_row({"shard": shard, "works": "[0]", "samples": 0}, [work], {scorer.name: scorer})
        assert finish(work).failed == 0
    write_duplicates([directory], 0.02)
    return Curation(directory, columns_of(directory))


def test_captions_of_other_media_are_found(curation: Curation) -> None:
    found = curation.found(lambda row: float(row["similarity"]) < 0.6)  # type: ignore[arg-type]
    precision, recall = precision_recall(found - keys(BLANK) - keys(COPIES, "z"), keys(SHUFFLED))
    print(f"{curation.directory.name}: shuffled captions: precision {precision:.2f}, recall {recall:.2f}")
    assert precision >= 0.9
    assert recall >= 0.8, "the captions of some tell nothing wrong"


def test_near_copies_are_found(curation: Curation) -> None:
    found = curation.found(lambda row: row["near_duplicate_of"] is not None)
    precision, recall = precision_recall(found - keys(BLANK), keys(COPIES, "z"))
    print(f"{curation.directory.name}: near copies: precision {precision:.2f}, recall {recall:.2f}")
    assert precision >= 0.8
    assert recall >= 0.9
    pairs = {key: curation.rows[key]["near_duplicate_of"] for key in found & keys(COPIES, "z")}
    right = [of == f"{curation.directory.name}/k{key[1:]}" for key, of in pairs.items()]
    assert np.mean(right) >= 0.9, "the one that stays is the original, whose key is smaller"


def test_blank_and_silent_media_are_found(curation: Curation) -> None:
    precision, recall = precision_recall(curation.found(is_blank), keys(BLANK))
    print(f"{curation.directory.name}: blank or silent: precision {precision:.2f}, recall {recall:.2f}")
    assert (precision, recall) == (1, 1)


def test_what_a_condition_selects_is_what_was_not_spoiled(curation: Curation) -> None:
    where = CLEAN[Modality(curation.directory.name)]
    selection = select(curation.directory, Manifest.read(curation.directory), [where])
    order = [*(f"k{number:02}" for number in range(COUNT)), *(f"z{number:02}" for number in COPIES)]
    found = {key for key, selected in zip(order, selection.selected.tolist(), strict=True) if selected}
    clean = keys(range(COUNT)) - keys(SHUFFLED) - keys(BLANK)
    precision, recall = precision_recall(found, clean)
    print(f"{curation.directory.name}: clean: precision {precision:.2f}, recall {recall:.2f}; {selection.describe('')}")
    assert precision >= 0.9
    assert recall >= 0.9
    assert selection.kept + sum(selection.dropped.values()) == COUNT + len(COPIES)
