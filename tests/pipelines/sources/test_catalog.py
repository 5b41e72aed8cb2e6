"""The catalog names datasets and views, finds their files below a data folder, and lists every mistake at once."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipelines.sample import Modality, Sample
from pipelines.sources.catalog import load_catalog
from pipelines.sources.entry import Entry, View
from pipelines.sources.readers import READERS
from pipelines.storage.files import to_path

PAIRS = {"cc3m": Modality.IMAGE, "webvid": Modality.VIDEO, "audiocap": Modality.AUDIO}
STAGE_3 = (
    {f"{name}_{task}" for name in PAIRS for task in ("comprehension", "generation")}
    | {f"{name}_instruction" for name in ("alpaca", "llava", "videochat", "audio", "image", "video", "mosit")}
    | {"mosit_demonstrations", "plan_instruction"}
)


def write(folder: Path, **entries: object) -> Path:
    path = folder / "catalog.yaml"
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    return path


def entry(**fields: object) -> dict[str, object]:
    return {"reader": "alpaca", "paths": ["a.json"], "views": {"a": {"stage": 3, "kind": "dialogue"}}} | fields


def test_every_name_of_nextgpt_is_there() -> None:
    catalog = load_catalog()
    assert set(catalog.datasets) == set(PAIRS) | STAGE_3
    assert set(catalog.views) == {f"{name}_{side}" for name in PAIRS for side in ("enc", "dec")} | STAGE_3


def test_pairs_serve_stages_1_and_2_and_all_else_stage_3() -> None:
    catalog = load_catalog()
    for name, modality in PAIRS.items():
        assert catalog.datasets[name].modality == modality
        assert catalog.views[f"{name}_enc"] == (name, View(stage=1, kind="caption"))
        assert catalog.views[f"{name}_dec"] == (name, View(stage=2, kind="generate"))
    for name in STAGE_3:
        assert catalog.views[name] == (name, View(stage=3, kind="dialogue"))


def test_every_entry_states_licence_and_source() -> None:
    assert all(value.licence and value.source for value in load_catalog().datasets.values())


def test_the_real_sample_is_found_with_its_media(sample_root: Path) -> None:
    catalog = load_catalog()
    found = catalog.find(sample_root)
    assert set(found) == {name + task for name in PAIRS for task in ("", "_comprehension", "_generation")}
    assert found["cc3m"] == sample_root / "T-X_pair_data/cc3m/cc3m.json"
    folder = catalog.media_folder(catalog.datasets["cc3m_generation"], sample_root)
    assert folder == sample_root / "T-X_pair_data/cc3m/images"


def test_the_first_candidate_that_exists_wins(tmp_path: Path) -> None:
    catalog = load_catalog()
    folder = tmp_path / "IT_data/T+X-T_data/alpaca"
    folder.mkdir(parents=True)
    (folder / "alpaca_data.json").touch()
    assert catalog.find(tmp_path) == {"alpaca_instruction": folder / "alpaca_data.json"}
    (folder / "alpaca.json").touch()
    assert catalog.find(tmp_path) == {"alpaca_instruction": folder / "alpaca.json"}


def test_the_folder_of_pairs_may_be_spelled_with_an_underscore(tmp_path: Path) -> None:
    folder = tmp_path / "T_X_pair_data/webvid"
    (folder / "videos").mkdir(parents=True)
    (folder / "webvid.json").touch()
    catalog = load_catalog()
    assert catalog.find(tmp_path) == {"webvid": folder / "webvid.json"}
    assert catalog.media_folder(catalog.datasets["webvid"], tmp_path) == folder / "videos"


def test_a_folder_without_data_holds_nothing(tmp_path: Path) -> None:
    catalog = load_catalog()
    assert catalog.find(tmp_path) == {}
    assert catalog.media_folder(catalog.datasets["webvid"], tmp_path) is None
    assert catalog.media_folder(catalog.datasets["audio_instruction"], tmp_path) is None


def test_select_takes_datasets_and_views_each_once_in_the_order_named() -> None:
    selected = load_catalog().select(["webvid_dec", "cc3m", "webvid", "cc3m_enc", "mosit_instruction"])
    assert [value.name for value in selected] == ["webvid", "cc3m", "mosit_instruction"]


def test_select_names_every_unknown_name_and_what_was_meant_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^not in the catalog: ") as caught:
        load_catalog().select(["cc3m", "cc3m_encoder", "nonsense!", "cc3m_encoder"])
    message = str(caught.value)
    assert "\n" not in message
    assert message.count("cc3m_encoder") == 1
    assert "did you mean cc3m_enc" in message
    assert "nonsense!. Known: alpaca_instruction, audio_instruction" in message


def test_a_catalog_of_ones_own_is_read(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path, mine=entry(views={"mine": {"stage": 3, "kind": "dialogue"}})))
    assert list(catalog.datasets) == ["mine"]
    assert not catalog.datasets["mine"].media


def test_all_mistakes_of_a_catalog_are_told_in_one_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        typo=entry(reeder="x", paths=[]),
        far=entry(paths=["../b.json", "/etc/c.json"], views={}),
        reader=entry(reader="cobol", views={}),
        pair=entry(reader="pairs", views={}),
        view=entry(views={"v": {"stage": 4, "kind": "sing"}}),
        kind=entry(views={"k": {"stage": 1, "kind": "caption"}}),
        one=entry(views={"same": {"stage": 3, "kind": "dialogue"}}),
        two=entry(views={"same": {"stage": 3, "kind": "dialogue"}, "one": {"stage": 3, "kind": "dialogue"}}),
        text="x",
        **{"Bad name": entry(views={})},
    )
    with pytest.raises(ValueError, match=r"catalog\.yaml: ") as caught:
        load_catalog(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "typo: paths: List should have at least 1 item",
        "typo: reeder: Extra inputs are not permitted",
        "far: paths.0: '../b.json' must be a path below the data folder",
        "far: paths.1: '/etc/c.json' must be a path below the data folder",
        "reader: unknown reader 'cobol'; it is one of pairs, conversations,",
        "pair: a modality is needed for the reader 'pairs'",
        "view: views.v.stage: ",
        "view: views.v.kind: ",
        "kind: views of kind caption or generate need the reader 'pairs': k",
        "two: the view same has the name of a view or dataset of one",
        "two: the view one has the name of a view or dataset of one",
        "text: must be a mapping",
        "Bad name: a dataset's name may hold",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("text", "match"), [("a: [", "not valid YAML"), ("- a", "must map"), ("\xff", "not valid YAML")]
)
def test_a_file_that_is_no_catalog_is_refused_in_one_line(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=match) as caught:
        load_catalog(path)
    assert "\n" not in str(caught.value)


def test_a_missing_catalog_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.yaml: no such catalog file"):
        load_catalog(tmp_path / "none.yaml")


def test_entries_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Entry(name="a", reader="alpaca", paths=["a"]), "name", "b")  # noqa: B010


def test_a_catalog_of_ones_own_stands_over_the_projects(tmp_path: Path) -> None:
    mine = write(
        tmp_path, mine=entry(views={}), cc3m=entry(reader="pairs", modality="image", views={}, paths=["x.csv"])
    )
    catalog = load_catalog(extra=[mine])
    assert set(catalog.datasets) == {*load_catalog().datasets, "mine"}
    assert catalog.datasets["cc3m"].paths == ["x.csv"]
    assert "cc3m_enc" not in catalog.views
    assert "webvid_enc" in catalog.views


def test_views_must_not_clash_across_catalogs(tmp_path: Path) -> None:
    mine = write(tmp_path, mine=entry(views={"webvid_enc": {"stage": 3, "kind": "dialogue"}}))
    with pytest.raises(ValueError, match=r"catalog\.yaml: mine: the view webvid_enc has the name .* of webvid$"):
        load_catalog(extra=[mine])


def test_names_of_media_are_made_of_columns_only(tmp_path: Path) -> None:
    pairs = {"reader": "pairs", "modality": "image", "views": {}}
    path = write(
        tmp_path,
        plain=entry(**pairs, media_name="a.jpg"),
        deep=entry(**pairs, media_name="{a.__class__}.jpg"),
        other=entry(views={}, media_name="{a}.jpg"),
        empty=entry(views={}, fields={"a": []}),
        word=entry(views={}, missing_media="drop"),
    )
    with pytest.raises(ValueError, match=r"^.*catalog\.yaml: ") as caught:
        load_catalog(path)
    for part in (
        "plain: media_name: 'a.jpg' must be a file name with columns of the row in it",
        "deep: media_name: '{a.__class__}.jpg' must be",
        "other: media_name is for the reader 'pairs'",
        "empty: fields.a: List should have at least 1 item",
        "word: missing_media: Input should be 'reject' or 'caption'",
    ):
        assert part in str(caught.value)


def test_a_candidate_may_be_a_folder_or_files_of_one(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path, mine=entry(paths=["none/*.tar", "a/*/x-*.json", "b"], views={})))
    assert catalog.find(tmp_path) == {}
    (tmp_path / "b").mkdir()
    assert catalog.find(tmp_path) == {"mine": tmp_path / "b"}
    (tmp_path / "a" / "c").mkdir(parents=True)
    (tmp_path / "a" / "c" / "y.json").touch()
    assert catalog.find(tmp_path) == {"mine": tmp_path / "b"}
    (tmp_path / "a" / "c" / "x-1.json").touch()
    assert catalog.find(tmp_path) == {"mine": tmp_path / "a"}
    assert catalog.datasets["mine"].patterns(tmp_path / "a") == ["*/x-*.json"]


def test_media_lie_in_the_first_folder_named_or_beside_their_source(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path, mine=entry(paths=["a/rows.json"], media=["x", "y"], views={})))
    mine, path = catalog.datasets["mine"], tmp_path / "a" / "rows.json"
    path.parent.mkdir()
    path.touch()
    assert catalog.media_folder(mine, tmp_path, path) == tmp_path / "a"
    (tmp_path / "y").mkdir()
    assert catalog.media_folder(mine, tmp_path, path) == tmp_path / "y"


CSVS = {
    "T-X_pair_data/webvid/results_2M_train.csv": (
        "webvid",
        'videoid,contentUrl,duration,page_dir,name\r\n21,https://a/b.mp4,PT09S,000001_000050,"A cat, running"\r\n',
        ("21", "000001_000050/21.mp4", "A cat, running"),
    ),
    "T-X_pair_data/audiocap/train.csv": (
        "audiocap",
        "audiocap_id,youtube_id,start_time,caption\n91139,r1nicOVtvkQ,130,A woman talks\n",
        ("91139", "91139.wav", "A woman talks"),
    ),
}


@pytest.mark.parametrize("path", CSVS)
def test_the_published_csvs_are_read(tmp_path: Path, path: str) -> None:
    name, text, expected = CSVS[path]
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text, newline="")
    catalog = load_catalog()
    assert catalog.find(tmp_path) == {name: tmp_path / path}
    (sample,) = READERS["pairs"](catalog.datasets[name], tmp_path / path)
    assert isinstance(sample, Sample)
    (item,) = sample.items()
    assert (sample.key, item.name, item.caption) == expected


def test_the_demonstrations_of_mosit_are_one_dataset(shared: Path) -> None:
    catalog = load_catalog()
    entry, path = catalog.datasets["mosit_demonstrations"], catalog.find(shared / "data")["mosit_demonstrations"]
    results = list(READERS[entry.reader](entry, path))
    assert path == shared / "data" / "mosit-demonstrations"
    assert (len(results), len({result.key for result in results})) == (21, 21)
    assert [result.source for result in results][:8] == [*(f"T_A.txt#{index}" for index in range(7)), "T_A_I.txt#0"]
    assert entry.missing_media == "caption"


def test_every_file_of_both_generations_is_found_on_an_object_store(tmp_path: Path) -> None:
    """Each candidate, alone in its folder, leads to its dataset, locally and behind a URL."""
    catalog = load_catalog()
    for name, value in catalog.datasets.items():
        for number, candidate in enumerate(value.paths):
            for root in (tmp_path / name / str(number), to_path(f"memory://found/{name}/{number}")):
                file = root / candidate.replace("*", "00000")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(b"[]")
                assert name in catalog.find(root)
