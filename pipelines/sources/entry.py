"""An entry of the catalog: a dataset, and how training stages see it."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pipelines.sample import Modality
from pipelines.storage.conditions import parse_condition
from pipelines.tables import archives
from pipelines.tables.raw import identifier, is_missing
from pipelines.views import Kind

_WILDCARD = re.compile(r"[*?[]")
_COLUMN = re.compile(r"\{(\w+)(?::0(\d))?\}")


def _below_root(value: str) -> str:
    path = PurePosixPath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{value!r} must be a path below the data folder")
    return value


RelativePath = Annotated[str, AfterValidator(_below_root)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)]


def _templates(values: list[str]) -> list[str]:
    for value in values:
        if not _COLUMN.search(value) or set("{}") & set(_COLUMN.sub("", value)):
            raise ValueError(f"{value!r} must be a file name with columns of the row in it, such as '{{id}}.mp4'")
    return values


def _condition(value: str) -> str:
    return parse_condition(value).text if value else ""


class View(BaseModel):
    """How one training stage sees a dataset.

    Where a medium has several captions, an epoch takes `all` of them, each with the medium, or `one`, another each
    time. `where` is a condition on the columns of jobs/curate.py that a sample has to satisfy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal[1, 2, 3]
    kind: Kind
    captions: Literal["all", "one"] = "all"
    where: Annotated[str, AfterValidator(_condition)] = ""

    @model_serializer(mode="wrap")
    def _told(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is usual, so that the hash of an entry's settings is what it was before there was a choice."""
        usual = {"captions": "all", "where": ""}
        return {name: value for name, value in serialize(self).items() if usual.get(name) != value}


class Entry(BaseModel):
    """A dataset: `paths` are candidates for its source and `media` for the folder of its media, below the data folder.

    A source is a file, a folder, or with `*` the files of a folder. `modality` says what a caption pair holds; other
    readers find it in their rows. `fields` maps what a reader looks for to the columns of the source, the first that
    is there. `media_name` is the name of a pair's medium where no column has it (`{page_dir}/{videoid}.mp4`), or a list
    of names, of which the first that is there is taken; in a file's own name `*` stands for any text, and `{start:06}`
    is filled up with zeros. With `missing_media: caption` a user's medium that is missing is replaced by its caption,
    and the sample says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reader: str
    paths: Annotated[list[RelativePath], Field(min_length=1)]
    media: Annotated[list[RelativePath], BeforeValidator(_as_list)] = []
    modality: Modality | None = None
    fields: dict[str, Names] = {}
    media_name: Annotated[list[str], BeforeValidator(_as_list), AfterValidator(_templates)] = []
    missing_media: Literal["reject", "caption"] = "reject"
    views: dict[str, View] = {}
    licence: str = ""
    source: str = ""

    @model_validator(mode="after")
    def _fits(self) -> "Entry":
        pairs = self.reader == "pairs"
        if pairs != (self.modality is not None):
            raise ValueError("a modality is needed for the reader 'pairs', and for no other")
        if self.media_name and not pairs:
            raise ValueError("media_name is for the reader 'pairs'; rows of others name their media")
        wrong = [name for name, view in self.views.items() if view.kind != "dialogue" and not pairs]
        if wrong:
            raise ValueError(f"views of kind caption or generate need the reader 'pairs': {', '.join(wrong)}")
        return self

    def patterns(self, folder: Path) -> list[str]:
        """The patterns of a folder's files, from candidates with `*` that lead there; empty means all files."""
        globs = (split_glob(spelling) for candidate in self.paths for spelling in spellings(candidate))
        return [pattern for parts, pattern in globs if pattern and (not parts or folder.parts[-len(parts) :] == parts)]

    def named(self, row: Mapping[str, Any]) -> str:
        """The name that `media_name` gives the medium of a row, the first whose columns are there.

        Raises:
            ValueError: `missing field: ...`.
        """
        if names := filled(self.media_name, row):
            return names[0]
        missing = next(column for column, _ in _COLUMN.findall(self.media_name[0]) if is_missing(row.get(column)))
        raise ValueError(f"missing field: {missing}")


def filled(templates: Iterable[str], row: Mapping[str, Any], spelled: Callable[[str], str] = str) -> list[str]:
    """File names filled in with a row's values; names with missing values are left out."""

    def value(match: re.Match[str]) -> str:
        return spelled(str(identifier(row[match[1]])).zfill(int(match[2] or 0)))

    def is_there(template: str) -> bool:
        return all(not is_missing(row.get(column)) for column, _ in _COLUMN.findall(template))

    return [_COLUMN.sub(value, template) for template in templates if is_there(template)]


def split_glob(candidate: str) -> tuple[tuple[str, ...], str]:
    """The folders of a candidate up to its first wildcard, and the pattern from there on, or empty."""
    parts = PurePosixPath(candidate).parts
    count = next((index for index, part in enumerate(parts) if _WILDCARD.search(part)), len(parts))
    return parts[:count], "/".join(parts[count:])


def spellings(path: str) -> list[str]:
    """A candidate as it may be written: both generations name the folder of pairs their own way; tars may be packed."""
    named = dict.fromkeys((path, path.replace("T-X_pair_data", "T_X_pair_data")))
    tars = [name.removesuffix(".tar") for name in named if name.endswith(".tar") and _WILDCARD.search(name)]
    return list(dict.fromkeys([*named, *(name + suffix for name in tars for suffix in archives.SUFFIXES)]))
