"""The formats of media: what names end in, and what files begin with. One list for folders, tars and columns.

A file is what its content says; its name counts where the content says nothing. No format is decoded here.
"""

import re
from pathlib import PurePosixPath

from pipelines.sample import Modality

# Suffixes by what is in such files; the first is what a file is called that came under another name.
_SUFFIXES = {
    Modality.IMAGE: "jpg jpeg png webp gif bmp tiff tif avif jpe jfif dib heic heif jxl",
    Modality.VIDEO: "mp4 webm mkv mov avi m4v 3gp flv mpg mpeg wmv ts gif",
    Modality.AUDIO: "wav flac mp3 ogg m4a opus oga aac aiff aif aifc au snd w64 rf64 caf amr wma mp4 mov 3gp webm mkv",
}
SUFFIXES = {modality: tuple(suffixes.split()) for modality, suffixes in _SUFFIXES.items()}
# As much of a file as tells its format.
HEAD_BYTES = 512
# In order; `?` stands for any byte.
_MAGIC = (
    ("jpg", b"\xff\xd8\xff"),
    ("png", b"\x89PNG\r\n\x1a\n"),
    ("gif", b"GIF8"),
    ("webp", b"RIFF????WEBP"),
    ("wav", b"RIFF????WAVE"),
    ("avi", b"RIFF????AVI "),
    ("wav", b"RF64????WAVE"),
    ("wav", b"BW64????WAVE"),
    ("w64", b"riff\x2e\x91\xcf\x11"),
    ("bmp", b"BM????\0\0\0\0"),
    ("tiff", b"II*\0"),
    ("tiff", b"MM\0*"),
    ("tiff", b"II+\0"),
    ("tiff", b"MM\0+"),
    ("jxl", b"\xff\x0a"),
    ("jxl", b"\0\0\0\x0cJXL \r\n\x87\n"),
    ("flac", b"fLaC"),
    ("mp3", b"ID3"),
    ("aiff", b"FORM????AIFF"),
    ("aiff", b"FORM????AIFC"),
    ("au", b".snd"),
    ("au", b"dns."),
    ("caf", b"caff"),
    ("amr", b"#!AMR"),
    ("flv", b"FLV\x01"),
    ("mpg", b"\0\0\x01\xba"),
    ("mpg", b"\0\0\x01\xb3"),
    ("wmv", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
)
# What an MP4 says that it is; any other brand is a plain mp4.
_BRANDS = (
    ("avif", (b"avif", b"avis")),
    ("heic", (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")),
    ("m4a", (b"M4A ", b"M4B ")),
    ("mov", (b"qt  ",)),
    ("3gp", (b"3gp4", b"3gp5", b"3gp6", b"3gp7")),
)
_GENERAL_BRANDS = (b"mif1", b"msf1")  # Any HEIF picture may lead with them, an AVIF as well.
_TS_PACKET = 188


def modalities_of(name: str) -> tuple[Modality, ...]:
    """What a file of this name or format may hold, the likeliest first; nothing where it is no medium's name."""
    suffix = suffix_of(name) or name
    return tuple(modality for modality, suffixes in SUFFIXES.items() if suffix in suffixes)


def suffix_of(name: str) -> str:
    """A name's suffix in lower case, also with the query of a URL behind it; empty where it has none."""
    for part in (re.split(r"[?#]", name, maxsplit=1)[0], name):
        suffix = PurePosixPath(part.replace("\\", "/")).suffix[1:].lower()
        if re.fullmatch(r"[a-z0-9]{1,8}", suffix):
            return suffix
    return ""


def media_format(data: bytes, original: str, name: str) -> str:
    """A medium's format, a file suffix without a dot: by what it begins with, or else by its original name.

    Raises:
        ValueError: `unreadable: ...`, it is none that is known.
    """
    found = sniff(data) or suffix_of(original)
    if not found:
        raise ValueError(f"{'unreadable' if data else 'empty file'}: {name} is of no known format")
    return found


def sniff(data: bytes) -> str:
    """The format that a file's first bytes tell, as its suffix; empty where they tell none."""
    head = data[:HEAD_BYTES]
    if head[4:8] == b"ftyp":
        return _mp4_format(head)
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "mkv" if b"matroska" in head[:64] else "webm"
    if head.startswith(b"OggS"):
        return "opus" if b"OpusHead" in head[:64] else "ogg"
    for known, magic in _MAGIC:
        if len(head) >= len(magic) and all(want in (have, ord("?")) for have, want in zip(head, magic, strict=False)):
            return known
    return _frame_format(head)


def _mp4_format(head: bytes) -> str:
    size = int.from_bytes(head[:4], "big")
    major, others = head[8:12], {head[at : at + 4] for at in range(16, min(size, len(head)), 4)}
    brands = others if major in _GENERAL_BRANDS and others - set(_GENERAL_BRANDS) else {major}
    return next((known for known, names in _BRANDS if brands & set(names)), "mp4")


def _frame_format(head: bytes) -> str:
    """Formats without a header, whose frames begin at once."""
    if len(head) > 1 and head[0] == 0xFF:
        if head[1] & 0xF6 == 0xF0:
            return "aac"
        if head[1] & 0xE0 == 0xE0 and head[1] & 0x06 in (0x02, 0x04):  # Layer III and II.
            return "mp3"
    if len(head) > _TS_PACKET and head[0] == head[_TS_PACKET] == ord("G"):
        return "ts"
    return ""
