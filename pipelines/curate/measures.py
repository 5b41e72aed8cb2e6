"""Plain measures of a sample: sizes, seconds, light, motion, loudness, and the words of its captions.

A sample of several media is measured by its first of each modality; where a picture and a video are in one, by the
first of both.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from pipelines.curate.columns import REASON
from pipelines.curate.scorers import Content, EachSample, Scorer, Value, Values, reason_of
from pipelines.sample import Audio, Modality

VERSION = "2"
_BLOCK_SECONDS = 0.02
_SILENT_DB, _LEAST_DB = -60.0, -120.0
_FULL_SCALE = 0.999
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601

_VISUAL = {
    "width": "int",
    "height": "int",
    "aspect": "float",
    "sharpness": "float",
    "luminance": "float",
    "contrast": "float",
}
_VIDEO = {"frames": "int", "motion": "float"}
_AUDIO = {"silence": "float", "clipping": "float", "loudness": "float"}
_TEXT = {
    "caption_chars": "int",
    "caption_words": "int",
    "repeated_words": "float",
    "language": "str",
    "language_certainty": "float",
}
COLUMNS = {"media": "int", **_VISUAL, **_VIDEO, "seconds": "float", **_AUDIO, **_TEXT}


def scorer() -> Scorer:
    """The plain measures as a scorer."""
    return Scorer(name="measures", columns=COLUMNS, version=VERSION, make=_make)


def _make() -> EachSample:
    return EachSample(measure)


def measure(content: Content) -> Values:
    """All columns of a sample; of those that cannot be computed, the reasons."""
    found: dict[str, Any] = {"media": len(content.names), **text_measures(content.text)}
    reasons = list[str]()
    for name in _measured(content):
        try:
            found |= _of_medium(content, name)
        except Exception as error:
            reasons.append(reason_of(error))
    return found | ({REASON: "; ".join(reasons)} if reasons else {})


def _measured(content: Content) -> Iterator[str]:
    """The names of the first medium that is seen, and of the first that is heard."""
    for heard in (False, True):
        names = (n for n in content.names if (content.sample.media[n].modality is Modality.AUDIO) == heard)
        yield from list(names)[:1]


def _of_medium(content: Content, name: str) -> Mapping[str, Value]:
    modality = content.sample.media[name].modality
    if modality is Modality.AUDIO:
        sound = content.decoded(name)
        assert isinstance(sound, Audio), "the modality says so"
        return sound_measures(sound)
    seen = content.glimpses(name)
    found = frame_measures(seen.frames)
    if modality is Modality.VIDEO:
        found |= {"frames": seen.count, "seconds": _rounded(seen.count / seen.fps), "motion": motion(seen.frames)}
    return found


def frame_measures(frames_NHWC: npt.NDArray[np.uint8]) -> dict[str, Value]:
    """Size of frames uint8 (N, H, W, 3), and the means over them of what `light` says of each."""
    height, width = frames_NHWC.shape[1:3]
    sharpness, luminance, contrast = np.mean([light(frame) for frame in frames_NHWC], axis=0)
    return {
        "width": width,
        "height": height,
        "aspect": _rounded(width / height),
        "sharpness": _rounded(sharpness),
        "luminance": _rounded(luminance),
        "contrast": _rounded(contrast),
    }


def light(pixels_HWC: npt.NDArray[np.uint8]) -> tuple[float, float, float]:
    """Of a picture: the variance of the Laplacian of its luminance, and the mean and deviation of that, 0 to 255."""
    luma_HW = pixels_HWC @ _LUMA
    padded = np.pad(luma_HW, 1, mode="edge")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * luma_HW
    return float(laplacian.var()), float(luma_HW.mean()), float(luma_HW.std())


def motion(frames_NHWC: npt.NDArray[np.uint8]) -> float:
    """The mean absolute difference of luminance between the two frames of each pair, 0 to 255; 0 of a single frame."""
    pairs = zip(frames_NHWC[::2], frames_NHWC[1::2], strict=False)
    changes = [np.abs(after @ _LUMA - before @ _LUMA).mean() for before, after in pairs]
    return _rounded(np.mean(changes)) if changes else 0.0


def sound_measures(sound: Audio) -> dict[str, Value]:
    """Seconds; the share of blocks of 20 ms below -60 dB; of samples at full scale; and the mean power in dB.

    Decibels are relative to full scale, and -120 at least.
    """
    waveform_T = sound.waveform.mean(axis=0, dtype=np.float64)
    size = max(1, round(sound.sample_rate * _BLOCK_SECONDS))
    starts = np.arange(0, len(waveform_T), size)
    powers = np.add.reduceat(waveform_T**2, starts) / np.diff(starts, append=len(waveform_T))
    return {
        "seconds": _rounded(sound.waveform.shape[1] / sound.sample_rate),
        "silence": _rounded(np.mean(_decibels(powers) < _SILENT_DB)),
        "clipping": _rounded(np.mean(np.abs(sound.waveform) >= _FULL_SCALE)),
        "loudness": _rounded(_decibels(np.mean(waveform_T**2))),
    }


def _decibels(power: Any) -> Any:
    return 10 * np.log10(np.maximum(power, 10 ** (_LEAST_DB / 10)))


def text_measures(text: str) -> dict[str, Value]:
    """Characters and words of a text, the share of words that it has said before, in any case, and its language.

    That is an ISO 639 code and the probability that py3langid gives it, which is low for a word or two; null of a text
    without letters.
    """
    words = text.casefold().split()
    repeated = _rounded(1 - len(set(words)) / len(words)) if words else None
    found: dict[str, Value] = {"caption_chars": len(text), "caption_words": len(words), "repeated_words": repeated}
    if any(map(str.isalpha, text)):
        language, certainty = _linguist().classify(text)
        found |= {"language": language, "language_certainty": _rounded(certainty)}
    return found


@cache
def _linguist() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _rounded(value: Any) -> float:
    """To six digits: what is left of a sum's last bits differs between processors."""
    return float(f"{float(value):.6g}")
