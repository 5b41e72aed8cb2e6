"""The marker file of parts with random weights."""

from pathlib import Path

from pipelines.storage.files import read_json, write_json

MARKER = "untrained.json"
_NOTE = "Random weights in the real architecture at toy size: it runs and keeps its shapes, it has learnt nothing."


def mark_untrained(directory: Path) -> None:
    """Writes the marker into the folder of a part."""
    write_json(directory / MARKER, {"trained": False, "note": _NOTE})


def is_marked(directory: Path) -> bool:
    """Whether a folder is marked as untrained."""
    marker = directory / MARKER
    return marker.is_file() and not read_json(marker)["trained"]
