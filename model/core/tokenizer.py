"""The base LLM's tokenizer with the new tokens at their ids."""

from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import models
from transformers import AddedToken, AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from model.core.vocabulary import SignalVocabulary
from model.parts.builtin import resolve
from model.parts.config import ModelConfig

_FILLER = "<|filler_{}|>"
_LEAST = 100  # embedding rows a token of a tokenizer that is not empty
_CURE = "put the LLM's own tokenizer.json or tokenizer.model beside its weights"


def load_vocabulary(config: ModelConfig) -> SignalVocabulary:
    """The new ids of a model; they start where the base LLM's embedding matrix ends."""
    text_config = AutoConfig.from_pretrained(resolve(config.llm.name)).get_text_config()
    return SignalVocabulary(text_config.vocab_size, config.signal_groups)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Reads the base LLM's tokenizer and adds the new tokens.

    Raises ValueError when there is none, or when their ids cannot be those of the model's rows.
    """
    tokenizer = _read(resolve(config.llm.name))
    merge_by_score(tokenizer)
    add_tokens(tokenizer, load_vocabulary(config), config.llm.name)
    return tokenizer


def _read(name: str) -> PreTrainedTokenizerBase:
    check_whole(Path(name))
    try:
        return AutoTokenizer.from_pretrained(name)
    except ValueError as error:
        raise ValueError(f"{name}: no tokenizer in its files; {_CURE}") from error


def add_tokens(tokenizer: Any, vocabulary: SignalVocabulary, name: str) -> None:
    """Adds the new tokens to a base tokenizer, in place; errors name `name`.

    A tokenizer gives out the next free id, and some LLMs (Qwen) have more embedding rows than their tokenizer has
    tokens: fillers, which no text is encoded to, take up the difference.
    """
    gap = vocabulary.base_size - len(tokenizer)
    if gap < 0:
        raise ValueError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens but the LLM {vocabulary.base_size} embedding rows; "
            "use the tokenizer that belongs to it"
        )
    # transformers makes an empty one, of special tokens alone, where it finds no file of a tokenizer.
    if len(tokenizer) < vocabulary.base_size // _LEAST:
        raise ValueError(
            f"{name}: no tokenizer for its {vocabulary.base_size} embedding rows (the files there give "
            f"{len(tokenizer)} tokens); {_CURE}"
        )
    texts = [_FILLER.format(i) for i in range(gap)] + list(vocabulary.tokens)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in texts], special_tokens=True)
    check_tokens(tokenizer, vocabulary, name)


def check_tokens(tokenizer: Any, vocabulary: SignalVocabulary, name: str) -> None:
    """Raises ValueError unless the tokenizer gives every new token the id of its row in the model."""
    ids = tokenizer.convert_tokens_to_ids(list(vocabulary.tokens))
    wrong = [
        f"{token} is {given}, not {wanted}"
        for token, given, wanted in zip(
            vocabulary.tokens, ids, range(vocabulary.base_size, vocabulary.total_size), strict=True
        )
        if given != wanted
    ]
    if wrong:
        raise ValueError(f"{name}: the tokenizer does not fit the model ({wrong[0]}); use the LLM's own base tokenizer")


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """The ids of text that continues a sequence: no BOS, and nothing a user types becomes a special or signal token."""
    if text.startswith(" ") and _adds_space(tokenizer):
        text = text[1:]
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def _adds_space(tokenizer: Any) -> bool:
    # Some tokenizers put a space before every text they are given, and one of ours would make it two. Most that come
    # from SentencePiece do so only where the text does not start with one.
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(" a", add_special_tokens=False))
    return "".join(map(str, tokens)).startswith("\u2581\u2581")


def special_ids(tokenizer: Any) -> list[int]:
    """The ids of all tokens that are not text: the base tokenizer's special ones, the new ones and the fillers."""
    return [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]


def eos_ids(tokenizer: Any, llm: Any) -> set[int]:
    """The ids that end an answer, as tokenizer and LLM name them."""
    named = getattr(llm.generation_config, "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    return {int(i) for i in (tokenizer.eos_token_id, *ids) if i is not None}


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
