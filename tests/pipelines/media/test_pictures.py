"""Pictures are stored and decoded as a viewer shows them: upright, in sRGB, over white; or they are refused."""

import io
import struct
import sys
import zlib
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import PIL.PngImagePlugin
import pytest

from pipelines.media import pictures
from pipelines.media.codecs import decode
from pipelines.media.policy import ImagePolicy, MediaPolicy
from pipelines.media.process import media_process
from pipelines.media.stored import Stored, store
from pipelines.sample import Media, Modality
from pipelines.tables.media_formats import sniff

POLICY = MediaPolicy(image=ImagePolicy(quality=95))
POLICIES = [POLICY, MediaPolicy(image=ImagePolicy(short_side=16, quality=95)), MediaPolicy(keep_originals=True)]
# The turn that undoes each turn of EXIF.
UNDONE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
P3 = [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)]
ADOBE = [(0.640, 0.330), (0.210, 0.710), (0.150, 0.060)]


def media(data: bytes) -> Media:
    return Media(modality=Modality.IMAGE, data=data, format=sniff(data) or "bin")


def written(picture: PIL.Image.Image, format: str, **options: Any) -> Media:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return media(buffer.getvalue())


def shown(medium: Media) -> np.ndarray:
    decoded: Any = decode(medium)
    return decoded.pixels.astype(int)


def opened(stored: Stored) -> np.ndarray:
    """What another program shows that knows nothing of EXIF and profiles."""
    return np.asarray(PIL.Image.open(io.BytesIO(stored.media.data)).convert("RGB")).astype(int)


def refusal(medium: Media, policy: MediaPolicy = POLICY) -> str:
    with pytest.raises(ValueError, match=r"^unreadable: ") as caught:
        store(medium, policy)
    return str(caught.value)


def flat(colour: Any, mode: str = "RGB", size: tuple[int, int] = (32, 32)) -> PIL.Image.Image:
    return PIL.Image.new(mode, size, colour)


# --- Orientation -----------------------------------------------------------------------------------------------------


