"""Hostile media are refused for the right reason, run nothing and cost little memory; their neighbours are safe."""

import io
import json
import pickle
import struct
import subprocess
import sys
import zlib
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
import soundfile

from pipelines.media.codecs import encode
from pipelines.media.folder import load_rows
from pipelines.media.policy import MediaPolicy
from pipelines.sample import Image, Item, Modality, Reject, Sample, Turn, Video
from pipelines.storage.sidecars import from_npy

ROOT = Path(__file__).parents[2]
IMAGE, VIDEO, AUDIO = Modality.IMAGE, Modality.VIDEO, Modality.AUDIO
MEGABYTE = 2**20

EXPECTED = {
    ("bomb.png", IMAGE): "too large: 13000x13000 pixels, the limit is 64000000 (bomb.png)",
    ("wide.png", IMAGE): "too large: ",
    ("memory.png", IMAGE): "too large: decoding it takes more than 320 MiB of memory (memory.png)",
    ("cut.jpg", IMAGE): "unreadable: ",
    ("empty.jpg", IMAGE): "empty file: empty.jpg",
    ("empty.mp4", VIDEO): "empty file: empty.mp4",
    ("empty.wav", AUDIO): "empty file: empty.wav",
    ("song.mp4", VIDEO): "no video stream: song.mp4",
    ("silent.mp4", AUDIO): "no audio stream: silent.mp4",
    ("ten_hours.mp4", VIDEO): "too long: 36000 s, the limit is 600 s (ten_hours.mp4)",
    ("ten_hours.wav", AUDIO): "unreadable: cut off after 32000 of 1152000000 bytes of samples (ten_hours.wav)",
    ("slow.wav", AUDIO): "too long: 36000 s, the limit is 600 s (slow.wav)",
    ("nan.wav", AUDIO): "unreadable: NaN or infinite samples (nan.wav)",
    ("video.jpg", IMAGE): "unreadable: cannot identify image file (video.jpg)",
    ("playlist.mp4", VIDEO): "unreadable: ",
    ("pickle.jpg", IMAGE): "unreadable: cannot identify image file (pickle.jpg)",
    ("postscript.jpg", IMAGE): "unreadable: cannot identify image file (postscript.jpg)",
    ("vector.jpg", IMAGE): "unreadable: cannot identify image file (vector.jpg)",
    ("link.jpg", IMAGE): "path outside the root: link.jpg is a link",
    ("../outside.jpg", IMAGE): "path outside the root: ../outside.jpg",
    ("/etc/passwd", IMAGE): "path outside the root: /etc/passwd",
    ("0.tar/../../outside.jpg", IMAGE): "path outside the root: ",
}
GOOD = [("good.jpg", IMAGE), ("polyglot.jpg", IMAGE), ("really_a_jpeg.png", IMAGE)]


def png(width: int, height: int, depth: int = 8, colour: int = 2, channels: int = 3) -> bytes:
    """A black picture: of its lines a thousandth is left."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packer = zlib.compressobj(9)
    row = bytes(1 + channels * width * depth // 8)
    lines = b"".join(packer.compress(row * 100) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, format="JPEG")
    return buffer.getvalue()


def wav(samples: np.ndarray, sample_rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def song() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
        container.mux([*stream.encode(frame), *stream.encode()])
    return buffer.getvalue()


def ten_hours(video: bytes) -> bytes:
    """An mp4 whose headers (mvhd, tkhd, mdhd) say that it lasts ten hours; the index of its frames does not."""
    data = bytearray(video)
    movie = data.index(b"mvhd") + 4
    [scale] = struct.unpack_from(">I", data, movie + 12)
    struct.pack_into(">I", data, movie + 16, 36_000 * scale)
    struct.pack_into(">I", data, data.index(b"tkhd") + 24, 36_000 * scale)
    track = data.index(b"mdhd") + 4
    [scale] = struct.unpack_from(">I", data, track + 12)
    struct.pack_into(">I", data, track + 16, 36_000 * scale)
    return bytes(data)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("import pathlib; pathlib.Path('executed').touch()",))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "media"
    folder.mkdir()
    video = encode(Video(frames=np.zeros((8, 16, 16, 3), np.uint8), fps=8)).data
    claims = bytearray(wav(np.zeros(16_000)))
    position = claims.index(b"data") + 4
    claims[position : position + 4] = struct.pack("<I", 36_000 * 16_000 * 2)
    files = {
        "bomb.png": png(13_000, 13_000, colour=0, channels=1),  # 507 MB as RGB
        "wide.png": png(2**31 - 1, 100, channels=0),
        "memory.png": png(8_000, 8_000, depth=16, colour=6, channels=4),
        "cut.jpg": jpeg()[:-200],
        "empty.jpg": b"",
        "empty.mp4": b"",
        "empty.wav": b"",
        "song.mp4": song(),
        "silent.mp4": video,
        "ten_hours.mp4": ten_hours(video),
        "ten_hours.wav": bytes(claims),
        "slow.wav": wav(np.zeros(36_000), sample_rate=1),
        "nan.wav": wav(np.array([0.0, np.nan, 0.0]), subtype="FLOAT"),
        "video.jpg": video,
        "playlist.mp4": b"ffconcat version 1.0\nfile silent.mp4\n",
        "pickle.jpg": pickle.dumps(_Bomb()),
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(executed) (w) file\n",
        "vector.jpg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "good.jpg": jpeg(),
        "polyglot.jpg": jpeg() + b"PK\x03\x04<script>alert(1)</script>",
        "really_a_jpeg.png": jpeg(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder.parent / "outside.jpg").write_bytes(jpeg())
    (folder / "link.jpg").symlink_to(folder.parent / "outside.jpg")
    return folder


def row(name: str, modality: Modality) -> Sample:
    turns = (Turn(role="user", parts=(Item(modality=modality, name=name),)), Turn(role="assistant", parts=("yes",)))
    return Sample(key="k", source=name, turns=turns)


def test_every_hostile_medium_is_refused_for_its_reason_and_the_good_ones_are_taken(hostile: Path) -> None:
    wanted = [*EXPECTED, *GOOD]
    results = list(load_rows((row(*want) for want in wanted), hostile, MediaPolicy()))
    assert len(results) == len(wanted)
    for want, result in zip(wanted, results, strict=True):
        if want in GOOD:
            assert isinstance(result, Sample)
            assert list(result.media) == ["jpg"]
            assert b"script" not in result.media["jpg"].data
        else:
            assert isinstance(result, Reject)
            assert result.reason.startswith(EXPECTED[want]), result.reason
    assert (hostile / "bomb.png").stat().st_size < 170_000


MEASURE = """
import json, resource, sys
from pathlib import Path
from pipelines.media.folder import load_rows
from pipelines.media.policy import MediaPolicy
from pipelines.sample import Item, Modality, Reject, Sample, Turn
import pipelines.media.process

