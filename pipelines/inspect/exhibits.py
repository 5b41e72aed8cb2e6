"""Pictures, film strips, players and spectrograms for pages: of a dataset's samples, and of a run's examples."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import soundfile
import soxr
from PIL.ImageDraw import Draw

from pipelines.inspect.run_examples import GivenMedium
from pipelines.media.codecs import decode
from pipelines.sample import Audio, Decoded, Image, Item, Media, Sample, Video
from pipelines.storage.files import read_range, read_rows
from pipelines.storage.shards import from_members, index_path, shard_name, split_members

THUMBNAIL = 320  # pixels of the longer side
FRAME = 224
FRAMES = 5  # of a clip
SECONDS = 10.0  # of a sound
SAMPLE_RATE = 16_000
PEAKS = 96
QUALITY = 80
MAX_TEXT = 1200  # characters of one text
MAX_TURNS = 12
ENLARGED = 128  # pixels to which a small picture in a player is enlarged
STILL = 96  # pixels of a still; a small one is enlarged by a whole number
STILLS = 3  # of a film strip
PAPER, CARD, LINE = (247, 245, 240), (255, 254, 251), (224, 220, 209)  # colours of a drawing
_FILM, _SOUND_INK = (38, 40, 46), (14, 118, 120)
_SPECTRUM = (14, 138, 140)  # visible on light and on dark
_TYPES = {"png": "image/png", "jpg": "image/jpeg", "mp4": "video/mp4", "wav": "audio/wav", "flac": "audio/flac"}
_WINDOW, _HOP = 256, 128  # samples of a spectrogram's window, and from one to the next
_HIGHEST = 5000.0  # Hz
_RANGE = 50.0  # dB below the loudest that are shown
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A small JPEG as a `data:` URI, and its own width and height in pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """A preview of one medium.

    `pictures` are one thumbnail of an image, several frames of a video, none of a sound. `sound` is the URI of the
    first seconds, `peaks` its loudness from 0 to 1 over time, `cut` whether there is more.
    """

    modality: str
    key: str
    source: str
    caption: str
    file: str
    facts: str
    pictures: tuple[Picture, ...] = ()
    sound: str = ""
    peaks: tuple[float, ...] = ()
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bubble:
    """A turn of a dialogue: texts and exhibits in order."""

    role: str
    parts: tuple[str | Exhibit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownDialogue:
    """A dialogue to display; `left` further turns are not shown."""

    key: str
    source: str
    turns: tuple[Bubble, ...]
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Playable:
    """A whole medium to play in a page; `picture` is a sound's spectrogram, `enlarged` shows sharp pixels."""

    modality: str
    caption: str
    uri: str
    width: int = 0
    height: int = 0
    enlarged: bool = False
    picture: str = ""


