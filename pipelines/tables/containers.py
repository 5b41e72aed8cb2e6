"""Media inside container files: members of a tar, and bytes embedded in the columns of a Parquet or Arrow file.

An item's name goes on inside its container: `00000.tar/000000012.jpg`, `train.parquet/image/17`. The name of a medium
that a text holds in base64 is that text, as a data URI.
"""

import base64
import re
from pathlib import Path, PurePosixPath

import pyarrow as pa

from pipelines.storage.files import is_local
from pipelines.tables import archives, columns
from pipelines.tables.media_formats import media_format

SUFFIXES = (*archives.SUFFIXES, *columns.SUFFIXES)
_INLINE = re.compile(r"data:([^,]{0,200}),", re.IGNORECASE)
_BASE64_CHARACTERS = 64
_BASE64 = re.compile(rf"[A-Za-z0-9+/\r\n]{{{_BASE64_CHARACTERS}}}")


def split(root: Path, name: str) -> tuple[Path, str]:
    """The file a medium's name leads to below a folder, and what in it is meant: empty where it is the file itself."""
    parts = PurePosixPath(name).parts
    for count in range(1, len(parts)):
        if parts[count - 1].lower().endswith(SUFFIXES):
            outer = root.joinpath(*parts[:count])
            if not (is_local(outer) and outer.is_dir()):
                return outer, "/".join(parts[count:])
    return root / name, ""


def read_member(path: Path, member: str, max_bytes: int) -> tuple[bytes, str]:
    """The bytes of one medium in a container file and its format, a file suffix without a dot.

    `member` is a name in a tar; in a Parquet or Arrow file it is the column, the row's number in the file, and in a
    nested value the steps that lead to it (`image/17`, `images/17/0`).

    Raises:
        ValueError: `missing file: ...`, `too large: ...`, `unreadable: ...` or `path outside the root: ...`.
    """
    name = f"{path.name}/{member}"
    if leaves_root(member):
        raise ValueError(f"path outside the root: {name}")
    try:
        if archives.is_tar(path):
            data = archives.read_tar_member(path, member, max_bytes, name)
            return data, media_format(data, member, name)
        data, original = columns.read_bytes(path, member, max_bytes)
        return data, media_format(data, original, name)
    except FileNotFoundError:
        raise ValueError(f"missing file: {name} (there is no {path.name})") from None
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"unreadable: {name}: {' '.join(str(error).split())[:200]}") from None


def inline_name(text: str) -> str:
    """The name of a medium that a text holds itself, as a data URI or in bare base64; empty where it holds none."""
    if is_inline(text) and _INLINE.match(text):
        return text
    if len(text) >= _BASE64_CHARACTERS and (start := _BASE64.match(text)):
        try:
            media_format(base64.b64decode(start[0]), "", "text")
        except ValueError:
            return ""
        return f"data:;base64,{text}"
    return ""


def is_inline(name: str) -> bool:
    """Whether a medium's name holds the medium."""
    return name[:5].lower() == "data:"


def short_name(name: str) -> str:
    """A medium's name without the medium, where it holds that."""
    return f"{name.partition(',')[0]} of {len(name)} characters" if is_inline(name) else name


def read_inline(name: str, max_bytes: int) -> tuple[bytes, str]:
    """The bytes of a medium that its name holds, and its format by what they begin with.

    Raises:
        ValueError: `too large: ...`, `unreadable: ...`.
    """
    start = _INLINE.match(name)
    if start is None or not start[1].lower().endswith(";base64"):
        raise ValueError(f"unreadable: {short_name(name)[:200]} is not in base64")
    size = (len(name) - start.end()) // 4 * 3
    if size > max_bytes + 2 + max_bytes // 32:  # Padding, and line ends.
        raise ValueError(f"too large: {short_name(name)} has {size} bytes, the limit is {max_bytes}")
    try:
        data = base64.b64decode("".join(name[start.end() :].split()), validate=True)
    except ValueError:
        raise ValueError(f"unreadable: {short_name(name)} is damaged base64") from None
    return data, media_format(data, "", short_name(name))


def leaves_root(name: str) -> bool:
    """Whether a name is absolute or climbs."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or "\0" in name
