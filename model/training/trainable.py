"""What a stage trains, for people and for files: names, shapes and numbers of weights."""

import re
from collections.abc import Iterable, Sequence
from math import prod
from typing import TypedDict

from torch import Tensor, nn

# What tells alike tensors apart: numbers of layers, and modalities.
_VARYING = re.compile(r"(?<=\.)(?:\d+|image|video|audio)(?=\.)")


class TensorRow(TypedDict):
    """A tensor's name, its shape and the number of its weights."""

    name: str
    shape: list[int]
    count: int


def trainable_table(model: nn.Module, names: Iterable[str]) -> list[TensorRow]:
    """Rows of the parameters with these names, in the order given."""
    parameters = dict(model.named_parameters())
    shapes = {name: list(_shape(parameters[name])) for name in names}
    return [{"name": name, "shape": shape, "count": prod(shape)} for name, shape in shapes.items()]


def num_weights(model: nn.Module) -> int:
    """The number of all weights, trained or not."""
    return sum(prod(_shape(parameter)) for parameter in model.parameters())


def _shape(parameter: Tensor) -> Sequence[int]:
    """The whole tensor's shape, also where this rank holds a part of it (ZeRO-3) or it is packed (4 bits)."""
    packed = getattr(parameter, "quant_state", None)
    return tuple(getattr(parameter, "ds_shape", None) or getattr(packed, "shape", None) or parameter.shape)


def format_manifest(rows: Sequence[TensorRow], total: int) -> str:
    """A table of what trains, alike tensors on one line: name, shape, number of tensors, number of weights.

    Numbers of layers and modalities are folded (`layers.{0..31}`). The last line gives their share of `total` weights.
    """
    groups: dict[tuple[str, str], list[TensorRow]] = {}
    for row in rows:
        groups.setdefault((_VARYING.sub("*", row["name"]), "x".join(map(str, row["shape"]))), []).append(row)
    cells = [
        (_folded([row["name"] for row in group]), shape, f"x{len(group)}", f"{sum(row['count'] for row in group):,}")
        for (_, shape), group in groups.items()
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"{n:<{widths[0]}}  {s:>{widths[1]}}  {t:>{widths[2]}}  {c:>{widths[3]}}" for n, s, t, c in cells]
    trained = sum(row["count"] for row in rows)
    return "\n".join([*lines, f"{trained:,} of {total:,} weights train ({trained / total:.2%})"])


def _folded(names: Sequence[str]) -> str:
    """One name for all: where they differ, the values between braces."""
    places = zip(*(_VARYING.findall(name) for name in names), strict=True)
    values = iter([_values(list(dict.fromkeys(place))) for place in places])
    return _VARYING.sub(lambda match: next(values), names[0])


def _values(seen: list[str]) -> str:
    if len(seen) == 1:
        return seen[0]
    if all(value.isdigit() for value in seen):
        numbers = sorted(map(int, seen))
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{{{numbers[0]}..{numbers[-1]}}}"
    return f"{{{','.join(seen)}}}"
