"""A dataset's media folder: finds, loads and stores the media that rows name, and reads nothing outside it."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

from pipelines.media import codecs
from pipelines.media.policy import Limits, MediaPolicy, Refused
from pipelines.media.process import media_process
from pipelines.media.stored import Stored
from pipelines.sample import Item, Media, Modality, Part, Reject, Sample, Turn
from pipelines.storage.files import is_local
from pipelines.tables.containers import is_inline, leaves_root, read_inline, read_member, short_name, split

# What file systems allow.
MAX_NAME_BYTES = 255
_MAX_SHOWN = 120
_MISSING = "missing file"
_REMOTE_READS = 4  # at a time from an object store: each waits for the network, and may be as large as the limit.
# A path the system cannot follow: too long in all, or a circle of links (RuntimeError before Python 3.13).
_NO_PATH = (OSError, RuntimeError)

_HUB_REPOSITORY = re.compile(r"(datasets|models|spaces)--.+")

Key = tuple[str, Modality]
ToMedia = Callable[[Key], Media | Refused]


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """Where a link in a local media folder may lead: into that folder, into any of `roots`, or with `follow` anywhere.

    Beside these, into the blobs of the Hugging Face cache that the folder is a snapshot of.
    """

    roots: tuple[Path, ...] = ()
    follow: bool = False


NO_LINKS = Links()


def load_rows(
    rows: Iterable[Sample],
    root: Path | None,
    policy: MediaPolicy,
    captions_stand_in: bool = False,
    links: Links = NO_LINKS,
) -> Iterator[Sample | Reject]:
    """Loads the media each row names, checks them whole and gives them the policy's form; one result a row, in order.

    Items in the results are named by tar member; meta["media"] has the original name and the facts of each.
    An output item needs its caption alone: where its medium is missing or broken the sample stays, without it, and
    meta["missing_media"] names it. With `captions_stand_in`, an input item whose medium is missing becomes its caption
    as text, and meta["captions_as_text"] counts them. Anything else that cannot be read makes a Reject.
    """
    results: list[Stored | Refused] = []
    with media_process() as process:
        read = partial(_try_read, root, links, policy.limits)
        for element in process.store(_elements(rows, read, root is None or is_local(root)), policy):
            if isinstance(element, Stored | Refused):
                results.append(element)
                continue
            assert isinstance(element, Sample)
            found = dict(zip(_wanted(element), results, strict=True))
            try:
                yield _Loading(found, captions_stand_in).sample(element)
            except Refused as error:
                yield Reject(source=element.source, key=element.key, stage="media", reason=str(error))
            results = []


class _Loading:
    """Attaches the media of one row."""

    def __init__(self, found: Mapping[Key, Stored | Refused], captions_stand_in: bool) -> None:
        self._found, self._captions_stand_in = found, captions_stand_in
        self._names: dict[Key, str] = {}
        self._media: dict[str, Media] = {}
        self._facts: dict[str, dict[str, str | int | float]] = {}
        self._missing: list[str] = []
        self._captions = 0

    def sample(self, row: Sample) -> Sample:
        """The row with its media and facts about them; raises Refused if one is missing."""
        turns = tuple(
            Turn(role=turn.role, parts=tuple(self._part(turn, part) for part in turn.parts)) for turn in row.turns
        )
        said = {"media": self._facts, "missing_media": self._missing, "captions_as_text": self._captions}
        meta = dict(row.meta) | {name: value for name, value in said.items() if value}
        return replace(row, turns=turns, media=self._media, meta=meta)

    def _part(self, turn: Turn, part: Part) -> Part:
        if isinstance(part, str):
            return part
        result = self._found.get((part.name, part.modality))
        if isinstance(result, Stored):
            return replace(part, name=self._name(part, result))
        is_input = turn.role == "user"
        is_missing = result is None or str(result).startswith(_MISSING)
        if is_input and is_missing and part.caption and self._captions_stand_in:
            self._captions += 1
            return "\n".join(part.captions)
        if result is None:
            return part
        if is_input:
            raise _naming(result, part.name)
        self._missing.append(short_name(part.name))
        return replace(part, name="")

    def _name(self, item: Item, stored: Stored) -> str:
        key = item.name, item.modality
        if key not in self._names:
            suffix = stored.media.format
            name = self._names[key] = suffix if len(self._found) == 1 else f"{len(self._media)}.{suffix}"
            self._media[name] = stored.media
            self._facts[name] = {"file": short_name(item.name), **stored.facts}
        return self._names[key]


def _wanted(row: Sample) -> list[Key]:
    """The distinct media that a row names."""
    return list(dict.fromkeys((item.name, item.modality) for item in row.items() if item.name))


def _elements(rows: Iterable[Sample], read: ToMedia, at_once: bool) -> Iterator[Media | Refused | Sample]:
    """The media of each row, or why they cannot be read, and then the row itself; read when asked for, or ahead."""
    if at_once:
        for row in rows:
            yield from map(read, _wanted(row))
            yield row
        return
    ahead: deque[Future[Media | Refused] | Sample] = deque()
    with ThreadPoolExecutor(_REMOTE_READS) as pool:
        for row in rows:
            ahead.extend(pool.submit(read, key) for key in _wanted(row))
            ahead.append(row)
            while len(ahead) > 2 * _REMOTE_READS:
                yield _done(ahead.popleft())
        yield from map(_done, ahead)


def _done(element: "Future[Media | Refused] | Sample") -> Media | Refused | Sample:
    return element.result() if isinstance(element, Future) else element


def _try_read(root: Path | None, links: Links, limits: Limits, key: Key) -> Media | Refused:
    try:
        return _read(root, links, *key, limits)
    except ValueError as error:
        return error if isinstance(error, Refused) else Refused(" ".join(str(error).split()))
    except _NO_PATH as error:
        return Refused(f"unreadable: {_shown(key[0])} ({' '.join(str(error).split())[:_MAX_SHOWN]})")


def _read(root: Path | None, links: Links, name: str, modality: Modality, limits: Limits) -> Media:
    if is_inline(name):
        data, suffix = read_inline(name, limits.max_bytes)
        return Media(modality=modality, data=data, format=suffix)
    path, member = _inside(root, links, name)
    if not member:
        return codecs.load(path, modality, limits)
    data, suffix = read_member(path, member, limits.max_bytes)
    limits.check_bytes(len(data))
    return Media(modality=modality, data=data, format=suffix)


def _naming(refused: Refused, name: str) -> Refused:
    """The reason, together with the medium's name."""
    reason, shown = str(refused), _shown(short_name(name))
    if shown in reason:
        return refused
    return Refused(f"{reason} ({shown})" if ":" in reason else f"{reason}: {shown}")


