from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from model.architectures.imagebind_text import ImageBindTextEncoder, TextTower, text_ids
from model.parts.builtin import FOUNDATIONS


@pytest.fixture
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(FOUNDATIONS / "imagebind" / "tokenizer")


def _tower(tokenizer: CLIPTokenizer) -> TextTower:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "length": 16, "width": 32, "layers": 2, "num_heads": 2, "embed_dim": 8}
    return TextTower(**sizes).eval()


def test_names_are_those_of_the_released_tower(tokenizer: CLIPTokenizer) -> None:
    names = _tower(tokenizer).state_dict().keys()
    assert {
        "modality_preprocessors.text.token_embedding.weight",
        "modality_preprocessors.text.pos_embed",
        "modality_preprocessors.text.mask",
        "modality_trunks.text.blocks.1.attn.in_proj_weight",
        "modality_trunks.text.blocks.0.norm_2.bias",
        "modality_heads.text.proj.0.weight",
        "modality_heads.text.proj.1.weight",
    } <= names


def test_texts_end_with_the_highest_id_and_zeros(tokenizer: CLIPTokenizer) -> None:
    ids = text_ids(tokenizer, ["a red circle", "a small red circle at the left"], 16)
    assert ids.shape == (2, 16)
    assert (ids.max(dim=1).values == tokenizer.eos_token_id).all()
    assert ids[0, -1] == 0


def test_what_follows_the_end_changes_nothing(tokenizer: CLIPTokenizer) -> None:
    tower, ids = _tower(tokenizer), text_ids(tokenizer, ["a red circle"], 16)
    other = ids.clone()
    other[0, int(ids.argmax()) + 1 :] = 7
    assert torch.allclose(tower(ids), tower(other), atol=1e-6)
    assert torch.allclose(tower(ids).norm(dim=-1), torch.ones(1))


def test_a_saved_tower_is_read_back_by_its_shapes(tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    tower = _tower(tokenizer)
    save_file(tower.state_dict(), tmp_path / "model.safetensors")
    texts = ["a red circle", "a low mi on the flute"]
    with torch.no_grad():
        wanted = tower(text_ids(tokenizer, texts, 16))
    assert torch.allclose(ImageBindTextEncoder(tmp_path, tokenizer)(texts), wanted, atol=1e-6)


def test_a_file_without_a_text_tower_is_refused(tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    save_file({"modality_heads.vision.2.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: no text tower"):
        ImageBindTextEncoder(tmp_path, tokenizer)
