"""What a decoder is told: a sequence, with a mask where it takes one, and a pooled vector; and both as one array.

Shape suffixes: N items, R rows of a condition as one array, L positions, D width, P width of a pooled vector.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from model.parts.family_table import ConditionShape


class Condition(NamedTuple):
    """What a decoder is told of N items; `mask_NL` is True where it looks, None if it always looks everywhere.

    Seconds and sizes, which some decoders are told too, are settings of a rendering: see `Decoder.generate_batch`.
    """

    sequence_NLD: Tensor
    mask_NL: Tensor | None
    pooled_NP: Tensor


def to_rows(shape: ConditionShape, condition: Condition) -> Tensor:
    """A condition as one array (N, R, D), see `ConditionShape`; positions outside the mask become zeros."""
    sequence_NLD, mask_NL, pooled_NP = condition
    if mask_NL is not None:
        sequence_NLD = sequence_NLD.masked_fill(~mask_NL[..., None], 0.0)
    missing = shape.pooled_rows * shape.dim - shape.pooled
    pooled_NRD = functional.pad(pooled_NP, (0, missing)).reshape(len(pooled_NP), shape.pooled_rows, shape.dim)
    return torch.cat([sequence_NLD[:, :1], pooled_NRD, sequence_NLD[:, 1:]], dim=1)


def from_rows(shape: ConditionShape, rows_NRD: Tensor) -> Condition:
    """What `to_rows` made one array of; a decoder looks where there are no zeros, which a projection never gives."""
    first = min(shape.length, 1)
    begin_NLD, pooled_NRD, rest_NLD = torch.split(rows_NRD, [first, shape.pooled_rows, shape.length - first], dim=1)
    sequence_NLD = torch.cat([begin_NLD, rest_NLD], dim=1)
    mask_NL = (sequence_NLD != 0).any(-1) if shape.masked else None
    return Condition(sequence_NLD, mask_NL, pooled_NRD.flatten(1)[:, : shape.pooled])
