"""Products with frozen weights of 16 bits, on processors that have no instructions for them.

There PyTorch multiplies bfloat16 element by element: on AVX2 the gradient of a linear layer takes sixty times as long
as after its weights are widened to float32, piece by piece. Sums are made in float32 either way.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

# Fewer rows are faster as they are: reading the weights is all that takes time.
_MANY_ROWS = 48
_PIECE = 2**24  # weights widened at once: 64 MB


def widen_products(llm: nn.Module) -> None:
    """Lets the frozen linear layers of a model on a CPU compute in float32 where that is the faster way.

    Weights that are trained, or spread over ranks by ZeRO-3, are multiplied as ever.
    """
    for module in llm.modules():
        if type(module) is nn.Linear and _is_slow(module.weight):
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _is_slow(weight: Tensor) -> bool:
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    is_supported = supported.get(weight.dtype)
    return (
        weight.device.type == "cpu" and is_supported is not None and not is_supported() and not hasattr(weight, "ds_id")
    )


def _forward(module: nn.Linear, input: Tensor) -> Tensor:
    if module.weight.requires_grad:
        return linear(input, module.weight, module.bias)
    product: Tensor = _Product.apply(input, module.weight)  # type: ignore[no-untyped-call]
    return product if module.bias is None else product + module.bias


class _Product(torch.autograd.Function):
    """`input @ weight.T`: (..., I) by (O, I) to (..., O)."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        if input.numel() // input.shape[-1] < _MANY_ROWS:
            return linear(input, weight)
        wide = input.float()
        return torch.cat([(wide @ weight[piece].float().T).to(input.dtype) for piece in _pieces(weight)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (weight,) = grads, ctx.saved_tensors
        wide = grad.float()
        total = sum(wide[..., piece] @ weight[piece].float() for piece in _pieces(weight))
        return total.to(grad.dtype), None  # type: ignore[union-attr]


def _pieces(weight: Tensor) -> Iterator[slice]:
    length = max(1, _PIECE // weight.shape[1])
    return (slice(start, start + length) for start in range(0, len(weight), length))
