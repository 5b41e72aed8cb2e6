"""Answers on Ray: one prompt on a worker, or a JSON-lines file of conversations in batches.

The file is split into chunks of rows, as datasets are. An actor answers one chunk at a time and records the result, so
an interrupted run resumes after the last finished chunk. Which rows share a batch depends only on the file, so neither
the number of actors nor a restart changes a reply.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.data

from jobs.replies.respond import ReplySettings, respond_batch, stream
from model.inference.query import Query, Response
from pipelines.embed.embedding import Pool, plan_pool
from pipelines.embed.encoding import VIDEO_FPS
from pipelines.media import codecs
from pipelines.media.folder import load_rows
from pipelines.prepare.staging import Chunk, Source, remove_staged, source_stamp, stage_rows, staged_rows
from pipelines.progress import track
from pipelines.ray_steps import map_rows
from pipelines.sample import Item, Media, Part, Reject, Sample, Turn
from pipelines.sources.conversations import read_prompts
from pipelines.sources.entry import Entry
from pipelines.storage.files import atomic_path, read_json, write_json, write_text
from pipelines.storage.shards import hash_strings

if TYPE_CHECKING:
    from model.inference.responder import Responder

ROWS_AT_ONCE = 16  # per chunk: answered in one batch, and repeated together after an interruption
REPLIES = "replies.jsonl"
REJECTS = "rejects.jsonl"
MEDIA = "media"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How many conversations there were, answered and rejected; `before` of them were answered by an earlier run."""

    rows: int
    replies: int
    rejects: int
    before: int
    untrained: tuple[str, ...]


def answer(
    settings: ReplySettings, prompt: str, inputs: Sequence[Media], say: Callable[[str], None]
) -> Response[Media]:
    """Answers a prompt with its input media on a worker; `say` receives the text in pieces as they come."""
    gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0
    on_worker = ray.remote(num_gpus=gpus, num_cpus=1, num_returns="streaming")(respond)
    for reference in on_worker.remote(settings, prompt, inputs):
        part = ray.get(reference)
        if isinstance(part, str):
            say(part)
    assert isinstance(part, Response)
    return part


def respond(settings: ReplySettings, prompt: str, inputs: Sequence[Media]) -> Iterator[str | Response[Media]]:
    """Yields the reply's text in pieces, and the whole reply last."""
    responder = settings.load()
    items = [Item(modality=medium.modality, name=str(place)) for place, medium in enumerate(inputs)]
    media = {item.name: codecs.decode(medium, fps=VIDEO_FPS) for item, medium in zip(items, inputs, strict=True)}
    query = settings.query([Turn(role="user", parts=(*items, prompt))], media)
    for part in stream(settings.architecture, responder, query):
        if isinstance(part, str):
            yield part
        elif not isinstance(part, Item):
            yield Response(
                parts=part.parts,
                media=tuple(codecs.encode(medium) for medium in part.media),
                prompt_tokens=part.prompt_tokens,
                tokens=part.tokens,
                was_cut=part.was_cut,
                plan=part.plan,
                untrained=part.untrained,
            )


def answer_file(
    conversations: Path, media: Path, out: Path, settings: ReplySettings, *, gpus: int | None = None
) -> Summary:
    """Answers each conversation of a file into `out`: `replies.jsonl`, `rejects.jsonl`, and media.

    Rows are chats (`pipelines.sources.conversations`) that end in a user's turn; their media are in the folder `media`.
    Rows that cannot be read or answered go to `rejects.jsonl` with the reason. Needs a running Ray.
    """
    source = Source(
        entry=Entry(name="conversations", reader="chats", paths=[conversations.name]),
        path=conversations,
        media=media,
        directory=out,
        samples_per_shard=ROWS_AT_ONCE,
    )
    with track("read", None, "conversations") as bar:
        staged = stage_rows(source, bar, read_prompts)
    fingerprints = [_fingerprint(chunk, settings) for chunk in staged.chunks]
    todo = [number for number, wanted in enumerate(fingerprints) if not _is_done(source, number, wanted)]
    _answer(source, settings, {number: fingerprints[number] for number in todo}, staged.chunks, plan_pool(gpus))
    records = [read_json(_record(source, number)) for number in range(len(staged.chunks))]
    rejects = [*map(asdict, staged.rejects()), *(reject for record in records for reject in record["rejects"])]
    _write_lines(out / REPLIES, (reply for record in records for reply in record["replies"]))
    _write_lines(out / REJECTS, sorted(rejects, key=lambda reject: str(reject["key"])))
    _remove_others(out / MEDIA, {name for record in records for name in record["files"]})
    remove_staged(source)
    return Summary(
        rows=staged.rows,
        replies=sum(len(record["replies"]) for record in records),
        rejects=len(rejects),
        before=sum(len(r["replies"]) for number, r in enumerate(records) if number not in todo),
        untrained=tuple(dict.fromkeys(name for record in records for name in record["untrained"])),
    )


