"""A medium that is asked for, and how far it is. Imports no deep learning library, unlike what renders it."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.sample import Modality


class Wish(NamedTuple):
    """A medium to render from a decoder's condition (L, D) or a caption, and the seed of its noise.

    `settings` override the decoder's defaults, as in `Decoder.generate_batch`: steps, guidance, sizes.
    """

    modality: Modality
    condition: npt.NDArray[np.float32] | str
    seed: int
    settings: Mapping[str, Any] = {}

    @property
    def kind(self) -> Hashable:
        """A key that is equal for wishes that fit into one batch."""
        return self.modality, tuple(sorted(self.settings.items()))


@dataclass(frozen=True, slots=True)
class RenderStep:
    """Progress of a medium: `done` denoising steps of `total`."""

    done: int
    total: int
