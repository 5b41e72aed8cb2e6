"""Names of the frozen parts: some are shipped, some built here on first use, and any other name is left alone."""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

BUILTIN = "builtin:"
PREFIX = "builtin:tiny/"
SHIPPED = "builtin:world/"
PARTS = ("llm", "imagebind", "image_decoder", "video_decoder", "audio_decoder")
MARKER = "untrained.json"

# Threads of one process share torch's random state, which a build seeds.
_BUILD_LOCK = Lock()
_HERE = Path(__file__).parent
FOUNDATIONS = _HERE / "foundations"
_BUILDER_FILES = tuple(
    _HERE / name for name in ("tiny.py", "architectures.py", "imagebind.py", "presets/tiny_corpus.txt")
)
_LIBRARIES = ("torch", "transformers", "diffusers", "tokenizers")
# They tell of deprecated pipelines (we pin diffusers), of an absent torchvision (we do not use it), and of how an LLM's
# own file would have it sampled (whoever asks says that: `model.query.Sampling`).
_IDLE_LOGGERS = (
    "diffusers.pipelines.pipeline_utils",
    "transformers.utils.import_utils",
    "transformers.generation.configuration_utils",
)


def resolve(name: str) -> str:
    """Returns a path or hub id that `from_pretrained` takes.

    `builtin:world/<part>` was trained by jobs/bootstrap.py and lies in this package. `builtin:tiny/<part>` has random
    weights and is built below `$NEXTGPT_CACHE` (default `~/.cache/nextgpt-ray`) where it is absent; every process that
    builds it gets the same bytes. Raises ValueError for an unknown `builtin:` name, FileNotFoundError for an
    absolute path that is not on this machine.
    """
    if not name.startswith(BUILTIN):
        if Path(name).is_absolute() and not Path(name).exists():
            # Of a hub id transformers would say that it cannot reach the hub, of a path it says the same.
            raise FileNotFoundError(f"{name}: not on this machine ({platform.node()}); put it where all workers see it")
        return name
    if not is_builtin(name):
        known = ", ".join(family + known for family in (SHIPPED, PREFIX) for known in PARTS)
        raise ValueError(f"{name}: no such built-in part; use one of {known}, a directory or a hub id")
    prefix, part = _split(name)
    if prefix == SHIPPED:
        return str(FOUNDATIONS / part)
    directory = _tiny_root() / part
    with _BUILD_LOCK:
        if not directory.is_dir():
            _build(part, directory)
    return str(directory)


def is_builtin(name: str) -> bool:
    """Whether a name is that of a built-in part."""
    prefix, part = _split(name)
    return prefix in (PREFIX, SHIPPED) and part in PARTS


def _split(name: str) -> tuple[str, str]:
    end = name.find("/") + 1
    return name[:end], name[end:]


def is_untrained(name: str) -> bool:
    """Tells whether a part holds random weights: its directory says so in `untrained.json`."""
    marker = Path(resolve(name) if name.startswith(BUILTIN) else name) / MARKER
    return marker.is_file() and not json.loads(marker.read_text(encoding="utf-8"))["trained"]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress bars and notices that nobody can act on off the log while a local part loads or is written."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    bars = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    levels = {name: logging.getLogger(name).level for name in _IDLE_LOGGERS}
    try:
        for library in bars:
            library.disable_progress_bar()
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for library in bars:
            library.enable_progress_bar()
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _tiny_root() -> Path:
    cache = os.environ.get("NEXTGPT_CACHE")
    root = Path(cache) if cache else Path.home() / ".cache" / "nextgpt-ray"
    return root / f"tiny-{_builder_version()}"


def _builder_version() -> str:
    """What the bytes of a tiny part depend on: the builders' own text and the libraries' major versions."""
    digest = hashlib.sha256()
    for file in _BUILDER_FILES:
        digest.update(file.read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library} {version(library).split('.')[0]}\n".encode())
    return digest.hexdigest()[:12]


def _build(part: str, directory: Path) -> None:
    """Builds beside the final place and renames, so that a directory which exists is complete."""
    from model.tiny import build  # torch and diffusers load only where something is built

    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{part}-", dir=directory.parent) as scratch:
        staged = Path(scratch) / part
        build(part, staged)
        try:
            staged.rename(directory)
        except OSError:
            # Another process was faster; its bytes are the same, ours go with the scratch directory.
            if not directory.is_dir():
                raise