@dataclass(kw_only=True)
class Showcase:
    """Makes exhibits of a dataset's samples, until all `data:` URIs together are `budget` bytes.

    `side` is of the longer side of pictures in pixels, `seconds` of a sound are kept.
    """

    dataset: Path
    budget: int
    side: int = THUMBNAIL
    seconds: float = SECONDS
    _made: dict[tuple[str, str], Exhibit] = field(default_factory=dict)
    _index: tuple[Path, list[dict[str, Any]]] = (Path(), [])

    def sample(self, shard: int, place: int) -> Sample:
        """Reads one sample with its media."""
        row = self._row(shard, place)
        data = read_range(self.dataset / shard_name(shard), row["offset"], row["length"])
        return from_members(split_members(data))

    def text(self, shard: int, place: int) -> Sample:
        """Reads one sample without its media."""
        row = self._row(shard, place)
        data = read_range(self.dataset / shard_name(shard), row["json_offset"], row["json_length"])
        return from_members({"json": data})

    def _row(self, shard: int, place: int) -> dict[str, Any]:
        path = index_path(self.dataset / shard_name(shard))
        if self._index[0] != path:
            self._index = path, read_rows(path, ["offset", "length", "json_offset", "json_length"])
        return self._index[1][place]

    def exhibits(self, places: Iterable[tuple[int, int, str]]) -> list[Exhibit]:
        """Exhibits of the media at these places (shard, sample, tar suffix), within the budget."""
        result = []
        for shard, place, suffix in places:
            sample = self.sample(shard, place)
            item = next((item for item in sample.items() if item.name == suffix), None)
            if item is not None and suffix in sample.media:
                exhibit = self.exhibit(sample, item)
                result += [exhibit] if exhibit.pictures or exhibit.sound else []
        return result

    def dialogue(self, sample: Sample) -> ShownDialogue:
        """A dialogue with exhibits in place of its items."""
        turns = tuple(
            Bubble(
                role=turn.role,
                parts=tuple(
                    self.exhibit(sample, part) if isinstance(part, Item) else shortened(part) for part in turn.parts
                ),
            )
            for turn in sample.turns[:MAX_TURNS]
        )
        left = len(sample.turns) - len(turns)
        return ShownDialogue(key=sample.key, source=sample.source, turns=turns, left=left)

    def exhibit(self, sample: Sample, item: Item) -> Exhibit:
        """One item; without pictures or sound where it has no medium, cannot be decoded or the budget is spent."""
        known = (sample.key, item.name)
        exhibit = self._made.get(known) or self._make(sample, item)
        cost = sum(len(picture.uri) for picture in exhibit.pictures) + len(exhibit.sound)
        if cost > self.budget:
            return replace(exhibit, pictures=(), sound="")
        self.budget -= cost
        if item.name:
            self._made[known] = exhibit
        return exhibit

    def _make(self, sample: Sample, item: Item) -> Exhibit:
        facts = dict(sample.meta.get("media", {}).get(item.name, {}))
        exhibit = Exhibit(
            modality=item.modality.value,
            key=sample.key,
            source=sample.source,
            caption=shortened(" / ".join(item.captions)),
            file=str(facts.pop("file", "")),
            facts=_described(facts),
        )
        medium = sample.media.get(item.name)
        return self._shown(exhibit, medium, float(facts.get("seconds", 0))) if medium and self.budget > 0 else exhibit

    def _shown(self, exhibit: Exhibit, medium: Media, seconds: float) -> Exhibit:
        """The exhibit with pictures or sound; as it is where its medium cannot be decoded."""
        try:
            decoded = decode(medium, fps=FRAMES / seconds if seconds else 1.0)
        except ValueError:
            return exhibit
        match decoded:
            case Image(pixels=pixels):
                return replace(exhibit, pictures=(_picture(pixels, self.side),))
            case Video(frames=frames):
                chosen = _spread(frames, min(FRAMES, len(frames)))
                return replace(exhibit, pictures=tuple(_picture(frame, min(FRAME, self.side)) for frame in chosen))
            case Audio():
                return _with_sound(exhibit, decoded, self.seconds)


