"""The base LLM's tokenizer, extended by the new tokens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models
from transformers import AddedToken, AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from model.core.vocabulary import SignalVocabulary
from model.parts.builtin import resolve
from model.parts.config import ModelConfig

_FILLER = "<|filler_{}|>"
_LEAST = 100  # embedding rows per token; a tokenizer with fewer tokens counts as empty
_FEW = 8  # pieces without a row: of a small vocabulary, more than these are another LLM's
_CURE = "put the LLM's own tokenizer.json or tokenizer.model next to its weights"


def load_vocabulary(config: ModelConfig) -> SignalVocabulary:
    """The new tokens of a model; their ids start where the base LLM's embedding matrix ends."""
    text_config = AutoConfig.from_pretrained(resolve(config.llm.name)).get_text_config()
    return SignalVocabulary(text_config.vocab_size, config.signal_groups)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Loads the base LLM's tokenizer and adds the new tokens.

    Raises ValueError if there is no tokenizer, or if it does not fit the model's embedding rows.
    """
    tokenizer = _read(resolve(config.llm.name))
    merge_by_score(tokenizer)
    drop_rowless(tokenizer, load_vocabulary(config).base_size)
    add_tokens(tokenizer, load_vocabulary(config), config.llm.name)
    return tokenizer


def _read(name: str) -> PreTrainedTokenizerBase:
    check_whole(Path(name))
    try:
        return AutoTokenizer.from_pretrained(name)
    except ValueError as error:
        raise ValueError(f"{name}: no tokenizer found; {_CURE}") from error


def drop_rowless(tokenizer: Any, rows: int) -> None:
    """Removes the tokens without an embedding row, in place: some LLMs (Gemma 3 1B, CodeLlama) have a few.

    Raises nothing where it lacks more than a few pieces of text: `add_tokens` refuses it.
    """
    if len(tokenizer) <= rows:
        return
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    model, vocab = values["model"], values["model"].get("vocab", {})
    added = {token["content"] for token in values["added_tokens"]}
    pieces = vocab.items() if isinstance(vocab, dict) else ((piece, number) for number, (piece, _) in enumerate(vocab))
    kept = {piece: number for piece, number in pieces if number < rows}
    if sum(piece not in added for piece in _names(vocab) - kept.keys()) > max(_FEW, rows // _LEAST):
        return
    model["vocab"] = kept if isinstance(vocab, dict) else vocab[:rows]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if _is_within(pair, kept)]
    gone = {token["content"] for token in values["added_tokens"] if token["id"] >= rows}
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] not in gone]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(values))
    for name, content in tokenizer.special_tokens_map.items():
        if content in gone:
            setattr(tokenizer, name, None)
    tokenizer.extra_special_tokens = [token for token in tokenizer.extra_special_tokens if str(token) not in gone]


def _names(vocab: Any) -> set[str]:
    return set(vocab) if isinstance(vocab, dict) else {piece for piece, _ in vocab}


def _is_within(pair: Any, kept: Mapping[str, int]) -> bool:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left in kept and right in kept and left + right in kept


def add_tokens(tokenizer: Any, vocabulary: SignalVocabulary, name: str) -> None:
    """Adds the new tokens to a base tokenizer, in place; errors start with `name`.

    New tokens get the next free ids, but some LLMs (Qwen) have more embedding rows than tokens: filler tokens, which no
    text is encoded to, make up the difference.
    """
    gap = vocabulary.base_size - len(tokenizer)
    if gap < 0:
        raise ValueError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens but the LLM {vocabulary.base_size} embedding rows; "
            "use the LLM's own tokenizer"
        )
    # Where transformers finds no tokenizer file it creates an empty one with special tokens only.
    if len(tokenizer) < vocabulary.base_size // _LEAST:
        raise ValueError(
            f"{name}: no tokenizer for its {vocabulary.base_size} embedding rows (its files give "
            f"{len(tokenizer)} tokens); {_CURE}"
        )
    texts = [_FILLER.format(i) for i in range(gap)] + list(vocabulary.tokens)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in texts], special_tokens=True)
    check_tokens(tokenizer, vocabulary, name)


def check_tokens(tokenizer: Any, vocabulary: SignalVocabulary, name: str) -> None:
    """Raises ValueError unless every new token has the id of its row in the model."""
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
    """Encodes text that continues a sequence: no BOS, and nothing in it becomes a special or signal token."""
    if text.startswith(" ") and adds_space(tokenizer):
        text = text[1:]
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def adds_space(tokenizer: Any) -> bool:
    """Whether a tokenizer puts a space before a text that begins with one."""
    # Some tokenizers prepend a space to every text, which would double ours. Most SentencePiece tokenizers do so only
    # if the text does not start with one.
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(" a", add_special_tokens=False))
    return "".join(map(str, tokens)).startswith("\u2581\u2581")


def special_ids(tokenizer: Any) -> list[int]:
    """The ids of all non-text tokens: the base tokenizer's special tokens, the new ones and the fillers."""
    return [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]


def eos_ids(tokenizer: Any, llm: Any) -> set[int]:
    """The end-of-sequence ids, of the tokenizer and of the LLM, that have a row."""
    named = getattr(llm.generation_config, "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    rows = llm.config.get_text_config().vocab_size
    return {int(i) for i in (tokenizer.eos_token_id, *ids) if i is not None and i < rows}


_FILE = "tokenizer.model"


def merge_by_score(tokenizer: Any) -> None:
    """Fixes a tokenizer converted by transformers from `tokenizer.model` to encode as SentencePiece does, in place.

    SentencePiece merges the pair whose piece scores best. transformers 5 merges in the order of ids, which differs
    where pieces were added later: in Llama's vocabulary, runs of spaces are last by score but first by id, so that `a
    b` would not use the piece of the word with its space.
    """
    file = Path(getattr(tokenizer, "vocab_file", None) or "")
    backend = tokenizer.backend_tokenizer
    if not _is_alone(file) or not isinstance(backend.model, models.BPE):
        return
    pieces = _pieces(file)
    vocab = {piece: index for index, (piece, _) in enumerate(pieces)}
    if vocab != tokenizer.get_vocab():
        return  # transformers rearranges this family's vocabulary
    old = backend.model
    backend.model = models.BPE(
        vocab, _merges(pieces), unk_token=old.unk_token, fuse_unk=old.fuse_unk, byte_fallback=old.byte_fallback
    )


def check_whole(folder: Path) -> None:
    """Raises ValueError for an invalid `tokenizer.model`, such as a Git LFS pointer."""
    file = folder / _FILE
    if not _is_alone(file):
        return
    try:
        pieces = _pieces(file)
    except DecodeError:
        pieces = []
    if not pieces:
        raise ValueError(f"{file}: not a SentencePiece model ({file.stat().st_size:,} bytes); download it again")


def _is_alone(file: Path) -> bool:
    return file.name == _FILE and file.is_file() and not file.with_name("tokenizer.json").exists()


def _pieces(file: Path) -> list[tuple[str, float]]:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(file.read_bytes())
    return [(piece.piece, piece.score) for piece in model.pieces]


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """All merges of two pieces into one: best score first; among equal scores, longest left piece first."""
    known = {piece for piece, _ in pieces}
    splits = [
        (score, piece[:at], piece[at:])
        for piece, score in pieces
        for at in range(1, len(piece))
        if piece[:at] in known and piece[at:] in known
    ]
    splits.sort(key=lambda split: (-split[0], -len(split[1]), -len(split[2])))
    return [(left, right) for _, left, right in splits]