def upright(mode: str) -> PIL.Image.Image:
    """48 wide, 32 high: black, and white at the upper left, where it has two values in 16 bits as well."""
    pixels = np.zeros((32, 48), np.uint8)
    pixels[:16, :16] = 255
    if mode == "I;16":
        return PIL.Image.fromarray(pixels.astype(np.uint16) * 257)
    picture = PIL.Image.fromarray(pixels)
    if mode == "P":
        picture = picture.convert("RGB").quantize(8)
    return picture.convert(mode)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(
    ("format", "mode"),
    [
        *[("PNG", mode) for mode in ("L", "RGB", "RGBA", "LA", "P", "I;16", "1")],
        *[("TIFF", mode) for mode in ("L", "RGB", "RGBA", "I;16", "CMYK")],
        *[(format, mode) for format in ("WEBP", "AVIF") for mode in ("RGB", "RGBA")],
        *[("JPEG", mode) for mode in ("L", "RGB", "CMYK")],
    ],
)
def test_every_picture_stands_upright(format: str, mode: str, turn: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = UNDONE[turn]
    sideways = upright(mode)
    turned = pictures._TURNS.get(turn)
    sideways = sideways.transpose(turned) if turned is not None else sideways
    medium = written(sideways, format, exif=exif)
    expected = np.asarray(upright("L"), int)
    for policy in POLICIES:
        stored = store(medium, policy)
        pixels = shown(stored.media)
        width, height = stored.facts["width"], stored.facts["height"]
        assert pixels.shape == (height, width, 3)
        assert (width, height) == ((24, 16) if policy.image.short_side == 16 else (48, 32))
        small = expected[:: 32 // int(height), :: 48 // int(width)]
        # A pixel on either side of an edge may be between.
        assert np.mean(np.abs(pixels[..., 0] - small) > 40) < 0.1
        assert pixels[2, 2].min() > 230
        assert max(pixels[2, -3].max(), pixels[-3, 2].max(), pixels[-3, -3].max()) < 25
        if not policy.keep_originals:
            assert np.array_equal(opened(stored), pixels)


def test_what_is_stored_unchanged_has_nothing_to_be_turned() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    for format in ("JPEG", "PNG", "WEBP"):
        stored = store(written(flat("red", size=(40, 20)), format, exif=exif, lossless=True), POLICY)
        assert not PIL.Image.open(io.BytesIO(stored.media.data)).getexif()
        assert opened(stored).shape == (40, 20, 3)


# --- Depths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_keep_their_brightness(format: str) -> None:
    steps = np.repeat(np.linspace(0, 65_535, 64).astype(np.uint16)[None], 32, axis=0)
    for policy in POLICIES[::2]:
        pixels = shown(store(written(PIL.Image.fromarray(steps), format), policy).media)
        assert np.abs(pixels[8, :, 0] - steps[0] / 257).max() <= 3


def test_sixteen_bits_of_grey_whose_zero_is_white_are_not_a_negative() -> None:
    values = np.full((32, 32), 60_000, np.uint16)
    values[:, 16:] = 5000
    pixels = shown(written(PIL.Image.fromarray(values), "TIFF", tiffinfo={262: 0}))
    assert np.abs(pixels[4, [4, 28], 0] - [255 - 60_000 / 257, 255 - 5000 / 257]).max() <= 1


def png(colour: int, bits: int, rows: bytes, width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by the book: chunks before the pixels, rows each with their filter byte."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = [header, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in body
    )


@pytest.mark.parametrize(("colour", "values"), [(2, [40_000, 20_000, 60_000]), (6, [40_000, 20_000, 60_000, 65_535])])
def test_sixteen_bits_of_colour_keep_their_brightness(colour: int, values: list[int]) -> None:
    row = b"\0" + struct.pack(f">{len(values)}H", *values) * 8
    pixels = shown(store(media(png(colour, 16, row * 8, 8, 8)), POLICY).media)
    assert np.abs(pixels[4, 4] - [156, 78, 233]).max() <= 3


@pytest.mark.parametrize(("bits", "transparent"), [(8, 200), (16, 51_400)])
def test_the_transparent_grey_of_a_png_lies_on_white(bits: int, transparent: int) -> None:
    code = ">8B" if bits == 8 else ">8H"
    row = b"\0" + struct.pack(code, *[transparent] * 4, *[0] * 4)
    data = png(0, bits, row * 8, 8, 8, (b"tRNS", struct.pack(">H", transparent)))
    for policy in POLICIES[::2]:
        pixels = shown(store(media(data), policy).media)
        assert (pixels[4, 1].min() > 250, pixels[4, 6].max() < 5) == (True, True)
    assert opened(store(media(data), POLICY))[4, 1].min() > 250


def test_float_pixels_are_shown_from_0_black_to_1_white() -> None:
    ramp = np.repeat(np.linspace(0, 1, 64, dtype=np.float32)[None], 32, axis=0)
    for policy in POLICIES[::2]:
        pixels = shown(store(written(PIL.Image.fromarray(ramp), "TIFF"), policy).media)
        assert np.abs(pixels[8, :, 0] - ramp[0] * 255).max() <= 2


@pytest.mark.parametrize("policy", POLICIES, ids=["kept", "shrunk", "original"])
def test_numbers_that_do_not_say_what_is_white_are_refused(policy: MediaPolicy) -> None:
    large = written(PIL.Image.fromarray(np.linspace(-3, 200, 1024, dtype=np.float32).reshape(32, 32)), "TIFF")
    assert refusal(large, policy) == "unreadable: float pixels from -3 to 200, where 0 is black and 1 is white"
    lost = written(PIL.Image.fromarray(np.full((32, 32), np.nan, np.float32)), "TIFF")
    assert refusal(lost, policy) == "unreadable: NaN or infinite pixels"
    whole = written(PIL.Image.fromarray(np.full((32, 32), 1 << 20, np.int32)), "TIFF")
    assert refusal(whole, policy).startswith("unreadable: pixels of 32-bit integers do not say what is white")


# --- Alpha -----------------------------------------------------------------------------------------------------------


def bmp(alpha: int) -> bytes:
    """A BMP with masks for red, green, blue and alpha: half of it red, half blue."""
    row = struct.pack("<4B", 0, 0, 255, alpha) * 4 + struct.pack("<4B", 255, 0, 0, alpha) * 4
    pixels = row * 8
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 8, 8, 1, 32, 3, len(pixels), 2835, 2835, 0, 0) + masks + bytes(52)
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


@pytest.mark.parametrize("alpha", [0, 255])
def test_a_bmp_that_leaves_alpha_unused_shows_its_colours(alpha: int) -> None:
    for policy in POLICIES[::2]:
        pixels = shown(store(media(bmp(alpha)), policy).media)
        assert np.abs(pixels[4, 1] - [254, 0, 0]).max() <= 6
        assert np.abs(pixels[4, 6] - [0, 0, 254]).max() <= 6


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("picture", [upright("RGBA"), flat((200, 30, 30, 255), "RGBA")], ids=["shape", "colour"])
def test_a_picture_that_its_alpha_hides_is_refused(format: str, picture: PIL.Image.Image) -> None:
    hidden = picture.copy()
    hidden.putalpha(0)
    for policy in POLICIES:
        reason = refusal(written(hidden, format, exact=True, lossless=True), policy)
        assert reason == "unreadable: the picture is transparent throughout"


# --- Colours ---------------------------------------------------------------------------------------------------------


def matrix_of(primaries: list[tuple[float, float]]) -> np.ndarray:
    """Linear RGB of these primaries and white D65 -> XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


def profile_of(primaries: list[tuple[float, float]] | None, gamma: float) -> bytes:
    """An ICC profile, version 2, of these primaries, or of grey."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50, d65 = np.array([0.9642, 1, 0.8249]), np.array([0.9505, 1, 1.0891])
    adapted = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ d65)) @ bradford

    def xyz(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(value) * 65_536) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78), b"wtpt": xyz(d50)}
    tags[b"cprt"] = b"text\0\0\0\0none\0\0\0\0"
    if primaries:
        matrix = adapted @ matrix_of(primaries)
        tags |= {name + b"XYZ": xyz(matrix[:, place]) for place, name in enumerate((b"r", b"g", b"b"))}
        tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    else:
        tags[b"kTRC"] = curve
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        body += bytes(-len(body) % 4)
        table, data = table + name + struct.pack(">II", start + len(data), len(body)), data + body
    space = b"RGB " if primaries else b"GRAY"
    header = struct.pack(">I4sI4s4s4s", start + len(data), b"none", 0x02100000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63_190, 65_536, 54_061) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + data


