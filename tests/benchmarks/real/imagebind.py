"""`imagebind_huge.pth` with all six modalities, in float32 (Girdhar et al. 2023, arXiv:2305.05665)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.architectures.imagebind import ImageBind, ImageBindConfig, Trunk
from model.architectures.imagebind_text import TextTower
from tests.benchmarks.real.layout import Layout

FILE = "imagebind_huge.pth"
_EMBED_DIM = 1024
# The weights include the learned temperatures.
_SCALES = {"text": 14.29, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tower:
    """A tower that this project does not use."""

    name: str
    width: int
    layers: int
    stem: str
    patch: tuple[int, ...]
    positions: str
    num_positions: int
    last: int  # the index of the head's linear layer

    def weights(self, layers: int) -> dict[str, Tensor]:
        """Its tensors on the meta device."""
        stem, head = f"modality_preprocessors.{self.name}.", f"modality_heads.{self.name}."
        shapes = {
            f"{stem}cls_token": (1, 1, self.width),
            f"{stem}{self.stem}.proj.weight": (self.width, *self.patch),
            f"{stem}{self.stem}.norm_layer.weight": (self.width,),
            f"{stem}{self.stem}.norm_layer.bias": (self.width,),
            f"{stem}{self.positions}": (1, self.num_positions, self.width),
            f"{head}0.weight": (self.width,),
            f"{head}0.bias": (self.width,),
            f"{head}{self.last}.weight": (_EMBED_DIM, self.width),
        }
        trunk = Trunk(self.width, layers, num_heads=1, pre_norm=False, add_bias_kv=True).state_dict()
        return {
            **{name: torch.empty(shape) for name, shape in shapes.items()},
            **{f"modality_trunks.{self.name}.{name}": tensor for name, tensor in trunk.items()},
        }


_IMAGE = {"patch": (1, 16, 16), "positions": "pos_embedding_helper.pos_embed", "num_positions": 197, "last": 2}
_UNUSED = (
    _Tower(name="depth", width=384, layers=12, stem="depth_stem", **_IMAGE),  # type: ignore[arg-type]
    _Tower(name="thermal", width=768, layers=12, stem="rgbt_stem", **_IMAGE),  # type: ignore[arg-type]
    _Tower(
        name="imu",
        width=512,
        layers=6,
        stem="imu_stem",
        patch=(48,),
        positions="pos_embed",
        num_positions=251,
        last=3,
    ),
)


def imagebind(*, small: bool = False) -> Layout:
    """All towers at full width; in the small cut each has one block."""
    config = ImageBindConfig.huge()
    if small:
        config = replace(config, vision_layers=1, audio_layers=1)
    text_layers = 1 if small else 24
    with torch.device("meta"):
        text = TextTower(
            vocab_size=49_408, length=77, width=1024, layers=text_layers, num_heads=16, embed_dim=_EMBED_DIM
        )
        weights = {**ImageBind(config).state_dict(), **text.state_dict()}
        for tower in _UNUSED:
            weights |= tower.weights(1 if small else tower.layers)
    weights["modality_preprocessors.text.mask"] = torch.full((77, 77), -torch.inf).triu(1)
    for name, scale in _SCALES.items():
        weights[f"modality_postprocessors.{name}.1.log_logit_scale"] = torch.tensor(scale).log()
    return Layout(weights={FILE: weights})
