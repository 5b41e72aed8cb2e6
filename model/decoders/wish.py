"""A medium that is asked for, and how far it is. Imports no deep learning library, unlike what renders it."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.sample import Modality


class Wish(NamedTuple):
    """A medium to render from a decoder's condition (L, D) or a caption, and the seed of its noise.

    `settings` override the decoder's defaults, as in `Decoder.generate_batch`: steps, guidance, sizes. `negative` is
    the null condition (L, D) of a model that learned its own; without it, the decoder's embedding of an empty text.
    """

    modality: Modality
    condition: npt.NDArray[np.float32] | str
    seed: int
    settings: Mapping[str, Any] = {}
    negative: npt.NDArray[np.float32] | None = None

    @property
    def kind(self) -> Hashable:
        """A key that is equal for wishes that fit into one batch."""
        negative = b"" if self.negative is None else self.negative.tobytes()
        return self.modality, tuple(sorted(self.settings.items())), negative


@dataclass(frozen=True, slots=True)
class RenderStep:
    """Progress of a medium: `done` denoising steps of `total`."""

    done: int
    total: int
