"""Lineage: from a sample to its row and back, from a rejected row to its reason."""

from pathlib import Path

import numpy as np
import pytest
from whole_cases import write_embeddings, write_whole

from pipelines.inspect.lineage import Origin, find, print_origins
from pipelines.media.codecs import encode
from pipelines.sample import Image, Item, Modality, Reject, Sample, Turn


def pair(number: int) -> Sample:
    item = Item(modality=Modality.IMAGE, name="png", caption=f"a grey\nof {number}")
    turns = (Turn(role="user", parts=(item,)), Turn(role="assistant", parts=(item.caption,)))
    facts = {"media": {"png": {"file": f"00000.tar/{number}.PNG", "width": 8, "height": 8}}}
    media = {"png": encode(Image(pixels=np.full((8, 8, 3), number, np.uint8)))}
    return Sample(key=f"s{number}", source=f"rows.json#{2 * number}", turns=turns, media=media, meta=facts)


REJECTED = [
    Reject(source="rows.json#3", key="gone", stage="media", reason="missing file: gone.png"),
    Reject(source="rows.json#5", key="s1", stage="read", reason="duplicate key"),
    Reject(source="rows.json#7", key="", stage="read", reason="bad row: a number"),
]
SEVENTH = Origin(
    dataset="greys",
    key="s7",
    source="rows.json#14",
    shard="00001.tar",
    place=3,
    caption="a grey\nof 7",
    media={"png": "00000.tar/7.PNG"},
    embeddings=("numbers-1",),
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets; `greys` is ten samples of every second row, `blacks` one with a key that both have."""
    folder = tmp_path_factory.mktemp("shards")
    manifest = write_whole(folder / "greys", [pair(number) for number in range(10)], REJECTED)
    write_embeddings(folder / "greys", manifest, "numbers-1", [[f"s{n}" for n in range(s, s + 4)] for s in (0, 4)])
    write_whole(folder / "blacks", [pair(0)], views={"blacks_dec": "generate"})
    return folder


def test_a_key_leads_to_the_row_and_the_row_back_to_the_sample(shards: Path) -> None:
    assert find(shards, ["s7", "rows.json#14"]) == {"s7": [SEVENTH], "rows.json#14": [SEVENTH]}


def test_every_row_of_the_source_is_found_either_way(shards: Path) -> None:
    samples, rows = [f"s{number}" for number in range(1, 10)], [f"rows.json#{2 * number}" for number in range(1, 10)]
    answers = find(shards, samples + rows)
    for key, source in zip(samples, rows, strict=True):
        assert [origin.source for origin in answers[key] if not origin.reason] == [source]
        assert [origin.key for origin in answers[source]] == [key]


def test_a_name_of_a_dataset_or_of_its_view_before_the_key_chooses_among_datasets(shards: Path) -> None:
    answers = find(shards, ["s0", "greys/s0", "blacks_dec/s0", "blacks/rows.json#0"])
    assert [[origin.dataset for origin in origins] for origins in answers.values()] == [
        ["blacks", "greys"],
        ["greys"],
        ["blacks"],
        ["blacks"],
    ]


def test_a_rejected_row_is_found_with_its_reason(shards: Path) -> None:
    answers = find(shards, ["gone", "rows.json#5", "rows.json#7", "s1"])
    assert [(origin.stage, origin.reason) for origin in answers["gone"]] == [("media", "missing file: gone.png")]
    assert [origin.reason for origin in answers["rows.json#5"]] == ["duplicate key"]
    assert [origin.reason for origin in answers["rows.json#7"]] == ["bad row: a number"]
    assert [origin.reason for origin in answers["s1"]] == ["", "duplicate key"]


def test_what_is_printed_is_for_a_person(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_origins(shards, ["s7", "gone", "rows.json#7", "nobody"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "greys/s7: sample 3 of 00001.tar, from rows.json#14",
        "  caption: a grey of 7",
        "  s7.png: from 00000.tar/7.PNG",
        "  embeddings: numbers-1",
        "rows.json#3 of greys (gone): rejected at media: missing file: gone.png",
        "rows.json#7 of greys (no key): rejected at read: bad row: a number",
        "nobody: no sample has this key and no row this source; give KEY, DATASET/KEY or FILE#ROW",
    ]


def test_an_empty_question_finds_nothing(shards: Path) -> None:
    assert find(shards, ["", "greys/"]) == {"": [], "greys/": []}


def test_a_dataset_behind_a_url_answers_too(shards: Path) -> None:
    from upath import UPath

    folder = UPath("memory://lineage")
    for path in (path for path in shards.rglob("*") if path.is_file()):
        target = folder / str(path.relative_to(shards))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    assert find(folder, ["rows.json#14"]) == {"rows.json#14": [SEVENTH]}
