"""The embeddings of a dialogue's input items, in the order they stand: of all by one encoder, or of each modality."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pipelines.sample import Item, Modality, Turn

Array = npt.NDArray[np.floating]
# By modality, (N, E) or, of P patches, (N, P, E); where one encoder embeds the items of all, under None.
ItemFeatures = Mapping[Modality | None, Array]


def input_items(turns: Sequence[Turn]) -> list[Item]:
    """The named items of the user's turns: those that have an embedding."""
    parts = [part for turn in turns if turn.role == "user" for part in turn.parts]
    return [part for part in parts if isinstance(part, Item) and part.name]


def by_encoder(features: ItemFeatures | Array | None) -> ItemFeatures:
    """Features by modality; an array is of all items."""
    if features is None:
        return {}
    return {None: features} if isinstance(features, np.ndarray) else features


def key_of(item: Item, features: ItemFeatures) -> Modality | None:
    """Under which key of features an item's are."""
    return item.modality if item.modality in features else None


def first(features: ItemFeatures, items: Sequence[Item]) -> ItemFeatures:
    """The features of the first items, which are these."""
    return {key: values[: _count(key, items)] for key, values in features.items()}


def after(features: ItemFeatures, items: Sequence[Item]) -> ItemFeatures:
    """The features without those of the first items, which are these."""
    return {key: values[_count(key, items) :] for key, values in features.items()}


def _count(key: Modality | None, items: Sequence[Item]) -> int:
    return sum(key in (None, item.modality) for item in items)


def check_features(features: ItemFeatures, items: Sequence[Item]) -> None:
    """Raises ValueError unless there is one embedding for each item."""
    given = sum(map(len, features.values()))
    if given != len(items):
        raise ValueError(
            f"features for {given} items, but the turns contain {len(items)} named ones; give one for each"
        )
    for key, values in features.items():
        if len(values) != _count(key, items):
            raise ValueError(f"features for {len(values)} items of {key}, but the turns contain {_count(key, items)}")
