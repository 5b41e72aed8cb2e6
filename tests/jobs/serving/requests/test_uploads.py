"""Media from people nobody knows."""

import base64
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from jobs.serving.requests import uploads
from pipelines.media.codecs import encode
from pipelines.media.policy import Refused
from pipelines.sample import Audio, Image, Media, Modality, Video

RNG = np.random.default_rng(0)
PICTURE = encode(Image(pixels=RNG.integers(0, 255, (40, 60, 3), dtype=np.uint8)))
VIDEO = encode(Video(frames=RNG.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8), fps=8.0))
SOUND = encode(Audio(waveform=RNG.uniform(-1, 1, (1, 16000)).astype(np.float32), sample_rate=16000))


@pytest.mark.parametrize("medium", [PICTURE, VIDEO, SOUND], ids=lambda medium: medium.modality)
def test_a_file_is_what_its_content_is(medium: Media) -> None:
    found = uploads.recognise(medium.data)
    assert found.modality is medium.modality
    assert type(uploads.decode(found)).__name__.lower() == medium.modality


def test_real_files_are_recognised(sample_root: Path) -> None:
    kinds = {".jpg": Modality.IMAGE, ".png": Modality.IMAGE, ".mp4": Modality.VIDEO, ".wav": Modality.AUDIO}
    found = {}
    for path in sorted(sample_root.rglob("*")):
        if path.suffix in kinds and path.suffix not in found:
            found[path.suffix] = uploads.recognise(path.read_bytes()).modality
    assert len(found) >= 3
    assert found == {suffix: kinds[suffix] for suffix in found}


def bomb() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("1", (8_000, 8_000)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<svg onload=alert(1)>", "no picture, sound or video"),
        (b"MZ" + bytes(1000), "no picture, sound or video"),
        (PICTURE.data[:200], "no picture, sound or video"),
        (bomb(), "too large: 8000x8000 pixels"),
        (bytes(uploads.LIMITS.max_bytes + 1), "too large"),
    ],
    ids=["empty", "svg", "program", "cut", "bomb", "long"],
)
def test_what_is_no_medium_or_too_much_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        uploads.recognise(data)


def test_a_sound_that_is_too_long_is_refused() -> None:
    long = encode(Audio(waveform=np.zeros((1, 8000 * 61), np.float32), sample_rate=8000))
    with pytest.raises(Refused, match="too long: 61 s"):
        uploads.recognise(long.data)


def test_a_medium_of_another_kind_than_it_is_said_to_be_is_refused() -> None:
    with pytest.raises(Refused):
        uploads.check(SOUND.data, Modality.IMAGE)


def test_a_data_uri_gives_its_bytes_and_anything_else_is_refused() -> None:
    text = base64.b64encode(PICTURE.data).decode()
    for head in ("data:image/png;base64,", "data:;base64,", "DATA:audio/wav;codecs=1;base64,"):
        assert uploads.from_url(head + text, ()) == PICTURE.data
    broken = base64.encodebytes(PICTURE.data).decode().replace("\n", "\r\n").replace("=", "")
    assert "\r\n" in broken
    assert uploads.from_url(f"data:image/png;base64,{broken}", ()) == PICTURE.data
    for bad in ("data:image/png,abc", "data:image/png;base64,&&&&", "data:text/html;base64," + "A" * 30_000_000):
        with pytest.raises(Refused):
            uploads.from_url(bad, ())


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path.startswith("/open/away") else 200)
            self.send_header("Location", "/secret")
            self.end_headers()
            self.wfile.write(PICTURE.data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_url_is_fetched_from_below_what_is_allowed_alone(site: str) -> None:
    allowed = (f"{site}/open",)
    assert uploads.from_url(f"{site}/open/a.png", allowed) == PICTURE.data
    for url in (
        f"{site}/secret",
        f"{site}/opener/a.png",
        f"{site}/open/../secret",
        f"{site}/open/%2e%2e/secret",
        site.replace("127.0.0.1", "localhost") + "/open/a.png",
        site.replace("http://", "http://user@") + "/open/a.png",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://[",
        "",
    ):
        with pytest.raises(Refused, match="not allowed"):
            uploads.from_url(url, allowed)
    with pytest.raises(Refused, match="not allowed"):
        uploads.from_url(f"{site}/open/a.png", ())


def test_what_is_allowed_does_not_lead_elsewhere(site: str) -> None:
    with pytest.raises(Refused, match="cannot be fetched"):
        uploads.from_url(f"{site}/open/away", (f"{site}/open",))
