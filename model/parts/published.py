"""Published parts by their configuration files alone, which are shipped: runs on them are planned without the hub."""

import re
from pathlib import Path

from model.parts.builtin import BUILTIN

PUBLISHED = Path(__file__).parents[1] / "published"
_FILES = ("config.json", "model_index.json")


def described(name: str) -> str:
    """Where the configuration of a named part is read from to plan a run.

    That is a folder of `PUBLISHED` for a part on the hub that is described there and not on this machine, else `name`
    itself.
    """
    folder = PUBLISHED / name
    if is_here(name) or not re.fullmatch(r"[\w-]+/[\w.-]+", name):
        return name
    return str(folder) if any((folder / file).is_file() for file in _FILES) else name


def is_here(name: str) -> bool:
    """Whether a part is built in, a file or folder, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache  # late: it takes time, and most names are not of the hub
    from huggingface_hub.errors import HFValidationError

    if name.startswith(BUILTIN) or Path(name).exists():
        return True
    try:
        return any(isinstance(try_to_load_from_cache(name, file), str) for file in _FILES)
    except HFValidationError:
        return False
