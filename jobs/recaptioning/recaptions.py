"""New captions of pairs by a model, as a column beside the shards: a scorer like any other of `pipelines.curate`."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from pipelines.curate.columns import REASON
from pipelines.curate.scorers import Content, Scorer, Values
from pipelines.storage.new_captions import COLUMN, SCORER
from pipelines.views import pair_items

VERSION = "1"
MOST_CHARACTERS = 2000


class Captioner(Protocol):
    """Says what is in the media of pairs: a text for each, or the error that says why there is none."""

    def __call__(self, contents: Sequence[Content]) -> Sequence[str | Exception]:
        """The captions of pairs, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionSource:
    """Where captions come from, and what makes a captioner in a worker; they depend on `identity`, not on `model`."""

    model: str
    identity: str
    prompt: str
    max_tokens: int
    make: Callable[[], Captioner]
    on_devices: bool


def recaption_scorer(source: CaptionSource) -> Scorer:
    """The scorer whose column are the new captions; null for what is no pair."""
    facts = [VERSION, source.identity, source.prompt, source.max_tokens]
    return Scorer(
        name=SCORER,
        columns={COLUMN: "str"},
        version=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
        make=partial(_make, source.make),
        on_devices=source.on_devices,
        about={"model": source.model, "prompt": source.prompt},
    )


def _make(make: Callable[[], Captioner]) -> "Recaptions":
    return Recaptions(make())


class Recaptions:
    """Captions samples that are pairs with all their media."""

    def __init__(self, captioner: Captioner) -> None:
        self._captioner = captioner

    def __call__(self, contents: Sequence[Content]) -> list[Values]:
        """The new caption of each sample, or why there is none."""
        pairs = [content for content in contents if _is_captioned(content)]
        said = iter(self._captioner(pairs)) if pairs else iter(())
        return [_told(next(said)) if _is_captioned(content) else {COLUMN: None} for content in contents]


def _is_captioned(content: Content) -> bool:
    items = pair_items(content.sample)
    return bool(items) and all(item.name in content.sample.media for item in items)


def _told(said: str | Exception) -> Values:
    if isinstance(said, Exception):
        return {REASON: " ".join(str(said).split())[:300] or type(said).__name__}
    text = " ".join(said.split())
    if not text:
        return {REASON: "the model said nothing"}
    if len(text) > MOST_CHARACTERS:
        return {REASON: f"a caption of {len(text)} characters; it may have {MOST_CHARACTERS}"}
    return {COLUMN: text}