def in_srgb(colour: tuple[int, int, int], primaries: list[tuple[float, float]], gamma: float) -> np.ndarray:
    """What a colour is in sRGB, by the definitions of both."""
    srgb = matrix_of([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)])
    linear = np.linalg.inv(srgb) @ matrix_of(primaries) @ (np.array(colour) / 255) ** gamma
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    ("format", "mode"),
    [("JPEG", "RGB"), *[(format, mode) for format in ("PNG", "TIFF", "WEBP", "AVIF") for mode in ("RGB", "RGBA", "P")]],
)
@pytest.mark.parametrize(("primaries", "gamma"), [(P3, 2.2), (ADOBE, 2.2)], ids=["p3", "adobe"])
@pytest.mark.parametrize("colour", [(200, 30, 30), (30, 180, 60), (90, 120, 150)])
def test_wide_gamut_colours_become_srgb(
    format: str, mode: str, primaries: list[tuple[float, float]], gamma: float, colour: tuple[int, int, int]
) -> None:
    picture = flat(colour).quantize(2) if mode == "P" else flat(colour).convert(mode)
    medium = written(picture, format, quality=100, icc_profile=profile_of(primaries, gamma))
    exact = in_srgb(colour, primaries, gamma)
    for policy in POLICIES:
        stored = store(medium, policy)
        assert np.abs(shown(stored.media)[8, 8] - exact).max() <= 6
        if not policy.keep_originals:
            assert np.abs(opened(stored)[8, 8] - exact).max() <= 6
            assert "icc_profile" not in PIL.Image.open(io.BytesIO(stored.media.data)).info


def test_a_grey_profile_makes_grey_brighter_and_leaves_it_grey() -> None:
    medium = written(flat(100, "L"), "PNG", icc_profile=profile_of(None, 1.0))
    stored = store(medium, POLICY)
    # 100/255 of the light is 0.66 of sRGB's scale.
    assert opened(stored)[8, 8].tolist() == pytest.approx([168] * 3, abs=2)
    assert PIL.Image.open(io.BytesIO(stored.media.data)).mode == "L"


def test_pictures_that_are_srgb_keep_their_bytes_with_a_profile_or_a_damaged_one() -> None:
    srgb = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile", profile_of(P3, 2.2)[:200], srgb[:100], profile_of(None, 2.2)):
        medium = written(flat((200, 30, 30)), "JPEG", quality=95, icc_profile=profile)
        stored = store(medium, POLICY)
        assert stored.media.data is medium.data
        assert np.abs(shown(medium)[8, 8] - [200, 30, 30]).max() <= 3


