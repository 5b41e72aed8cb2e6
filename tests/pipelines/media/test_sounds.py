"""Of a sound, what is there is taken: what its header claims of its length decides nothing, unless much is missing."""

import io
import shutil
import struct
import subprocess
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from pipelines.media.codecs import decode
from pipelines.media.policy import AudioPolicy, Limits, MediaPolicy
from pipelines.media.stored import store
from pipelines.sample import Media, Modality

STEPS = np.random.default_rng(0).integers(-20_000, 20_000, 32_000).astype(np.int16)
POLICY, ORIGINALS = MediaPolicy(), MediaPolicy(keep_originals=True)


def media(data: bytes) -> Media:
    return Media(modality=Modality.AUDIO, data=data, format="wav")


def written(steps: np.ndarray, format: str = "WAV", sample_rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, steps, sample_rate, format=format, subtype="PCM_16")
    return buffer.getvalue()


class Pipe(io.RawIOBase):
    """Takes bytes, and never goes back to a header."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)

    def writable(self) -> bool:
        return True


def piped(format: str, codec: str, **options: str) -> bytes:
    """A sound as FFmpeg writes it to a pipe."""
    pipe = Pipe()
    with av.open(pipe, "w", format=format, options=options) as container:
        stream: Any = container.add_stream(codec, rate=16_000, layout="mono")
        stream.codec_context.format = "s16"
        resampler = av.AudioResampler("s16", "mono", 16_000, frame_size=4000)
        frame = av.AudioFrame.from_ndarray(STEPS[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for given_frame in (frame, None):
            for piece in resampler.resample(given_frame):
                container.mux(stream.encode(piece))
        container.mux(stream.encode())
    return pipe.data


def claiming(size: int, data: bytes = b"") -> bytes:
    """A WAV whose header says that so many bytes of samples follow."""
    changed = bytearray(data or written(STEPS))
    place = changed.index(b"data") + 4
    changed[place : place + 4] = struct.pack("<I", size)
    return bytes(changed)


def samples_of(data: bytes, policy: MediaPolicy = POLICY) -> np.ndarray:
    decoded: Any = decode(store(media(data), policy).media)
    return decoded.waveform[0] * 32_768


@pytest.mark.parametrize("policy", [POLICY, ORIGINALS], ids=["stored", "original"])
@pytest.mark.parametrize(
    "claim", [64_001, 64_002, 64_036, 64_044, 64_100, 68_000, 0, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 37]
)
def test_a_wav_is_read_to_its_end_whatever_its_header_claims(claim: int, policy: MediaPolicy) -> None:
    stored = store(media(claiming(claim)), policy)
    assert stored.facts == {"seconds": 2.0, "sample_rate": 16_000}
    assert np.array_equal(samples_of(claiming(claim), policy), STEPS)


@given(st.integers(0, 4096))
def test_a_header_that_claims_a_little_more_changes_nothing(more: int) -> None:
    decoded: Any = decode(media(claiming(64_000 + more)))
    assert np.array_equal(decoded.waveform[0] * 32_768, STEPS)


def test_a_wav_that_was_cut_is_refused() -> None:
    for claim, data in ((64_000, written(STEPS)[:40_000]), (128_000, written(STEPS))):
        with pytest.raises(ValueError, match=r"^unreadable: cut off after \d+ of \d+ bytes of samples$"):
            store(media(claiming(claim, data)), POLICY)


def test_what_stands_behind_the_samples_is_not_heard() -> None:
    chunk = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf61.7.100\0\0"
    assert np.array_equal(samples_of(written(STEPS) + chunk), STEPS)
    empty = claiming(0, written(STEPS[:0])) + chunk
    with pytest.raises(ValueError, match=r"^unreadable: no samples$"):
        store(media(empty), POLICY)


@pytest.mark.parametrize(
    ("format", "codec", "options"),
    [
        ("wav", "pcm_s16le", {}),
        ("wav", "pcm_s16le", {"rf64": "always"}),
        ("flac", "flac", {}),
        ("au", "pcm_s16be", {}),
        ("caf", "pcm_s16le", {}),
    ],
)
@pytest.mark.parametrize("policy", [POLICY, ORIGINALS], ids=["stored", "original"])
def test_what_went_through_a_pipe_is_whole(
    format: str, codec: str, options: dict[str, str], policy: MediaPolicy
) -> None:
    data = piped(format, codec, **options)
    assert store(media(data), policy).facts == {"seconds": 2.0, "sample_rate": 16_000}
    assert np.array_equal(samples_of(data, policy), STEPS)


def of_unknown_length(flac: bytes) -> bytes:
    """A FLAC whose header says 0 samples, which stands for unknown."""
    changed = bytearray(flac)
    changed[21] &= 0xF0
    changed[22:26] = bytes(4)
    return bytes(changed)


def test_a_flac_of_unknown_length_is_read_whole_and_stored_with_its_length() -> None:
    data = of_unknown_length(written(STEPS, "FLAC"))
    stored = store(media(data), POLICY)
    assert stored.facts == {"seconds": 2.0, "sample_rate": 16_000}
    assert soundfile.info(io.BytesIO(stored.media.data)).frames == 32_000
    assert np.array_equal(samples_of(data), STEPS)
    assert store(media(data), ORIGINALS).media.data is not None


def test_the_decoded_length_counts_for_limits() -> None:
    short = MediaPolicy(limits=Limits(max_seconds=1.5))
    sounds = (claiming(0), claiming(2**32 - 1), of_unknown_length(written(STEPS, "FLAC")), written(STEPS, "AIFF"))
    for data in sounds:
        with pytest.raises(ValueError, match=r"^too long: 2 s, the limit is 1\.5 s$"):
            store(media(data), short)
    enough = MediaPolicy(limits=Limits(max_seconds=2))
    for data in sounds:
        assert len(samples_of(data, enough)) == 32_000


def test_an_m4a_is_as_long_as_it_is_not_as_it_claims() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ipod") as container:
        stream: Any = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(STEPS[None].astype(np.float32) / 32_768, format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray(buffer.getvalue())
    place = data.index(b"mdhd") + 4 + 16
    data[place : place + 4] = struct.pack(">I", 36_000 * 16_000)
    assert store(media(bytes(data)), POLICY).facts["seconds"] == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "AIFF"])
@pytest.mark.parametrize("policy", [POLICY, ORIGINALS], ids=["stored", "original"])
@pytest.mark.parametrize("samples", [1, 3, 100, 1599])
def test_a_sound_of_a_few_samples_is_too_short(samples: int, policy: MediaPolicy, format: str) -> None:
    with pytest.raises(ValueError, match=rf"^too short: {samples / 16_000:.4g} s, the limit is 0\.1 s$"):
        store(media(written(STEPS[:samples], format)), policy)
    assert store(media(written(STEPS[:1600], format)), policy).facts["seconds"] == 0.1


@given(st.integers(1, 3000), st.sampled_from([8000, 16_000, 44_100, 192_000]), st.sampled_from([1000, 16_000, 48_000]))
def test_no_stored_sound_is_empty_however_short_the_policy_lets_it_be(samples: int, given_rate: int, rate: int) -> None:
    policy = MediaPolicy(audio=AudioPolicy(sample_rate=rate, min_seconds=1e-6))
    try:
        stored = store(media(written(STEPS[:samples], sample_rate=given_rate)), policy)
    except ValueError as error:
        assert str(error) == f"too short: it has no sample left at {rate} Hz"  # noqa: PT017 - either is right
        assert samples * rate / given_rate < 1
    else:
        decoded: Any = decode(stored.media)
        assert decoded.waveform.shape[1] >= 1
        assert abs(decoded.waveform.shape[1] - samples * rate / given_rate) <= 1


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs ffmpeg")
def test_a_wav_of_the_ffmpeg_program_through_a_pipe_is_whole() -> None:
    command = ["ffmpeg", "-v", "error", "-i", "pipe:", "-f", "wav", "pipe:"]
    data = subprocess.run(command, input=written(STEPS), capture_output=True, check=True).stdout
    assert np.array_equal(samples_of(data), STEPS)
