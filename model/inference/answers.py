"""A growing answer: text and whole groups of signal tokens, streamed part by part as they become final."""

import re
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from model.core.chat_template import STOP
from model.core.vocabulary import SignalVocabulary
from model.inference.constraint import Constraint
from pipelines.sample import Item, Modality, Part

OnPart = Callable[[Part], None]
_STOP_WINDOW = 8  # tokens that always contain all of "###", however it is tokenized
_HALF = "\ufffd"


@dataclass(slots=True)
class Run:
    """A segment of an answer: the tokens of a text, or a whole group of signal tokens of `modality`."""

    modality: Modality | None
    ids: list[int] = field(default_factory=list)


class Detokenizer:
    """Decodes tokens to text, and detects the text `stop` that ends an answer, if there is one."""

    def __init__(self, tokenizer: Any, stop: str = STOP) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        # May still turn out to be the stop mark, the space before it, or a character whose last bytes are missing.
        self._uncertain = re.compile(rf"[\s\ufffd{re.escape(stop)}]+$")
        self._may_stop: dict[int, bool] = {}

    def text(self, ids: Sequence[int]) -> str:
        """The text as it appears in a reply, without the stop mark and surrounding spaces."""
        return self._decode(ids).rstrip().removesuffix(self._stop).strip()

    def certain(self, text: str) -> str:
        """The beginning of a growing text that no further token can change."""
        return self._uncertain.sub("", text)

    def grown(self, text: str, ids: Sequence[int], before: int, done: int) -> str:
        """The text of all `ids`, given the `text` of the first `done`.

        Only ids from `before` on are decoded: far enough back to see how the new ones join.
        """
        known, new = self._decode(ids[before:done]), self._decode(ids[before:])
        return text + new[len(known) :] if new.startswith(known) else self._decode(ids)

    def stops(self, ids: Sequence[int]) -> bool:
        """Whether a text ends with the stop mark, however it is tokenized."""
        return self._holds_mark(ids[-1]) and self._decode(ids[-_STOP_WINDOW:]).rstrip().endswith(self._stop)

    def before_stop(self, ids: Sequence[int]) -> list[int]:
        """The tokens of a text before the stop mark, which are what precedes a signal group in training."""
        kept = list(ids)
        if kept and self.stops(kept):
            text = self._decode(ids).rstrip().removesuffix(self._stop).rstrip()
            while kept and not _ends_within(self._decode(kept), text):
                kept.pop()
        return kept

    def _holds_mark(self, token: int) -> bool:
        if not self._stop:
            return False
        # Cached, since the text would otherwise be decoded at every token.
        if token not in self._may_stop:
            self._may_stop[token] = self._stop[0] in self._decode([token])
        return self._may_stop[token]

    def _decode(self, ids: Sequence[int]) -> str:
        # Cleaning up spaces would change text that was already streamed.
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _ends_within(beginning: str, text: str) -> bool:
    return text.startswith(beginning) and beginning == beginning.rstrip()


@dataclass(frozen=True, slots=True)
class Stops:
    """Texts of a user's choice that end an answer, and do not belong to it."""

    texts: tuple[str, ...]

    def before(self, text: str) -> str:
        """The text before the first of them; the whole text if it holds none."""
        found = [place for place in map(text.find, self.texts) if place >= 0]
        return text[: min(found)].rstrip() if found else text

    def certain(self, text: str) -> str:
        """The beginning of a growing text that no stop can take away, if it holds none yet.

        White space before a stop goes with it.
        """
        if not self.texts:
            return text
        return text[: len(text) - max(_length_begun(text, stop) for stop in self.texts)].rstrip()


def _length_begun(text: str, stop: str) -> int:
    """How much of a stop, short of all, a text ends with."""
    longest = min(len(stop) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)


