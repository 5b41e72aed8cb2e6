"""Decodes a picture as viewers show it: upright, in sRGB, over white; ambiguous pictures are refused."""

import importlib
import io
import struct
import warnings
import zlib
from contextlib import suppress
from functools import lru_cache

import numpy as np
import PIL.BmpImagePlugin
import PIL.GifImagePlugin
import PIL.Image
import PIL.ImageCms
import PIL.JpegImagePlugin
import PIL.MpoImagePlugin
import PIL.PngImagePlugin
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin

from pipelines.media.policy import Limits, Refused
from pipelines.tables.media_formats import sniff

# Pillow's names of the formats that are read, and the suffixes they are stored under.
IMAGE_SUFFIXES = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "AVIF": "avif",
    "HEIF": "heic",
    "JXL": "jxl",
}
# Formats that Pillow reads only with a plugin: the module, what it must be told, and where it is to be had.
_PLUGINS = {
    "avif": ("PIL.AvifImagePlugin", "", "pillow 11.3 or later"),
    "heic": ("pillow_heif", "register_heif_opener", "pip install pillow-heif"),
    "jxl": ("pillow_jxl", "", "pip install pillow-jxl-plugin"),
}
_ORIENTATION = 0x0112
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
# TIFF's tags of bits a sample, and of whether 0 is white.
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# The contents of a PNG apart from its pixels, partly compressed.
_PNG_ASIDE = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_MAX_ASIDE = 1 << 20  # What Pillow takes of one.
_SAME = 2  # Steps of 255 that a profile may move a colour and still be called sRGB: it is rounding.
_PROFILE_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}


def load_plugins() -> None:
    """Registers the installed Pillow plugins."""
    for module, register, _ in _PLUGINS.values():
        with suppress(ImportError):
            plugin = importlib.import_module(module)
            if register:
                getattr(plugin, register)()
            # Samples are decoded side by side; a codec's own threads only compete.
            plugin.__dict__.update(DEFAULT_MAX_THREADS=1)


load_plugins()


def open_image(data: bytes, limits: Limits) -> PIL.Image.Image:
    """Reads a picture's header; `load` reads the pixels. Raises Refused if the header claims too many."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            formats = [name for name in IMAGE_SUFFIXES if name in PIL.Image.OPEN]
            picture = PIL.Image.open(io.BytesIO(without_long_asides(data)), formats=formats)
    except PIL.Image.DecompressionBombError as error:
        raise Refused(f"too large: {' '.join(str(error).split())}") from None
    except PIL.UnidentifiedImageError:
        raise _unidentified(data) from None
    limits.check_pixels(picture.width, picture.height)
    return picture


def without_long_asides(data: bytes) -> bytes:
    """A PNG without the texts and the profile that Pillow and others refuse for their length; else the same object."""
    if not data.startswith(_PNG_MAGIC):
        return data
    kept, position, start = list[bytes](), len(_PNG_MAGIC), 0
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        stop = position + 12 + length
        if name in _PNG_ASIDE and _is_long(name, data[position + 8 : min(stop - 4, position + 8 + _MAX_ASIDE + 1)]):
            kept.append(data[start:position])
            start = stop
        position = stop
    return b"".join([*kept, data[start:]]) if kept else data


def orientation(picture: PIL.Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; damaged EXIF is ignored."""
    if picture.format == "TIFF":  # Pillow turns these itself.
        return 1
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def is_plain(picture: PIL.Image.Image) -> bool:
    """Whether every program shows its pixels as they are: upright, opaque, grey or RGB, and as good as sRGB."""
    return (
        picture.mode in ("L", "RGB")
        and orientation(picture) == 1
        and not picture.has_transparency_data
        and _transform(picture.mode, picture.info.get("icc_profile") or b"") is None
    )


def upright_rgb(picture: PIL.Image.Image, size: tuple[int, int] | None = None) -> PIL.Image.Image:
    """Decodes a picture, shrunk to `size` (before it is turned), as a viewer shows it over white: L or RGB.

    A JPEG is decoded at a half, a quarter or an eighth where that is at least twice `size`, and a picture of another
    format is averaged down to twice `size` before it is resampled. Raises Refused where viewers would not agree.
    """
    turn, profile = orientation(picture), picture.info.get("icc_profile") or b""
    if size:
        picture.draft(picture.mode, (2 * size[0], 2 * size[1]))
    picture.load()
    picture = _with_visible_alpha(_plain(picture), str(picture.format))
    if size and size != picture.size:
        picture = picture.resize(size, PIL.Image.Resampling.BICUBIC, reducing_gap=2.0)
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    picture = _in_srgb(picture.convert("RGB") if alpha else picture, profile)
    if alpha:
        picture = PIL.Image.composite(picture, PIL.Image.new("RGB", picture.size, "white"), alpha)
    return picture.transpose(_TURNS[turn]) if turn != 1 else picture


def _unidentified(data: bytes) -> Refused:
    known = sniff(data)
    if known in _PLUGINS and not _is_readable(known):
        return Refused(f"unreadable: {known.upper()} pictures are not read here; install {_PLUGINS[known][2]}")
    return Refused("unreadable: cannot identify image file")


