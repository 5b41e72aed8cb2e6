"""The tiny decoders, by modality."""

from typing import Any

import pytest

from pipelines.sample import Audio, Decoded, Image, Modality, Video

each_modality = pytest.mark.parametrize("modality", list(Modality))


def name_of(modality: Modality) -> str:
    return f"builtin:tiny/{modality}_decoder"


def array_of(decoded: Decoded) -> Any:
    match decoded:
        case Image():
            return decoded.pixels
        case Video():
            return decoded.frames
        case Audio():
            return decoded.waveform
