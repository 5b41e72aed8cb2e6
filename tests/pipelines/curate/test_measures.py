"""Plain measures: numbers that a person could work out, on files of other people's writers."""

import io
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
import soundfile
from dataset_cases import pair, talk

from pipelines.curate.columns import REASON
from pipelines.curate.measures import COLUMNS, light, measure, motion, text_measures
from pipelines.curate.scorers import Content
from pipelines.sample import Item, Media, Modality, Sample, Turn


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def wav(waveform: np.ndarray, rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def mp4(frames: list[np.ndarray], fps: int = 8) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def sample_of(caption: str = "a caption", **media: tuple[Modality, bytes]) -> Sample:
    """A sample with one medium a suffix, such as `png=(Modality.IMAGE, data)`."""
    items = tuple(Item(modality=modality, name=name, caption=caption) for name, (modality, _) in media.items())
    turns = (Turn(role="user", parts=items), Turn(role="assistant", parts=(caption,)))
    found = {name: Media(modality=modality, data=data, format=name) for name, (modality, data) in media.items()}
    return Sample(key="k", source="rows.json#k", turns=turns, media=found)


def test_a_picture_is_measured() -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:, 15:] = 200
    found = measure(Content(sample_of(png=(Modality.IMAGE, png(pixels)))))
    assert (found["width"], found["height"], found["aspect"]) == (30, 20, 1.5)
    assert (found["luminance"], found["contrast"]) == (pytest.approx(100, abs=1e-3), pytest.approx(100, abs=1e-3))
    # At the edge the Laplacian is 200 on one side and -200 on the other, in two columns of thirty.
    assert found["sharpness"] == pytest.approx(200**2 * 2 / 30, rel=1e-4)
    assert set(found) <= set(COLUMNS)
    assert "seconds" not in found


def test_a_blurred_picture_is_less_sharp_and_a_blank_one_not_at_all() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    blurred = np.array(PIL.Image.fromarray(noise).filter(PIL.ImageFilter.GaussianBlur(2)))
    assert light(noise)[0] > 20 * light(blurred)[0] > 0
    assert light(np.full((8, 8, 3), 255, np.uint8)) == (0, pytest.approx(255, abs=1e-3), pytest.approx(0, abs=1e-3))


def test_a_video_has_frames_seconds_and_motion() -> None:
    still = [np.full((32, 48, 3), 80, np.uint8)] * 12
    moving = [np.full((32, 48, 3), 40 + 10 * place, np.uint8) for place in range(12)]
    found = [measure(Content(sample_of(mp4=(Modality.VIDEO, mp4(frames))))) for frames in (still, moving)]
    assert [(one["frames"], one["seconds"], one["width"]) for one in found] == [(12, 1.5, 48)] * 2
    assert found[0]["motion"] == pytest.approx(0, abs=0.2)
    assert found[1]["motion"] == pytest.approx(10, abs=1)


def test_a_single_frame_does_not_move() -> None:
    assert motion(np.zeros((1, 4, 4, 3), np.uint8)) == 0


def test_a_sound_that_is_half_silent_and_one_that_is_clipped() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    half = np.concatenate([tone, np.zeros(16_000)])
    clipped = np.clip(4 * tone, -1, 1)
    found = [measure(Content(sample_of(wav=(Modality.AUDIO, wav(one))))) for one in (tone, half, clipped)]
    assert [one["seconds"] for one in found] == [1.0, 2.0, 1.0]
    assert [one["silence"] for one in found] == [0, 0.5, 0]
    # The power of a sine is half of its squared amplitude.
    assert found[0]["loudness"] == pytest.approx(10 * np.log10(0.125), abs=1e-3)
    assert found[1]["loudness"] == pytest.approx(found[0]["loudness"] - 10 * np.log10(2), abs=1e-3)
    assert found[0]["clipping"] == 0
    # A sine of amplitude 2 is beyond 1 for two thirds of the time.
    assert found[2]["clipping"] == pytest.approx(2 / 3, abs=0.01)


def test_silence_is_the_least_loud() -> None:
    found = measure(Content(sample_of(wav=(Modality.AUDIO, wav(np.zeros(8000))))))
    assert (found["silence"], found["loudness"]) == (1, -120)


def test_words_that_are_said_again() -> None:
    found = text_measures("A dog a DOG a")
    assert (found["caption_chars"], found["caption_words"], found["repeated_words"]) == (13, 5, 0.6)
    assert text_measures("") == {"caption_chars": 0, "caption_words": 0, "repeated_words": None}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a man rides his bicycle down the street", "en"),
        ("Ein roter Kreis ist oben im Bild", "de"),
        ("un cercle rouge en haut de l'image", "fr"),
        ("\u4e00\u53ea\u732b\u5750\u5728\u6c99\u53d1\u4e0a", "zh"),  # a cat sits on the sofa
        ("\u732b\u304c\u30bd\u30d5\u30a1\u306b\u5ea7\u3063\u3066\u3044\u308b", "ja"),
        ("Un perro corre por la playa", "es"),
    ],
)
def test_a_caption_has_a_language(text: str, language: str) -> None:
    found = text_measures(text)
    assert found["language"] == language
    assert float(found["language_certainty"] or 0) > 0.6


def test_what_has_no_letters_has_no_language_and_a_word_alone_a_doubtful_one() -> None:
    assert "language" not in text_measures("12345 !!!")
    assert float(text_measures("a dog")["language_certainty"] or 0) < 0.5


def test_real_captions_are_english(sample_root: Path) -> None:
    rows = json.loads((sample_root / "T-X_pair_data" / "cc3m" / "cc3m.json").read_text())
    languages = [text_measures(row["caption"])["language"] for row in rows]
    assert np.mean([language == "en" for language in languages]) > 0.8


def test_all_captions_count_and_of_a_dialogue_what_is_said() -> None:
    assert measure(Content(pair("k", "one two", more=["three"])))["caption_words"] == 3
    silent = Sample(
        key="k", source="s", turns=(Turn(role="user", parts=("a b",)), Turn(role="assistant", parts=("c",)))
    )
    found = measure(Content(silent))
    assert {name: found[name] for name in ("media", "caption_chars", "caption_words", "repeated_words")} == {
        "media": 0,
        "caption_chars": 5,
        "caption_words": 3,
        "repeated_words": 0,
    }
    assert measure(Content(talk("k", ["x y"])))["caption_words"] == 2


def test_what_is_broken_says_why_and_the_rest_is_measured() -> None:
    sample = sample_of(png=(Modality.IMAGE, b"no picture"), wav=(Modality.AUDIO, wav(np.zeros(1600))))
    found = measure(Content(sample))
    assert found[REASON] == "unreadable: cannot identify image file"
    assert (found["seconds"], found.get("width"), found["media"]) == (0.1, None, 2)


def test_a_medium_is_decoded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    content = Content(replace(pair("k"), key="k"))
    monkeypatch.setattr("pipelines.media.codecs.decode", lambda medium: calls.append(medium) or "pixels")
    assert [content.decoded("png"), content.decoded("png")] == ["pixels", "pixels"]
    assert len(calls) == 1
