"""The benchmark: what it prints, how it takes turns, and that a section runs."""

import io
import json
from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from pipelines.media.folder import load_rows
from pipelines.sample import Modality, Sample
from tests.benchmarks import PROCESS, Row, compare, images, in_a_process_of_its_own, memory, not_measured, scale, suites

FAST = Row(name="fast", ours=2500.0, peer=1000.0, ratio=2.5, target=2.0, unit="rows/s", note="the same rows")
BIG = Row(name="big", ours=120.0, peer=100.0, ratio=1.2, target=1.15, unit="MB", at_most=True)
TOLD = Row(name="told", ours=30.0, peer=10.0, ratio=3.0, target=None, unit="samples/s")
ABSENT = not_measured("absent", 1.0, "images/s", "img2dataset: no network")


def test_a_target_is_met_from_its_own_side() -> None:
    assert FAST.met
    assert not BIG.met
    assert TOLD.met, "what is told alone cannot be missed"
    assert [row.verdict for row in (FAST, BIG, TOLD, ABSENT)] == ["met", "MISSED", "", "not measured"]


def test_the_table_is_aligned_and_keeps_the_notes() -> None:
    header, fast, note, big, told, absent, reason = suites.table([FAST, BIG, TOLD, ABSENT])

    assert header.split() == ["what", "ours", "peer", "unit", "ratio", "target"]
    assert fast.split() == ["fast", "2,500", "1,000", "rows/s", "2.50", ">=", "2", "met"]
    assert big.split() == ["big", "120", "100", "MB", "1.20", "<=", "1.15", "MISSED"]
    assert told.split() == ["told", "30", "10", "samples/s", "3.00"]
    assert absent.split() == ["absent", "-", "-", "images/s", "-", ">=", "1", "not", "measured"]
    assert (note.strip(), reason.strip()) == ("the same rows", "img2dataset: no network")
    assert fast.index("2.50") == big.index("1.20")


def test_sides_take_turns_and_the_first_changes() -> None:
    order: list[str] = []
    figures = iter([1.0, 10.0, 20.0, 2.0, 9.0, 30.0])

    def side(name: str) -> float:
        order.append(name)
        return next(figures)

    medians = compare(lambda: side("ours"), lambda: side("peer"), repeats=3)

    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert medians == (2.0, 20.0)


def test_a_section_that_fails_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(scale: float) -> list[Row]:
        raise RuntimeError("out of disk")

    monkeypatch.setattr(images, "run", broken)
    monkeypatch.setattr(memory, "run", lambda scale: [FAST])
    out = tmp_path / "figures.json"

    suites.main(["pipelines", "--only", "images", "memory", "--json", str(out)])

    assert "not measured" in capsys.readouterr().out
    broken_row, row = json.loads(out.read_text())["rows"]
    assert (broken_row["ratio"], broken_row["note"]) == (None, "RuntimeError: out of disk")
    assert (row["name"], row["verdict"]) == ("fast", "met")
    with pytest.raises(ValueError, match="1 of 2 targets"):
        suites.main(["pipelines", "--only", "images", "memory", "--strict"])


def test_a_scale_of_nothing_is_refused() -> None:
    for factor in ("0", "-1", str(nan)):
        with pytest.raises(ValueError, match="must be above 0"):
            suites.main(["pipelines", "--scale", factor])


def test_without_a_gpu_the_suite_for_one_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ValueError, match="needs a CUDA device"):
        suites.main(["gpu"])


def test_both_sides_of_the_image_section_make_the_same_pictures(tmp_path: Path) -> None:
    paths = images.draw_images(tmp_path / "images", 3)
    sizes = {PIL.Image.open(path).size for path in paths}
    bits = [8 * path.stat().st_size / np.prod(PIL.Image.open(path).size) for path in paths]

    results = list(load_rows([images.sample(path) for path in paths], paths[0].parent, images.POLICY))

    assert sizes == set(images.SIZES)
    assert all(1.5 < value < 3 for value in bits), "photographs take about two bits a pixel"
    for result, path in zip(results, paths, strict=True):
        assert isinstance(result, Sample)
        ours = PIL.Image.open(io.BytesIO(result.media["jpg"].data))
        theirs = PIL.Image.open(io.BytesIO(images.bare_image(str(path))))
        assert ours.size == theirs.size
        assert np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).mean() < 2


@pytest.mark.skipif(not PROCESS.is_file(), reason="needs the process files of Linux")
def test_the_peak_of_memory_is_seen() -> None:
    # What other tests started may end meanwhile.
    assert 95 < in_a_process_of_its_own(seen_of_100_megabytes) < 200


def seen_of_100_megabytes() -> float:
    """How much more memory is seen while 100 MB are held."""
    watch = memory.PeakMemory()
    before = memory.memory_now()
    watch.start()

    held = np.ones(100_000_000, np.uint8)
    after = watch.stop()

    assert held.all()
    return after - before


@pytest.mark.ray
def test_the_section_of_shards_runs(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.benchmarks import shards

    monkeypatch.setattr(shards, "SHARDS", 2)
    monkeypatch.setattr(shards, "REPEATS", 1)

    (row,) = shards.run(0.002)

    assert row.measured
    assert row.unit == "rows/s"


def test_on_paper_rows_cost_alike_on_any_number_of_machines() -> None:
    slopes = scale.Slopes(prepare=0.02, ready=0.005, stored=50_000, inputs=150_528)
    case = scale.Case(rows=10_000_000, modality=Modality.IMAGE, cores=100, gpus=10)

    rows, machines, prepare, embed, dollars, shards, sidecars, _, driver = scale.cells(case, slopes)
    assert (rows, machines, shards) == ("10,000,000 pictures", "100 + 10", "500 GB")
    assert float(prepare) == pytest.approx(10_000_000 * (0.02 + 1 / 10_400) / 100 / 3600, rel=0.05)
    assert float(embed) == pytest.approx(10_000_000 * (1 / 547 + 1 / 3017) / 10 / 3600, rel=0.05)
    assert sidecars == "1.2 TB", "119.3 GB per million captions, 5.1 per million features"
    assert driver == "1.3 GB"

    _, _, *twice = scale.cells(replace(case, rows=20_000_000), slopes)
    _, _, *more = scale.cells(replace(case, cores=400, gpus=40), slopes)
    assert [float(twice[0]), float(twice[1])] == pytest.approx([2 * float(prepare), 2 * float(embed)], rel=0.05)
    assert [float(more[0]), float(more[1])] == pytest.approx([float(prepare) / 4, float(embed) / 4], rel=0.05)
    assert float(more[2]) == pytest.approx(float(dollars), rel=0.02), "the work costs the same"
