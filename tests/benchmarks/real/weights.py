"""Files of random weights, in the formats of hubs and at the speed of the disk: any size takes little memory.

Weights are tensors by name. Those on the meta device have a shape and a dtype, and are drawn; others, such as position
ids, are written as they are.
"""

import json
import mmap
from collections.abc import Mapping
from functools import cache
from itertools import accumulate
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor
from torch.serialization import set_default_mmap_options, skip_data

Weights = Mapping[str, Tensor]

_STD = 0.02
# A prime: the rows of a matrix, whose widths are round numbers, begin at different places of the noise.
_NOISE_LENGTH = 16_777_259
_SAFETENSORS_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}


def num_bytes(weights: Weights) -> int:
    """What the tensors take in a file."""
    return sum(tensor.nbytes for tensor in weights.values())


def write_weights(weights: Weights, path: Path) -> None:
    """Writes a `.safetensors` file, or one of `torch.save` under any other name; equal weights give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    places = _reserve_safetensors(weights, path) if path.suffix == ".safetensors" else _reserve_pickled(weights, path)
    for name, place in places.items():
        if weights[name].is_meta:
            _draw(name, place)
        else:
            place.copy_(weights[name])


def _draw(name: str, place: Tensor) -> None:
    """Fills a tensor: norms with ones, biases with zeros, all else with noise that its name chooses."""
    if place.ndim == 1 and name.endswith("weight"):
        place.fill_(1)
    elif place.ndim == 1 and name.endswith("bias"):
        place.fill_(0)
    else:
        _tile(place.view(-1), crc32(name.encode()) % _NOISE_LENGTH)


def _tile(place: Tensor, start: int) -> None:
    """Copies the noise of the right dtype into a flat tensor from `start` on, again and again."""
    noise, done = _noise(place.dtype), 0
    while done < len(place):
        count = min(_NOISE_LENGTH - start, len(place) - done)
        place[done : done + count] = noise[start : start + count]
        done, start = done + count, 0


@cache
def _noise(dtype: torch.dtype) -> Tensor:
    """Normal values, drawn once: drawing billions would take longer than writing them."""
    return torch.empty(_NOISE_LENGTH).normal_(0, _STD, generator=torch.Generator().manual_seed(0)).to(dtype)


def _reserve_pickled(weights: Weights, path: Path) -> Weights:
    """A file of `torch.save` with room for the tensors, which are views of it."""
    with skip_data():  # nor is memory that is never touched taken
        torch.save({name: torch.empty(t.shape, dtype=t.dtype) for name, t in weights.items()}, path)
    with set_default_mmap_options(mmap.MAP_SHARED):
        return torch.load(path, mmap=True, weights_only=True)


def _reserve_safetensors(weights: Weights, path: Path) -> Weights:
    """As `_reserve_pickled`; safetensors itself wants all tensors in memory."""
    weights = dict(sorted(weights.items(), key=lambda item: -item[1].itemsize))  # each aligned to its own size
    ends = list(accumulate(tensor.nbytes for tensor in weights.values()))
    entries = {
        name: {"dtype": _SAFETENSORS_NAMES[t.dtype], "shape": list(t.shape), "data_offsets": [end - t.nbytes, end]}
        for (name, t), end in zip(weights.items(), ends, strict=True)
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    start = 8 + len(header)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(start + ends[-1])
    data = torch.from_numpy(np.memmap(path, np.uint8, mode="r+", offset=start))
    return {
        name: data[end - t.nbytes : end].view(t.dtype).view(t.shape)
        for (name, t), end in zip(weights.items(), ends, strict=True)
    }
