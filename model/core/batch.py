"""Batches of examples: padded ids, features and targets with their positions.

Suffixes: B rows, T tokens, N input items, M output items of a modality, L condition length, D condition width,
K output items of a modality that have latents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from model.core.dialogue import IGNORE, EncodedDialogue
from model.parts.features import Array, ItemFeatures, key_of
from pipelines.sample import Modality


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A dialogue with its precomputed embeddings.

    `features`: those of the named input items, in order; see `parts.features`. `targets`: for each output modality, the
    items' caption embeddings (M, L, D), in order, and their lengths in tokens (M). `latents` (K, ...): those of the
    items that have a medium. All may cover more items than fit into the dialogue. A modality without targets has no
    alignment loss, one without latents no denoising loss.
    """

    key: str
    dialogue: EncodedDialogue
    features: ItemFeatures = field(default_factory=dict)
    targets: Mapping[Modality, tuple[Array, Sequence[int]]] = field(default_factory=dict)
    latents: Mapping[Modality, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """One modality's signal token groups and the caption embeddings they are projected to.

    `embeddings_MLD` is float32, `lengths_M` the captions' lengths in tokens. Each group starts at `rows_M`,
    `positions_M` and has `group_length` tokens. `latents_K` (K, ...), float32, belong to groups `latent_items_K`.
    """

    embeddings_MLD: Tensor
    lengths_M: Tensor
    rows_M: Tensor
    positions_M: Tensor
    group_length: int
    latents_K: Tensor
    latent_items_K: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFeatures:
    """Embeddings of input items, (N, E) or (N, P, E), float32; the tokens of each start at `rows_N`, `positions_N`."""

    values_N: Tensor
    rows_N: Tensor
    positions_N: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples right-padded to a common length; all positions are int64.

    `features` are by modality, or under None where one encoder embeds all; only of those that are in the batch.
    """

    input_ids_BT: Tensor
    labels_BT: Tensor
    attention_mask_BT: Tensor
    features: dict[Modality | None, InputFeatures]
    targets: dict[Modality, Targets]
    keys: tuple[str, ...]

    @property
    def sizes(self) -> tuple[float, float, float]:
        """The numbers of samples, of tokens without padding, and of tokens with it; all 0 for an empty batch."""
        if not self.keys:
            return 0.0, 0.0, 0.0
        return float(len(self.keys)), float(self.attention_mask_BT.sum()), float(self.attention_mask_BT.numel())

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Batch":
        """Moves all tensors to a device; `dtype` applies to the features, targets stay float32."""
        targets = {modality: _moved(group, device) for modality, group in self.targets.items()}
        features = {key: _moved(items, device) for key, items in self.features.items()}
        if dtype is not None:
            features = {key: replace(items, values_N=items.values_N.to(dtype)) for key, items in features.items()}
        return replace(_moved(self, device), targets=targets, features=features)

    def with_items_shuffled(self) -> "Batch":
        """Gives each item the features and caption embedding of the previous item embedded alike in the batch."""
        targets = {
            modality: replace(
                group, embeddings_MLD=group.embeddings_MLD.roll(1, 0), lengths_M=group.lengths_M.roll(1, 0)
            )
            for modality, group in self.targets.items()
        }
        features = {key: replace(items, values_N=items.values_N.roll(1, 0)) for key, items in self.features.items()}
        return replace(self, features=features, targets=targets)


_T = TypeVar("_T", Batch, Targets, InputFeatures)


def _moved(value: _T, device: torch.device | str) -> _T:
    names = [name for name in value.__slots__ if isinstance(getattr(value, name), Tensor)]
    return replace(value, **{name: getattr(value, name).to(device, non_blocking=True) for name in names})


def collate(examples: Sequence[Example], pad_id: int = 0) -> Batch:
    """Collates examples; an empty list gives one row of one masked token, which has no loss.

    Raises ValueError naming a sample with too few features or targets, or with shapes that differ from the others'.
    """
    dialogues = [example.dialogue for example in examples]
    rows = [dialogue.input_ids for dialogue in dialogues] or [[pad_id]]
    length = max(map(len, rows))
    return Batch(
        input_ids_BT=_padded(rows, length, pad_id),
        labels_BT=_padded([dialogue.labels for dialogue in dialogues] or [[IGNORE]], length, IGNORE),
        attention_mask_BT=_padded([[1] * len(row) for row in rows], length, 0),
        features={key: items for key in (None, *Modality) if (items := _features(examples, key)) is not None},
        targets={m: group for m in Modality if (group := _targets(examples, m)) is not None},
        keys=tuple(example.key for example in examples),
    )


def _padded(rows: list[list[int]], length: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows], dtype=torch.long)


def _features(examples: Sequence[Example], key: Modality | None) -> InputFeatures | None:
    arrays, rows, positions = [], list[int](), list[int]()
    for row, example in enumerate(examples):
        slots = [place for item, place in example.dialogue.input_positions if key_of(item, example.features) == key]
        values = example.features.get(key, ())
        if len(values) < len(slots):
            raise ValueError(f"{example.key}: {len(slots)} input items but features for {len(values)}; run embed again")
        if slots:
            arrays.append(example.features[key][: len(slots)])
        rows += [row] * len(slots)
        positions += slots
    if not arrays:
        return None
    return InputFeatures(
        values_N=_joined(arrays, [examples[row].key for row in dict.fromkeys(rows)], "features"),
        rows_N=torch.tensor(rows, dtype=torch.long),
        positions_N=torch.tensor(positions, dtype=torch.long),
    )


def _targets(examples: Sequence[Example], modality: Modality) -> Targets | None:
    arrays, lengths, rows, positions, keys, group_length = [], list[int](), list[int](), list[int](), list[str](), 0
    latents, latent_items, latent_keys = [], list[int](), list[str]()
    for row, example in enumerate(examples):
        groups = [group for group in example.dialogue.output_groups if group[0].modality is modality]
        if not groups or modality not in example.targets:
            continue
        embeddings, caption_lengths = example.targets[modality]
        if min(len(embeddings), len(caption_lengths)) < len(groups):
            raise ValueError(
                f"{example.key}: {len(groups)} {modality.value} items in its answers but caption embeddings for "
                f"{len(embeddings)}; run embed again"
            )
        if modality in example.latents and (named := [place for place, (item, *_) in enumerate(groups) if item.name]):
            latents.append(_latents(example, modality, len(named)))
            latent_items += [len(rows) + place for place in named]
            latent_keys.append(example.key)
        keys.append(example.key)
        arrays.append(embeddings[: len(groups)])
        lengths += list(caption_lengths[: len(groups)])
        rows += [row] * len(groups)
        positions += [start for _, start, _ in groups]
        group_length = groups[0][2]
    if not arrays:
        return None
    return Targets(
        embeddings_MLD=_joined(arrays, keys, f"{modality.value} caption embeddings"),
        lengths_M=torch.tensor([int(length) for length in lengths], dtype=torch.long),
        rows_M=torch.tensor(rows, dtype=torch.long),
        positions_M=torch.tensor(positions, dtype=torch.long),
        group_length=group_length,
        latents_K=_joined(latents, latent_keys, f"{modality.value} latents"),
        latent_items_K=torch.tensor(latent_items, dtype=torch.long),
    )


def _latents(example: Example, modality: Modality, count: int) -> Array:
    latents = example.latents[modality]
    if len(latents) < count:
        raise ValueError(
            f"{example.key}: {count} {modality.value} media in its answers but latents for {len(latents)}; "
            "run embed --latents again"
        )
    return latents[:count]


def _joined(arrays: list[Array], keys: list[str], what: str) -> Tensor:
    """Concatenates arrays as float32 along the first axis; the other axes must match."""
    for array, key in zip(arrays, keys, strict=True):
        if array.shape[1:] != arrays[0].shape[1:]:
            shapes = f"{array.shape[1:]}, but {arrays[0].shape[1:]} in {keys[0]}"
            raise ValueError(f"{key}: {what} of shape {shapes}; embed both with the same model")
    return torch.from_numpy(np.concatenate(arrays).astype(np.float32)) if arrays else torch.zeros(0)