def peak(who): return resource.getrusage(who).ru_maxrss * 1024
def row(name, modality):
    item = Item(modality=Modality(modality), name=name)
    return Sample(key="k", source="s", turns=(Turn(role="user", parts=(item,)),))

before = peak(resource.RUSAGE_SELF)
results = list(load_rows([row(*want) for want in json.loads(sys.argv[2])], Path(sys.argv[1]), MediaPolicy()))
while pipelines.media.process._idle: pipelines.media.process._idle.pop().close()
print(json.dumps([len(results), peak(resource.RUSAGE_SELF) - before, peak(resource.RUSAGE_CHILDREN)]))
"""


def test_hostile_media_take_less_than_half_a_gigabyte_and_execute_nothing(hostile: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURE, str(hostile), json.dumps([*EXPECTED, *GOOD])]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    count, here, child = json.loads(done.stdout)
    assert count == len(EXPECTED) + len(GOOD)
    assert here + child < 512 * MEGABYTE, (here / MEGABYTE, child / MEGABYTE)
    assert list(tmp_path.iterdir()) == []
    assert done.stderr == ""


def test_a_pickle_as_npy_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    np.save(buffer, np.array([_Bomb()], dtype=object), allow_pickle=True)
    for data in (pickle.dumps(_Bomb()), buffer.getvalue()):
        with pytest.raises(ValueError, match=r"pickle|allow_pickle|Object arrays"):
            from_npy(data)
    assert list(tmp_path.iterdir()) == []


def test_media_changed_anywhere_give_a_sample_or_a_reject_each(hostile: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    originals = [
        (IMAGE, jpeg()),
        (IMAGE, encode(Image(pixels=noise)).data),
        (VIDEO, encode(Video(frames=np.stack([noise] * 5), fps=8)).data),
        (VIDEO, song()),
        (AUDIO, song()),
        (AUDIO, wav(rng.uniform(-1, 1, 800))),
    ]
    rows = []
    for number in range(240):
        modality, original = originals[number % len(originals)]
        data = bytearray(original if number < 180 else rng.bytes(300))
        for position in rng.integers(0, len(data), 6):
            data[position] ^= int(rng.integers(1, 256))
        (tmp_path / f"{number}.bin").write_bytes(
            data[: int(rng.integers(1, len(data) + 1))] if number % 3 == 0 else data
        )
        rows.append(row(f"{number}.bin", modality))
    results = list(load_rows(rows, tmp_path, MediaPolicy()))
    reasons = Counter(result.reason.split(":")[0] if isinstance(result, Reject) else "" for result in results)
    assert reasons.total() == len(rows)
    assert reasons[""] > 10
    assert reasons["unreadable"] > 50
    known = {"", "unreadable", "too large", "too long", "too short", "no video stream", "no audio stream"}
    assert set(reasons) <= known | {"decoder crashed", "decoder hung"}
    assert not [result for result in results if isinstance(result, Reject) and "open files" in result.reason]
