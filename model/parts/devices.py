"""The device of this process, and its memory."""

import ctypes
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def best_device() -> str:
    """`cuda` if this process has a GPU, else `cpu`.

    On a CPU this also tells DeepSpeed, which transformers and peft import if installed: it would otherwise search for
    an accelerator and warn that it found none.
    """
    if torch.cuda.is_available():
        return "cuda"
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return "cpu"


def give_back_memory() -> None:
    """Returns freed memory to the system: glibc otherwise keeps what a large batch used on the CPU."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return


class MappedFiles:
    """The files mapped into this process, of which the pages that were read count as its memory."""

    def __init__(self) -> None:
        maps = Path("/proc/self/maps")  # Linux has it; elsewhere nothing is forgotten
        lines = [line.split(maxsplit=5) for line in maps.read_text().splitlines()] if maps.is_file() else []
        spans = (line[0].split("-") for line in lines if len(line) == 6 and line[5].startswith("/"))
        self._spans = [(int(start, 16), int(end, 16)) for start, end in spans]

    def forget(self, tensor: Tensor) -> None:
        """Gives back the pages of a contiguous, unchanged tensor in a mapped file; they are read again if needed.

        A tensor elsewhere in memory is left alone.
        """
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if not any(start <= first and last <= end for start, end in self._spans):
            return
        page = mmap.PAGESIZE
        first, last = -(-first // page) * page, last // page * page
        if last > first:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class Sent:
    """Arrays on their way to a device, as tensors of the same shapes."""

    tensors: list[Tensor]
    arrived: torch.cuda.Event | None

    def take(self) -> list[Tensor]:
        """The tensors; what is computed with them next waits until they are there."""
        if self.arrived:
            stream = torch.cuda.current_stream(self.tensors[0].device)
            stream.wait_event(self.arrived)
            for tensor in self.tensors:
                tensor.record_stream(stream)  # their memory was taken by the other stream
        return self.tensors


class Sender:
    """Moves arrays to a device while it computes: from pinned memory, on a stream of its own. On a CPU they stay."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        stream: Any = torch.cuda.Stream
        self._stream = stream(device) if device.type == "cuda" else None

    def send(self, arrays: Sequence[npt.NDArray[Any]]) -> Sent:
        """Begins to move arrays; those of one shape go together."""
        places: dict[tuple[Any, ...], list[int]] = {}
        for place, array in enumerate(arrays):
            places.setdefault((array.dtype.str, array.shape), []).append(place)
        moved: dict[int, Tensor] = {}
        for chosen in places.values():
            batch = self._move(np.stack([arrays[place] for place in chosen]))
            moved |= zip(chosen, batch.unbind(), strict=True)
        arrived = self._stream.record_event() if self._stream and moved else None
        return Sent([moved[place] for place in range(len(arrays))], arrived)

    def _move(self, batch: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(batch)
        if self._stream is None:
            return tensor
        with torch.cuda.stream(self._stream):
            return tensor.pin_memory().to(self._device, non_blocking=True)
