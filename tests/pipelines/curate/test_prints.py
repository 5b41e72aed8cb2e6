"""Fingerprints: equal for what is equal, near for what a person would call the same, far for all else."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from dataset_cases import pair, talk
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curate.columns import REASON
from pipelines.curate.groups import near_prints
from pipelines.curate.prints import (
    PRINT,
    _power,
    normalised,
    print_picture,
    print_sample,
    print_sound,
    print_words,
    spectrogram,
)
from pipelines.curate.scorers import Content
from pipelines.sample import Audio, Image, Media, Modality
from pipelines.world.render import render
from pipelines.world.scenes import attributes, draw


def photo(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """Blotches of many sizes and colours, as of a photograph."""
    generator, pixels = np.random.default_rng(seed), np.zeros((height, width, 3))
    for size, strength in ((3, 1.0), (7, 0.6), (20, 0.3)):
        for channel in range(3):
            noise = PIL.Image.fromarray(generator.normal(size=(size, size)).astype(np.float32))
            pixels[..., channel] += strength * np.asarray(noise.resize((width, height), PIL.Image.Resampling.BICUBIC))
    low, high = pixels.min(), pixels.max()
    return ((pixels - low) / (high - low) * 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
    return np.array(PIL.Image.open(buffer))


def resized(pixels: np.ndarray, share: float) -> np.ndarray:
    size = round(pixels.shape[1] * share), round(pixels.shape[0] * share)
    return np.array(PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.LANCZOS))


def are_near(*prints: np.ndarray) -> bool:
    return bool(len(near_prints(np.stack(prints), np.arange(2))[0]))


def near_pictures(left: np.ndarray, right: np.ndarray) -> bool:
    return are_near(*(print_picture(Image(pixels=pixels)) for pixels in (left, right)))


@pytest.mark.parametrize("seed", range(8))
def test_a_picture_is_near_to_itself_encoded_resized_and_cropped_a_little(seed: int) -> None:
    pixels = photo(seed)
    assert near_pictures(pixels, jpeg(pixels, 30))
    assert near_pictures(pixels, resized(pixels, 0.5))
    assert near_pictures(pixels, resized(pixels, 2))
    assert near_pictures(pixels, pixels[2:-2, 3:-3])
    assert near_pictures(pixels, np.clip(pixels * 0.95 + 5, 0, 255).astype(np.uint8))


def cropped(pixels: np.ndarray, share: float) -> np.ndarray:
    """Without so much of its height and width, from both sides."""
    top, left = (round(size * share / 2) for size in pixels.shape[:2])
    return pixels[top : pixels.shape[0] - top, left : pixels.shape[1] - left]


def test_photographs_are_found_again_and_none_is_taken_for_another(shared: Path) -> None:
    files = sorted((shared / "data" / "nextgpt-sample").rglob("*.jpg"))
    photos = [np.array(PIL.Image.open(file).convert("RGB")) for file in files]
    for photograph in photos:
        assert near_pictures(photograph, jpeg(photograph, 30))
        assert near_pictures(photograph, resized(photograph, 0.5))
        assert near_pictures(photograph, resized(photograph, 2))
        assert near_pictures(photograph, cropped(photograph, 0.03))
    found = [near_pictures(photograph, cropped(photograph, 0.05)) for photograph in photos]
    print(f"cropped by 5 %: {sum(found)} of {len(photos)}")
    assert np.mean(found) > 0.7
    assert not near_pairs(photos)


def near_pairs(pictures: Sequence[np.ndarray]) -> set[tuple[int, int]]:
    prints = np.stack([print_picture(Image(pixels=pixels)) for pixels in pictures])
    left, right = near_prints(prints, np.arange(len(pictures)))
    return set(zip(left.tolist(), right.tolist(), strict=True))


def test_a_small_shape_is_seldom_taken_for_another() -> None:
    """With 16 colours alone a circle was taken for a square: 20 of 43 were wrong."""
    scenes = [draw(0, number)[Modality.IMAGE] for number in range(400)]
    pairs = near_pairs([render(scene, number).pixels for number, scene in enumerate(scenes)])
    wrong = sum(attributes(scenes[left]) != attributes(scenes[right]) for left, right in pairs)
    print(f"{len(pairs)} pairs, {wrong} wrong")
    assert wrong / len(pairs) < 0.4


def test_a_picture_is_far_from_others_mirrored_turned_and_in_other_colours() -> None:
    for seed in range(8):
        pixels = photo(seed)
        assert not near_pictures(pixels, photo(seed + 100))
        assert not near_pictures(pixels, pixels[:, ::-1])
        assert not near_pictures(pixels, pixels[::-1, ::-1])
        # Blue for red: as light as before in most places, but in another colour.
        assert not near_pictures(pixels, pixels[..., ::-1])


def test_blank_pictures_are_near_where_they_are_of_one_colour() -> None:
    grey, white = np.full((8, 8, 3), 128, np.uint8), np.full((20, 9, 3), 255, np.uint8)
    assert near_pictures(grey, np.full((30, 30, 3), 128, np.uint8))
    assert not near_pictures(grey, white)


def melody(seed: int, rate: int = 16_000, seconds: float = 2.0) -> Audio:
    generator, notes = np.random.default_rng(seed), []
    for frequency in generator.uniform(150, 3000, 8):
        time = np.arange(round(rate * seconds / 8)) / rate
        notes.append(0.5 * np.exp(-3 * time) * np.sin(2 * np.pi * frequency * time))
    return Audio(waveform=np.concatenate(notes).astype(np.float32)[None], sample_rate=rate)


def changed(sound: Audio, gain: float = 1.0, noise_db: float = -200.0) -> Audio:
    noise = np.random.default_rng(5).normal(size=sound.waveform.shape)
    power = np.sqrt((sound.waveform**2).mean()) * 10 ** (noise_db / 20)
    return Audio(waveform=(gain * (sound.waveform + power * noise)).astype(np.float32), sample_rate=sound.sample_rate)


@pytest.mark.parametrize("seed", range(4))
def test_a_sound_is_near_to_itself_softer_and_with_a_little_noise_and_at_another_rate(seed: int) -> None:
    sound = melody(seed)
    for other in (changed(sound, gain=0.1), changed(sound, noise_db=-30), melody(seed, 22_050)):
        assert are_near(print_sound(sound), print_sound(other))
    assert not are_near(print_sound(sound), print_sound(melody(seed + 50)))
    assert not are_near(print_sound(sound), print_sound(melody(seed, seconds=4)))


def test_tones_are_near_where_they_are_one_note() -> None:
    def tone(frequency: float) -> Audio:
        waveform = 0.4 * np.sin(2 * np.pi * frequency * np.arange(24_000) / 16_000)
        return Audio(waveform=waveform.astype(np.float32)[None], sample_rate=16_000)

    for frequency in (262.0, 440.0, 1500.0):
        assert are_near(print_sound(tone(frequency)), print_sound(changed(tone(frequency), gain=0.5, noise_db=-40)))
        assert not are_near(print_sound(tone(frequency)), print_sound(tone(frequency * 2 ** (2 / 12))))


def test_silence_is_a_flat_spectrogram_and_a_tone_a_line() -> None:
    silent = Audio(waveform=np.zeros((1, 16_000), np.float32), sample_rate=16_000)
    assert not spectrogram(_power(silent)).any()
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_384) / 16_000).astype(np.float32)
    picture = spectrogram(_power(Audio(waveform=tone[None], sample_rate=16_000)))
    assert picture.shape == (64, 16)
    # 1000 Hz is 1000 mel, of the 2840 mel of 8 kHz.
    assert abs(int(picture[:, 8].argmax()) - 64 * 1000 / 2840) <= 1.5


def test_equal_pixels_in_other_bytes_are_equal_by_pixels_alone() -> None:
    pixels, found = photo(0), []
    for level in (1, 9):
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, format="PNG", compress_level=level)
        medium = Media(modality=Modality.IMAGE, data=buffer.getvalue(), format="png")
        sample = pair("k")
        found.append(
            print_sample(Content(type(sample)(key="k", source="s", turns=sample.turns, media={"png": medium})))
        )
    assert found[0]["bytes_hash"] != found[1]["bytes_hash"]
    assert found[0]["pixels_hash"] == found[1]["pixels_hash"]
    assert found[0]["prints"] == found[1]["prints"]
    assert len(found[0]["prints"]) == PRINT.itemsize


def test_a_sample_without_media_has_prints_of_its_words_alone() -> None:
    found = print_sample(Content(talk("k", ["a dog"])))
    assert set(found) == {"text_hash", "words"}


def test_a_medium_that_is_broken_has_a_hash_of_its_bytes_and_a_reason() -> None:
    broken = {"png": Media(modality=Modality.IMAGE, data=b"nothing", format="png")}
    found = print_sample(Content(replace(pair("k"), media=broken)))
    assert found[REASON] == "unreadable: cannot identify image file"
    assert found["bytes_hash"]
    assert "prints" not in found


def test_captions_are_compared_without_case_punctuation_and_spaces() -> None:
    assert normalised("  A dog, RUNNING…\tfast!") == normalised("a dog running fast") == "a dog running fast"
    assert normalised("\uff21\uff22\u00a0é") == normalised("ab e\u0301") == "ab é"
    assert normalised("?!") == ""


@given(st.text(), st.text())
def test_texts_of_equal_pieces_have_equal_prints(left: str, right: str) -> None:
    pieces = [{f" {text} "[start : start + 4] for start in range(max(1, len(text) - 1))} for text in (left, right)]
    assert (pieces[0] != pieces[1]) or print_words(left).tobytes() == print_words(right).tobytes()


def test_agreeing_hashes_estimate_the_share_of_common_pieces() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list(letters), 7)) for _ in range(60)]
    errors = []
    for common in range(0, 31, 3):
        left, right = " ".join(words[:30]), " ".join(words[30 - common : 60 - common])
        sets = [{f" {text} "[start : start + 4] for start in range(len(text) - 1)} for text in (left, right)]
        jaccard = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        prints = [print_words(text)["lowest"][0] for text in (left, right)]
        errors.append((prints[0] == prints[1]).mean() - jaccard)
    # The deviation of 64 hashes is 1/16 at most.
    assert np.abs(errors).max() < 0.19
    assert abs(np.mean(errors)) < 0.05
