"""Fingerprints of samples: hashes of what is equal, and short prints of what is nearly equal.

Pictures, frames and sounds are printed in one way, for a sound's spectrogram is a picture: 64 bits of its coarsest
cosine components (a "pHash"), by which near ones are found, and values by which they are compared: 4 x 4 colours, or
the spectrum, and of a picture 8 x 8 greys, which tell apart what is alike but for its shape.
"""

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import soxr

from pipelines.curate.columns import REASON
from pipelines.curate.scorers import Content, EachSample, Scorer, Values, reason_of
from pipelines.sample import Audio, Image, Modality

VERSION = "2"
HASH_BYTES = 16
SIDE, LOW = 32, 8  # a picture's side before, and of the components that are kept
THUMB, GREYS = 48, 8
# One of a picture, three of a video, one of a sound; `kind` is of the modality. A sample has those of all its media.
PRINT = np.dtype(
    [("kind", "u1"), ("seconds", "<f4"), ("hash", "<u8"), ("thumb", "u1", (THUMB,)), ("greys", "u1", (GREYS**2,))]
)
COLUMNS = {"bytes_hash": "bytes", "pixels_hash": "bytes", "text_hash": "bytes", "prints": "bytes", "words": "bytes"}

# MinHash of words: so many rows to a band, of which one that is equal makes two texts candidates.
PERMUTATIONS, BAND_ROWS = 64, 4
BANDS = PERMUTATIONS // BAND_ROWS
WORDS = np.dtype([("bands", "<u4", (BANDS,)), ("lowest", "u1", (PERMUTATIONS,))])
_SHINGLE = 4  # characters

_RATE, _WINDOW, _BANDS = 16_000, 1024, 64
_FLOOR_DB, _SILENT_DB = 40.0, -60.0
_REDUCE = PIL.Image.Resampling.BOX
_FLAT = 1.0  # components below are noise of rounding


def scorer() -> Scorer:
    """The fingerprints as a scorer."""
    return Scorer(name="prints", columns=COLUMNS, version=VERSION, make=_make)


def _make() -> EachSample:
    return EachSample(print_sample)


def print_sample(content: Content) -> Values:
    """All fingerprints of a sample; those of media are null where there is none, or where one cannot be decoded."""
    text = normalised(content.text)
    found: dict[str, Any] = {"text_hash": _digest([text.encode()]) if text else None}
    found["words"] = print_words(text).tobytes() if text else None
    if not content.names:
        return found
    found["bytes_hash"] = _digest([part for m in content.media for part in (m.modality.value.encode(), m.data)])
    try:
        parts = [_looked_at(content, name) for name in content.names]
        found["pixels_hash"] = _digest([part for pixels, _ in parts for part in pixels])
        found["prints"] = np.concatenate([prints for _, prints in parts]).tobytes()
    except Exception as error:
        found[REASON] = reason_of(error)
    return found


def normalised(text: str) -> str:
    """A text without what captions of one thing differ in: case, accents as typed, punctuation, spaces."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def _digest(parts: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()[:HASH_BYTES]


def _looked_at(content: Content, name: str) -> tuple[list[bytes], npt.NDArray[Any]]:
    """What is hashed of a medium that is decoded, and its prints."""
    modality = content.sample.media[name].modality
    if modality is Modality.AUDIO:
        sound = content.decoded(name)
        assert isinstance(sound, Audio), "the modality says so"
        facts = f"{sound.sample_rate} {sound.waveform.shape}".encode()
        return [facts, sound.waveform.tobytes()], print_sound(sound)
    seen = content.glimpses(name)
    facts = f"{seen.count} {seen.frames.shape}".encode()
    seconds = seen.count / seen.fps if seen.fps else 0.0
    # Of a video the frames at a sixth, half and five sixths of those looked at.
    places = [len(seen.frames) * part // 6 for part in (1, 3, 5)] if modality is Modality.VIDEO else [0]
    made = [_print(PIL.Image.fromarray(seen.frames[place]), modality, seconds) for place in places]
    return [facts, seen.frames.tobytes()], np.concatenate(made)


def print_picture(picture: Image) -> npt.NDArray[Any]:
    """The print of a picture: one record of `PRINT`."""
    return _print(PIL.Image.fromarray(picture.pixels), Modality.IMAGE, 0.0)


def print_sound(sound: Audio) -> npt.NDArray[Any]:
    """The print of a sound: one record of `PRINT`."""
    power = _power(sound)
    seconds, picture = sound.waveform.shape[1] / sound.sample_rate, PIL.Image.fromarray(spectrogram(power))
    return _record(picture, Modality.AUDIO, seconds, spectrum(power), np.zeros(GREYS**2, np.uint8))


def _print(picture: PIL.Image.Image, modality: Modality, seconds: float) -> npt.NDArray[Any]:
    colours = np.asarray(picture.resize((4, 4), _REDUCE)).reshape(THUMB)
    greys = np.asarray(picture.convert("L").resize((GREYS, GREYS), _REDUCE)).reshape(GREYS**2)
    return _record(picture, modality, seconds, colours, greys)


def _record(
    picture: PIL.Image.Image,
    modality: Modality,
    seconds: float,
    thumb: npt.NDArray[np.uint8],
    greys: npt.NDArray[np.uint8],
) -> npt.NDArray[Any]:
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), _REDUCE), np.float64)
    return np.array([(list(Modality).index(modality), seconds, cosine_hash(grey), thumb, greys)], PRINT)


def cosine_hash(grey: npt.NDArray[np.float64]) -> int:
    """64 bits of a square picture (SIDE, SIDE): which of its coarsest cosine components are above their median."""
    basis = _cosines()
    components = (basis @ grey @ basis.T).reshape(-1)
    components[0] = 0.0  # the mean, which says how light it is
    components[np.abs(components) < _FLAT] = 0.0
    bits = components > np.median(components)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@cache
def _cosines() -> npt.NDArray[np.float64]:
    """The first LOW rows of the orthonormal DCT-II of SIDE values."""
    frequencies, places = np.arange(LOW)[:, None], np.arange(SIDE)[None]
    basis = np.cos(np.pi * frequencies * (2 * places + 1) / (2 * SIDE)) * np.sqrt(2 / SIDE)
    basis[0] /= np.sqrt(2)
    return basis


def spectrogram(power_TF: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """The power of a sound as a picture uint8 (64 mel bands, T)."""
    return _in_decibels(power_TF @ _mel_bands().T).T


def spectrum(power_TF: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """The mean power of a sound in 48 bands uint8 (48,), seven to the octave, so that a whole tone is another band."""
    return _in_decibels(power_TF.mean(axis=0) @ _octave_bands().T)


def _in_decibels(power: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Decibels from 40 below the highest, as 0, up to it, as 255: not of the gain, nor of noise far below."""
    decibels = 10 * np.log10(power + 1e-10)
    above = np.clip(decibels - max(decibels.max(), _SILENT_DB) + _FLOOR_DB, 0, _FLOOR_DB)
    return np.rint(above * (255 / _FLOOR_DB)).astype(np.uint8)


