"""Writes files of random weights, in the hubs' formats, at disk speed and with little memory.

Weights are tensors by name. Those on the meta device have only a shape and dtype, and get random values; others, such
as position ids, are written unchanged.
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
# A prime, so that the rows of a matrix, with widths that are round numbers, start at different noise offsets.
_NOISE_LENGTH = 16_777_259
_SAFETENSORS_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}


def num_bytes(weights: Weights) -> int:
    """The size of the tensors in a file."""
    return sum(tensor.nbytes for tensor in weights.values())


def write_weights(weights: Weights, path: Path) -> None:
    """Writes a `.safetensors` file, or for any other suffix a `torch.save` file; equal weights give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    places = _reserve_safetensors(weights, path) if path.suffix == ".safetensors" else _reserve_pickled(weights, path)
    for name, place in places.items():
        if weights[name].is_meta:
            _draw(name, place)
        else:
            place.copy_(weights[name])


def _draw(name: str, place: Tensor) -> None:
    """Fills a tensor: norms with ones, biases with zeros, all else with noise seeded by its name."""
    if place.ndim == 1 and name.endswith("weight"):
        place.fill_(1)
    elif place.ndim == 1 and name.endswith("bias"):
        place.fill_(0)
    else:
        _tile(place.view(-1), crc32(name.encode()) % _NOISE_LENGTH)


def _tile(place: Tensor, start: int) -> None:
    """Copies noise of the right dtype into a flat tensor, repeatedly, from offset `start` of the noise."""
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
    """Creates a `torch.save` file with space for the tensors, and returns views of it."""
    with skip_data():  # untouched memory is not allocated either
        torch.save({name: torch.empty(t.shape, dtype=t.dtype) for name, t in weights.items()}, path)
    with set_default_mmap_options(mmap.MAP_SHARED):
        return torch.load(path, mmap=True, weights_only=True)


def _reserve_safetensors(weights: Weights, path: Path) -> Weights:
    """As `_reserve_pickled`; the safetensors library needs all tensors in memory."""
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
