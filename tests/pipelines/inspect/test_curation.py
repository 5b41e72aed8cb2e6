"""What a page shows of columns: histograms with the samples at their ends and around thresholds, groups, and drops."""

from dataclasses import replace
from pathlib import Path

import pytest
from browsing import chromium, visit
from dataset_cases import pair, talk, write_dataset

from pipelines.curate import measures, prints
from pipelines.curate.columns import begin, finish
from pipelines.curate.curating import columns_work, score_row
from pipelines.curate.duplicates import write_duplicates
from pipelines.curate.scorers import Content, EachSample, Scorer, Values
from pipelines.inspect.curation import NEAREST, SHOWN_DROPPED, ChartedColumn, ShownCuration, show_curation
from pipelines.inspect.lineage import print_origins
from pipelines.inspect.report import write_report
from pipelines.storage.files import write_rows
from pipelines.storage.shards import REJECT_SCHEMA, REJECTS, Manifest

HOSTILE = "<script>document.title='owned'</script>"


def said_of(content: Content) -> Values:
    number = int(content.sample.key[1:])
    return {"score": None if number == 11 else number / 10, "language": HOSTILE if number % 3 else "en"}


def make() -> EachSample:
    return EachSample(said_of)


OWN = Scorer(name="own", columns={"score": "float", "language": "str"}, version="1", make=make)