def shortened(text: str) -> str:
    """A text, truncated if it is too long for a page."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ..."


def _described(facts: dict[str, float]) -> str:
    """The facts of a medium in a few words: 640 x 480 px, 12.5 s, 30 fps, 16 kHz."""
    size = [f"{facts['width']} x {facts['height']} px"] if facts.get("width") else []
    units = {"seconds": "s", "fps": "fps"}
    rest = [f"{facts[name]:.3g} {unit}" for name, unit in units.items() if facts.get(name)]
    rate = [f"{facts['sample_rate'] / 1000:g} kHz"] if facts.get("sample_rate") else []
    return ", ".join(size + rest + rate)


def _picture(pixels: Pixels, side: int) -> Picture:
    picture = PIL.Image.fromarray(pixels)
    picture.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=QUALITY)
    return Picture(uri=data_uri("image/jpeg", buffer.getvalue()), width=picture.width, height=picture.height)


def _with_sound(exhibit: Exhibit, audio: Audio, seconds: float) -> Exhibit:
    """The exhibit with the first seconds in mono, as FLAC, which every browser plays, and how loud they are."""
    samples = audio.waveform.mean(axis=0)
    cut = len(samples) > seconds * audio.sample_rate
    samples = samples[: int(seconds * audio.sample_rate)]
    rate = min(audio.sample_rate, SAMPLE_RATE)
    if rate != audio.sample_rate:
        samples = np.clip(soxr.resample(samples, audio.sample_rate, rate), -1, 1)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC", subtype="PCM_16")
    loudness = [float(np.abs(block).max()) for block in np.array_split(samples, PEAKS) if len(block)]
    loudest = max(loudness) or 1.0
    peaks = tuple(round(value / loudest, 3) for value in loudness)
    return replace(exhibit, sound=data_uri("audio/flac", buffer.getvalue()), peaks=peaks, cut=cut)


def _spread(frames: Pixels, count: int) -> list[Pixels]:
    """Frames of a clip, evenly spread from the first to the last."""
    return [frames[place] for place in np.linspace(0, len(frames) - 1, count).round().astype(int)]


def playable(medium: GivenMedium) -> Playable:
    """A medium with its bytes as a `data:` URI; a small picture or video is enlarged by a whole number."""
    uri = data_uri(_TYPES[medium.media.format], medium.media.data)
    shown = Playable(modality=medium.modality.value, caption=medium.caption, uri=uri)
    match medium.decoded:
        case Image(pixels=pixels):
            height, width, _ = pixels.shape
        case Video(frames=frames):
            _, height, width, _ = frames.shape
        case Audio():
            return replace(shown, picture=_spectrogram_uri(medium.decoded))
    factor = max(1, round(ENLARGED / max(height, width)))
    return replace(shown, width=width * factor, height=height * factor, enlarged=factor > 1)


def _spectrogram_uri(audio: Audio) -> str:
    """A single colour on a transparent ground, visible on light and dark pages."""
    strength = spectrogram(audio)
    pixels = np.empty((*strength.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = _SPECTRUM, np.round(255 * strength)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def still(medium: Decoded) -> PIL.Image.Image:
    """A medium in a drawing: a picture, a film strip, or a spectrogram with low notes at the bottom."""
    match medium:
        case Image(pixels=pixels):
            return _scaled(PIL.Image.fromarray(pixels))
        case Video(frames=frames):
            return _film([_scaled(PIL.Image.fromarray(frame)) for frame in _spread(frames, STILLS)])
        case Audio():
            return _spectrum(medium)


def _scaled(picture: PIL.Image.Image) -> PIL.Image.Image:
    factor = STILL // max(picture.size)
    if factor >= 1:
        return picture.resize((picture.width * factor, picture.height * factor), PIL.Image.Resampling.NEAREST)
    picture.thumbnail((STILL, STILL))
    return picture


def _film(frames: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """Frames side by side, with the perforation of a film."""
    edge, between = 11, 3
    width, height = frames[0].size
    strip = PIL.Image.new("RGB", (len(frames) * (width + between) + between, height + 2 * edge), _FILM)
    draw = Draw(strip)
    for left in range(5, strip.width - 6, 14):
        for top in (3, strip.height - 8):
            draw.rectangle((left, top, left + 5, top + 4), fill=PAPER)
    for number, frame in enumerate(frames):
        strip.paste(frame, (between + number * (width + between), edge))
    return strip


def _spectrum(audio: Audio) -> PIL.Image.Image:
    strength = PIL.Image.fromarray(np.round(255 * spectrogram(audio)).astype(np.uint8))
    strength = strength.resize((2 * STILL + 18, STILL), PIL.Image.Resampling.BILINEAR)
    picture = PIL.Image.new("RGB", strength.size, CARD)
    picture.paste(_SOUND_INK, (0, 0), strength)
    Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=LINE)
    return picture


def spectrogram(audio: Audio) -> npt.NDArray[np.float64]:
    """How strong each frequency is over time, (frequencies, times) from 0 to 1, high ones on top, up to 5 kHz."""
    samples = audio.waveform.mean(axis=0).astype(np.float64)
    samples = np.pad(samples, (0, max(0, _WINDOW - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::_HOP] * np.hanning(_WINDOW)
    powers = np.abs(np.fft.rfft(windows, axis=1)) ** 2
    frequencies = np.fft.rfftfreq(_WINDOW, 1 / audio.sample_rate)
    powers = powers[:, frequencies <= _HIGHEST].T[::-1]
    decibels = 10 * np.log10(powers / (powers.max() or 1.0) + 1e-12)
    return np.clip(1 + decibels / _RANGE, 0, 1)


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as a `data:` URI of a media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
