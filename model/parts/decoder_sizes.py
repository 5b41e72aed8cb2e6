"""How many weights a decoder has, from its files' headers; of the published ones it is known."""

import json
import struct
from math import prod
from pathlib import Path

from model.parts.builtin import resolve
from model.parts.families import MODELS

# Of the files on the hub: UNet, VAE, text encoder, vocoder; no safety checker.
_PUBLISHED = {
    "stable-diffusion-v1-5": 1_066_000_000,
    "zeroscope_v2_576w": 1_836_000_000,
    "audioldm-l-full": 975_000_000,
}


def decoder_weights(name: str) -> int | None:
    """The number of weights of a decoder, named as in a preset; None where neither its files nor its name tell."""
    folder = Path(resolve(name))
    if folder.is_dir():
        counts = [_stored(folder / model) for model in MODELS if (folder / model).is_dir()]
        return None if None in counts else sum(count for count in counts if count is not None)
    return _PUBLISHED.get(name.rpartition("/")[2])


def _stored(folder: Path) -> int | None:
    """Weights in the safetensors files of a folder that are in its main variant."""
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.name.count("."))
    if not files:
        return None
    plainest = files[0].name.count(".")  # diffusion_pytorch_model.fp16.safetensors holds the same again
    return sum(_numel(path) for path in files if path.name.count(".") == plainest)


def _numel(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
    return sum(map(prod, shapes))