def score(directory: Path, *scorers: Scorer) -> None:
    for scorer in scorers:
        work = columns_work(directory, scorer)
        for shard in begin(work):
            score_row({"shard": shard, "works": "[0]", "samples": 0}, [work], {scorer.name: scorer})
        finish(work)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Twelve pictures, of which two are alike and one is like one of another dataset; with columns."""
    shades = [20 * number for number in range(12)]
    shades[7] = shades[3]
    samples = [pair(f"k{n:02}", shade=shade) for n, shade in enumerate(shades)]
    write_dataset(tmp_path / "pictures", samples, 5)
    write_dataset(tmp_path / "more", [pair("a1", shade=shades[5])], 5)
    for name in ("pictures", "more"):
        write_rows(tmp_path / name / REJECTS, [], REJECT_SCHEMA)
        score(tmp_path / name, measures.scorer(), prints.scorer(), OWN)
    write_duplicates([tmp_path / "pictures", tmp_path / "more"], 0.0)
    return tmp_path


def shown(shards: Path, where: str | None = None, name: str = "pictures") -> ShownCuration:
    found = show_curation(shards / name, Manifest.read(shards / name), where)
    assert found is not None
    return found


def column(found: ShownCuration, name: str) -> ChartedColumn:
    return next(one for one in found.charted if one.name == name)


def keys(one: ChartedColumn) -> dict[str, list[tuple[str, str]]]:
    return {title: [(found.exhibit.key, found.told) for found in examples] for title, examples in one.rows}


def test_a_column_is_shown_with_the_samples_at_its_ends(shards: Path) -> None:
    score_column = column(shown(shards), "score")
    assert keys(score_column) == {
        "lowest": [("k00", "0"), ("k01", "0.1"), ("k02", "0.2"), ("k03", "0.3")],
        "highest": [("k10", "1"), ("k09", "0.9"), ("k08", "0.8"), ("k07", "0.7")],
    }
    assert score_column.rows[0][1][0].exhibit.pictures
    assert score_column.chart.note == "1 of 12 samples without one"
    assert score_column.chart.summary.startswith("0 to 1, median 0.5, mean 0.5")


def test_a_threshold_is_marked_and_shown_from_both_sides_before_all_other_columns(shards: Path) -> None:
    found = shown(shards, "score > 0.45 and not luminance between 20 and 50")
    assert [one.name for one in found.charted[:2]] == ["luminance", "score"]
    score_column = column(found, "score")
    assert keys(score_column)["just below 0.45"] == [("k04", "0.4"), ("k03", "0.3"), ("k02", "0.2"), ("k01", "0.1")]
    assert keys(score_column)["0.45 and just above"][0] == ("k05", "0.5")
    ((place, words),) = score_column.chart.marks
    assert words == "0.45"
    assert 0 < place / len(score_column.chart.bars) < 1
    assert [words for _, words in column(found, "luminance").chart.marks] == ["20", "50"]
    assert all(len(examples) <= NEAREST for one in found.charted for _, examples in one.rows)


def test_groups_stand_side_by_side_with_the_one_that_stays_first_even_from_another_dataset(shards: Path) -> None:
    groups = next(one for one in shown(shards).grouped if one.name == "near_duplicate_of")
    assert (groups.groups, groups.members) == (2, 2)
    members = [[(one.exhibit.key, one.told) for one in group.members] for group in groups.shown]
    assert members == [[("a1", "stays, in more"), ("k05", "")], [("k03", "stays"), ("k07", "")]]
    assert all(one.exhibit.pictures for group in groups.shown for one in group.members)


def test_what_a_selection_drops_is_shown_with_the_values_that_drop_it(shards: Path) -> None:
    found = shown(shards, "score >= 0.1 and near_duplicate_of is null")
    assert found.selection is not None
    assert found.selection.kept == 8
    assert [(one.clause, one.count) for one in found.dropped] == [("score >= 0.1", 2), ("near_duplicate_of is null", 2)]
    told = [(one.exhibit.key, one.told) for drop in found.dropped for one in drop.examples]
    assert told == [
        ("k00", "score is 0.0"),
        ("k11", "score is null"),
        ("k05", "near_duplicate_of is 'more/a1'"),
        ("k07", "near_duplicate_of is 'pictures/k03'"),
    ]
    (all_dropped,) = shown(shards, "score > 5").dropped
    assert (all_dropped.count, len(all_dropped.examples)) == (12, SHOWN_DROPPED)


def test_texts_are_counted_and_columns_of_other_shards_are_named_not_shown(shards: Path) -> None:
    (language,) = shown(shards).listed
    assert (language.values, language.distinct) == ([(HOSTILE, 8), ("en", 4)], 2)
    write_dataset(shards / "pictures", [pair(f"k{n:02}") for n in range(12)], 4)
    found = shown(shards)
    assert (found.charted, found.stale) == ([], ["duplicates", "measures", "own", "prints"])


def test_samples_without_media_are_shown_by_what_is_said(tmp_path: Path) -> None:
    write_dataset(tmp_path / "talks", [talk("t1", ["a dog"]), talk("t2", ["a cat", "a cow"])], 2, {"talks": "dialogue"})
    score(tmp_path / "talks", OWN)
    exhibit = column(shown(tmp_path, name="talks"), "score").rows[0][1][1].exhibit
    assert (exhibit.key, exhibit.caption, exhibit.pictures) == ("t2", "please\nhere\na cat\na cow", ())


def test_without_columns_nothing_is_shown(tmp_path: Path) -> None:
    manifest = write_dataset(tmp_path / "pictures", [pair("k0")], 2)
    assert show_curation(tmp_path / "pictures", manifest) is None
    with pytest.raises(ValueError, match="no column score"):
        show_curation(tmp_path / "pictures", manifest, "score > 1")


def test_lineage_says_why_a_view_of_the_catalog_does_not_select_a_sample(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = replace(Manifest.read(shards / "pictures"), where={"pictures_enc": "score > 0.2"})
    manifest.write(shards / "pictures")
    print_origins(shards, ["k01", "k03"], "luminance > 50")
    told = [line for line in capsys.readouterr().out.splitlines() if "selected" in line]
    assert told == [
        "  not selected by pictures_enc: score > 0.2 (score is 0.1)",
        "  not selected: luminance > 50 (luminance is 20.0)",
        "  selected by pictures_enc",
        "  selected",
    ]


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_loads_nothing_runs_nothing_and_does_not_scroll_sideways(shards: Path, width: int) -> None:
    page = shards / "reports" / "pictures.html"
    write_report(shards / "pictures", page, where="score > 0.45 and near_duplicate_of is null")
    with chromium() as browser:
        seen = visit(browser, page, width, "light")
        assert (seen.complaints, len(seen.requests)) == ([], 1)
        assert seen.page.title() == "pictures: 12 samples"
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.page.locator("#selection .specimen").count() == 8
        assert seen.page.locator("#columns .mark").count() == 1
        assert seen.page.locator("nav a").all_inner_texts()[-6:-3] == ["Selection", "Duplicates", "Columns"]
