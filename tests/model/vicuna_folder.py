"""A folder as Vicuna v1.5 is published: `tokenizer.model`, no `tokenizer.json`, and a vocabulary in Llama's layout."""

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

VOCAB_SIZE = 32_000
_NUM_TRAINED = 1_500
_FIRST_TEXT_ID = 259  # after <unk>, <s>, </s> and 256 bytes


def write_vicuna(folder: Path, vocabulary: bytes, *, legacy: bool) -> Path:
    """Writes the files that a tokenizer is read from, a small Llama's config, and how it would be sampled."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(vocabulary)
    special = {name: _token(text) for name, text in {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}.items()}
    _write(
        folder / "tokenizer_config.json",
        **{f"{name}_token": {"__type": "AddedToken", **token} for name, token in special.items()},
        add_bos_token=True,
        add_eos_token=False,
        clean_up_tokenization_spaces=False,
        legacy=legacy,
        model_max_length=4096,
        pad_token=None,
        padding_side="right",
        sp_model_kwargs={},
        tokenizer_class="LlamaTokenizer",
    )
    named = {f"{name}_token": token for name, token in special.items()}
    _write(folder / "special_tokens_map.json", **named, pad_token="<unk>")
    _write(folder / "generation_config.json", eos_token_id=2, max_length=4096, temperature=0.9, top_p=0.6)
    _write(
        folder / "config.json",
        architectures=["LlamaForCausalLM"],
        bos_token_id=1,
        eos_token_id=2,
        hidden_size=32,
        intermediate_size=48,
        max_position_embeddings=4096,
        model_type="llama",
        num_attention_heads=4,
        num_hidden_layers=2,
        pad_token_id=0,
        rms_norm_eps=1e-05,
        tie_word_embeddings=False,
        torch_dtype="float16",
        vocab_size=VOCAB_SIZE,
    )
    return folder


def small_vocabulary(corpus: str) -> bytes:
    """A `tokenizer.model` trained on a corpus with Llama's settings, and filled up to Llama's size.

    As in Llama's, pieces of spaces alone have the first ids of all text and the worst scores.
    """
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus.splitlines()),
        model_writer=trained,
        vocab_size=_NUM_TRAINED,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(trained.getvalue())
    for size in (4, 2):
        spaces = model.SentencePiece(piece="\u2581" * size, score=-1e9)
        model.pieces.insert(_FIRST_TEXT_ID, spaces)
    for number in range(VOCAB_SIZE - len(model.pieces)):
        # No text holds it: its halves are no pieces.
        model.pieces.append(model.SentencePiece(piece=f"\ufffe{number}\ufffe", score=-2e9))
    return bytes(model.SerializeToString())


def _token(text: str) -> dict[str, Any]:
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def _write(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