def _power(sound: Audio) -> npt.NDArray[np.float64]:
    """The power of a sound at 16 kHz (T, F): T blocks of 64 ms, F frequencies from 0 to 8 kHz."""
    waveform = sound.waveform.mean(axis=0, dtype=np.float32)
    if sound.sample_rate != _RATE:
        waveform = soxr.resample(waveform, sound.sample_rate, _RATE)
    waveform = np.pad(waveform, (0, -len(waveform) % _WINDOW + (_WINDOW if not len(waveform) else 0)))
    blocks = waveform.reshape(-1, _WINDOW) * np.hanning(_WINDOW)
    return np.concatenate([np.abs(np.fft.rfft(part)) ** 2 for part in np.array_split(blocks, -(-len(blocks) // 512))])


@cache
def _mel_bands() -> npt.NDArray[np.float64]:
    """64 bands, evenly spaced by mel (O'Shaughnessy 1987)."""
    highest = 2595 * np.log10(1 + _RATE / 2 / 700)
    return _triangles(700 * (10 ** (np.linspace(0, highest, _BANDS + 2) / 2595) - 1))


@cache
def _octave_bands() -> npt.NDArray[np.float64]:
    """48 bands, evenly spaced by octaves."""
    return _triangles(np.geomspace(60, _RATE / 2, THUMB + 2))


def _triangles(edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Bands (bands, frequencies) from each edge to the next but one, each at least a line wide."""
    lines = np.fft.rfftfreq(_WINDOW, 1 / _RATE)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (lines - low) / (middle - low), (high - lines) / (high - middle)
    bands = np.maximum(0, np.minimum(rising, falling))
    empty = bands.sum(axis=1) == 0
    bands[empty, np.abs(lines - middle[empty]).argmin(axis=1)] = 1
    return bands


def pieces(text: str) -> set[str]:
    """The pieces of four characters of a text, with a space before and after it."""
    padded = f" {text} "
    return {padded[start : start + _SHINGLE] for start in range(max(1, len(padded) - _SHINGLE + 1))}


def print_words(text: str) -> npt.NDArray[Any]:
    """MinHash of a text's pieces of four characters (Broder 1997): one record of `WORDS`.

    Of each permutation the lowest hash; of it the last 8 bits are kept (Li and König 2010), and a hash of each band.
    """
    hashes = np.array(sorted(zlib.crc32(piece.encode()) for piece in pieces(text)), np.uint64)
    factors, offsets = _permutations()
    # Modulo 2**64; the upper half, on which all bits have had an effect.
    lowest = ((hashes[:, None] * factors + offsets) >> np.uint64(32)).min(axis=0)
    bands = [zlib.crc32(band.tobytes()) for band in lowest.reshape(BANDS, BAND_ROWS)]
    return np.array([(bands, (lowest & np.uint64(255)).astype(np.uint8))], WORDS)


@cache
def _permutations() -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Odd factors and offsets (Dietzfelbinger et al. 1997)."""
    generator = np.random.Generator(np.random.PCG64(23))
    factors, offsets = generator.integers(0, 1 << 64, (2, PERMUTATIONS), np.uint64)
    return factors | np.uint64(1), offsets