def _shown(name: str) -> str:
    """A name in a form that fits into a reason: short, on one line, encodable."""
    return " ".join(name.encode("utf-8", "replace").decode().split())[:_MAX_SHOWN]


def _inside(root: Path | None, links: Links, name: str) -> tuple[Path, str]:
    """The file of a medium, kept inside its folder, and the member it is of that."""
    shown, name = _shown(name), _below(root, name)
    if leaves_root(name):
        raise Refused(f"path outside the root: {shown}")
    if root is None:
        raise Refused(f"{_MISSING}: {shown} (the catalog names no media folder)")
    if name.encode("utf-8", "replace").decode() != name:  # Half of a surrogate pair.
        raise Refused(f"{_MISSING}: {shown} (no file name holds such characters)")
    if any(len(part.encode()) > MAX_NAME_BYTES for part in PurePosixPath(name).parts):
        raise Refused(f"{_MISSING}: {shown}... (no file name is that long)")
    path, member = split(root, name)
    if is_local(path):
        _check_link(root, links, path.resolve(), shown)
    return path, member


def _below(root: Path | None, name: str) -> str:
    """Makes a name that is an absolute path in the media folder relative to it; others are returned unchanged."""
    path = PurePosixPath(name)
    if root is None or not is_local(root) or not path.is_absolute():
        return name
    folder = next(filter(path.is_relative_to, (root, _resolved(root))), None)
    return name if folder is None else str(path.relative_to(folder))


def _check_link(root: Path, links: Links, target: Path, shown: str) -> None:
    """Raises Refused unless `target` is inside the media folder, or reached by a permitted link."""
    folder = _resolved(root)
    if target.is_relative_to(folder):
        return
    known = target.parent == _blobs(folder) or any(target.is_relative_to(_resolved(root)) for root in links.roots)
    if not (known or links.follow):
        raise Refused(f"path outside the root: {shown} is a link to {_shown(str(target))}; --follow-links follows it")
    if target.exists() and not target.is_file():
        raise Refused(f"unreadable: {shown} is a link to {_shown(str(target))}, which is not a regular file")


@lru_cache(maxsize=64)
def _blobs(folder: Path) -> Path | None:
    """Where the Hugging Face cache keeps the files of which a folder is a snapshot, or a part of one; else None."""
    for revision in (folder, *folder.parents):
        repository = revision.parent.parent
        if revision.parent.name == "snapshots" and _HUB_REPOSITORY.fullmatch(repository.name):
            blobs = repository / "blobs"
            return blobs if blobs.resolve() == blobs else None  # A link there would lead anywhere.
    return None


@lru_cache(maxsize=64)
def _resolved(root: Path) -> Path:
    return root.resolve()
