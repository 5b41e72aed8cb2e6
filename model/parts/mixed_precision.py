"""Frozen models in mixed precision: matrix products in bfloat16, everything that adds up in float32."""

from typing import Any, Literal

import torch
from torch import nn

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def use_bfloat16(model: nn.Module) -> None:
    """Keeps the linear layers of a frozen float32 model in bfloat16; in place.

    Embeddings, layer norms and the residual stream stay in float32. With all of it in bfloat16, the rounding of the
    stream adds up from layer to layer, for no gain in speed. Autocast would do the same but cast the weights anew at
    every call.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(_halve)


def _halve(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(torch.bfloat16), *inputs[1:])
