"""Captions by a checkpoint of this project, on the devices of workers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.recaptioning.recaptions import CaptionSource
from jobs.replies.respond import ReplySettings
from model.inference.query import Query, Sampling, side_by_side
from model.parts.config import ModelConfig
from pipelines.curate.scorers import Content, reason_of
from pipelines.embed.encoding import VIDEO_FPS
from pipelines.media import codecs
from pipelines.sample import Turn
from pipelines.storage.shards import hash_file, hash_strings
from pipelines.views import pair_items

if TYPE_CHECKING:
    from model.inference.responder import Responder

BATCH = 8  # pairs that are answered together


def checkpoint_source(checkpoint: Path | str, config: ModelConfig, prompt: str, max_tokens: int) -> CaptionSource:
    """Captions by a checkpoint: a folder, by the hash of its files, or an id of the hub; `config` has been located."""
    name, identity = str(checkpoint), str(checkpoint)
    if isinstance(checkpoint, Path):
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        identity = hash_strings([f"{path.relative_to(checkpoint)} {hash_file(path)}" for path in files])
        name = f"{checkpoint.parent.name}/{checkpoint.name} {identity[:12]}"
    settings = ReplySettings(
        checkpoint=checkpoint,
        config=config,
        architecture="joint",
        require=[],
        sampling=Sampling(max_new_tokens=max_tokens, max_items=0),
        steps=None,
    )
    make = MakeCheckpointCaptions(settings=settings, prompt=prompt)
    return CaptionSource(
        model=name, identity=identity, prompt=prompt, max_tokens=max_tokens, make=make, on_devices=True
    )


@dataclass(frozen=True, kw_only=True)
class MakeCheckpointCaptions:
    """Makes the captioner in an actor."""

    settings: ReplySettings
    prompt: str

    def __call__(self) -> "CheckpointCaptions":
        """Loads the model."""
        return CheckpointCaptions(self.settings, self.prompt, self.settings.load())


class CheckpointCaptions:
    """Asks a model for the caption of each pair, greedily, in batches."""

    def __init__(self, settings: ReplySettings, prompt: str, responder: "Responder") -> None:
        self._settings, self._prompt, self._responder = settings, prompt, responder

    def __call__(self, contents: Sequence[Content]) -> list[str | Exception]:
        """The captions of pairs; where some fail together, each is tried alone."""
        asked = [self._query(content) for content in contents]
        said = self._answers([query for query in asked if isinstance(query, Query)])
        return [next(said) if isinstance(query, Query) else query for query in asked]

    def _query(self, content: Content) -> Query | Exception:
        items = pair_items(content.sample)
        try:
            media = {item.name: codecs.decode(content.sample.media[item.name], fps=VIDEO_FPS) for item in items}
        except ValueError as error:
            return error
        return self._settings.query([Turn(role="user", parts=(*items, self._prompt))], media)

    def _answers(self, queries: Sequence[Query]) -> Iterator[str | Exception]:
        for start in range(0, len(queries), BATCH):
            yield from side_by_side(self._answer, queries[start : start + BATCH])

    def _answer(self, queries: Sequence[Query]) -> list[str]:
        try:
            return [response.text for response in self._responder.respond_batch(queries)]
        except Exception as error:
            raise ValueError(f"not captioned: {reason_of(error)}") from error
