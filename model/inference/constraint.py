"""Answers held to JSON of a schema: which tokens may come next, and which must.

The grammar engine is llguidance; it reads the tokenizer's own bytes, so a token may stand across the parts of the JSON.
"""

import json
from functools import lru_cache
from typing import Any

import llguidance.hf
import torch
from llguidance import LLMatcher
from torch import Tensor

# A space may come first: tokenizers put one between a question and its answer.
_GRAMMAR = 'start: " "? document\ndocument: %json {}'
_COMPACT = {"x-guidance": {"whitespace_flexible": False}}


class Constraint:
    """One answer on its way through a schema."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow any more."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Tensor:
        """Which tokens may come next: bool (V,)."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        bits_V8 = bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
        return bits_V8.flatten()[: self._vocab_size].bool()

    def take(self, token: int) -> list[int]:
        """Goes on by a token that is allowed; returns those that must follow it."""
        self._matcher.consume_token(token)
        forced = list(self._matcher.compute_ff_tokens())
        self._matcher.consume_tokens(forced)
        return forced


class Constraints:
    """Makes constraints for one tokenizer, whose LLM chooses among `vocab_size` tokens."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._grammar = lru_cache(maxsize=64)(self._parsed)

    def __call__(self, schema: str) -> Constraint:
        """Holds an answer to a JSON schema, itself JSON. Raises ValueError where it is none."""
        return Constraint(self._grammar(schema).deep_copy(), self._vocab_size)

    def _parsed(self, schema: str) -> LLMatcher:
        try:
            document = {**json.loads(schema), **_COMPACT}
        except (ValueError, TypeError):
            raise ValueError("schema: not a JSON schema; give an object in JSON") from None
        grammar = _GRAMMAR.format(json.dumps(document))
        matcher = LLMatcher(_bytes_of_tokens(self._tokenizer, self._vocab_size), grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"schema: {str(matcher.get_error()).splitlines()[0]}")
        return matcher


@lru_cache(maxsize=4)
def _bytes_of_tokens(tokenizer: Any, vocab_size: int) -> Any:
    """A tokenizer as llguidance reads it; kept, since that takes a second where there are many tokens."""
    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocab_size)
