"""An answer as it grows: text, and whole groups of signal tokens, told part by part as they become certain."""

import re
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from model.core.dialogue import STOP
from model.core.vocabulary import SignalVocabulary
from model.inference.constraint import Constraint
from pipelines.sample import Item, Modality, Part

OnPart = Callable[[Part], None]
_STOP_WINDOW = 8  # tokens that surely hold the whole of "###", however a tokenizer cuts it
# What may yet turn out to be the stop mark, the space before it, or a character whose last bytes are to come.
_HALF = "\ufffd"
_UNCERTAIN = re.compile(r"[\s#\ufffd]+$")


@dataclass(slots=True)
class Run:
    """A stretch of an answer: the tokens of a text, or a whole group of signal tokens of `modality`."""

    modality: Modality | None
    ids: list[int] = field(default_factory=list)


class Detokenizer:
    """Tokens to text, and where a text comes to the stop mark."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._may_stop: dict[int, bool] = {}

    def text(self, ids: Sequence[int]) -> str:
        """A text as it stands in a reply, without the stop mark and the spaces about it."""
        return self._decode(ids).rstrip().removesuffix(STOP).strip()

    def grown(self, text: str, ids: Sequence[int], before: int, done: int) -> str:
        """The text of all `ids`, where `text` is that of the first `done` of them.

        Only those from `before` on are looked at: far enough back to see how the new ones join.
        """
        known, new = self._decode(ids[before:done]), self._decode(ids[before:])
        return text + new[len(known) :] if new.startswith(known) else self._decode(ids)

    def stops(self, ids: Sequence[int]) -> bool:
        """Whether a text has come to the stop mark, in whatever tokens."""
        return self._holds_mark(ids[-1]) and self._decode(ids[-_STOP_WINDOW:]).rstrip().endswith(STOP)

    def before_stop(self, ids: Sequence[int]) -> list[int]:
        """The tokens of a text before the stop mark: what training has before a signal group."""
        kept = list(ids)
        if kept and self.stops(kept):
            text = self._decode(ids).rstrip().removesuffix(STOP).rstrip()
            while kept and not _ends_within(self._decode(kept), text):
                kept.pop()
        return kept

    def _holds_mark(self, token: int) -> bool:
        # Remembered, since a text would else be decoded at each of its tokens.
        if token not in self._may_stop:
            self._may_stop[token] = STOP[0] in self._decode([token])
        return self._may_stop[token]

    def _decode(self, ids: Sequence[int]) -> str:
        # A clean-up of spaces would change text that was told already.
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _ends_within(beginning: str, text: str) -> bool:
    return text.startswith(beginning) and beginning == beginning.rstrip()


class _Telling:
    """Tells an answer part by part: an item when it is begun, a text in pieces that joined are the reply's text."""

    def __init__(self, on_part: OnPart | None, detokenizer: Detokenizer) -> None:
        self._on_part, self._detokenizer = on_part, detokenizer
        self._told, self._before = "", False  # of the text at hand; whether there was one before it
        self._text, self._places = "", (0, 0)  # that of its first tokens, and how far back to look for the next

    def tokens(self, ids: Sequence[int]) -> None:
        """Tells what is certain of a text that goes on: what no further token can change."""
        if self._on_part:
            before, done = self._places
            text = self._detokenizer.grown(self._text, ids, before, done)
            if not text.endswith(_HALF):
                self._text, self._places = text, (done, len(ids))
            self._tell(self._on_part, _UNCERTAIN.sub("", text).lstrip())

    def end(self, ids: Sequence[int], item: Item | None = None) -> None:
        """Tells the rest of a text, and the item that comes after it."""
        if self._on_part:
            self._tell(self._on_part, self._detokenizer.text(ids))
            self._before, self._told = self._before or bool(self._told), ""
            self._text, self._places = "", (0, 0)
            if item:
                self._on_part(item)

    def _tell(self, on_part: OnPart, text: str) -> None:
        if len(text) > len(self._told) and text.startswith(self._told):
            on_part((" " if self._before and not self._told else "") + text[len(self._told) :])
            self._told = text


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds an answer: its length in tokens, its number of items, and the tokens in `ends` that end it.

    One that is held to a schema ends with the schema.
    """

    max_new_tokens: int
    max_items: int
    ends: Set[int]
    constraint: Constraint | None = None


class Answer:
    """One answer, token by token; `unread` is what the LLM has to read of it next, nothing once it is complete.

    Items of `require` that the model does not bring forth itself come at the end; room is kept for them.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        vocabulary: SignalVocabulary,
        limits: Limits,
        require: Sequence[Modality] = (),
        on_part: OnPart | None = None,
    ) -> None:
        self._detokenizer, self._vocabulary, self._ends = detokenizer, vocabulary, limits.ends
        self._telling = _Telling(on_part, detokenizer)
        self.constraint = limits.constraint
        self._room, self._required = limits.max_new_tokens, Counter(require)
        self._spare_items = limits.max_items - len(require)
        self.runs = [Run(None)]
        self.unread: list[int] = []
        self.was_cut = False  # whether the limit ended it, and not the model

    @property
    def room(self) -> int:
        """How many tokens fit in beside the items that are still required."""
        return self._room - sum(self._vocabulary.groups[modality] for modality in self._required.elements())

    def may_hold(self, modality: Modality) -> bool:
        """Whether a group has room, be it the room kept for a required item."""
        if self._required[modality]:
            return True
        return self._spare_items > 0 and self._vocabulary.groups[modality] <= self.room

    def take(self, token: int) -> None:
        """Adds what the model chose: a token of a text, a whole group by its first token, or the end."""
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
            self._telling.tokens(self.runs[-1].ids)
        if ended or not self.room:
            self.was_cut = not ended
            self.complete()

    def complete(self) -> None:
        """Adds the items that are still required; the text before them may end in the stop mark."""
        for modality in self._required.elements():
            self._add_group(modality)
        self._telling.end(self.runs[-1].ids)
        self.unread = []

    def parts(self) -> tuple[Part, ...]:
        """Texts and items in the order they stand."""
        parts = [Item(modality=run.modality) if run.modality else self._detokenizer.text(run.ids) for run in self.runs]
        return tuple(part for part in parts if part)

    def _add_group(self, modality: Modality) -> list[int]:
        self._telling.end(self.runs[-1].ids, Item(modality=modality))
        ids = list(self._vocabulary.group(modality))
        self.runs += [Run(modality, ids), Run(None)]
        self._room -= len(ids)
        return list(ids)
