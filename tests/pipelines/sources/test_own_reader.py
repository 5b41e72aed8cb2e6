"""A reader of one's own is one function: what the README shows works."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipelines.sample import Item, Modality, Reject, Sample
from pipelines.sources import rows, turn_parts
from pipelines.sources.catalog import load_catalog
from pipelines.sources.entry import Entry
from pipelines.sources.readers import READERS
from pipelines.tables.keys import row_key
from pipelines.tables.raw import Section

CATALOG = """
my_questions:
  reader: questions
  paths: [questions/*.jsonl, questions/train.parquet]
  media: questions/pictures
  views:
    my_questions: {stage: 3, kind: dialogue}
"""


def read(entry: Entry, source: Path | Section) -> Iterator[Sample | Reject]:
    """Yields each row as one exchange about a picture: `{"picture", "question", "answers": [...]}`."""
    return rows.read(entry, source, lambda row, index: row_key(index), _dialogue)


def _dialogue(row: rows.Row) -> rows.Dialogue:
    picture = Item(modality=Modality.IMAGE, name=rows.name(rows.field(row, "picture"), "picture"))
    question = rows.prose(rows.field(row, "question"), "question")
    answers = rows.listed(row, "answers", "answer")
    if not answers:
        raise ValueError("missing field: answers")
    answer = rows.prose(answers[0], "answer")
    return turn_parts.finished([("user", [picture, question]), ("assistant", turn_parts.text_part(answer))])


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "questions", read)


def test_a_reader_and_an_entry_of_ones_own_are_a_new_source(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(CATALOG)
    folder = tmp_path / "data" / "questions"
    (folder / "pictures").mkdir(parents=True)
    lines = [
        {"picture": "a.jpg", "question": "What?", "answers": ["A cat.", "Cat"]},
        {"picture": "b.jpg", "question": "?"},
    ]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    catalog = load_catalog(extra=[tmp_path / "mine.yaml"])
    entry, path = catalog.datasets["my_questions"], catalog.find(tmp_path / "data")["my_questions"]
    sample, reject = READERS[entry.reader](entry, path)
    assert isinstance(sample, Sample)
    assert [turn.parts for turn in sample.turns] == [
        (Item(modality=Modality.IMAGE, name="a.jpg"), "What?"),
        ("A cat.",),
    ]
    assert reject == Reject(source="a.jsonl#1", key="0000001", stage="read", reason="missing field: answers")
    assert catalog.media_folder(entry, tmp_path / "data", path) == folder / "pictures"


def test_the_example_is_as_short_as_the_readme_says(tmp_path: Path) -> None:
    source = Path(__file__).read_text().partition("def read(")[2].partition("@pytest")[0]
    assert len(source.strip().splitlines()) <= 20
    assert yaml.safe_load(CATALOG)
