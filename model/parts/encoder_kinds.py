"""The kinds of media encoders, told by their configuration files: what each takes, and the shape of what it makes.

No weights are loaded, so that shapes can be checked before anything starts.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from math import isqrt, prod
from pathlib import Path
from typing import Any

from model.parts.builtin import resolve
from model.parts.config import EncoderConfig
from model.parts.published import described
from pipelines.sample import Modality
from pipelines.storage.files import read_json

VIDEO_FRAMES = 8  # that an encoder of pictures looks at
IMAGEBIND_CLIPS = 5  # of a video, whose patches are those of the middle crop
IMAGEBIND_DIM = 1024  # of the released model, whose file does not say it

Grid = tuple[int, int, int]
Sizes = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderKind:
    """What one kind of encoder takes and makes.

    `pooled` gives of a configuration the width of the pooled vector, and `patches` for a modality that of a patch and
    the grid of an item's patches: frames, rows and columns of pictures and videos; one, frequencies and times of
    sounds.
    """

    name: str
    modalities: tuple[Modality, ...]
    pooled: Callable[[Sizes], int]
    patches: Callable[[Sizes, Modality], tuple[int, Grid]]


def _siglip_patches(config: Sizes, modality: Modality) -> tuple[int, Grid]:
    vision = {"hidden_size": 768, "image_size": 224, "patch_size": 16} | config.get("vision_config", config)
    return vision["hidden_size"], _square(modality, vision["image_size"] // vision["patch_size"], VIDEO_FRAMES)


def _siglip2_patches(config: Sizes, modality: Modality) -> tuple[int, Grid]:
    """Of pictures that keep their proportions; the grid is that of a square one."""
    vision = {"hidden_size": 768, "num_patches": 256} | config.get("vision_config", config)
    return vision["hidden_size"], _square(modality, isqrt(vision["num_patches"]), VIDEO_FRAMES)


def _clap_patches(config: Sizes, _: Modality) -> tuple[int, Grid]:
    defaults = {"spec_size": 256, "num_mel_bins": 64, "patch_stride": [4, 4], "depths": [2, 2, 6, 2]}
    audio = defaults | {"patch_embeds_hidden_size": 96} | config.get("audio_config", config)
    scale = 2 ** (len(audio["depths"]) - 1)  # each stage but the first halves frequency and time
    rows, columns = (audio["spec_size"] // scale // stride for stride in audio["patch_stride"])
    stretches = audio["spec_size"] // audio["num_mel_bins"]  # of time, which the encoder lays above one another
    return audio["patch_embeds_hidden_size"] * scale, (1, rows // stretches, columns * stretches)


def _clap_pooled(config: Sizes) -> int:
    return int(config.get("projection_dim", 512))


def _imagebind_patches(config: Sizes, modality: Modality) -> tuple[int, Grid]:
    from model.architectures.imagebind import ImageBindConfig  # late: it takes torch

    sizes = ImageBindConfig(**config)
    if modality is Modality.AUDIO:
        return sizes.audio_width, (1, *sizes.audio_grid)
    return sizes.vision_width, _square(modality, sizes.image_size // sizes.patch_size, IMAGEBIND_CLIPS)


def _square(modality: Modality, side: int, frames: int) -> Grid:
    return frames if modality is Modality.VIDEO else 1, side, side


def _vision_width(config: Sizes) -> int:
    return int(config.get("vision_config", config).get("hidden_size", 768))


def _imagebind_pooled(config: Sizes) -> int:
    return int(config.get("embed_dim", IMAGEBIND_DIM))


_SEEN = (Modality.IMAGE, Modality.VIDEO)
IMAGEBIND = EncoderKind(
    name="ImageBind", modalities=tuple(Modality), pooled=_imagebind_pooled, patches=_imagebind_patches
)
SIGLIP = EncoderKind(name="SigLIP", modalities=_SEEN, pooled=_vision_width, patches=_siglip_patches)
SIGLIP2 = EncoderKind(name="SigLIP2", modalities=_SEEN, pooled=_vision_width, patches=_siglip2_patches)
CLAP = EncoderKind(name="CLAP", modalities=(Modality.AUDIO,), pooled=_clap_pooled, patches=_clap_patches)
# What a library notes about itself.
_OF_LIBRARY = ("transformers_version", "_name_or_path")
# By transformers' `model_type`. SigLIP2 of a fixed size is published as `siglip`.
_BY_TYPE = {
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "siglip2": SIGLIP2,
    "siglip2_vision_model": SIGLIP2,
    "clap": CLAP,
    "clap_audio_model": CLAP,
}


def read_encoder(name: str) -> tuple[EncoderKind, dict[str, Any]]:
    """The kind of a named encoder (built-in part, file, folder or hub id), and its configuration.

    Raises:
        ValueError: it is of no kind that is known.
        OSError: there is no such encoder.
    """
    path = Path(resolve(name))
    if path.is_file():  # the released ImageBind, whose file does not tell its sizes
        return IMAGEBIND, {}
    config = _read_file(name, "config.json")
    kind = config.get("model_type")
    config = {key: value for key, value in config.items() if key not in _OF_LIBRARY}
    if kind is None:
        return IMAGEBIND, config
    if kind not in _BY_TYPE:
        known = ", ".join(dict.fromkeys(one.name for one in (IMAGEBIND, *_BY_TYPE.values())))
        raise ValueError(f"{name}: is a {kind}, not one of the encoders known here; use {known}")
    return _BY_TYPE[kind], config


def read_processor(name: str, section: str) -> dict[str, Any]:
    """The settings of an encoder's preprocessing: a file of their own, or a section of that of all its processors."""
    try:
        values = _read_file(name, "preprocessor_config.json")
    except OSError:
        values = _read_file(name, "processor_config.json")[section]
    return {key: value for key, value in values.items() if key not in _OF_LIBRARY}


