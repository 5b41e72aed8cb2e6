"""The oracles find what was rendered or said, also where it is blurred, noisy or encoded, and nothing in mere noise."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.media.codecs import decode, encode
from pipelines.sample import Audio, Decoded, Image, Modality, Video
from pipelines.world.captions import caption
from pipelines.world.oracles import fundamental, grade, read, read_text
from pipelines.world.render import render
from pipelines.world.scenes import ATTRIBUTES, PITCHES, Motion, Scene, Sound, Subject, attributes, draw, modality_of

TYPES = {Modality.IMAGE: Scene, Modality.VIDEO: Motion, Modality.AUDIO: Sound}
EVERY = {
    modality: [TYPES[modality](**dict(zip(names, values, strict=True))) for values in product(*names.values())]
    for modality, names in ATTRIBUTES.items()
}
NUM_VARIANTS = {Modality.IMAGE: 2, Modality.VIDEO: 1, Modality.AUDIO: 4}
Change = Callable[[Decoded], Decoded]
easy = st.builds(draw, st.integers(0, 2**31), st.integers(0, 10_000), held_out=st.booleans(), hard=st.just(False))
variants = st.integers(0, 10_000)


def shares(
    subjects: Iterable[Subject], num_variants: int, change: Change = lambda decoded: decoded
) -> dict[str, float]:
    """Of each attribute, how often it is read right; `all` is the whole subject, its harder attributes included."""
    right: Counter[str] = Counter()
    cases = list(product(subjects, range(num_variants)))
    for subject, variant in cases:
        found = read(change(render(subject, variant)))
        right.update(name for name, is_right in grade(subject, found).items() if is_right)
        right["all"] += found == subject
    return {name: right[name] / len(cases) for name in (*ATTRIBUTES[modality_of(cases[0][0])], "all")}


def uint8(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    return np.round(values).clip(0, 255).astype(np.uint8)


def worse(decoded: Decoded) -> Decoded:
    """Blurred and noisy pictures; sounds with hiss and an uneven loudness."""
    rng = np.random.default_rng(0)
    match decoded:
        case Image():
            return Image(pixels=uint8(blurred(decoded.pixels) + rng.normal(0, 12, decoded.pixels.shape)))
        case Video():
            return replace(decoded, frames=uint8(blurred(decoded.frames) + rng.normal(0, 12, decoded.frames.shape)))
        case Audio():
            wave = decoded.waveform
            loudness = 1 + 0.3 * np.sin(np.linspace(0, 15, wave.shape[1]))
            hiss = rng.normal(0, 0.3 * wave.std(), wave.shape)
            return replace(decoded, waveform=(wave * loudness + hiss).astype(np.float32))


def blurred(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """The mean of each pixel and its neighbours in the rows and columns beside it."""
    padded = np.pad(pixels.astype(float), [(0, 0)] * (pixels.ndim - 3) + [(1, 1), (1, 1), (0, 0)], mode="edge")
    rows = (padded[..., :-2, :, :] + padded[..., 1:-1, :, :] + padded[..., 2:, :, :]) / 3
    return (rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]) / 3


@pytest.mark.parametrize("modality", Modality)
def test_everything_rendered_is_read_right(modality: Modality) -> None:
    assert min(shares(EVERY[modality], NUM_VARIANTS[modality]).values()) >= 0.995


@pytest.mark.parametrize("modality", Modality)
def test_everything_encoded_is_read_right(modality: Modality) -> None:
    assert min(shares(EVERY[modality], 1, lambda decoded: decode(encode(decoded))).values()) >= 0.995


@pytest.mark.parametrize("modality", Modality)
def test_blur_noise_and_hiss_are_borne(modality: Modality) -> None:
    assert min(shares(EVERY[modality][::2], 1, worse).values()) >= 0.97


@pytest.mark.parametrize("modality", Modality)
def test_harder_subjects_are_read_right(modality: Modality) -> None:
    subjects = [draw(0, index, hard=True)[modality] for index in range(100)]
    assert min(shares(subjects, 1).values()) >= 0.995


def test_a_motion_is_read_from_more_or_fewer_frames_and_in_spite_of_a_bad_one() -> None:
    rng = np.random.default_rng(0)
    for subject in EVERY[Modality.VIDEO][::9]:
        video = render(subject, 0)
        assert isinstance(video, Video)
        bad = video.frames.copy()
        bad[rng.integers(8)] = rng.integers(0, 256, bad.shape[1:])
        doubled = Video(frames=video.frames.repeat(2, axis=0), fps=2 * video.fps)
        for changed in (replace(video, frames=video.frames[:-1]), replace(video, frames=bad), doubled):
            assert read(changed) == subject


def noise_pictures() -> dict[str, npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (50, 8, 8, 3)).astype(float)
    patches = {f"patches of {size}": np.kron(coarse, np.ones((size, size, 1)))[:, :32, :32] for size in (4, 8)}
    return {
        "uniform": rng.integers(0, 256, (50, 32, 32, 3)).astype(np.uint8),
        **{f"around {mean}": uint8(rng.normal(mean, 40, (50, 32, 32, 3))) for mean in (0, 128, 240)},
        **{name: uint8(pictures) for name, pictures in patches.items()},
        **{f"blurred {name}": uint8(blurred(uint8(pictures))) for name, pictures in patches.items()},
        "blank": np.stack([np.full((32, 32, 3), grey, np.uint8) for grey in range(0, 256, 15)]),
        "split": uint8(np.where(np.arange(32)[None, None, :, None] < 16, 240, coarse[:, :1, :1]))
        * np.ones((1, 32, 1, 1)),
    }


@pytest.mark.parametrize(("name", "pictures"), noise_pictures().items(), ids=list(noise_pictures()))
def test_nothing_is_seen_in_noise(name: str, pictures: npt.NDArray[np.uint8]) -> None:
    assert [read(Image(pixels=picture)) for picture in pictures] == [None] * len(pictures)
    videos = [Video(frames=pictures[start : start + 8], fps=8.0) for start in range(len(pictures) - 8)]
    assert [read(video) for video in videos[::5]] == [None] * len(videos[::5])


def noise_sounds() -> dict[str, npt.NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    time = np.arange(20_480) / 16_000
    white = rng.normal(0, 0.2, len(time))
    return {
        "silence": np.zeros_like(time),
        "constant": np.full_like(time, 0.3),
        "white": white,
        "faint": white / 100,
        "brown": np.cumsum(white) / 50,
        "a band": np.convolve(white, np.hanning(200) * np.sin(2 * np.pi * 1000 * time[:200]), mode="same") / 20,
        "click": (time == 0.5).astype(float),
        "hum": 0.3 * np.sin(2 * np.pi * 50 * time),
        "glide": 0.3 * np.sin(2 * np.pi * (300 + 1500 * time) * time),
        "between two notes": 0.3 * np.sin(2 * np.pi * 637 * time),
    }


@pytest.mark.parametrize(("name", "wave"), noise_sounds().items(), ids=list(noise_sounds()))
def test_no_note_is_heard_in_noise(name: str, wave: npt.NDArray[np.float64]) -> None:
    audio = Audio(waveform=wave[None].astype(np.float32), sample_rate=16_000)
    assert read(audio) is None
    assert (fundamental(audio) is None) == (name != "between two notes")


def test_a_video_in_which_nothing_moves_is_no_motion() -> None:
    still = render(Scene(colour="red", shape="circle", size="big", place="centre"))
    assert isinstance(still, Image)
    assert read(Video(frames=np.stack([still.pixels] * 8), fps=8.0)) is None


@pytest.mark.parametrize("sound", EVERY[Modality.AUDIO][::3])
def test_the_fundamental_is_right_within_two_cents(sound: Subject) -> None:
    audio = render(sound, 0)
    assert isinstance(audio, Audio)
    heard = fundamental(audio)
    assert heard is not None
    assert abs(1200 * np.log2(heard / PITCHES[attributes(sound)["pitch"]])) < 2


def test_grades_are_given_for_each_attribute_that_was_wanted() -> None:
    wanted = Scene(colour="red", shape="circle", size="big", place="left")
    assert grade(wanted, replace(wanted, colour="blue")) == {
        "colour": False,
        "shape": True,
        "size": True,
        "place": True,
    }
    assert not any(grade(wanted, None).values())
    assert not any(grade(wanted, Sound(pitch="low do", timbre="flute")).values())
    # An object more than was wanted is wrong, and each of two has to be right.
    both = replace(wanted, other=replace(wanted, place="right", size="small"))
    assert not any(grade(wanted, both).values())
    assert not any(grade(both, wanted).values())
    assert grade(both, replace(both, other=wanted)) == {"colour": True, "shape": True, "size": False, "place": False}


@given(subjects=easy, variant=variants)
def test_a_caption_names_the_attributes_of_its_subject(subjects: dict[Modality, Subject], variant: int) -> None:
    for subject in subjects.values():
        assert read_text(caption(subject, variant)) == attributes(subject)


@given(subjects=easy, numbers=st.tuples(variants, variants), between=st.sampled_from([". ", ", ", " and ", ".\nThe "]))
def test_two_captions_name_what_they_agree_on(
    subjects: dict[Modality, Subject], numbers: tuple[int, int], between: str
) -> None:
    for first, second in product(subjects.values(), repeat=2):
        one, other = attributes(first), attributes(second)
        text = between.join(caption(*both) for both in zip((first, second), numbers, strict=True))
        assert read_text(text) == {
            name: value for name, value in (one | other).items() if one.get(name, value) == other.get(name, value)
        }


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", {}),
        ("Hello! That is right, what is left to do?", {}),
        ("A red circle or a blue circle?", {"shape": "circle"}),
        ("It is RED.", {"colour": "red"}),
        ("Red, red and again red: across the squares", {"colour": "red"}),
        ("A big red\ncircle to the\nleft", {"size": "big", "colour": "red", "shape": "circle", "place": "left"}),
        ("It moves to the left.", {"direction": "left"}),
        ("It is to the left.", {"place": "left"}),
        ("Upwards.", {"direction": "up"}),
        ("Put it near the top, and let it go down.", {"place": "top", "direction": "down"}),
        ("A circle to the right moves up.", {"shape": "circle", "place": "right", "direction": "up"}),
        ("To the right moves a circle.", {"shape": "circle", "direction": "right"}),
        ("It moves to the left. It stands to the right.", {"direction": "left", "place": "right"}),
        ("A high mi, and not a low one", {"pitch": "high mi"}),
        ("A low do and a high do on the organ", {"timbre": "organ"}),
        ("A rising melody from a low mi on the flute", {"pitch": "low mi", "timbre": "flute"}),
    ],
)
def test_a_text_names_what_it_says_once(text: str, named: dict[str, str]) -> None:
    assert read_text(text) == named
