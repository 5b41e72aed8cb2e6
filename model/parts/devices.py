"""The device a process works on."""

import ctypes
import os

import torch


def best_device() -> str:
    """The GPU where this process has one, else the CPU.

    DeepSpeed, which transformers and peft import where it is installed, searches for an accelerator and warns when
    there is none: it is told.
    """
    if torch.cuda.is_available():
        return "cuda"
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return "cpu"


def give_back_memory() -> None:
    """Hands memory that was freed back to the system: glibc keeps what a large batch took on the CPU."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return
