"""What a model is asked, and its answers. Imports no deep learning library."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from model.decoders.wish import Wish
from model.parts.features import Array, ItemFeatures
from pipelines.sample import Decoded, Modality, Part, Turn

T = TypeVar("T")
Q = TypeVar("Q")
Condition = tuple[Modality, npt.NDArray[np.float32]]
AT_ONCE = 32  # answers that a model on a server generates side by side


class TooLong(ValueError):
    """A dialogue exceeds the LLM's context."""


class NoRoom(ValueError):
    """The length limit of an answer leaves no room for the media that it must hold."""


class BadSchema(ValueError):
    """A JSON schema to which no answer can be held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How an answer is sampled, and its maximum length.

    At `temperature` 0 decoding is greedy. Otherwise tokens are sampled with `seed` from the nucleus: the smallest set
    of most likely tokens with a total probability of at least `top_p`. An answer contains at most `max_items` items
    besides required ones, so that a model that repeats itself does not fill it with media. With a `schema`, a JSON
    schema as JSON text, the answer is compact JSON of that schema, without items. A text ends before the first of
    `stops`. An answer may be shorter than `max_new_tokens` where the dialogue leaves less of the LLM's context, but at
    least `least_room` tokens. Raises ValueError for invalid values.
    """

    max_new_tokens: int = 256
    max_items: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    schema: str = ""
    stops: tuple[str, ...] = ()
    least_room: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            wanted = "use 0 for greedy decoding, or more to sample"
            raise ValueError(f"temperature is {self.temperature}; {wanted}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; use more than 0, up to 1 to sample from all tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A dialogue that ends with a user turn, the media of its named items, and the media that the reply must contain.

    `system` are the messages of the system within the users' turns, for an LLM that takes them as such.
    `features` are the embeddings of the user's named items, in order, by modality where each has an encoder of its own
    (see `parts.features`); without them, the responder embeds `media`. `settings` override the decoders' defaults by
    modality, as in `Decoder.generate_batch`: steps, guidance, sizes.
    """

    turns: Sequence[Turn]
    system: Sequence[str] = ()
    media: Mapping[str, Decoded] = field(default_factory=dict)
    features: ItemFeatures | Array | None = None
    require: Sequence[Modality] = ()
    sampling: Sampling = field(default_factory=Sampling)
    settings: Mapping[Modality, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer before its items are rendered: its parts in order, and each item's modality and condition (L, D).

    Conditions are float32. `negatives` holds the null conditions (L, D) of the modalities that learned their own.
    `prompt_tokens` and `tokens` count the tokens read and generated; `was_cut` is true if the length limit ended it.
    """

    parts: tuple[Part, ...]
    conditions: list[Condition]
    prompt_tokens: int
    tokens: int
    was_cut: bool
    negatives: Mapping[Modality, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The texts, joined by spaces."""
        return text_of(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Response(Generic[T]):
    """A finished answer: its texts and items in order, and the medium of each item, decoded or as a file.

    `prompt_tokens` and `tokens` count the tokens read and generated; `was_cut` is true if the length limit ended it.
    `plan` is the plan that was carried out, in JSON, or empty. `untrained` names the parts with random weights that
    were involved.
    """

    parts: tuple[Part, ...]
    media: tuple[T, ...]
    prompt_tokens: int
    tokens: int
    was_cut: bool = False
    plan: str = ""
    untrained: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The texts, joined by spaces."""
        return text_of(self.parts)


def wishes(query: Query, reply: Reply) -> list[Wish]:
    """The media to render for a reply, one wish per item."""
    seed, settings, negatives = query.sampling.seed, query.settings, reply.negatives
    return [
        Wish(modality, condition, seed + number, settings.get(modality, {}), negatives.get(modality))
        for number, (modality, condition) in enumerate(reply.conditions)
    ]


def text_of(parts: Sequence[Part]) -> str:
    """The texts of an answer, joined by spaces."""
    return " ".join(part for part in parts if isinstance(part, str))


def in_batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The values in order, so many at a time."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def side_by_side(answer: Callable[[Sequence[Q]], Sequence[T]], queries: Sequence[Q]) -> list[T | ValueError]:
    """Answers queries, or anything else, as a batch; if that fails, one by one, a failure by its ValueError."""
    try:
        return list(answer(queries))
    except ValueError as error:
        if len(queries) == 1:
            return [error]
    return [found for query in queries for found in side_by_side(answer, [query])]
