"""An entry of the catalog: a dataset, and how training stages see it."""

import re
from collections.abc import Mapping
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
from pipelines.views import Kind

_WILDCARD = re.compile(r"[*?[]")
_COLUMN = re.compile(r"\{(\w+)\}")


def _below_root(value: str) -> str:
    path = PurePosixPath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{value!r} must be a path below the data folder")
    return value


RelativePath = Annotated[str, AfterValidator(_below_root)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)]


def _template(value: str) -> str:
    if not _COLUMN.search(value) or set("{}") & set(_COLUMN.sub("", value)):
        raise ValueError(f"{value!r} must be a file name with columns of the row in it, such as '{{id}}.mp4'")
    return value


class View(BaseModel):
    """How one training stage sees a dataset.

    Where a medium has several captions, an epoch takes `all` of them, each with the medium, or `one`, another each
    time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal[1, 2, 3]
    kind: Kind
    captions: Literal["all", "one"] = "all"

    @model_serializer(mode="wrap")
    def _told(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is usual, so that the hash of an entry's settings is what it was before there was a choice."""
        return {name: value for name, value in serialize(self).items() if (name, value) != ("captions", "all")}


class Entry(BaseModel):
    """A dataset: `paths` are candidates for its source and `media` for the folder of its media, below the data folder.

    A source is a file, a folder, or with `*` the files of a folder. `modality` says what a caption pair holds; other
    readers find it in their rows. `fields` maps what a reader looks for to the columns of the source, the first that
    is there; `media_name` is the name of a pair's medium where no column has it (`{page_dir}/{videoid}.mp4`). With
    `missing_media: caption` a user's medium that is missing is replaced by its caption, and the sample says so.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reader: str
    paths: Annotated[list[RelativePath], Field(min_length=1)]
    media: Annotated[list[RelativePath], BeforeValidator(_as_list)] = []
    modality: Modality | None = None
    fields: dict[str, Names] = {}
    media_name: Annotated[str, AfterValidator(_template)] | None = None
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
        """Which files of a folder are meant, by the candidates with `*` that lead there; empty for all of them."""
        globs = (split_glob(spelling) for candidate in self.paths for spelling in spellings(candidate))
        return [pattern for parts, pattern in globs if pattern and (not parts or folder.parts[-len(parts) :] == parts)]

    def named(self, row: Mapping[str, Any]) -> str:
        """The name that `media_name` gives the medium of a row.

        Raises:
            ValueError: `missing field: ...`.
        """

        def value(match: re.Match[str]) -> str:
            if row.get(match[1]) is None:
                raise ValueError(f"missing field: {match[1]}")
            return str(row[match[1]])

        return _COLUMN.sub(value, self.media_name or "")


def split_glob(candidate: str) -> tuple[tuple[str, ...], str]:
    """The folders of a candidate before its first wildcard, and the pattern from there on, empty without one."""
    parts = PurePosixPath(candidate).parts
    count = next((index for index, part in enumerate(parts) if _WILDCARD.search(part)), len(parts))
    return parts[:count], "/".join(parts[count:])


def spellings(path: str) -> list[str]:
    """Both generations of the original write the folder of pairs their own way."""
    return list(dict.fromkeys((path, path.replace("T-X_pair_data", "T_X_pair_data"))))
