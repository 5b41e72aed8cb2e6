"""The tokens that a model adds to its LLM: item brackets and signal tokens."""

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
    """New ids directly after a base vocabulary of `base_size`: the brackets, then each modality's signal tokens.

    `groups` holds the number of signal tokens of each modality; ids follow the order of `Modality`.
    """

    base_size: int
    groups: Mapping[Modality, int]

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The new tokens, as text, in order of id."""
        signals = [f"[{_STEMS[m]}{i}]" for m in self.modalities for i in range(self.groups[m])]
        return (BEGIN_ITEM, END_ITEM, *signals)

    @cached_property
    def modalities(self) -> tuple[Modality, ...]:
        """The output modalities, in order of id."""
        return tuple(modality for modality in Modality if modality in self.groups)

    @property
    def total_size(self) -> int:
        """The number of base and new tokens."""
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
        """The modality of each group, by the group's first id."""
        return {ids[0]: modality for modality, ids in self._group_ids.items()}
