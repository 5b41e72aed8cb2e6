"""Decoding constrained to a JSON schema: which tokens may come next, and which must.

The grammar engine is llguidance; it works on the tokens' bytes, so a token may span several JSON elements.
"""

import json
from functools import lru_cache
from typing import Any

import llguidance.hf
import torch
from llguidance import LLMatcher
from torch import Tensor

# A leading space is allowed: tokenizers put one between a question and its answer.
_GRAMMAR = 'start: " "? document\ndocument: %json {}'
_COMPACT = {"x-guidance": {"whitespace_flexible": False}}


class Constraint:
    """The state of one answer in its schema."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    @property
    def is_complete(self) -> bool:
        """Whether the JSON is complete."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Tensor:
        """Which tokens may come next: bool (V,)."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        bits_V8 = bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
        return bits_V8.flatten()[: self._vocab_size].bool()

    def take(self, token: int) -> list[int]:
        """Advances by an allowed token; returns the tokens that must follow it."""
        self._matcher.consume_token(token)
        forced = list(self._matcher.compute_ff_tokens())
        self._matcher.consume_tokens(forced)
        return forced


class Constraints:
    """Creates constraints for a tokenizer and an LLM with `vocab_size` tokens."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._grammar = lru_cache(maxsize=64)(self._parsed)

    def __call__(self, schema: str) -> Constraint:
        """Creates the constraint of a JSON schema, given as JSON text. Raises ValueError for an invalid schema."""
        return Constraint(self._grammar(schema).deep_copy(), self._vocab_size)

    def _parsed(self, schema: str) -> LLMatcher:
        try:
            document = {**json.loads(schema), **_COMPACT}
        except (ValueError, TypeError):
            raise ValueError("schema: must be a JSON schema, written as a JSON object") from None
        grammar = _GRAMMAR.format(json.dumps(document))
        matcher = LLMatcher(_bytes_of_tokens(self._tokenizer, self._vocab_size), grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"schema: {str(matcher.get_error()).splitlines()[0]}")
        return matcher


@lru_cache(maxsize=4)
def _bytes_of_tokens(tokenizer: Any, vocab_size: int) -> Any:
    """The tokenizer in llguidance's format; cached, since large vocabularies take a second."""
    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocab_size)
