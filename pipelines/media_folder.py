"""The folder a dataset's media lie in: finds, loads and checks what rows name, and reads nothing outside of it."""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipelines import media as media_files
from pipelines.sample import Item, Media, Modality, Sample, Turn

# What file systems allow.
MAX_NAME_BYTES = 255
# Every frame of a video is decoded when it is checked, but only so many a second are kept in memory.
CHECK_FPS = 1.0


def load_media(row: Sample, root: Path | None) -> Sample:
    """Loads and fully decodes the media a row names, so that what cannot be read is found now.

    An output item needs its caption alone: where its medium is missing or broken the sample stays, without it.

    Raises:
        ValueError: an input medium is missing, unreadable, too large or outside the media folder.
    """
    loaded: dict[str, Media] = {}
    names: dict[tuple[str, Modality], str] = {}
    missing: list[str] = []
    count = len({(item.name, item.modality) for item in row.items() if item.name})

    def load(item: Item, *, required: bool) -> Item:
        if not item.name:
            return item
        if (item.name, item.modality) in names:
            return replace(item, name=names[item.name, item.modality])
        try:
            medium = media_files.load(_inside(root, item.name), item.modality)
            media_files.decode(medium, fps=CHECK_FPS)
        except (ValueError, OSError):
            if required:
                raise
            missing.append(item.name)
            return replace(item, name="")
        name = medium.format if count == 1 else f"{len(loaded)}.{medium.format}"
        loaded[name] = medium
        names[item.name, item.modality] = name
        return replace(item, name=name)

    turns = tuple(
        Turn(
            role=turn.role,
            parts=tuple(
                load(part, required=turn.role == "user") if isinstance(part, Item) else part for part in turn.parts
            ),
        )
        for turn in row.turns
    )
    meta = dict(row.meta) | ({"missing_media": missing} if missing else {})
    return replace(row, turns=turns, media=loaded, meta=meta)


def state_of(root: Path | None, name: str) -> str:
    """A medium's size and time, which change when its content does; `missing` where it cannot be found."""
    try:
        stat = _inside(root, name).stat()
    except (ValueError, OSError):
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _inside(root: Path | None, name: str) -> Path:
    """The path of a medium, kept inside its folder."""
    if root is None:
        raise ValueError(f"missing file: {name} (the catalog names no media folder)")
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise ValueError(f"path outside the root: {name}")
    path = root / relative
    if any(len(part.encode()) > MAX_NAME_BYTES for part in relative.parts):
        raise ValueError(f"missing file: {name[:40]}... (no file name is that long)")
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"path outside the root: {name} is a link that leaves the media folder")
    if not path.is_file():
        raise ValueError(f"missing file: {name} is not in the media folder")
    return path
