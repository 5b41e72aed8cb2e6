"""What prepares media for an encoder of whatever kind, on any CPU, without its weights."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy.typing as npt

from model.parts.builtin import resolve
from model.parts.encoder_kinds import CLAP, IMAGEBIND, read_encoder
from pipelines.sample import Decoded


class PrepareMedia(Protocol):
    """Makes what an encoder takes of media, without its weights."""

    def __call__(self, media: Sequence[Decoded], /) -> list[npt.NDArray[Any]]:
        """One array a medium, whose type and number of axes tell what it is of."""
        ...


def media_inputs(name: str) -> PrepareMedia:
    """What prepares media for a named encoder; raises as `encoder_kinds.read_encoder`."""
    kind, _ = read_encoder(name)
    if kind is IMAGEBIND:
        from model.encoders.imagebind_inputs import MediaInputs, image_size

        return MediaInputs(image_size(resolve(name)))
    if kind is CLAP:
        from model.encoders.clap_inputs import MelInputs

        return MelInputs(name)
    from model.encoders.siglip_inputs import PixelInputs, pixel_settings

    return PixelInputs(pixel_settings(name))
