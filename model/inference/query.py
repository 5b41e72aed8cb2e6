"""What a model is asked: a dialogue with its media, and how to answer it. Needs no deep learning library."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pipelines.sample import Decoded, Modality, Turn

T = TypeVar("T")


class TooLong(ValueError):
    """A dialogue takes more tokens than the LLM reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How an answer is drawn, and how long it may be.

    At `temperature` 0 the likeliest token is taken each time. Else one is drawn from `seed`, among the fewest of the
    likeliest whose probabilities add up to `top_p` or more. An answer holds at most `max_items` items (required ones
    always), so that a model that repeats itself does not fill it with media. With a `schema`, a JSON schema written as
    JSON, an answer is JSON of it without spaces, and holds no items. Raises ValueError for values that make no sense.
    """

    max_new_tokens: int = 256
    max_items: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    schema: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            wanted = "use 0 for the likeliest tokens, or more to draw them"
            raise ValueError(f"temperature is {self.temperature}; {wanted}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; use more than 0, and 1 to draw among all tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A dialogue that ends in a user's turn, the media that its user's items name, and those the reply must hold.

    `settings` are those of the decoders by modality, as `Decoder.generate_batch` takes them: steps, guidance, sizes.
    """

    turns: Sequence[Turn]
    media: Mapping[str, Decoded] = field(default_factory=dict)
    require: Sequence[Modality] = ()
    sampling: Sampling = field(default_factory=Sampling)
    settings: Mapping[Modality, Mapping[str, Any]] = field(default_factory=dict)


def side_by_side(answer: Callable[[Sequence[Query]], Sequence[T]], queries: Sequence[Query]) -> list[T | ValueError]:
    """What `answer` gives for all at once; where one of them cannot be answered, one by one, to tell which."""
    try:
        return list(answer(queries))
    except ValueError as error:
        if len(queries) == 1:
            return [error]
    return [found for query in queries for found in side_by_side(answer, [query])]
