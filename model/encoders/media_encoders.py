"""The encoders of a model's input media, of whatever kinds: which embeds what, and in what order."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model.encoders.frozen import FrozenEncoder
from model.parts.config import EncoderConfig
from model.parts.encoder_kinds import CLAP, IMAGEBIND, read_encoder
from model.parts.features import ItemFeatures
from model.parts.mixed_precision import Precision
from pipelines.sample import Audio, Decoded, Image, Modality


def load_encoder(
    name: str, *, patches: int | None = None, device: str = "cpu", precision: Precision = "float32"
) -> FrozenEncoder:
    """Loads the encoder of a built-in part, file, folder or hub id; raises ValueError for one of unknown kind."""
    kind, _ = read_encoder(name)
    if kind is IMAGEBIND:
        from model.encoders.imagebind_encoder import ImageBindEncoder

        return ImageBindEncoder(name, device=device, precision=precision, patches=patches)
    if kind is CLAP:
        from model.encoders.clap_encoder import ClapEncoder

        return ClapEncoder(name, device=device, precision=precision, patches=patches)
    from model.encoders.siglip_encoder import SiglipEncoder

    return SiglipEncoder(name, device=device, precision=precision, patches=patches)


class MediaEncoders:
    """The encoders of a configuration, loaded once; those of one name and setting are loaded together."""

    def __init__(self, config: EncoderConfig, device: str = "cpu") -> None:
        self._config = config
        loaded = {
            encoder: load_encoder(encoder.name, patches=encoder.patches, device=device) for encoder in config.shared
        }
        self._encoders = {modality: loaded[encoder] for modality, encoder in config.inputs.items()}

    def of(self, modality: Modality) -> FrozenEncoder | None:
        """The encoder of a modality, if it has one."""
        return self._encoders.get(modality, self._encoders.get(None))

    def __call__(self, dialogues: Sequence[Sequence[Decoded]]) -> list[ItemFeatures]:
        """The embeddings of each dialogue's media; those of all dialogues are made together.

        Raises:
            ValueError: there is no encoder for a medium.
        """
        check_inputs(self._config, [medium for media in dialogues for medium in media])
        made = [dict[Modality | None, npt.NDArray[np.floating]]() for _ in dialogues]
        for modality, encoder in self._encoders.items():
            own = [[one for one in media if modality in (None, modality_of(one))] for media in dialogues]
            if not any(own):
                continue
            rows = encoder([one for media in own for one in media])
            ends = np.cumsum([len(media) for media in own])[:-1]
            for found, part in zip(made, np.split(rows, ends), strict=True):
                if len(part):
                    found[modality] = part
        return list(made)


def check_inputs(config: EncoderConfig, media: Sequence[Decoded]) -> None:
    """Raises ValueError if there is no encoder for one of the media."""
    for modality in dict.fromkeys(map(modality_of, media)):
        if modality not in config.by_modality:
            raise ValueError(f"{modality}: this model has no encoder for it; it takes {', '.join(config.by_modality)}")


def modality_of(medium: Decoded) -> Modality:
    """The modality of a decoded medium."""
    if isinstance(medium, Image):
        return Modality.IMAGE
    return Modality.AUDIO if isinstance(medium, Audio) else Modality.VIDEO
