"""Which encoder a task uses, remembered by this machine: loading one to learn its id takes seconds to minutes."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.embed.encoding import EmbedTask, Encoder
from pipelines.storage.files import write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderIdentity:
    """Which encoder it is, without the encoder."""

    id: str
    name: str
    untrained: bool
    precision: str = "float32"

    @classmethod
    def of(cls, encoder: Encoder) -> "EncoderIdentity":
        """That of a loaded encoder."""
        return cls(id=encoder.id, name=encoder.name, untrained=encoder.untrained, precision=encoder.precision)


def recall(task: EmbedTask) -> EncoderIdentity | None:
    """What this machine remembers of a task's encoder; None where it has to be loaded to be known."""
    path = _memory(task.memory)
    try:
        return EncoderIdentity(**json.loads(path.read_text(encoding="utf-8"))) if path else None
    except (OSError, ValueError, TypeError):
        return None


def learn(task: EmbedTask) -> EncoderIdentity:
    """Loads a task's encoder, and remembers which one it is."""
    before = _memory(task.memory)
    identity = EncoderIdentity.of(task.factory())
    path = _memory(task.memory)
    # Files that changed meanwhile, or were downloaded just now, are remembered as they are next time.
    if path and path == before:
        with suppress(OSError):  # no place to remember anything: the encoder is loaded again next time
            write_json(path, asdict(identity))
    return identity


def _memory(memory: Callable[[], Path | None] | None) -> Path | None:
    return memory() if memory else None
