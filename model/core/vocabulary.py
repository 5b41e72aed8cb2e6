"""The ids of the tokens a model adds to its LLM: item brackets and signal tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from pipelines.sample import Modality

BEGIN_ITEM = "<Img>"
END_ITEM = "</Img>"
_STEMS = {Modality.IMAGE: "IMG", Modality.VIDEO: "VID", Modality.AUDIO: "AUD"}


@dataclass(frozen=True)
class SignalVocabulary:
    """New ids directly after a base vocabulary of `base_size`: the brackets, then a group of signal tokens a modality.

    `groups` holds the length of each modality's group; the groups stand in the order of `Modality`.
    """

    base_size: int
    groups: Mapping[Modality, int]

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The new tokens' texts in the order of their ids."""
        signals = [f"[{_STEMS[m]}{i}]" for m in self.modalities for i in range(self.groups[m])]
        return (BEGIN_ITEM, END_ITEM, *signals)

    @cached_property
    def modalities(self) -> tuple[Modality, ...]:
        """The output modalities in the order of their ids."""
        return tuple(modality for modality in Modality if modality in self.groups)

    @property
    def total_size(self) -> int:
        """Base and new tokens together."""
        return self.base_size + len(self.tokens)

    @property
    def begin_item(self) -> int:
        """The id of `<Img>`."""
        return self.base_size

    @property
    def end_item(self) -> int:
        """The id of `</Img>`."""
        return self.base_size + 1

    @cached_property
    def _group_ids(self) -> dict[Modality, tuple[int, ...]]:
        lengths = [self.groups[modality] for modality in self.modalities]
        starts = accumulate(lengths, initial=self.base_size + 2)
        return {
            modality: tuple(range(start, start + length))
            for modality, start, length in zip(self.modalities, starts, lengths, strict=False)
        }

    def group(self, modality: Modality) -> tuple[int, ...]:
        """The ids of a modality's signal tokens, first to last."""
        return self._group_ids[modality]

    @cached_property
    def first_ids(self) -> dict[int, Modality]:
        """The modality that each group's first id opens."""
        return {ids[0]: modality for modality, ids in self._group_ids.items()}