def _is_readable(known: str) -> bool:
    return any(suffix == known and name in PIL.Image.OPEN for name, suffix in IMAGE_SUFFIXES.items())


def _is_long(name: bytes, body: bytes) -> bool:
    """Whether a PNG chunk is longer, or decompresses to more, than Pillow accepts."""
    if len(body) > _MAX_ASIDE or name == b"tEXt":
        return len(body) > _MAX_ASIDE
    packed = body.partition(b"\0")[2]  # behind the keyword
    if name == b"iTXt":  # flag, method, language, translated keyword, text
        if packed[:1] != b"\1":
            return False
        packed = packed[2:].split(b"\0", 2)[-1]
    else:
        packed = packed[1:]
    with suppress(zlib.error):
        return len(zlib.decompressobj().decompress(packed, _MAX_ASIDE + 1)) > _MAX_ASIDE
    return False


def _plain(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Converts a picture of any mode to L, RGB, RGBA or CMYK.

    Raises:
        Refused: its numbers do not say what is black and what is white.
    """
    if picture.mode.startswith("I;16"):
        return _grey_of_16_bits(picture)
    if picture.mode == "F":
        return _grey_of_floats(picture)
    if picture.mode == "I":
        raise Refused("unreadable: pixels of 32-bit integers do not say what is white; convert them to 8 or 16 bits")
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture if picture.mode in ("L", "RGB", "CMYK") else picture.convert("RGB")


def _grey_of_16_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The upper 8 of 16 bits; Pillow would clip them to white."""
    values, tags = np.asarray(picture), getattr(picture, "tag_v2", {})
    bits: int = tags.get(_BITS, (16,))[0]
    grey = (values >> max(0, bits - 8)).astype(np.uint8)
    if tags and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    transparent = picture.info.get("transparency")
    if not isinstance(transparent, int):
        return PIL.Image.fromarray(grey)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(np.stack([grey, alpha], axis=-1), "LA").convert("RGBA")


def _grey_of_floats(picture: PIL.Image.Image) -> PIL.Image.Image:
    values = np.asarray(picture)
    if not np.isfinite(values).all():
        raise Refused("unreadable: NaN or infinite pixels")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise Refused(f"unreadable: float pixels from {low:g} to {high:g}, where 0 is black and 1 is white")
    return PIL.Image.fromarray(np.rint(values * 255).astype(np.uint8))


def _with_visible_alpha(picture: PIL.Image.Image, known: str) -> PIL.Image.Image:
    """The picture, opaque where its alpha is 0 throughout because its writer left the byte unused.

    Raises:
        Refused: there are colours, and all of them are transparent.
    """
    if picture.mode != "RGBA" or picture.getchannel("A").getextrema() != (0, 0):
        return picture
    colours = picture.convert("RGB")
    if known == "BMP":
        return colours
    values = np.asarray(colours)
    if values.min() != values.max() or values.max() not in (0, 255):  # An empty canvas is black or white beneath.
        raise Refused("unreadable: the picture is transparent throughout")
    return picture


def _in_srgb(picture: PIL.Image.Image, profile: bytes) -> PIL.Image.Image:
    """A picture of mode L, RGB or CMYK as L or RGB in sRGB; a profile that is damaged, or of other colours, is none."""
    transform = _transform(picture.mode, profile)
    if transform is None:
        return picture.convert("RGB") if picture.mode == "CMYK" else picture
    is_grey = picture.mode == "L"
    source = picture.convert("RGB") if is_grey and transform.input_mode == "RGB" else picture
    return transform.apply(source).convert("L" if is_grey else "RGB")


def _transform(mode: str, profile: bytes) -> PIL.ImageCms.ImageCmsTransform | None:
    """What leads from a profile to sRGB; None where a picture of this mode is shown as it is."""
    found = _to_srgb(profile)
    fits = found is not None and (mode == found.input_mode or (mode, found.input_mode) == ("L", "RGB"))
    return found if fits else None


@lru_cache(maxsize=8)
def _to_srgb(profile: bytes) -> PIL.ImageCms.ImageCmsTransform | None:
    """What leads from a profile to sRGB; None where it is sRGB, damaged, or there is none."""
    if not profile:
        return None
    try:
        opened = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _PROFILE_SPACES[opened.profile.xcolor_space]
        transform = PIL.ImageCms.buildTransform(opened, PIL.ImageCms.createProfile("sRGB"), mode, "RGB")
        colours = _colours(mode)
        moved = transform.apply(colours)
    except (PIL.ImageCms.PyCMSError, OSError, KeyError, ValueError, TypeError):
        return None
    if mode != "CMYK":
        difference = np.asarray(moved).astype(int) - np.asarray(colours.convert("RGB"))
        if np.abs(difference).max() <= _SAME:
            return None
    return transform


def _colours(mode: str) -> PIL.Image.Image:
    """A test picture with colours from the whole space of a mode."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    if mode == "L":
        return PIL.Image.fromarray(steps[None])
    grid = np.stack(np.meshgrid(*[steps] * len(mode), indexing="ij"), axis=-1)
    return PIL.Image.fromarray(grid.reshape(len(steps), -1, len(mode)), mode)