class _Telling:
    """Streams an answer: items when they begin, and text in pieces that concatenate to the reply's text."""

    def __init__(self, on_part: OnPart | None, detokenizer: Detokenizer, stops: Stops) -> None:
        self._on_part, self._detokenizer, self._stops = on_part, detokenizer, stops
        self._told, self._before = "", False  # of the current text; whether a text came before it
        self._text, self._places = "", (0, 0)  # of its first tokens, and how far back to look for the next

    def tokens(self, ids: Sequence[int]) -> bool:
        """Streams the part of an unfinished text that no further token can change; returns whether it holds a stop."""
        if not self._on_part and not self._stops.texts:
            return False
        before, done = self._places
        text = self._detokenizer.grown(self._text, ids, before, done)
        if not text.endswith(_HALF):
            self._text, self._places = text, (done, len(ids))
        text = text.lstrip()
        holds_stop = any(stop in text for stop in self._stops.texts)
        if self._on_part and not holds_stop:
            self._tell(self._on_part, self._stops.certain(self._detokenizer.certain(text)))
        return holds_stop

    def end(self, ids: Sequence[int], item: Item | None = None) -> None:
        """Streams the rest of a text, and the item that follows it."""
        if self._on_part:
            self._tell(self._on_part, self._stops.before(self._detokenizer.text(ids)))
            self._before, self._told = self._before or bool(self._told), ""
            self._text, self._places = "", (0, 0)
            if item:
                self._on_part(item)

    def _tell(self, on_part: OnPart, text: str) -> None:
        if len(text) > len(self._told) and text.startswith(self._told):
            on_part((" " if self._before and not self._told else "") + text[len(self._told) :])
            self._told = text


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimits:
    """The limits of an answer: its length in tokens, its number of items, and the tokens and texts that end it.

    A schema-constrained answer ends with the schema.
    """

    max_new_tokens: int
    max_items: int
    ends: Set[int]
    stops: tuple[str, ...] = ()
    constraint: Constraint | None = None


class Answer:
    """One answer, token by token; `unread` holds the tokens the LLM has to read next, none once it is complete.

    Required items that the model does not generate itself are added at the end; room is reserved for them.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        vocabulary: SignalVocabulary,
        limits: AnswerLimits,
        require: Sequence[Modality] = (),
        on_part: OnPart | None = None,
    ) -> None:
        self._detokenizer, self._vocabulary, self._ends = detokenizer, vocabulary, limits.ends
        self._stops = Stops(limits.stops)
        self._telling = _Telling(on_part, detokenizer, self._stops)
        self.constraint = limits.constraint
        # Longer answers are not to be shortened for the sake of one that would never end.
        self._closing_room = min(limits.max_new_tokens // 3, limits.constraint.closing_room if limits.constraint else 0)
        self._room, self._required = limits.max_new_tokens, Counter(require)
        self._spare_items = limits.max_items - len(require)
        self.runs = [Run(None)]
        self.unread: list[int] = []
        self.was_cut = False  # whether the length limit ended it, not the model

    @property
    def room(self) -> int:
        """How many tokens fit in addition to the items still required."""
        return self._room - sum(self._vocabulary.groups[modality] for modality in self._required.elements())

    @property
    def allowed(self) -> Tensor | None:
        """Which tokens its schema allows next: bool (V,). Near the limit of its length, those that end it in time."""
        if self.constraint is None:
            return None
        return self.constraint.allowed(is_closing=self.room <= self._closing_room)

    def may_hold(self, modality: Modality) -> bool:
        """Whether a group fits, including room reserved for a required item."""
        if self._required[modality]:
            return True
        return self._spare_items > 0 and self._vocabulary.groups[modality] <= self.room

    def take(self, token: int) -> None:
        """Adds the model's choice: a text token, a whole group by its first token, or the end."""
        modality, ended = self._vocabulary.first_ids.get(token), token in self._ends
        if modality is not None:
            self._spare_items -= not self._required[modality]
            self._required -= Counter([modality])
            self.unread = self._add_group(modality)
        elif not ended:
            self.unread = [token, *(self.constraint.take(token) if self.constraint else ())][: self.room]
            self.runs[-1].ids += self.unread
            self._room -= len(self.unread)
            ended = self.constraint.is_complete if self.constraint else self._detokenizer.stops(self.runs[-1].ids)
            ended = self._telling.tokens(self.runs[-1].ids) or ended
        if ended or not self.room:
            self.was_cut = not ended
            self.complete()

    def complete(self) -> None:
        """Adds the items still required; the text before them may end with the stop mark."""
        for modality in self._required.elements():
            self._add_group(modality)
        self._telling.end(self.runs[-1].ids)
        self.unread = []

    def parts(self) -> tuple[Part, ...]:
        """The answer's texts and items, in order."""
        parts = [Item(modality=run.modality) if run.modality else self._said(run) for run in self.runs]
        return tuple(part for part in parts if part)

    def _said(self, run: Run) -> str:
        return self._stops.before(self._detokenizer.text(run.ids))

    def _add_group(self, modality: Modality) -> list[int]:
        self._telling.end(self.runs[-1].ids, Item(modality=modality))
        ids = list(self._vocabulary.group(modality))
        self.runs += [Run(modality, ids), Run(None)]
        self._room -= len(ids)
        return list(ids)
