"""The trainable tensors of a stage, as a table: names, shapes and numbers of weights."""

import re
from collections.abc import Iterable, Sequence
from math import prod
from typing import TypedDict

from torch import Tensor, nn

from jobs.common.cli import aligned

# The parts of names in which similar tensors differ: layer numbers and modalities.
_VARYING = re.compile(r"(?<=\.)(?:\d+|image|video|audio)(?=\.)")


class TensorRow(TypedDict):
    """A tensor's name, its shape and the number of its weights."""

    name: str
    shape: list[int]
    count: int


def trainable_table(model: nn.Module, names: Iterable[str]) -> list[TensorRow]:
    """The rows of the named parameters, in the given order."""
    parameters = dict(model.named_parameters())
    shapes = {name: list(_shape(parameters[name])) for name in names}
    return [{"name": name, "shape": shape, "count": prod(shape)} for name, shape in shapes.items()]


def num_weights(model: nn.Module) -> int:
    """The total number of weights, trained or not."""
    return sum(prod(_shape(parameter)) for parameter in model.parameters())


def _shape(parameter: Tensor) -> Sequence[int]:
    """The full tensor's shape, even if it is sharded (ZeRO-3) or packed (4 bits)."""
    packed = getattr(parameter, "quant_state", None)
    return tuple(getattr(parameter, "ds_shape", None) or getattr(packed, "shape", None) or parameter.shape)


def format_manifest(rows: Sequence[TensorRow], total: int) -> str:
    """Formats a table with similar tensors on one line: name, shape, number of tensors, number of weights.

    Layer numbers and modalities are folded (`layers.{0..31}`). The last line gives the share of `total` weights.
    """
    groups: dict[tuple[str, str], list[TensorRow]] = {}
    for row in rows:
        groups.setdefault((_VARYING.sub("*", row["name"]), "x".join(map(str, row["shape"]))), []).append(row)
    cells = [
        (_folded([row["name"] for row in group]), shape, f"x{len(group)}", f"{sum(row['count'] for row in group):,}")
        for (_, shape), group in groups.items()
    ]
    trained = sum(row["count"] for row in rows)
    return "\n".join([*aligned(cells), f"{trained:,} of {total:,} weights train ({trained / total:.2%})"])


def _folded(names: Sequence[str]) -> str:
    """Folds names into one, with the values in which they differ in braces."""
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
