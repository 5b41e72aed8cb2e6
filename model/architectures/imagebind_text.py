"""ImageBind's text tower, with the tensor names of `imagebind_huge.pth`; used to score media and to train towers.

Shape suffixes: N texts, L tokens, D width, E embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.architectures.imagebind import Trunk, read_tensors


class _Tokens(nn.Module):
    """Token and position embeddings."""

    mask: Tensor

    def __init__(self, vocab_size: int, length: int, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.pos_embed = nn.Parameter(0.01 * torch.randn(1, length, width))
        # ImageBind stores the causal mask with its weights.
        self.register_buffer("mask", torch.full((length, length), -torch.inf).triu(1))

    def forward(self, ids_NL: Tensor) -> tuple[Tensor, Tensor]:
        length = ids_NL.shape[1]
        return self.token_embedding(ids_NL) + self.pos_embed[:, :length], self.mask[:length, :length]


class _Head(nn.Module):
    """Projects the state at the end token, which has the highest id."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, embed_dim, bias=False))

    def forward(self, x_NLD: Tensor, ends_N: Tensor) -> Tensor:
        return self.proj(x_NLD[torch.arange(len(x_NLD), device=x_NLD.device), ends_N])


class TextTower(nn.Module):
    """The text tower of ImageBind (Girdhar et al. 2023, arXiv:2305.05665): a causal transformer over CLIP's tokens."""

    def __init__(
        self, *, vocab_size: int, length: int, width: int, layers: int, num_heads: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.length = length
        trunk = Trunk(width, layers, num_heads, pre_norm=False, add_bias_kv=False)
        self.modality_preprocessors = nn.ModuleDict({"text": _Tokens(vocab_size, length, width)})
        self.modality_trunks = nn.ModuleDict({"text": trunk})
        self.modality_heads = nn.ModuleDict({"text": _Head(width, embed_dim)})

    def forward(self, ids_NL: Tensor) -> Tensor:
        """Embeds token ids (N, L) with begin and end tokens; returns float32 (N, E) of norm 1."""
        x_NLD, mask_LL = self.modality_preprocessors["text"](ids_NL)
        x_NLD = self.modality_trunks["text"](x_NLD, mask_LL.to(x_NLD.dtype))
        return F.normalize(self.modality_heads["text"](x_NLD, ids_NL.argmax(dim=1)).float(), dim=-1)


class ImageBindTextEncoder:
    """Embeds texts into the space of ImageBind's images and sounds.

    `path` is `imagebind_huge.pth` or a folder in our format; `tokenizer` is CLIP's. Raises ValueError if the file has
    no text tower.
    """

    def __init__(self, path: str | Path, tokenizer: Any, *, device: torch.device | str = "cpu") -> None:
        file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
        tensors = {name: t for name, t in read_tensors(file).items() if ".text." in name and "postpro" not in name}
        if not tensors:
            raise ValueError(f"{file}: no text tower, which text-media similarities need")
        self.tokenizer, self.device = tokenizer, torch.device(device)
        self.tower = _blank_like(tensors)
        self.tower.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        self.tower.eval().requires_grad_(False).to(self.device)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embeds texts; returns float32 (N, E) of norm 1 on the CPU."""
        ids_NL = text_ids(self.tokenizer, texts, self.tower.length)
        return torch.cat([self.tower(piece.to(self.device)).cpu() for piece in torch.split(ids_NL, 256)])


def text_ids(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """Token ids (N, length), zero-padded after the end token as in ImageBind."""
    ids = tokenizer(list(texts), max_length=length, truncation=True).input_ids
    return torch.tensor([row + [0] * (length - len(row)) for row in ids])


def _blank_like(tensors: dict[str, Tensor]) -> TextTower:
    """An uninitialised tower sized to fit the tensors; heads are 64 wide, 16 in small towers."""
    vocab_size, width = tensors["modality_preprocessors.text.token_embedding.weight"].shape
    layers = len([name for name in tensors if name.endswith(".norm_1.weight")])
    return TextTower(
        vocab_size=vocab_size,
        length=tensors["modality_preprocessors.text.pos_embed"].shape[1],
        width=width,
        layers=layers,
        num_heads=width // (64 if width >= 512 else 16),
        embed_dim=tensors["modality_heads.text.proj.1.weight"].shape[0],
    )
