"""The tiny decoders, by modality."""

import pytest

from pipelines.sample import Modality

each_modality = pytest.mark.parametrize("modality", list(Modality))


def name_of(modality: Modality) -> str:
    return f"builtin:tiny/{modality}_decoder"
