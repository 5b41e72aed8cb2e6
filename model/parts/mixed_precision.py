"""Frozen models in mixed precision: matrix products in bfloat16, accumulations in float32."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def use_bfloat16(model: nn.Module) -> None:
    """Casts the linear and convolutional layers of a frozen float32 model to bfloat16, in place.

    Embeddings, layer norms and the residual stream stay in float32: in bfloat16 the rounding errors of the residual
    stream would accumulate over layers, for no gain in speed. Autocast would recast the weights on every call.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(_halve)
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(_widen)


def _halve(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].to(torch.bfloat16), *inputs[1:])


def _widen(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """A norm may follow at once, and takes the type of its own weights alone."""
    return output.float()
