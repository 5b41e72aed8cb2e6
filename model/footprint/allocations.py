"""Counts what tensors take: code run on the meta device computes nothing, but allocates and frees as it would.

What a kernel takes for itself while it runs is not seen; `fused_attention` stands for the one where that matters.
"""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, `now` and `peak` are the bytes of the tensors made since; those that were there `before` cost nothing.

    Meta tensors have no values. Code that asks for one (is nothing masked?) is told True, and a mask selects
    `num_selected` places, whatever is indexed by it.
    """

    def __init__(self, before: Iterable[Tensor], num_selected: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._num_selected = num_selected
        self._before = {tensor.untyped_storage()._cdata for tensor in before}
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _ATEN._local_scalar_dense.default:
            return True
        result = self._selected(*args) if _is_masked(func, args) else func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
        return result

    def _selected(self, values: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
        mask = indices[0]
        assert mask is not None
        return values.new_empty(self._num_selected, *values.shape[mask.ndim :])

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._before or key in self._storages:
            return

        def freed(_: Any) -> None:
            self.now -= size
            del self._storages[key]

        self._storages[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within it, attention takes what fused kernels take: its output and a float32 a row, never a matrix of scores.

    On the meta device PyTorch would choose the kernel that writes all scores out. It is put in the function's place,
    since modes of PyTorch do not reach what gradient checkpointing computes again.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _ATEN._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True)[0]

    with patch.object(functional, "scaled_dot_product_attention", attend):
        yield


def _is_masked(func: Any, args: Sequence[Any]) -> bool:
    """Whether values are taken by a mask, how many of which are set nobody knows."""
    return func is _ATEN.index.Tensor and args[1][0] is not None and args[1][0].dtype is torch.bool
