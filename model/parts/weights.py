"""A hash that identifies a set of weights."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Hashes tensors by name, dtype, shape and bytes; the mapping's order and the device do not matter.

    Returns 64 hex digits of a SHA-256.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        # A 0-d tensor cannot be viewed as bytes, and NumPy has no bfloat16: hence flatten, then view as uint8.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
