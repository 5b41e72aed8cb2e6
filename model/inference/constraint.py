"""Decoding constrained to a JSON schema: which tokens may come next, and which must.

The grammar engine is llguidance; it works on the tokens' bytes, so a token may span several JSON elements.
"""

import json
import re
from functools import lru_cache
from typing import Any

import llguidance.hf
import torch
from llguidance import LLMatcher
from torch import Tensor

from model.inference.query import BadSchema

# A leading space is allowed: tokenizers put one between a question and its answer.
_GRAMMAR = 'start: " "? document\ndocument: %json {}'
_COMPACT = {"x-guidance": {"whitespace_flexible": False}}
# Tokens that bring JSON nearer to its end: they end an object, an array, a string, and what has no end of its own.
_CLOSING = tuple(re.compile(pattern) for pattern in (rb"\}[}\]]*", rb"\][}\]]*", rb'"[}\]]*', rb","))


class Constraint:
    """The state of one answer in its schema.

    `closing_room` tokens suffice as a rule to complete the JSON by its shortest way.
    """

    def __init__(self, matcher: LLMatcher, closing_CV: Tensor, closing_room: int) -> None:
        self._matcher, self._closing_CV, self.closing_room = matcher, closing_CV, closing_room

    @property
    def is_complete(self) -> bool:
        """Whether the JSON is complete."""
        return bool(self._matcher.is_stopped())

    def allowed(self, *, is_closing: bool = False) -> Tensor:
        """Which tokens may come next: bool (V,). With `is_closing` only those that end the JSON soonest."""
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        bits_V8 = bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
        allowed_V = bits_V8.flatten()[: self._closing_CV.shape[1]].bool()
        if not is_closing:
            return allowed_V
        of_object_V, of_array_V, of_string_V, others_V = allowed_V & self._closing_CV
        # Where both are allowed, they are characters of a string.
        is_string = of_object_V.any() and of_array_V.any()
        kinds = (of_string_V,) if is_string else (of_object_V, of_array_V, of_string_V, others_V)
        return next((closing_V for closing_V in kinds if closing_V.any()), allowed_V)

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
        """Creates the constraint of a JSON schema, given as JSON text. Raises BadSchema."""
        closing_CV = _closing_tokens(self._tokenizer, self._vocab_size)
        return Constraint(self._grammar(schema).deep_copy(), closing_CV, 8 + len(schema) // 4)

    def _parsed(self, schema: str) -> LLMatcher:
        try:
            document = {**json.loads(schema), **_COMPACT}
        except (ValueError, TypeError):
            raise BadSchema("schema: must be a JSON schema, written as a JSON object") from None
        grammar = _GRAMMAR.format(json.dumps(document))
        matcher = LLMatcher(_bytes_of_tokens(self._tokenizer, self._vocab_size), grammar, log_level=0)
        if matcher.is_error():
            raise BadSchema(f"schema: {str(matcher.get_error()).splitlines()[0]}")
        return matcher


@lru_cache(maxsize=4)
def _bytes_of_tokens(tokenizer: Any, vocab_size: int) -> Any:
    """The tokenizer in llguidance's format; cached, since large vocabularies take a second."""
    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocab_size)


@lru_cache(maxsize=4)
def _closing_tokens(tokenizer: Any, vocab_size: int) -> Tensor:
    """Which tokens are of each kind in `_CLOSING`: bool (C, V)."""
    tokens = _bytes_of_tokens(tokenizer, vocab_size)
    written = [tokens.decode_bytes([token]) for token in range(vocab_size)]
    return torch.tensor([[bool(kind.fullmatch(token)) for token in written] for kind in _CLOSING])