def _fingerprint(chunk: Chunk, settings: ReplySettings) -> str:
    """A hash of everything that the replies of a chunk depend on."""
    weights = source_stamp(settings.checkpoint) if isinstance(settings.checkpoint, Path) else settings.checkpoint
    shown = {"checkpoint": str(settings.checkpoint), "config": settings.config.model_dump(mode="json")}
    asked = json.dumps(asdict(settings) | shown, sort_keys=True)
    return hash_strings([chunk.fingerprint, asked, weights])


def _record(source: Source, chunk: int) -> Path:
    return source.work / "replies" / f"{chunk:06d}.json"


def _is_done(source: Source, chunk: int, fingerprint: str) -> bool:
    try:
        record = read_json(_record(source, chunk))
    except (OSError, ValueError):
        return False
    files = [source.directory / MEDIA / name for name in record["files"]]
    return record["fingerprint"] == fingerprint and all(file.is_file() for file in files)


def _answer(
    source: Source, settings: ReplySettings, todo: Mapping[int, str], chunks: Sequence[Chunk], pool: Pool
) -> None:
    rows = [{"chunk": number, "fingerprint": fingerprint} for number, fingerprint in todo.items()]
    actors = {
        "fn_constructor_args": (source, settings),
        "compute": ray.data.ActorPoolStrategy(size=max(1, min(pool.actors, len(rows)))),
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus,
    }
    with track("answer", sum(chunks[number].rows for number in todo), "conversations") as bar:
        for row in map_rows(rows, Answerer, **actors):
            bar.advance(chunks[row["chunk"]].rows, rejected=row["rejected"])


class Answerer:
    """The actor: answers one chunk at a time, and writes its replies and media."""

    def __init__(self, source: Source, settings: ReplySettings) -> None:
        self._source, self._settings = source, settings

    @cached_property
    def _responder(self) -> "Responder":
        return self._settings.load()

    def _query(self, sample: Sample, number: int) -> Query:
        named = {item.name for item in sample.items("user") if item.name}
        media = {name: codecs.decode(sample.media[name], fps=VIDEO_FPS) for name in named}
        return self._settings.query(sample.turns, media, number)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answers a chunk; returns how many of its conversations were rejected."""
        source, number = self._source, row["chunk"]
        results = list(load_rows(staged_rows(source, number), source.media, source.policy))
        rejects = [result for result in results if isinstance(result, Reject)]
        asked = {
            sample.key: (sample, self._query(sample, number * ROWS_AT_ONCE + place))
            for place, sample in enumerate(results)
            if isinstance(sample, Sample)
        }
        replies, files, untrained = [], list[str](), dict[str, None]()
        queries = [query for _, query in asked.values()]
        responses = respond_batch(self._settings.architecture, self._responder, queries)
        for key, response in zip(asked, responses, strict=True):
            sample = asked[key][0]
            if isinstance(response, ValueError):
                rejects.append(Reject(source=sample.source, key=key, stage="answer", reason=str(response)))
                continue
            media = [codecs.encode(medium) for medium in response.media]
            names = self._write(key, media)
            message = _message(response, names, [medium.note for medium in media])
            replies.append({"key": key, "source": sample.source, "text": response.text, **message})
            files += names
            untrained |= dict.fromkeys(response.untrained)
        content = {"replies": replies, "rejects": [asdict(reject) for reject in rejects], "files": files}
        # Last: the record marks the chunk as complete.
        write_json(_record(source, number), {**row, **content, "untrained": list(untrained)})
        return {"chunk": number, "rejected": len(rejects)}

    def _write(self, key: str, media: Sequence[Media]) -> list[str]:
        names = []
        for number, medium in enumerate(media, start=1):
            names.append(f"{key}-{number}.{medium.format}")
            with atomic_path(self._source.directory / MEDIA / names[-1]) as temporary:
                temporary.write_bytes(medium.data)
        return names


def _message(response: Response[Any], names: Sequence[str], notes: Sequence[str]) -> dict[str, Any]:
    """A reply as a turn of a chat; media with a note carry it."""
    left = iter(zip(names, notes, strict=True))

    def content(part: Part) -> dict[str, str]:
        if isinstance(part, Item):
            name, note = next(left)
            shown = {"type": part.modality.value, part.modality.value: f"{MEDIA}/{name}"}
            return shown | ({"note": note} if note else {})
        return {"type": "text", "text": part}

    return {"message": {"role": "assistant", "content": [content(part) for part in response.parts]}}


def _write_lines(path: Path, rows: Iterable[Any]) -> None:
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    write_text(path, "".join(lines))


def _remove_others(folder: Path, kept: set[str]) -> None:
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.name not in kept:
            file.unlink()
