"""Silences messages of transformers and diffusers that nobody can act on; one thread at a time loads with them."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import RLock

# While they load, both replace functions of their own and of torch (transformers `PreTrainedModel.tie_weights` by one
# that does nothing). Of two threads, the second would take the replacement for the original, and put it back for good.
LOADING = RLock()
# Warnings about deprecated pipelines (we pin diffusers), a missing torchvision (not used), and an LLM's own sampling
# defaults (overridden by `model.inference.query.Sampling`).
_IDLE_LOGGERS = (
    "diffusers.pipelines.pipeline_utils",
    "transformers.utils.import_utils",
    "transformers.generation.configuration_utils",
)
# These loggers also report real problems: only the lines listed here are dropped.
_IDLE_LINES = {
    # About a .bin without .safetensors: it is loaded without executing code, and a missing one raises.
    "diffusers.models.modeling_utils": ("unsafe serialization", "trying to fetch", "kept in float32: []"),
    "transformers.configuration_utils": ("`hifigan`",),  # the type that every published vocoder has
}


class _Without(logging.Filter):
    """Drops lines that contain any of the given texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        super().__init__()
        self._texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in self._texts)


@contextmanager
def quiet_libraries(*, keep_bars: bool = False) -> Iterator[None]:
    """Hides progress bars and messages nobody can act on while a part is loaded or saved, by one thread at a time."""
    with LOADING:
        yield from _quiet(keep_bars)


def _quiet(keep_bars: bool) -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = () if keep_bars else (diffusers_logging, transformers_logging)
    bars = [library for library in libraries if library.is_progress_bar_enabled()]
    levels = {name: logging.getLogger(name).level for name in _IDLE_LOGGERS}
    filters = {name: _Without(texts) for name, texts in _IDLE_LINES.items()}
    try:
        for name, line_filter in filters.items():
            logging.getLogger(name).addFilter(line_filter)
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
        for name, line_filter in filters.items():
            logging.getLogger(name).removeFilter(line_filter)
