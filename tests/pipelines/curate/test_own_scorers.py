"""A scorer of a user's own is a few lines beside a catalog; what it raises costs one sample its value."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from dataset_cases import pair, write_dataset

from pipelines.curate.columns import begin, finish
from pipelines.curate.curating import columns_work, score_row
from pipelines.curate.own_scorers import own_scorers
from pipelines.curate.scorers import Scorer
from pipelines.curate.selection import select
from pipelines.sources.catalog import load_catalog

MODULE = '''
from pipelines.sample import Modality

def brightness(content) -> float | None:
    picture = content.first(Modality.IMAGE)
    if content.sample.key == "k2":
        raise RuntimeError("two is too dark")
    return picture and picture.pixels.mean() / 255

def wrong(content) -> int:
    return "seven" if content.sample.key == "k1" else 7

def sizes(content):
    return {"area": content.first(Modality.IMAGE).pixels.size // 3, "name": content.sample.key}

def unknown(content):
    return {"other": 1}

def undefined(content):
    return float("nan")

class Longer:
    """How many words more than so many."""

    def __init__(self, than: int):
        self.than = than

    def __call__(self, content) -> int:
        return len(content.text.split()) - self.than
'''


def scorers_of(folder: Path, rows: Any, module: str = MODULE) -> list[Scorer]:
    """The scorers of a catalog file beside a module."""
    (folder / "my_scorers.py").write_text(module)
    (folder / "mine.yaml").write_text(f"scorers: {rows}\n")
    [(place, found)] = load_catalog(extra=[folder / "mine.yaml"]).scorers
    return own_scorers(found, place, {"width": "measures"})


def table(directory: Path, scorer: Scorer) -> list[dict[str, Any]]:
    """The rows of all columns, once a worker elsewhere has scored them."""
    elsewhere = pickle.loads(pickle.dumps(scorer))
    work = columns_work(directory, elsewhere)
    for shard in begin(work):
        score_row({"shard": shard, "works": "[0]", "samples": 0}, [work], {scorer.name: elsewhere})
    finish(work)
    return [row for number in range(len(work.shards)) for row in pq.read_table(work.target(number)).to_pylist()]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "pictures", [pair(f"k{n}", "a b c", shade=51 * n) for n in range(4)], 2)
    return tmp_path / "pictures"


def test_a_function_fills_a_column_of_its_name(tmp_path: Path, directory: Path) -> None:
    (scorer,) = scorers_of(tmp_path, "{brightness: my_scorers.brightness}")
    assert scorer.columns == {"brightness": "float"}
    rows = table(directory, scorer)
    assert [row["brightness"] for row in rows] == [0, pytest.approx(0.2), None, pytest.approx(0.6)]
    assert [row["reason"] for row in rows] == [None, None, "RuntimeError: two is too dark", None]
    from pipelines.storage.shards import Manifest

    selection = select(directory, Manifest.read(directory), ["brightness > 0.1"])
    assert selection.selected.tolist() == [False, True, False, True]


def test_a_class_is_made_with_its_settings(tmp_path: Path, directory: Path) -> None:
    (scorer,) = scorers_of(tmp_path, "{more: {call: my_scorers.Longer, settings: {than: 1}}}")
    assert [row["more"] for row in table(directory, scorer)] == [2] * 4


def test_several_columns_are_listed_with_their_types(tmp_path: Path, directory: Path) -> None:
    (scorer,) = scorers_of(tmp_path, "{sizes: {call: my_scorers.sizes, columns: {area: int, name: str}}}")
    assert [(row["area"], row["name"]) for row in table(directory, scorer)] == [(64, f"k{n}") for n in range(4)]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("my_scorers.wrong", "gave 'seven' for own, which is no int"),
        ("{call: my_scorers.unknown, columns: {area: int}}", "gave other, which its columns do not list"),
        ("my_scorers.undefined", "gave 'nan' for own, which is no finite float"),
    ],
)
def test_a_value_that_does_not_fit_is_that_samples_alone(tmp_path: Path, directory: Path, row: str, told: str) -> None:
    (scorer,) = scorers_of(tmp_path, f"{{own: {row}}}")
    rows = table(directory, scorer)
    assert rows[1]["reason"] == told
    assert "wrong" not in row or [one["own"] for one in rows] == [7, None, 7, 7]


def test_another_source_or_setting_is_another_scorer(tmp_path: Path, directory: Path) -> None:
    def identity(rows: str, module: str = MODULE) -> str:
        return columns_work(directory, scorers_of(tmp_path, rows, module)[0]).id

    first = identity("{own: my_scorers.brightness}")
    assert first == identity("{own: my_scorers.brightness}")
    assert first != identity("{own: my_scorers.brightness}", MODULE + "\n# another\n")
    settings = [identity(f"{{own: {{call: my_scorers.Longer, settings: {{than: {n}}}}}}}") for n in (1, 2)]
    assert len({first, *settings}) == 3


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("{own: my_scorers.none}", "scorers: own: {folder}/my_scorers.py: has no function or class none"),
        ("{own: other.none}", "scorers: own: {folder}/other.py: no such file"),
        ("{own: os.system.x}", "scorers: own: {folder}/os/system.py: no such file"),
        ("{own: brightness}", "scorers: own: call: String should match pattern"),
        ("{own: ../x.brightness}", "scorers: own: call: String should match pattern"),
        ("{width: my_scorers.brightness}", "scorers: width: the column width is of measures; choose another name"),
        ("{measures: my_scorers.brightness}", "scorers: measures: is the name of a scorer of this project"),
        ("{Own: my_scorers.brightness}", "scorers: Own: a scorer's name may hold a-z, 0-9 and _ only"),
        (
            "{own: {call: my_scorers.sizes, columns: {area: list}}}",
            "scorers: own: columns.area: Input should be 'float'",
        ),
        ("{own: {call: my_scorers.sizes, colums: {}}}", "scorers: own: colums: Extra inputs are not permitted"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, rows: str, told: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        scorers_of(tmp_path, rows)
    assert str(caught.value).startswith(told.format(folder=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"my_scorers\.py: cannot be imported: ZeroDivisionError"):
        scorers_of(tmp_path, "{own: my_scorers.x}", "1 / 0")


def test_a_link_out_of_the_catalogs_folder_is_refused(tmp_path: Path) -> None:
    folder, outside = tmp_path / "catalog", tmp_path / "outside.py"
    folder.mkdir()
    outside.write_text(MODULE)
    (folder / "mine.py").symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of the catalog's folder"):
        own_scorers({"own": "mine.brightness"}, folder, {})


def test_scorers_are_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("scorers: [1]\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: scorers: must map names of scorers to functions or classes"):
        load_catalog(extra=[tmp_path / "mine.yaml"])
