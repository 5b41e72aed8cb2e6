"""The base LLM's tokenizer with the new tokens at their ids."""

from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from model.core.sentence_pieces import check_whole, merge_by_score
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
