"""The device a process works on."""

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
