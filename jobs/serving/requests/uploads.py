"""Untrusted media: checked by content, within limits, in a separate process."""

import base64
import binascii
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from pipelines.embed.encoding import VIDEO_FPS
from pipelines.media import codecs
from pipelines.media.policy import AudioPolicy, ImagePolicy, Limits, MediaPolicy, Refused, VideoPolicy
from pipelines.media.process import media_process
from pipelines.sample import Decoded, Media, Modality

MEGABYTE = 2**20
LIMITS = Limits(
    max_bytes=20 * MEGABYTE,
    max_pixels=25_000_000,
    max_seconds=60.0,
    max_frames=4_000,
    max_decoded_bytes=512 * MEGABYTE,
    max_decode_seconds=20.0,
)
# Uploads are stored for the conversation in the same form as training data.
POLICY = MediaPolicy(image=ImagePolicy(), audio=AudioPolicy(), video=VideoPolicy(max_seconds=60.0), limits=LIMITS)
_DATA_URI = re.compile(r"data:(?P<type>[a-z]+/[a-z0-9.+-]+)?(;[a-z0-9-]+=[^;,]*)*;base64,", re.IGNORECASE)
_SECONDS = 10.0  # to fetch a URL


def check(data: bytes, modality: Modality) -> Media:
    """A medium in the stored form, after decoding it completely within `LIMITS`; raises Refused with the reason."""
    LIMITS.check_bytes(len(data))
    medium = Media(modality=modality, data=data, format="bin")
    with media_process() as process:
        [found] = process.store([medium], POLICY)
    if isinstance(found, Refused):
        raise found
    return found.media


def recognise(data: bytes) -> Media:
    """Detects the modality of a file from its content, not its name; raises Refused if it cannot be read."""
    LIMITS.check_bytes(len(data))
    reasons = []
    for modality in _likely(data):
        try:
            return check(data, modality)
        except Refused as refused:
            reasons.append(refused)
    # A reason that names a limit is more useful than "not a picture either".
    raise next((reason for reason in reasons if str(reason).startswith("too ")), Refused(_UNKNOWN))


_UNKNOWN = "unreadable: no picture, sound or video in a supported format"


def _likely(data: bytes) -> Sequence[Modality]:
    """All modalities, the likeliest first; video before audio, since films have sound tracks."""
    if data[:4] in (b"RIFF", b"fLaC", b"OggS") or data[:3] == b"ID3":
        return Modality.AUDIO, Modality.VIDEO, Modality.IMAGE
    return Modality.IMAGE, Modality.VIDEO, Modality.AUDIO


def decode(medium: Media) -> Decoded:
    """Decodes a medium that `check` accepted."""
    return codecs.decode(medium, LIMITS, fps=VIDEO_FPS)


def from_base64(text: str) -> bytes:
    """Decodes base64, with line breaks or without padding too; raises Refused if it is invalid or too large."""
    text = "".join(text.split()).rstrip("=")
    if len(text) > LIMITS.max_bytes * 4 // 3 + 4:
        raise Refused(f"too large: more than {LIMITS.max_bytes} bytes, the limit")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Refused("unreadable: not base64") from None


def from_url(url: str, allowed: Sequence[str]) -> bytes:
    """The bytes of a data URI, or of a URL below one of `allowed`; else raises Refused."""
    if found := _DATA_URI.match(url):
        return from_base64(url[found.end() :])
    if url[:5].lower() == "data:":
        raise Refused("unreadable: not a data URI in base64 (data:image/png;base64,...)")
    if not any(_is_below(url, prefix) for prefix in allowed):
        raise Refused("not allowed: this server does not fetch this URL; send the medium as a data URI")
    try:
        with _opener.open(url, timeout=_SECONDS) as response:
            data: bytes = response.read(LIMITS.max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise Refused(f"unreadable: the URL cannot be fetched: {reason}") from None
    LIMITS.check_bytes(len(data))
    return data


def _is_below(url: str, prefix: str) -> bool:
    """Whether a URL has the scheme, host and port of a prefix, and a path below its path."""
    try:
        one, other = urlsplit(url), urlsplit(prefix)
        same = (one.scheme, one.hostname, one.port) == (other.scheme, other.hostname, other.port)
    except ValueError:
        return False
    plain = one.username is None and one.password is None and ".." not in one.path and "%" not in one.path
    return (
        same and plain and one.scheme in ("http", "https") and f"{one.path}/".startswith(f"{other.path.rstrip('/')}/")
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Rejects redirects: an allowed URL must not lead to one that is not."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
