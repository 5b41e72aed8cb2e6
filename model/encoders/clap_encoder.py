"""Embeds sounds with CLAP (Wu et al. 2023, arXiv:2211.06687).

Suffixes: N sounds, S clips, D width, F frequencies and T times of patches.
"""

import torch
from torch import Tensor

from model.encoders.clap_inputs import MOST_CLIPS, MelInputs
from model.encoders.frozen import FrozenEncoder, InputKind, encoder_id, load_frozen, products
from model.encoders.patches import pool_patches
from model.parts.encoder_kinds import encoder_shapes, patch_bins, read_encoder, read_processor
from model.parts.mixed_precision import Precision
from model.parts.weights import weights_hash
from pipelines.sample import Modality


class ClapEncoder(FrozenEncoder):
    """Embeds sounds with the audio tower of a frozen CLAP, loaded once.

    A sound's pooled vector is the mean of its clips', as the projection gives them. `patches` are averaged over time,
    in which clips follow each other, and frequency. `batch_size` counts clips.
    """

    def __init__(
        self,
        name: str,
        device: str = "cpu",
        batch_size: int = 60,
        precision: Precision = "float32",
        patches: int | None = None,
    ) -> None:
        from transformers import ClapAudioModelWithProjection

        kind, config = read_encoder(name)
        model = load_frozen(ClapAudioModelWithProjection, name)
        facts = [config.get("audio_config", config), read_processor(name, "feature_extractor")]
        facts.append(weights_hash(model.state_dict()))
        self.model = model.to(torch.device(device))
        self._products, self._patches = products(device, precision), patches
        self._bins = patch_bins(kind.patches(config, Modality.AUDIO)[1], patches) if patches else None
        super().__init__(
            id=encoder_id(name, facts, patches, precision),
            shapes=encoder_shapes(name, patches),
            prepare=MelInputs(name),
            kinds={(torch.float32, 3): InputKind(finish=Tensor.contiguous, forward=self._embed, num_clips=MOST_CLIPS)},
            device=torch.device(device),
            batch_size=batch_size,
        )

    def _embed(self, items: list[Tensor]) -> Tensor:
        clips = [len(item) for item in items]
        mels = torch.cat(items)[:, None]
        with self._products():
            found = self.model(input_features=mels, is_longer=torch.zeros(len(mels), 1, dtype=torch.bool))
        if self._bins is None:
            return torch.stack([vectors_SD.mean(0) for vectors_SD in found.audio_embeds.float().split(clips)])
        return torch.stack([self._pooled(states_SDFT) for states_SDFT in found.last_hidden_state.split(clips)])

    def _pooled(self, states_SDFT: Tensor) -> Tensor:
        assert self._bins is not None
        in_time_FTD = states_SDFT.permute(2, 0, 3, 1).flatten(1, 2)
        return pool_patches(in_time_FTD[None], self._bins)
