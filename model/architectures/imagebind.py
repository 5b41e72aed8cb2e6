"""ImageBind's vision and audio towers, with the tensor names of `imagebind_huge.pth`.

Shape suffixes: N items, S clips of an item, C channels, T frames, H height, W width, F mel frames, M mel bins,
L tokens, P patches, D tower width, E embedding.
"""

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.storage.files import read_json, write_json

MEL_BINS = 128
MEL_FRAMES = 204
TUBELET_FRAMES = 2

# Text, depth, thermal and IMU towers are not used here, and the logit scales are left out on purpose.
_IGNORED = re.compile(r"modality_(postprocessors\.|(preprocessors|trunks|heads)\.(text|depth|thermal|imu)\.)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBindConfig:
    """Sizes of both towers; the defaults are ImageBind huge (Girdhar et al. 2023, arXiv:2305.05665).

    Raises ValueError if a width is not divisible by its heads, or an image by its patches.
    """

    vision_width: int = 1280
    vision_layers: int = 32
    vision_heads: int = 16
    audio_width: int = 768
    audio_layers: int = 12
    audio_heads: int = 12
    embed_dim: int = 1024
    image_size: int = 224
    patch_size: int = 14
    audio_patch_size: int = 16
    audio_stride: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise ValueError(f"ImageBind config: {field.name} is {value!r}; must be an integer of at least 1")
        for whole, part in (
            ("vision_width", "vision_heads"),
            ("audio_width", "audio_heads"),
            ("image_size", "patch_size"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(f"ImageBind config: {whole} must be a multiple of {part}; change one of them")

    @classmethod
    def huge(cls) -> "ImageBindConfig":
        """The released model: ViT-H/14 for vision, ViT-B/16 with stride 10 for audio, 1024-d embeddings."""
        return cls()

    @property
    def num_vision_patches(self) -> int:
        """The number of patches (tubelets) of one clip."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def audio_grid(self) -> tuple[int, int]:
        """The rows (frequencies) and columns (times) of overlapping patches of one clip's mel spectrogram."""
        rows, columns = ((length - self.audio_patch_size) // self.audio_stride + 1 for length in (MEL_BINS, MEL_FRAMES))
        return rows, columns

    @property
    def num_audio_patches(self) -> int:
        """The number of patches of one clip's mel spectrogram."""
        return prod(self.audio_grid)


class Attention(nn.Module):
    """Self-attention; `add_bias_kv` appends one learned key and value that belong to no token."""

    def __init__(self, width: int, num_heads: int, *, add_bias_kv: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.bias_k = nn.Parameter(torch.empty(1, 1, width)) if add_bias_kv else None
        self.bias_v = nn.Parameter(torch.empty(1, 1, width)) if add_bias_kv else None
        self.out_proj = nn.Linear(width, width)
        for weight in (self.in_proj_weight, self.bias_k, self.bias_v):
            if weight is not None:
                nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, x_NLD: Tensor, mask_LL: Tensor | None = None) -> Tensor:
        """Maps (N, L, D) to (N, L, D)."""
        x_NLD = x_NLD.to(self.in_proj_weight.dtype)
        q_NLD, k_NLD, v_NLD = F.linear(x_NLD, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if self.bias_k is not None and self.bias_v is not None:
            k_NLD = torch.cat([k_NLD, self.bias_k.expand(len(x_NLD), -1, -1)], dim=1)
            v_NLD = torch.cat([v_NLD, self.bias_v.expand(len(x_NLD), -1, -1)], dim=1)
        q, k, v = (t.view(*t.shape[:2], self.num_heads, -1).transpose(1, 2) for t in (q_NLD, k_NLD, v_NLD))
        mixed_NLD = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_LL).transpose(1, 2).flatten(2)
        return self.out_proj(mixed_NLD)


class Mlp(nn.Module):
    """The feed-forward layer of a block, with a hidden width of 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., D) to (..., D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, *, add_bias_kv: bool) -> None:
        super().__init__()
        self.attn = Attention(width, num_heads, add_bias_kv=add_bias_kv)
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x_NLD: Tensor, mask_LL: Tensor | None = None) -> Tensor:
        """Maps (N, L, D) to (N, L, D)."""
        x_NLD = x_NLD + self.attn(self.norm_1(x_NLD), mask_LL)
        return x_NLD + self.mlp(self.norm_2(x_NLD))


class Stem(nn.Module):
    """Cuts a clip into patches and embeds them."""

    def __init__(self, proj: nn.Module, norm_layer: nn.Module) -> None:
        super().__init__()
        self.proj = proj
        self.norm_layer = norm_layer

    def forward(self, clips: Tensor) -> Tensor:
        """Maps (N, C, ...) to (N, L, D)."""
        return self.norm_layer(self.proj(clips).flatten(2).transpose(1, 2))


class Preprocessor(nn.Module):
    """Clips to tokens: a class token, then patches, plus learned position embeddings."""

    def __init__(self, stem: Stem, num_patches: int, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.rgbt_stem = stem
        pos_embed = nn.Parameter(torch.empty(1, 1 + num_patches, width))
        self.pos_embedding_helper = nn.ParameterDict({"pos_embed": pos_embed})
        for weight in (self.cls_token, pos_embed):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, clips: Tensor) -> Tensor:
        """Maps (N, C, ...) to (N, L, D)."""
        patches_NLD = self.rgbt_stem(clips)
        tokens_NLD = torch.cat([self.cls_token.expand(len(patches_NLD), -1, -1), patches_NLD], dim=1)
        return tokens_NLD + self.pos_embedding_helper["pos_embed"]


class Trunk(nn.Module):
    """The transformer of one tower."""

    def __init__(self, width: int, layers: int, num_heads: int, *, pre_norm: bool, add_bias_kv: bool) -> None:
        super().__init__()
        self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(width, eps=1e-6) if pre_norm else nn.Identity())
        self.blocks = nn.ModuleList(Block(width, num_heads, add_bias_kv=add_bias_kv) for _ in range(layers))

    def forward(self, x_NLD: Tensor, mask_LL: Tensor | None = None) -> Tensor:
        """Maps (N, L, D) to (N, L, D)."""
        x_NLD = self.pre_transformer_layer(x_NLD)
        for block in self.blocks:
            x_NLD = block(x_NLD, mask_LL)
        return x_NLD


class ClassToken(nn.Module):
    """Takes the first token."""

    def forward(self, x_NLD: Tensor) -> Tensor:
        """Maps (N, L, D) to (N, D)."""
        return x_NLD[:, 0]


def _head(width: int, embed_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width, eps=1e-6), ClassToken(), nn.Linear(width, embed_dim, bias=False))


class Embeddings(NamedTuple):
    """A tower's outputs.

    `pooled_NE` is float32. `patches_NSPD` are the last block's patch tokens after the head's LayerNorm, in row-major
    order and in the weights' dtype.
    """

    pooled_NE: Tensor
    patches_NSPD: Tensor


class ImageBind(nn.Module):
    """The vision and audio towers of ImageBind (Girdhar et al. 2023, arXiv:2305.05665).

    A clip's embedding is L2-normalised; an item's is the mean over its clips, so its norm is at most 1. ImageBind's x20
    scale on audio is omitted, as in NExT-GPT.
    """

    def __init__(self, config: ImageBindConfig) -> None:
        super().__init__()
        self.config = config
        vision, audio = config.vision_width, config.audio_width
        tubelet = (TUBELET_FRAMES, config.patch_size, config.patch_size)
        # In the released names, index 0 is the step that duplicates a single frame; here `forward_vision` does that.
        vision_proj = nn.Sequential(nn.Identity(), nn.Conv3d(3, vision, tubelet, stride=tubelet, bias=False))
        audio_proj = nn.Conv2d(1, audio, config.audio_patch_size, stride=config.audio_stride, bias=False)
        vision_stem, audio_stem = Stem(vision_proj, nn.Identity()), Stem(audio_proj, nn.LayerNorm(audio))
        self.modality_preprocessors = nn.ModuleDict(
            {
                "vision": Preprocessor(vision_stem, config.num_vision_patches, vision),
                "audio": Preprocessor(audio_stem, config.num_audio_patches, audio),
            }
        )
        self.modality_trunks = nn.ModuleDict(
            {
                "vision": Trunk(vision, config.vision_layers, config.vision_heads, pre_norm=True, add_bias_kv=False),
                "audio": Trunk(audio, config.audio_layers, config.audio_heads, pre_norm=False, add_bias_kv=True),
            }
        )
        self.modality_heads = nn.ModuleDict(
            {"vision": _head(vision, config.embed_dim), "audio": _head(audio, config.embed_dim)}
        )

    def forward_vision(self, pixels: Tensor) -> Tensor:
        """Embeds images (N, 3, H, W) or video clips (N, S, 3, 2, H, W); returns float32 (N, E)."""
        return self.vision_patches(pixels).pooled_NE

    def forward_audio(self, mel_NSCMF: Tensor) -> Tensor:
        """Embeds log-mel clips (N, S, 1, 128, 204); returns float32 (N, E)."""
        return self.audio_patches(mel_NSCMF).pooled_NE

    def vision_patches(self, pixels: Tensor) -> Embeddings:
        """As `forward_vision`, and also returns patch tokens (N, S, P, D); an image has one clip."""
        if pixels.ndim == 4:
            pixels = pixels[:, None, :, None].expand(-1, -1, -1, TUBELET_FRAMES, -1, -1)
        return self._embed("vision", pixels)

    def audio_patches(self, mel_NSCMF: Tensor) -> Embeddings:
        """As `forward_audio`, and also returns patch tokens (N, S, P, D)."""
        return self._embed("audio", mel_NSCMF)

    def _embed(self, tower: str, clips: Tensor) -> Embeddings:
        num_items, num_clips = clips.shape[:2]
        norm, class_token, project = self.modality_heads[tower].children()
        x_NLD = self.modality_preprocessors[tower](clips.flatten(0, 1).to(next(project.parameters()).dtype))
        x_NLD = norm(self.modality_trunks[tower](x_NLD))
        pooled_NE = F.normalize(project(class_token(x_NLD)).float(), dim=-1)
        return Embeddings(
            pooled_NE=pooled_NE.view(num_items, num_clips, -1).mean(dim=1),
            patches_NSPD=x_NLD[:, 1:].unflatten(0, (num_items, num_clips)),
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Writes `config.json` and `model.safetensors` for `load_imagebind`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", asdict(self.config))
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, directory / "model.safetensors")


def tensor_shapes(config: ImageBindConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of an ImageBind, without allocating any."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in ImageBind(config).state_dict().items()}


def load_imagebind(
    path: str | Path, config: ImageBindConfig | None = None, dtype: torch.dtype = torch.float32
) -> ImageBind:
    """Loads a frozen ImageBind from what `save_pretrained` wrote, or from a file such as `imagebind_huge.pth`.

    Unless given, `config` is read from the directory; for a file it is `ImageBindConfig.huge()` with as many blocks as
    the file has. Tensors of other modalities are ignored. Raises FileNotFoundError, and ValueError naming a tensor that
    is missing, unexpected or of the wrong shape.
    """
    path = Path(path)
    if path.is_dir():
        config = config or _read_config(path / "config.json")
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give imagebind_huge.pth or a directory with config.json and model.safetensors"
        )
    tensors = {name: tensor for name, tensor in read_tensors(path).items() if not _IGNORED.match(name)}
    config = config or replace(
        ImageBindConfig.huge(), vision_layers=_blocks(tensors, "vision"), audio_layers=_blocks(tensors, "audio")
    )
    _check(path, tensors, tensor_shapes(config))
    with torch.device("meta"):
        model = ImageBind(config)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _blocks(tensors: Mapping[str, Tensor], tower: str) -> int:
    """How many blocks of a tower a file holds; at least one, so that missing tensors are reported by name."""
    start = f"modality_trunks.{tower}.blocks."
    return max(1, len({name.removeprefix(start).split(".")[0] for name in tensors if name.startswith(start)}))


def _read_config(path: Path) -> ImageBindConfig:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; an ImageBind directory holds config.json and model.safetensors")
    values = read_json(path)
    try:
        return ImageBindConfig(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; write it with ImageBind.save_pretrained") from error


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Reads a file of tensors without executing code in it; raises ValueError if it holds anything else."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be read as tensors ({reason}); download it again") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: not a mapping of names to tensors; give ImageBind's state dict")
    return state


def _check(path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [f"{name} is missing" for name in shapes if name not in tensors]
    for name, tensor in tensors.items():
        if name not in shapes:
            wrong.append(f"{name} is unexpected")
        elif tuple(tensor.shape) != shapes[name]:
            wrong.append(f"{name} has shape {tuple(tensor.shape)}, not {shapes[name]}")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"{path}: tensor {wrong[0]}{more}; it does not match this ImageBind's sizes")
