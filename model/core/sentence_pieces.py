"""Tokenizers that exist as SentencePiece's `tokenizer.model` alone, as Vicuna's and Llama 2's."""

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import models

_FILE = "tokenizer.model"


def merge_by_score(tokenizer: Any) -> None:
    """Makes a tokenizer that transformers converted from `tokenizer.model` encode as SentencePiece does, in place.

    SentencePiece joins the pair whose piece scores best. transformers 5 takes the order of the ids for it, which is
    another one where pieces were added later: in Llama's vocabulary those of spaces alone, which come last by score
    and first by id, so that `a  b` would lose the piece of the word with its space.
    """
    file = Path(getattr(tokenizer, "vocab_file", None) or "")
    backend = tokenizer.backend_tokenizer
    if not _is_alone(file) or not isinstance(backend.model, models.BPE):
        return
    pieces = _pieces(file)
    vocab = {piece: index for index, (piece, _) in enumerate(pieces)}
    if vocab != tokenizer.get_vocab():
        return  # a family that transformers arranges in its own way
    old = backend.model
    backend.model = models.BPE(
        vocab, _merges(pieces), unk_token=old.unk_token, fuse_unk=old.fuse_unk, byte_fallback=old.byte_fallback
    )


def check_whole(folder: Path) -> None:
    """Raises ValueError for a `tokenizer.model` that is none, such as what Git LFS leaves in the place of a file."""
    file = folder / _FILE
    if not _is_alone(file):
        return
    try:
        pieces = _pieces(file)
    except DecodeError:
        pieces = []
    if not pieces:
        raise ValueError(f"{file}: no SentencePiece model ({file.stat().st_size:,} bytes); fetch it again")


def _is_alone(file: Path) -> bool:
    return file.name == _FILE and file.is_file() and not file.with_name("tokenizer.json").exists()


def _pieces(file: Path) -> list[tuple[str, float]]:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(file.read_bytes())
    return [(piece.piece, piece.score) for piece in model.pieces]


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Every way to join a piece of two others; best score first, and of equal scores what grows a piece leftmost."""
    known = {piece for piece, _ in pieces}
    splits = [
        (score, piece[:at], piece[at:])
        for piece, score in pieces
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    ]
    splits.sort(key=lambda split: (-split[0], -len(split[1]), -len(split[2])))
    return [(left, right) for _, left, right in splits]
