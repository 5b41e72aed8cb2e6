"""Information in container headers that FFmpeg does not expose: claimed durations, empty edits, truncation."""

import struct
from collections.abc import Iterator

_MP4_PARENTS = (b"moov", b"trak", b"edts")
_SEGMENT = b"\x18\x53\x80\x67"  # Matroska's element that holds all others.
_ASF_FILE = bytes.fromhex("A1DCAB8C47A9CF118EE400C00C205365")  # The object that tells the size of the file.
_TS_PACKET = 188


def claimed_seconds(data: bytes) -> float:
    """The duration that an mp4's movie header claims, which an edit list makes shorter than its tracks; else 0."""
    return max((_duration(body) for name, body in _mp4_boxes(data) if name == b"mvhd"), default=0.0)


def begins_with_empty_edit(data: bytes, track: int) -> bool:
    """Whether a track of an mp4, given by id, begins with an empty edit."""
    here = False
    for name, body in _mp4_boxes(data):
        wide = body[:1] == b"\1"
        if name == b"tkhd":
            here = _number(body, ">I", 20 if wide else 12) == track
        elif name == b"elst" and here:
            return _number(body, ">q", 16) == -1 if wide else _number(body, ">i", 12) == -1
    return False


def is_cut(data: bytes, container: str) -> bool:
    """Whether a file in FFmpeg's format `container` is truncated."""
    if "matroska" in container:
        return _ends_inside_segment(data)
    if container == "avi":  # What was not finished says 0.
        start = data.find(b"movi", 0, 1 << 20)
        return start >= 8 and start + _number(data, "<I", start - 4) > len(data)
    if container == "asf":
        start = data.find(_ASF_FILE, 0, 1 << 16)
        is_broadcast = _number(data, "<I", start + 88) & 1
        return start >= 0 and not is_broadcast and _number(data, "<Q", start + 40) > len(data)
    if container == "gif":  # Some tools leave a few bytes behind the trailer.
        return b"\0;" not in data[-1024:]
    if container == "mpegts":
        plain = all(data[start : start + 1] == b"G" for start in (0, _TS_PACKET, 2 * _TS_PACKET))
        return plain and len(data) % _TS_PACKET != 0
    return False


def _mp4_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the small boxes of an mp4's movie box, in order; nothing for other containers."""
    spans = [(0, len(data))]
    while spans:
        start, end = spans.pop()
        if start + 8 > end:
            continue
        size, name = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1 and start + 16 <= end:
            [size], body = struct.unpack_from(">Q", data, start + 8), start + 16
        stop = min(end, start + size) if size >= 8 else end  # 0 stands for the rest of the file.
        spans.append((stop, end))
        if name in _MP4_PARENTS:
            spans.append((body, stop))
        elif name in (b"mvhd", b"tkhd", b"elst"):
            yield name, data[body:stop]


def _duration(header: bytes) -> float:
    """The duration in seconds in an `mvhd` box; 0 if unknown."""
    wide = header[:1] == b"\1"
    scale = _number(header, ">I", 20 if wide else 12)
    duration = _number(header, ">Q" if wide else ">I", 24 if wide else 16)
    unknown = duration in (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
    return 0.0 if unknown or not scale else duration / scale


def _number(box: bytes, layout: str, offset: int) -> int:
    """A number at an offset in a box; 0 if the box is too short."""
    if len(box) < offset + struct.calcsize(layout):
        return 0
    [number] = struct.unpack_from(layout, box, offset)
    return int(number)


def _ends_inside_segment(data: bytes) -> bool:
    """Whether a Matroska file holds less than its segment says; one that was written to a pipe says nothing."""
    start = data.find(_SEGMENT, 0, 4096)
    first = data[start + 4] if 0 <= start < len(data) - 4 else 0
    width = 9 - first.bit_length()  # EBML: as many bytes as there are zeros before the first one, and that one.
    size = int.from_bytes(data[start + 4 : start + 4 + width]) - (1 << 7 * width)
    is_known = first != 0 and size != (1 << 7 * width) - 1
    return is_known and start + 4 + width + size > len(data)


def begins_anew(packet: bytes) -> bool:
    """Whether a packet of H.264, as mp4 holds it, is of a picture before which decoders forget all others; or empty."""
    start = 0
    while start + 5 <= len(packet):
        kind = packet[start + 4] & 31
        if kind in (1, 5):  # a slice of a picture: the first tells
            return kind == 5
        start += 4 + int.from_bytes(packet[start : start + 4])
    return not packet