def _read_file(name: str, file: str) -> dict[str, Any]:
    path = Path(resolve(name))
    if not path.is_dir():
        from huggingface_hub import hf_hub_download

        return dict(json.loads(Path(hf_hub_download(name, file)).read_text(encoding="utf-8")))
    return dict(read_json(path / file))


def patch_bins(grid: Grid, patches: int) -> Grid:
    """Into how many bins each axis of a grid is divided to make so many patches of it.

    Cells are as nearly square as can be, and then as long in frames as they are high and wide.

    Raises:
        ValueError: no whole bins give this number.
    """
    frames, rows, columns = (range(1, extent + 1) for extent in grid)
    possible = {bins: prod(bins) for bins in product(frames, rows, columns)}
    found = [bins for bins, number in possible.items() if number == patches]
    if not found:
        nearest = min(possible.values(), key=lambda number: (abs(number - patches), number))
        raise ValueError(f"{patches} patches cannot be made of {'x'.join(map(str, grid))}; use {nearest}")

    def unevenness(bins: Grid) -> tuple[float, float, Grid]:
        frame, row, column = (extent / number for extent, number in zip(grid, bins, strict=True))
        # Along an axis of one there is nothing to divide.
        cells = [row, column] if grid[0] == 1 else [frame, row, column]
        return max(row, column) / min(row, column), max(cells) / min(cells), bins

    return min(found, key=unevenness)


def encoder_shape(name: str, modality: Modality, patches: int | None) -> tuple[int, ...]:
    """The shape of an item's embedding by a named encoder: (E,) if pooled, else (patches, E).

    Raises:
        ValueError: the encoder is of no known kind, does not take the modality, or cannot make so many patches.
        OSError: there is no such encoder.
    """
    kind, config = read_encoder(described(name))
    if modality not in kind.modalities:
        takes = " and ".join(one.value for one in kind.modalities)
        raise ValueError(f"{name}: {kind.name} embeds {takes}, not {modality}; name an encoder of {modality}")
    if patches is None:
        return (kind.pooled(config),)
    try:
        width, grid = kind.patches(config, modality)
        patch_bins(grid, patches)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None
    return patches, width


def encoder_shapes(name: str, patches: int | None) -> dict[Modality, tuple[int, ...]]:
    """The shapes of `encoder_shape`, of the modalities of which the encoder can make so many patches.

    Raises:
        ValueError: there is none.
        OSError: there is no such encoder.
    """
    kind, _ = read_encoder(name)
    shapes, reasons = dict[Modality, tuple[int, ...]](), list[ValueError]()
    for modality in kind.modalities:
        try:
            shapes[modality] = encoder_shape(name, modality, patches)
        except ValueError as error:
            reasons.append(error)
    if not shapes:
        raise reasons[0]
    return shapes


def encoder_mistakes(config: EncoderConfig, modality: Modality | None) -> list[str]:
    """What is wrong with the encoder under a key of `EncoderConfig.inputs`, one line each.

    It is judged by its configuration file, or its description; nothing is wrong where neither is here.
    """
    found, encoder = list[str](), config.inputs[modality]
    for one in Modality if modality is None else (modality,):
        try:
            *_, dim = encoder_shape(encoder.name, one, encoder.patches)
        except ValueError as error:
            found.append(str(error))
        except OSError:
            continue
        else:
            if dim != encoder.dim:
                what = "the pooled vector" if encoder.patches is None else "a patch"
                found.append(f"{encoder.name}: {what} of {one} is {dim} wide, not {encoder.dim}; set dim to {dim}")
    return found
