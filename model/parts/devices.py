"""The device of this process, and its memory."""

import ctypes
import os

import torch


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
