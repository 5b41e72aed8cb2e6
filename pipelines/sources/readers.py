"""Readers of source files, by their names in the catalog.

A reader takes a catalog entry and its file or folder, or a section of one, of any format of rows, and yields samples,
and rejects for the rows it cannot use. It opens no media: an item's name is a file below the entry's media folder, or
inside a container.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from pipelines.sample import Reject, Sample
from pipelines.sources import alpaca, conversations, mosit, pairs, t2x, videochat
from pipelines.sources.entry import Entry
from pipelines.tables.raw import Section

Reader = Callable[[Entry, Path | Section], Iterator[Sample | Reject]]

READERS: dict[str, Reader] = {
    "pairs": pairs.read,
    "conversations": conversations.read,
    "chats": conversations.read_chats,
    "alpaca": alpaca.read,
    "videochat": videochat.read,
    "t2x": t2x.read,
    "mosit": mosit.read,
}
