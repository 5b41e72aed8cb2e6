"""The gallery: what it shows of runs, what it hides from nobody, and that a browser shows it."""

import html
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.inspect.curves import panels
from pipelines.inspect.exhibits import spectrogram
from pipelines.inspect.gallery_page import Display, percent, write_gallery
from pipelines.inspect.gallery_picture import MOST_BYTES, WIDTH, write_picture
from pipelines.inspect.run_examples import ExampleTurn, RunExample, choose, read_examples
from pipelines.inspect.verdicts import verdict
from pipelines.storage.files import read_json, write_json
from pipelines.world.render import render
from pipelines.world.scenes import PITCHES, Sound
from tests.pipelines.browsing import chromium, visit
from tests.pipelines.gallery_runs import HOSTILE, write_runs

SHARES = st.floats(0, 1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "gallery.html"
    write_gallery(runs, path)
    return path


def section(text: str, name: str) -> str:
    [found] = re.findall(rf'<section id="{name}">.*?</section>', text, re.DOTALL)
    return str(found)


# --- The page


def test_a_page_needs_nothing_but_itself_and_stays_small(page: Path) -> None:
    text = page.read_text()
    assert len(text) < 6_000_000
    assert "<script" not in text
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"#]+)"', text))


def test_what_a_model_says_is_text_and_never_markup(page: Path) -> None:
    text = page.read_text()
    assert HOSTILE not in text
    assert HOSTILE in html.unescape(text)


def test_every_row_is_shown_with_its_interval_and_a_missed_one_as_missed(runs: list[Path], page: Path) -> None:
    text = section(page.read_text(), "scores")
    rows = read_json(runs[2] / "scores.json")["rows"]
    table = text[: text.index("After stage 1")]
    found = dict(
        (html.unescape(title), kind)
        for kind, title in re.findall(r'<tr class="(\w+)">\s*<th scope="row">([^<]*)<', table, re.DOTALL)
    )
    assert found == {row["title"]: verdict(row).kind for row in rows}
    assert table.count("MISSED") == sum(kind == "missed" for kind in found.values()) > 0
    for row in rows:
        assert f"{percent(row['low'])} to {percent(row['high'])}, n = 200" in table


def test_failures_have_a_section_of_their_own_and_are_marked(runs: list[Path], page: Path) -> None:
    text = page.read_text()
    failures = section(text, "failures")
    assert (
        failures.count(">WRONG<")
        == failures.count("<article")
        == min(9, len(choose(read_examples(runs[2]), 99, right=False)))
    )
    assert "✗" in failures
    assert ">WRONG<" not in section(text, "conversations")


def test_a_run_that_was_not_scored_has_curves_and_says_so(runs: list[Path], tmp_path: Path) -> None:
    write_gallery(runs[1:2], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "it has not been scored yet" in text
    assert '<section id="scores">' not in text
    assert section(text, "curves").count("<figure") == 3


def test_a_figure_that_is_no_share_is_shown_as_it_is(runs: list[Path], tmp_path: Path) -> None:
    scores = read_json(runs[0] / "scores.json")
    nothing = dict.fromkeys(("low", "high", "chance", "untrained", "shuffled", "from_text", "target"))
    row = {
        "row": "distance",
        "title": "Frechet distance",
        "value": 12.3456,
        "n": 40,
        "attributes": {},
    }
    write_json(tmp_path / "scores.json", scores | {"rows": [row | nothing]})
    write_gallery([tmp_path], tmp_path / "page.html")
    text = section((tmp_path / "page.html").read_text(), "scores")
    assert "<b>12.346</b>" in text
    assert 'class="meter"' not in text


def test_equal_runs_give_equal_bytes(runs: list[Path], page: Path, tmp_path: Path) -> None:
    write_gallery(runs, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path}: neither log.jsonl nor scores.json; give the --out of"):
        write_gallery([tmp_path], tmp_path / "page.html")


def test_a_file_outside_of_the_examples_is_not_shown(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(next((runs[2] / "examples").glob("*.png")).read_bytes())
    part = {"modality": "image", "file": "../secret.png", "caption": ""}
    turns = [{"role": "user", "parts": [part]}, {"role": "assistant", "parts": []}]
    example = {"row": "a", "right": True, "grades": {}, "wanted": "", "turns": turns}
    write_json(tmp_path / "examples" / "examples.json", [example])
    with pytest.raises(ValueError, match=r"examples.json: ../secret.png: lies outside of"):
        read_examples(tmp_path)


@pytest.mark.parametrize("budget", [0, 3_000, 10**7])
def test_media_never_take_more_than_the_budget(runs: list[Path], budget: int) -> None:
    placed = Display(budget=budget).of(read_examples(runs[2])[:8])
    exhibits = [part for _, turns in placed for _, parts in turns for part in parts if not isinstance(part, str)]
    assert sum(len(one.uri) + len(one.picture) for one in exhibits) <= budget
    assert (len(placed) == 8) == (budget == 10**7)


# --- Scores and examples


@given(value=SHARES, target=SHARES, from_text=st.none() | SHARES)
def test_a_row_is_met_at_its_target_and_close_to_the_text_or_else_missed(
    value: float, target: float, from_text: float | None
) -> None:
    row = {"value": value, "target": target, "from_text": from_text}
    close = from_text is None or value >= from_text - 0.05 - 1e-9
    assert verdict(row).kind == ("met" if value >= target and close else "missed")
    assert verdict(row | {"target": None}).kind == "reported"


def spoken(row: str, words: str, right: bool) -> RunExample:
    turns = (ExampleTurn(role="user", parts=(words,)), ExampleTurn(role="assistant", parts=()))
    return RunExample(key=words, row=row, right=right, grades={}, wanted="", turns=turns)


@given(st.lists(st.builds(spoken, st.sampled_from("abc"), st.sampled_from("uvwxyz"), st.booleans())), st.integers(0, 9))
def test_rows_take_turns_and_nothing_is_shown_twice(examples: list[RunExample], most: int) -> None:
    chosen = choose(examples, most, right=True)
    wanted = {example.key for example in examples if example.right}
    assert all(example.right for example in chosen)
    assert len({example.key for example in chosen}) == len(chosen) == min(most, len(wanted))
    whole = [example.row for example in choose(examples, 99, right=True)]
    rounds = [whole[: place + 1].count(row) for place, row in enumerate(whole)]
    assert rounds == sorted(rounds)


@pytest.mark.parametrize("pitch", PITCHES)
def test_the_spectrogram_of_a_flute_is_brightest_at_its_note(pitch: str) -> None:
    pixels = spectrogram(render(Sound(pitch=pitch, timbre="flute")))  # type: ignore[arg-type]
    from_below = len(pixels) - 1 - pixels.mean(axis=1).argmax()
    assert from_below * 16_000 / 256 == pytest.approx(PITCHES[pitch], abs=40)


# --- Learning curves


@given(
    st.lists(
        st.fixed_dictionaries(
            {"loss": st.none() | st.floats(1e-6, 1e6)},
            optional={"token_accuracy": SHARES, "image_mean_ratio": st.floats(0, 100), "validation/loss": SHARES},
        ),
        max_size=250,
    )
)
def test_curves_and_ticks_lie_within_their_panel_whatever_was_logged(figures: list[dict[str, float]]) -> None:
    rows = [{"step": step, **values} for step, values in enumerate(figures, 1)]
    drawn = panels(rows)
    assert {panel.title for panel in drawn} == {
        title
        for title, names in (
            ("Loss", ("loss", "validation/loss")),
            ("Token accuracy", ("token_accuracy",)),
            ("Alignment error", ("image_mean_ratio",)),
        )
        if any(row.get(name) is not None for row in rows for name in names)
    }
    for panel in drawn:
        points = [point for curve in panel.curves for point in (*curve.line, *curve.dots)]
        assert all(0 <= x <= 1 and 0 <= y <= 1 for x, y in points)
        assert all(len(curve.line) <= 100 for curve in panel.curves)
        places = [place for place, _ in (*panel.x_ticks, *panel.y_ticks)]
        assert all(0 <= place <= 1 for place in places)
        assert len(panel.x_ticks) <= 5


# --- The picture


def test_the_picture_is_a_small_png_that_is_the_same_each_time(runs: list[Path], tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        write_picture(runs, tmp_path / name)
    data = (tmp_path / "one.png").read_bytes()
    assert data == (tmp_path / "two.png").read_bytes()
    assert len(data) < MOST_BYTES
    with PIL.Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.width) == ("PNG", WIDTH)
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert colours.std() > 20, "something is drawn on it"


def test_without_an_example_that_is_right_there_is_no_picture(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no example that is right; run jobs/score\.py first"):
        write_picture(runs[:2], tmp_path / "picture.png")


# --- In a browser

MEASURE = """() => ({
  width: document.documentElement.scrollWidth,
  empty: [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length,
  unnamed: [...document.images].filter(i => !i.alt).length,
  small: [...document.querySelectorAll('.enlarged :is(img, video)')].filter(e => e.offsetWidth < 120).length,
  blurred: [...document.querySelectorAll('.enlarged :is(img, video)')]
    .filter(e => getComputedStyle(e).imageRendering !== 'pixelated').length,
  videos: [...document.querySelectorAll('video')].map(v => [v.videoWidth, v.muted && v.loop && v.autoplay]),
  sounds: [...document.querySelectorAll('audio')].map(a => a.duration),
  hidden: [...document.querySelectorAll('.badge.missed')].filter(e => !e.offsetWidth).length,
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_the_page_without_a_network_or_an_error(
    browser: Any, page: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    opened = visit(browser, page, width, scheme)
    seen = opened.page.evaluate(MEASURE)
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [page.as_uri()]
    assert seen["width"] == width, "nothing overflows sideways"
    assert (seen["empty"], seen["unnamed"], seen["small"], seen["blurred"], seen["hidden"]) == (0, 0, 0, 0, 0)
    assert seen["videos"]
    assert all(video == [32, True] for video in seen["videos"])
    assert seen["sounds"]
    assert all(seconds == pytest.approx(1.28, abs=0.05) for seconds in seen["sounds"])
    opened.page.screenshot(path=tmp_path / "page.png", full_page=True)
    with PIL.Image.open(tmp_path / "page.png") as picture:
        pixels = np.asarray(picture.convert("L"), np.int16)
    assert (pixels.mean() > 128) == (scheme == "light")
    assert min(band.std() for band in np.array_split(pixels, 12)) > 2, "no stretch of the page is blank"
    opened.page.context.close()