def test_cmyk_becomes_rgb_with_a_profile_or_without() -> None:
    for profile in (b"", profile_of(P3, 2.2)):  # A profile of other colours than the picture's is none.
        medium = written(flat((0, 255, 255, 0), "CMYK"), "TIFF", icc_profile=profile)
        assert np.abs(shown(store(medium, POLICY).media)[8, 8] - [254, 0, 0]).max() <= 4


def test_the_process_that_can_open_no_file_stores_the_same() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    given = [
        written(flat((200, 30, 30)), "AVIF", icc_profile=profile_of(P3, 2.2), exif=exif),
        written(flat(100, "L"), "PNG", icc_profile=profile_of(None, 1.0)),
        written(upright("RGBA"), "TIFF", icc_profile=profile_of(ADOBE, 2.2), exif=exif),
        written(upright("I;16"), "PNG", exif=exif),
        written(flat((0, 255, 255, 0), "CMYK"), "JPEG", icc_profile=profile_of(P3, 2.2)),
        media(bmp(0)),
    ]
    with media_process() as process:
        assert list(process.store(given, POLICY)) == [store(medium, POLICY) for medium in given]


# --- What lies beside the pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "packed iTXt", "iCCP"])
@pytest.mark.parametrize("size", [(32, 32), (600, 600)])
def test_a_png_with_a_long_text_is_a_picture(kind: str, size: tuple[int, int]) -> None:
    long, info = "prompt " * 600_000, PIL.PngImagePlugin.PngInfo()
    if "iTXt" in kind:
        info.add_itxt("prompt", long, zip="packed" in kind)
    elif kind == "iCCP":
        info.add(b"iCCP", b"x\0\0" + zlib.compress(long.encode()))
    else:
        info.add_text("prompt", long, zip=kind == "zTXt")
    medium = written(flat((200, 30, 30), size=size), "PNG", pnginfo=info)
    if kind in ("zTXt", "packed iTXt"):
        with pytest.raises(ValueError, match="too large"):  # What other programs say.
            PIL.Image.open(io.BytesIO(medium.data)).load()
    for policy in POLICIES:
        stored = store(medium, policy)
        assert np.abs(shown(stored.media)[8, 8] - [200, 30, 30]).max() <= 4
        if not policy.keep_originals:
            assert len(stored.media.data) < 20_000
            assert np.abs(opened(stored)[8, 8] - [200, 30, 30]).max() <= 4


def test_a_png_with_short_texts_is_left_alone() -> None:
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("Software", "a program")
    info.add_itxt("title", "ein Bild", zip=True)
    medium = written(flat("red"), "PNG", pnginfo=info)
    assert pictures.without_long_asides(medium.data) is medium.data
    assert pictures.without_long_asides(medium.data[:60]) is not None


# --- Formats that need a plugin --------------------------------------------------------------------------------------

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
JXL = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100)


def test_heic_and_jpeg_xl_are_named_where_nothing_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEIF", "JXL", "AVIF"):
        monkeypatch.delitem(PIL.Image.OPEN, name, raising=False)
    assert refusal(media(HEIC)).startswith("unreadable: HEIC pictures are not read here; install pip")
    assert refusal(media(JXL)).startswith("unreadable: JXL pictures are not read here; install pip")
    avif = b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(100)
    assert refusal(media(avif)) == "unreadable: AVIF pictures are not read here; install pillow 11.3 or later"


@pytest.fixture
def heif_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that is installed: it reads every HEIC as a red picture."""

    class HeifFile(PIL.PngImagePlugin.PngImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self.fp = io.BytesIO(written(flat((200, 30, 30)), "PNG").data)
            super()._open()

    def register() -> None:
        PIL.Image.register_open("HEIF", HeifFile, lambda prefix: prefix[4:12] == b"ftypheic")

    plugin = ModuleType("pillow_heif")
    plugin.__dict__.update(register_heif_opener=register)
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    monkeypatch.setattr(PIL.Image, "OPEN", dict(PIL.Image.OPEN))
    monkeypatch.setattr(PIL.Image, "ID", list(PIL.Image.ID))
    pictures.load_plugins()


@pytest.mark.usefixtures("heif_plugin")
def test_heic_is_read_where_a_plugin_is_installed() -> None:
    stored = store(media(HEIC), POLICY)
    assert (stored.media.format, np.abs(opened(stored)[8, 8] - [200, 30, 30]).max() <= 4) == ("jpg", True)
    assert store(media(HEIC), MediaPolicy(keep_originals=True)).media.format == "heic"
